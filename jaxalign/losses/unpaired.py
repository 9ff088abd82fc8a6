"""Losses on single responses that are labelled desirable or undesirable, and the statistics that they carry from step to step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxalign.errors import require_range
from jaxalign.losses.hyperparameters import HyperparameterError, require_positive
from jaxalign.losses.masking import as_float32, masked_mean, masked_sum
from jaxalign.losses.requirements import named, requires

PerResponse = Float[Array, "examples responses"]
PerPair = Float[Array, " pairs"]


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


@requires(threshold=("desirable_threshold", "feedback"))
def apo_zero_unpaired_loss(
    log_ratios: PerResponse,
    feedback: PerResponse,
    *,
    beta: float,
    desirable_threshold: float = 0.5,
) -> PerResponse:
    """APO-zero on single responses, D'Oosterlinck et al. 2024, arXiv 2408.06266: KTO with the reference point 0.

    ``1 - sigmoid(beta l)`` for desirable responses and ``sigmoid(beta l)`` for undesirable ones, as public code (TRL) has it. It has no
    finite optimum: every log-ratio is pushed to plus or minus infinity, so training needs early stopping.

    Args:
      log_ratios: ``l``, log pi(y|x) - log pi_ref(y|x), summed over tokens, in nats.
      feedback: in its raw unit.
      beta: inverse temperature, per nat.
      desirable_threshold: feedback above it is desirable; 0.5 suits thumbs stored as 0 and 1.

    Raises:
      UserError: if beta is not positive.
    """
    require_positive("apo_zero_unpaired", beta=beta)
    return kto_loss(log_ratios, jnp.asarray(feedback) > desirable_threshold, 0.0, beta=beta)


@requires(threshold=("desirable_threshold", "feedback"))
def bco_loss(
    log_ratios: PerResponse,
    feedback: PerResponse,
    statistics: Mapping[str, Array],
    *,
    beta: float,
    desirable_threshold: float = 0.5,
) -> PerResponse:
    """BCO, Jung et al. 2024, arXiv 2404.04656: a binary classifier whose logit is the shifted implicit reward.

    ``-log sigmoid(beta l - d)`` for desirable responses and ``-log sigmoid(-(beta l - d))`` for undesirable ones, with the reward shift
    ``d = beta * statistics['shift']``. For a fixed d the optimum of one response is ``beta l = d + logit P(desirable | x, y)``.

    Args:
      log_ratios: ``l``, log pi(y|x) - log pi_ref(y|x), summed over tokens, in nats.
      feedback: in its raw unit.
      statistics: from `RunningMean` (the mean over everything seen in training, as in public code) or from `TwoSidedRunningMean` (the
        paper's form); ``shift`` is in nats and a constant.
      beta: inverse temperature, per nat.
      desirable_threshold: feedback above it is desirable; 0.5 suits thumbs stored as 0 and 1.

    Raises:
      UserError: if beta is not positive.
    """
    require_positive("bco", beta=beta)
    (log_ratios,) = as_float32(log_ratios)
    logits = beta * (log_ratios - jax.lax.stop_gradient(statistics["shift"]))
    desirable = jnp.asarray(feedback) > desirable_threshold
    return -jax.nn.log_sigmoid(jnp.where(desirable, logits, -logits))


@named("bco_density_ratios")
@requires(nonnegative=("density_ratios",), threshold=("desirable_threshold", "feedback"))
def density_weighted_bco_loss(
    log_ratios: PerResponse,
    feedback: PerResponse,
    density_ratios: PerResponse,
    statistics: Mapping[str, Array],
    *,
    beta: float,
    desirable_threshold: float = 0.5,
    min_density_ratio: float = 0.5,
    max_density_ratio: float = 10.0,
) -> PerResponse:
    """BCO where desirable and undesirable responses come from different prompts (arXiv 2404.04656, underlying distribution matching).

    The losses of undesirable responses are multiplied by ``p(desirable | x) / p(undesirable | x)``, clipped; their sum is still divided by
    the number of responses.

    Args:
      log_ratios: as in `bco_loss`.
      feedback: as in `bco_loss`.
      density_ratios: of each response's prompt, for example from `density_ratios.density_ratios`; not negative.
      statistics: as in `bco_loss`.
      beta: as in `bco_loss`.
      desirable_threshold: as in `bco_loss`.
      min_density_ratio: the least weight.
      max_density_ratio: the largest weight.

    Raises:
      UserError: if beta is not positive, or the bounds are not positive and in order.
    """
    if not 0 < min_density_ratio <= max_density_ratio:
        raise HyperparameterError(
            "density_weighted_bco: 0 < min_density_ratio <= max_density_ratio must hold, not "
            f"{min_density_ratio} and {max_density_ratio}"
        )
    (density_ratios,) = as_float32(density_ratios)
    losses = bco_loss(
        log_ratios, feedback, statistics, beta=beta, desirable_threshold=desirable_threshold
    )
    weights = jax.lax.stop_gradient(jnp.clip(density_ratios, min_density_ratio, max_density_ratio))
    return jnp.where(jnp.asarray(feedback) > desirable_threshold, losses, weights * losses)


def bco_pair_loss(
    chosen_log_ratios: PerPair, rejected_log_ratios: PerPair, *, beta: float
) -> PerPair:
    """BCO without a shift on pairs, as public code (TRL) has it: ``-log sigmoid(beta l_w) - log sigmoid(-beta l_l)``.

    An upper bound of the DPO loss of the same pair (arXiv 2404.04656, theorem 1).

    Args:
      chosen_log_ratios: ``l_w``, log pi - log pi_ref of the preferred responses, summed over tokens, in nats.
      rejected_log_ratios: ``l_l`` of the others.
      beta: inverse temperature, per nat.

    Raises:
      UserError: if beta is not positive.
    """
    require_positive("bco_pair", beta=beta)
    chosen_log_ratios, rejected_log_ratios = as_float32(chosen_log_ratios, rejected_log_ratios)
    chosen = jax.nn.log_sigmoid(beta * chosen_log_ratios)
    rejected = jax.nn.log_sigmoid(-beta * rejected_log_ratios)
    return -chosen - rejected


def _cumulative_mean(
    count: Array, mean: Array, values: PerResponse, where: Bool[Array, "examples responses"]
) -> tuple[Array, Array]:
    """Count and mean after the values where the mask holds; every value since step 0 has the same weight."""
    (values,) = as_float32(values)
    total = count + jnp.sum(where).astype(count.dtype)
    return total, mean + masked_sum(values - mean, where) / jnp.maximum(total, 1)


@dataclasses.dataclass(frozen=True)
class RunningMean:
    """BCO's shift as public code (TRL) has it: the mean log-ratio of all responses seen in training, the current step's included.

    All values since step 0 have equal weights; it is not an exponential average.
    Carries ``count`` (responses) and ``shift`` (nats), float32.
    """

    def initial(self) -> dict[str, Array]:
        """Nothing seen, no shift."""
        zero = jnp.zeros((), jnp.float32)
        return {"count": zero, "shift": zero}

    def update(
        self, statistics: Mapping[str, Array], quantities: Mapping[str, Any]
    ) -> dict[str, Array]:
        """The mean after a step's whole batch, from its ``log_ratios`` and ``mask``."""
        count, shift = _cumulative_mean(
            statistics["count"], statistics["shift"], quantities["log_ratios"], quantities["mask"]
        )
        return {"count": count, "shift": shift}


@dataclasses.dataclass(frozen=True)
class TwoSidedRunningMean:
    """BCO's shift in the paper's form, ``(E_+[l] + E_-[l]) / 2``, each mean over everything seen in training (arXiv 2404.04656).

    It does not drift with the share of desirable responses, as `RunningMean` does. Until both kinds have been seen, it is the
    mean of the one that has. Carries a count and a mean of each kind and ``shift`` (nats), float32.

    Attributes:
      desirable_threshold: that of the loss.
    """

    desirable_threshold: float = 0.5

    def __post_init__(self) -> None:
        require_range(
            "TwoSidedRunningMean", "(-inf, inf)", desirable_threshold=self.desirable_threshold
        )

    def initial(self) -> dict[str, Array]:
        """Nothing seen, no shift."""
        names = ("desirable_count", "desirable_mean", "undesirable_count", "undesirable_mean")
        return {name: jnp.zeros((), jnp.float32) for name in (*names, "shift")}

    def update(
        self, statistics: Mapping[str, Array], quantities: Mapping[str, Any]
    ) -> dict[str, Array]:
        """The means after a step's whole batch, from its ``log_ratios``, ``feedback`` and ``mask``."""
        desirable = quantities["feedback"] > self.desirable_threshold
        updated = {}
        for kind, labels in (("desirable", desirable), ("undesirable", ~desirable)):
            updated[f"{kind}_count"], updated[f"{kind}_mean"] = _cumulative_mean(
                statistics[f"{kind}_count"],
                statistics[f"{kind}_mean"],
                quantities["log_ratios"],
                quantities["mask"] & labels,
            )
        # The mean of a kind that was never seen is 0.
        total = updated["desirable_mean"] + updated["undesirable_mean"]
        seen = (updated["desirable_count"] > 0).astype(total.dtype) + (
            updated["undesirable_count"] > 0
        )
        return {**updated, "shift": total / jnp.maximum(seen, 1)}
