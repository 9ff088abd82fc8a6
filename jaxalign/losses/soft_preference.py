"""Losses on pairs of which a probability says how likely the first response is to be preferred, in the manner of OSP (arXiv 2405.14103).

Names and units are those of `losses.pairwise`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign.losses.hyperparameters import require_nonnegative, require_positive
from jaxalign.losses.masking import as_float32
from jaxalign.losses.pairwise import difference, soft_logistic
from jaxalign.losses.requirements import requires

PerPair = Float[Array, " pairs"]


def soft_preference_loss(
    chosen_log_ratios: PerPair,
    rejected_log_ratios: PerPair,
    probabilities: PerPair,
    *,
    beta: float,
) -> PerPair:
    """Soft-preference cross entropy: ``-p log sigmoid(beta h) - (1 - p) log sigmoid(-beta h)``, in the manner of OSP (arXiv 2405.14103).

    A reconstruction: the paper's equation was not available. It is the mean of DPO over labels drawn with probability p; its minimum is
    at ``beta h = logit(p)``, where it equals the entropy of p.

    Args:
      chosen_log_ratios: ``l_w`` of the first response.
      rejected_log_ratios: ``l_l`` of the second.
      probabilities: ``p`` in [0, 1] that the first is preferred; treated as a constant.
      beta: inverse temperature, per nat.
    """
    require_positive("soft_preference", beta=beta)
    (probabilities,) = as_float32(probabilities)
    margins = beta * difference(chosen_log_ratios, rejected_log_ratios)
    return soft_logistic(margins, 1 - jax.lax.stop_gradient(probabilities))


@requires(probabilities=("chosen_feedback",), margins=True)
def osp_loss(
    chosen_log_ratios: PerPair,
    rejected_log_ratios: PerPair,
    chosen_feedback: PerPair,
    *,
    beta: float,
    band: float = 0.0,
) -> tuple[PerPair, PerPair]:
    """`soft_preference_loss` where the pair's feedback (the field ``margin``) is the probability p itself (OSP-style, arXiv 2405.14103).

    Args:
      chosen_log_ratios: ``l_w`` of the first response.
      rejected_log_ratios: ``l_l`` of the second.
      chosen_feedback: ``p`` in [0, 1] that the first is preferred.
      beta: inverse temperature, per nat.
      band: pairs with ``|p - 1/2| < band`` are left out; they would only pull the margin to 0.

    Returns:
      Losses, and weights that are 1 for the pairs outside the band.
    """
    return _outside_band(chosen_log_ratios, rejected_log_ratios, chosen_feedback, beta, band)


@requires(margins=True)
def osp_logistic_loss(
    chosen_log_ratios: PerPair,
    rejected_log_ratios: PerPair,
    chosen_feedback: PerPair,
    rejected_feedback: PerPair,
    *,
    beta: float,
    scale: float,
    band: float = 0.0,
) -> tuple[PerPair, PerPair]:
    """`osp_loss` with ``p = sigmoid((f_w - f_l) / scale)``, from feedback on a scale that is not a probability.

    Args:
      chosen_log_ratios: ``l_w``.
      rejected_log_ratios: ``l_l``.
      chosen_feedback: ``f_w``, in its own units.
      rejected_feedback: ``f_l``; 0 for pairs with a margin.
      beta: inverse temperature, per nat.
      scale: units of feedback per logit of p.
      band: as in `osp_loss`.

    Returns:
      Losses and weights, as `osp_loss`.
    """
    require_positive("osp_logistic", scale=scale)
    probabilities = jax.nn.sigmoid(difference(chosen_feedback, rejected_feedback) / scale)
    return _outside_band(chosen_log_ratios, rejected_log_ratios, probabilities, beta, band)


def _outside_band(
    chosen_log_ratios: PerPair,
    rejected_log_ratios: PerPair,
    probabilities: PerPair,
    beta: float,
    band: float,
) -> tuple[PerPair, PerPair]:
    require_nonnegative("osp", band=band)
    losses = soft_preference_loss(chosen_log_ratios, rejected_log_ratios, probabilities, beta=beta)
    (probabilities,) = as_float32(probabilities)
    kept = jnp.abs(probabilities - 0.5) >= band
    return jnp.where(kept, losses, 0), kept.astype(losses.dtype)
