"""Regression of a prompt's value on the feedback of responses to it, the first stage of A-LoL (arXiv 2305.14718)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign.losses.masking import as_float32

PerResponse = Float[Array, "examples responses"]


def value_regression_loss(values: PerResponse, targets: PerResponse) -> PerResponse:
    """``(V(x) - r)^2``, whose minimum over responses from a policy is that policy's expected reward (arXiv 2305.14718, section 3).

    Args:
      values: ``V(x)`` of each response's prompt, in the unit of the targets.
      targets: rewards ``r``; treated as constants.

    Returns:
      Squared errors, in squared units of reward.
    """
    values, targets = as_float32(values, targets)
    return jnp.square(values - jax.lax.stop_gradient(targets))
