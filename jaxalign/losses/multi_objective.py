"""MODPO: DPO on the pairs of one objective, with margins for the others (Zhou et al. 2023, arXiv 2310.03708).

For weights w over objectives the aim is ``pi*_w = pi_ref exp(w . r / beta)``, normalised. With pairs labelled by objective k the implicit
reward is ``g = (beta l - sum_{j != k} w_j r_j) / w_k``, and the loss is ``-log sigmoid(g_w - g_l)``. Only l carries a gradient. The public
functions differ in where the margins ``sum_j w_j (r_j(y_w) - r_j(y_l))`` come from. Arrays are ``[pairs]``, the preferred response first.

The factor 1/w_k makes the loss steep where w_k is small: lower the learning rate there. Margins are in units of beta times nats:
rewards of other scales have to be rescaled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign.errors import UserError
from jaxalign.losses.hyperparameters import (
    HyperparameterError,
    require_nonnegative,
    require_one_of,
    require_positive,
)
from jaxalign.losses.masking import as_float32
from jaxalign.losses.pairwise import difference
from jaxalign.losses.requirements import named

PerPair = Float[Array, " pairs"]
PerPairAndScore = Float[Array, "pairs scores"]

FORMS = ("logistic", "hinge")


def modpo_loss(
    chosen_log_ratios: PerPair,
    rejected_log_ratios: PerPair,
    margins: PerPair,
    *,
    beta: float,
    weight: float,
    form: str = "logistic",
) -> PerPair:
    """``-log sigmoid((beta h - m) / w_k)`` with ``h = l_w - l_l`` (arXiv 2310.03708, section 3).

    Args:
      chosen_log_ratios: ``l_w``, log pi - log pi_ref of the preferred responses, summed over tokens, in nats.
      rejected_log_ratios: ``l_l`` of the others.
      margins: ``m``, the weighted sum of the other objectives' reward differences, preferred minus other; held constant.
      beta: inverse temperature, per nat.
      weight: ``w_k > 0`` of the objective by which the pairs are labelled.
      form: 'logistic', or 'hinge' for ``max(0, 1 - g_w + g_l)``.

    Raises:
      UserError: if the weight is not positive: at 0 use plain DPO on the other objective's pairs.
    """
    require_positive("modpo", beta=beta)
    require_one_of("modpo", "form", form, FORMS)
    _check_weight(weight)
    (margins,) = as_float32(jax.lax.stop_gradient(margins))
    logits = beta * difference(chosen_log_ratios, rejected_log_ratios)
    logits = (logits - margins) / weight
    return jax.nn.softplus(-logits) if form == "logistic" else jax.nn.relu(1 - logits)


@named("modpo")
def modpo_rewards_loss(
    chosen_log_ratios: PerPair,
    rejected_log_ratios: PerPair,
    chosen_margin_rewards: PerPair,
    rejected_margin_rewards: PerPair,
    *,
    beta: float,
    weight: float,
    margin_weight: float,
    form: str = "logistic",
) -> PerPair:
    """`modpo_loss` with one other objective, whose rewards are stored beside the responses: from a reward model or a rule.

    Args:
      chosen_log_ratios: ``l_w``.
      rejected_log_ratios: ``l_l``.
      chosen_margin_rewards: ``r_j`` of the preferred responses.
      rejected_margin_rewards: ``r_j`` of the others.
      beta: inverse temperature, per nat.
      weight: ``w_k``.
      margin_weight: ``w_j``.
      form: as in `modpo_loss`.
    """
    margins = margin_weight * difference(chosen_margin_rewards, rejected_margin_rewards)
    return modpo_loss(
        chosen_log_ratios, rejected_log_ratios, margins, beta=beta, weight=weight, form=form
    )


def modpo_policy_loss(
    chosen_log_ratios: PerPair,
    rejected_log_ratios: PerPair,
    chosen_margin_log_probs: PerPair,
    rejected_margin_log_probs: PerPair,
    chosen_reference_log_probs: PerPair,
    rejected_reference_log_probs: PerPair,
    *,
    beta: float,
    weight: float,
    margin_weight: float,
    form: str = "logistic",
) -> PerPair:
    """`modpo_loss` with the implicit reward of another policy, ``r_j = beta (log pi_j - log pi_ref)`` with the same beta.

    Args:
      chosen_log_ratios: ``l_w``.
      rejected_log_ratios: ``l_l``.
      chosen_margin_log_probs: log pi_j of the preferred responses, of a policy trained by DPO on objective j's pairs.
      rejected_margin_log_probs: of the others.
      chosen_reference_log_probs: log pi_ref of the preferred responses.
      rejected_reference_log_probs: of the others.
      beta: inverse temperature, per nat.
      weight: ``w_k``.
      margin_weight: ``w_j``.
      form: as in `modpo_loss`.
    """
    chosen = difference(chosen_margin_log_probs, chosen_reference_log_probs)
    rejected = difference(rejected_margin_log_probs, rejected_reference_log_probs)
    margins = margin_weight * beta * difference(chosen, rejected)
    return modpo_loss(
        chosen_log_ratios, rejected_log_ratios, margins, beta=beta, weight=weight, form=form
    )


def modpo_length_loss(
    chosen_log_ratios: PerPair,
    rejected_log_ratios: PerPair,
    chosen_lengths: PerPair,
    rejected_lengths: PerPair,
    *,
    beta: float,
    weight: float,
    margin_weight: float,
    form: str = "logistic",
) -> PerPair:
    """`modpo_loss` with a rule for the other objective: brevity, ``r_j = -number of tokens`` (the public code's second example).

    Args:
      chosen_log_ratios: ``l_w``.
      rejected_log_ratios: ``l_l``.
      chosen_lengths: tokens of the preferred responses, with EOS.
      rejected_lengths: tokens of the others.
      beta: inverse temperature, per nat.
      weight: ``w_k``.
      margin_weight: ``w_j``, reward per token saved.
      form: as in `modpo_loss`.
    """
    margins = -margin_weight * difference(chosen_lengths, rejected_lengths)
    return modpo_loss(
        chosen_log_ratios, rejected_log_ratios, margins, beta=beta, weight=weight, form=form
    )


def modpo_scores_loss(
    chosen_log_ratios: PerPair,
    rejected_log_ratios: PerPair,
    chosen_scores: PerPairAndScore,
    rejected_scores: PerPairAndScore,
    *,
    beta: float,
    weights: Sequence[float],
    objective: int = 0,
    score_scale: float = 1.0,
    labels: str = "scores",
    form: str = "logistic",
) -> tuple[PerPair, PerPair]:
    """`modpo_loss` where every response has one score for every objective.

    Args:
      chosen_log_ratios: ``l`` of the first responses.
      rejected_log_ratios: ``l`` of the second.
      chosen_scores: of the first responses, in the order of ``weights``.
      rejected_scores: of the second.
      beta: inverse temperature, per nat.
      weights: one for every score; that of ``objective`` must be positive.
      objective: index k of the score by which pairs are labelled; its own scores enter the label only.
      score_scale: reward per unit of score in the margins.
      labels: 'scores': the response with the higher score k is preferred, ties are left out; 'pair': the first response is.
      form: as in `modpo_loss`.

    Returns:
      Losses, and weights that are 0 for ties.

    Raises:
      UserError: if there is not one weight for every score, or the labelling objective's is not positive.
    """
    require_one_of("modpo", "labels", labels, ("scores", "pair"))
    weights = _finite("modpo", weights)
    if not 0 <= objective < len(weights):
        raise HyperparameterError(
            f"modpo.objective is {objective}; there are {len(weights)} scores"
        )
    require_positive("modpo", beta=beta)
    require_one_of("modpo", "form", form, FORMS)
    _check_weight(weights[objective])
    differences = difference(chosen_scores, rejected_scores)
    _check_one_per_score("modpo", weights, differences)
    others = jnp.asarray([0.0 if i == objective else w for i, w in enumerate(weights)])
    margins = score_scale * jnp.sum(differences * others, axis=1)
    signs = jnp.sign(differences[:, objective])
    signs = jnp.ones_like(signs) if labels == "pair" else signs
    # Swapping a pair changes the sign of every difference.
    losses = modpo_loss(
        signs * chosen_log_ratios,
        signs * rejected_log_ratios,
        signs * margins,
        beta=beta,
        weight=weights[objective],
        form=form,
    )
    return jnp.where(signs != 0, losses, 0), jnp.abs(signs)


def dpo_loss_weighting_loss(
    chosen_log_ratios: PerPair,
    rejected_log_ratios: PerPair,
    chosen_scores: PerPairAndScore,
    rejected_scores: PerPairAndScore,
    *,
    beta: float,
    weights: Sequence[float],
) -> tuple[PerPair, PerPair]:
    """The baseline of MODPO: ``sum_k w_k DPO_k``, where DPO_k labels the pair by score k. It does not reach ``pi*_w``.

    Args:
      chosen_log_ratios: ``l`` of the first responses.
      rejected_log_ratios: ``l`` of the second.
      chosen_scores: of the first responses, in the order of ``weights``.
      rejected_scores: of the second.
      beta: inverse temperature, per nat.
      weights: one for every score, not negative, one of them positive.

    Returns:
      Losses, in which an objective that ties adds nothing; and weights that are 0 where all of them tie.
    """
    require_positive("dpo_loss_weighting", beta=beta)
    weights = _finite("dpo_loss_weighting", weights)
    for index, weight in enumerate(weights):
        require_nonnegative("dpo_loss_weighting", **{f"weights[{index}]": weight})
    require_positive("dpo_loss_weighting", sum_of_weights=sum(weights))
    differences = difference(chosen_scores, rejected_scores)
    _check_one_per_score("dpo_loss_weighting", weights, differences)
    signs = jnp.sign(differences)
    logits = beta * difference(chosen_log_ratios, rejected_log_ratios)
    losses = jnp.where(signs != 0, jax.nn.softplus(-signs * logits[:, None]), 0)
    labelled = jnp.any((signs != 0) & (jnp.asarray(weights) > 0), axis=1)
    return jnp.sum(losses * jnp.asarray(weights), axis=1), labelled.astype(losses.dtype)


def _check_weight(weight: float) -> None:
    if not (weight > 0 and math.isfinite(weight)):
        raise HyperparameterError(
            f"modpo divides by the weight of the objective that labels the pairs, which must be positive, not {weight}. "
            "For weight 0 train DPO on another objective's pairs."
        )


def _finite(name: str, weights: Sequence[float]) -> tuple[float, ...]:
    weights = tuple(float(weight) for weight in weights)
    if not all(map(math.isfinite, weights)):
        raise HyperparameterError(f"{name}.weights must be finite, not {weights}")
    return weights


def _check_one_per_score(
    name: str, weights: tuple[float, ...], differences: PerPairAndScore
) -> None:
    if len(weights) != differences.shape[1]:
        raise UserError(
            f"{name}.weights has {len(weights)} numbers, but responses have {differences.shape[1]} scores"
        )
