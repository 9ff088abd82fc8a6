"""The log-ratio of two policies, from log-probabilities that separate programs may have rounded differently."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign.losses.masking import as_float32

PerResponse = Float[Array, "examples responses"]

# Nats per nat of log-probability and per token. Float32 sums of the same tokens, in another order (packed, on another mesh, in
# another compiled program), differ by up to half of this in measurements.
RESOLUTION = 1e-6


def log_ratio(
    log_probs: PerResponse, reference_log_probs: PerResponse, lengths: PerResponse
) -> PerResponse:
    """``l = log pi(y|x) - log pi_ref(y|x)``, exactly 0 where the two differ by less than the resolution of float32.

    Two programs that compute the same sum rarely agree to the last bit, so without this a policy that equals its reference would
    start at a log-ratio of a few millionths instead of 0. The gradient is that of ``log pi`` everywhere.

    Args:
      log_probs: of the policy, summed over tokens, in nats.
      reference_log_probs: of the reference policy; treated as a constant.
      lengths: tokens of each response.
    """
    log_probs, reference_log_probs, lengths = as_float32(log_probs, reference_log_probs, lengths)
    reference_log_probs = jax.lax.stop_gradient(reference_log_probs)
    difference = log_probs - reference_log_probs
    rounding = RESOLUTION * (jnp.abs(reference_log_probs) + lengths)
    # x - sg(x) is 0 with the gradient of x. NaN compares false and stays NaN.
    return jnp.where(
        jnp.abs(difference) <= rounding,
        difference - jax.lax.stop_gradient(difference),
        difference,
    )
