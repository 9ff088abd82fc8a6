"""OREO: soft consistency of policy and value at every token of a response. Wang et al. 2024, arXiv 2412.16145, section 3.

State t is the prompt with the tokens before t. At the optimum of the KL-regularised problem ``beta l_t = V_{t+1} - V_t`` with
``l_t = log pi(y_t) - log pi_ref(y_t)`` and V at the end equal to the reward, so ``V_t + beta A_t = R`` with ``A_t = sum_{i >= t} l_i``.
For a response of one token the sum of both losses is twice the joint loss of DRO-V.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxalign.losses.hyperparameters import require_positive
from jaxalign.losses.masking import as_float32
from jaxalign.losses.segments import PerToken, Segments, shifted, suffix_sums


def consistency_residuals(
    values: PerToken,
    log_ratios: PerToken,
    rewards: PerToken,
    segments: Segments,
    *,
    beta: float,
) -> PerToken:
    """``V_t + beta A_t - R``, zero at every token of every response at the optimum; 0 on padding.

    Args:
      values: V of the state before each target token, in units of reward.
      log_ratios: ``l_t`` of each target token, in nats.
      rewards: R of the token's response, the same at all its tokens.
      segments: the response of each token, 0 on padding.
      beta: reward units per nat, positive.

    Raises:
      UserError: if beta is not positive and finite.
    """
    require_positive("oreo", beta=beta)
    values, log_ratios, rewards = as_float32(values, log_ratios, rewards)
    following = suffix_sums(log_ratios, segments)
    return jnp.where(segments > 0, values - rewards + beta * following, 0)


def oreo_value_loss(
    values: PerToken,
    log_ratios: PerToken,
    rewards: PerToken,
    segments: Segments,
    *,
    beta: float,
) -> PerToken:
    """The value's loss at each token, ``(V_t - R + beta sg(A_t))^2`` (arXiv 2412.16145). Arguments as in `consistency_residuals`."""
    constant = jax.lax.stop_gradient(log_ratios)
    return jnp.square(consistency_residuals(values, constant, rewards, segments, beta=beta))


def oreo_policy_loss(
    log_ratios: PerToken,
    values: PerToken,
    rewards: PerToken,
    segments: Segments,
    *,
    beta: float,
) -> PerToken:
    """The policy's loss at each token, ``(sg(V_t) - R + beta l_t + sg(beta A_{t+1}))^2`` (arXiv 2412.16145).

    Only the token's own log-ratio carries a gradient; those of later tokens are constants. The KL term of the method is not included.
    Arguments as in `consistency_residuals`.
    """
    require_positive("oreo", beta=beta)
    values, log_ratios, rewards = as_float32(values, log_ratios, rewards)
    constants, values = map(jax.lax.stop_gradient, (log_ratios, values))
    later = shifted(suffix_sums(constants, segments), segments, 1, 0.0)
    residuals = values - rewards + beta * log_ratios + beta * later
    return jnp.square(jnp.where(segments > 0, residuals, 0))
