"""Losses on single responses that are labelled desirable or undesirable."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxalign.losses.masking import as_float32, masked_mean

PerResponse = Float[Array, "examples responses"]


def kto_loss(
    log_ratios: PerResponse,
    desirable: Bool[Array, "examples responses"],
    reference_point: Float[Array, ""] | float,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> PerResponse:
    """KTO, Ethayarajh et al. 2024, arXiv 2402.01306, equation 8: ``lambda_y - v(x, y)``.

    ``v = lambda_D sigmoid(beta (l - z0))`` for desirable responses and ``lambda_U sigmoid(beta (z0 - l))`` for undesirable ones.

    Args:
      log_ratios: ``l``, log pi(y|x) - log pi_ref(y|x), summed over tokens, in nats.
      desirable: the label of each response.
      reference_point: ``z0``, from `kto_reference_point`, in nats; treated as a constant.
      beta: inverse temperature, per nat.
      desirable_weight: ``lambda_D``.
      undesirable_weight: ``lambda_U``.
    """
    (log_ratios,) = as_float32(log_ratios)
    margins = beta * (log_ratios - jax.lax.stop_gradient(reference_point))
    # lambda * (1 - sigmoid(a)) is written lambda * sigmoid(-a), which stays exact in the tail.
    return jnp.where(
        desirable,
        desirable_weight * jax.nn.sigmoid(-margins),
        undesirable_weight * jax.nn.sigmoid(margins),
    )


def kto_reference_point(
    mismatched_log_ratios: PerResponse, where: Bool[Array, "examples responses"]
) -> Float[Array, ""]:
    """KTO's ``z0``: the mean log-ratio of responses under other prompts, clamped at 0 after the mean (arXiv 2402.01306, section 4.1).

    Args:
      mismatched_log_ratios: log pi(y_j|x_i) - log pi_ref(y_j|x_i) for j != i, over the whole step's batch.
      where: which of them pair a response with a different prompt.

    Returns:
      A non-negative scalar without gradient; 0 if there is no mismatched pair.
    """
    (mismatched_log_ratios,) = as_float32(mismatched_log_ratios)
    return jax.lax.stop_gradient(jnp.maximum(0.0, masked_mean(mismatched_log_ratios, where)))
