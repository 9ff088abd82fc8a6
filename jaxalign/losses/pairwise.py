"""Losses on pairs of responses to one prompt, the preferred one first."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float

from jaxalign.losses.masking import as_float32


def dpo_loss(
    chosen_log_ratios: Float[Array, " pairs"],
    rejected_log_ratios: Float[Array, " pairs"],
    *,
    beta: float,
) -> Float[Array, " pairs"]:
    """DPO, Rafailov et al. 2023, arXiv 2305.18290, equation 7: ``-log sigmoid(beta (l_w - l_l))``.

    Args:
      chosen_log_ratios: ``l_w``, log pi - log pi_ref of the preferred responses, summed over tokens, in nats.
      rejected_log_ratios: ``l_l`` of the others.
      beta: inverse temperature, per nat.
    """
    chosen_log_ratios, rejected_log_ratios = as_float32(chosen_log_ratios, rejected_log_ratios)
    return -jax.nn.log_sigmoid(beta * (chosen_log_ratios - rejected_log_ratios))
