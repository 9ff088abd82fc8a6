"""Kahneman-Tversky Optimisation, in the form of its authors' code and in the form that the DRO paper compares with."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxalign.errors import UserError, require_range
from jaxalign.losses.hyperparameters import require_nonnegative, require_positive
from jaxalign.losses.log_ratios import log_ratio
from jaxalign.losses.masking import masked_mean, masked_sum
from jaxalign.losses.requirements import Requirements
from jaxalign.losses.unpaired import kto_loss, kto_reference_point
from jaxalign.objectives.base import (
    Batch,
    LossOutput,
    Metric,
    Params,
    ReferenceObjective,
    log_ratio_metrics,
    mask_of,
    mean_metric,
    responses_of,
)

_DECODER_FIELDS = (
    "decoder_input_tokens",
    "decoder_target_tokens",
    "decoder_segment_ids",
    "decoder_loss_weights",
    "response_mask",
)


def mismatched_batch(batch: Batch) -> Batch:
    """Pairs every row's prompts with the responses of the row before it, cyclically, over the whole step's batch.

    A response meets a prompt only if both slots hold an example and their prompts differ: equal prompts would bias the reference point.
    """
    ids = batch["prompt_ids"]
    differs = _differs(ids, jnp.roll(ids, 1, axis=0))
    mixed = {field: jnp.roll(batch[field], 1, axis=0) for field in _DECODER_FIELDS}
    mixed["response_mask"] = mixed["response_mask"] * differs[:, :, None]
    return {**batch, **mixed}


def _differs(ids: Any, shifted_ids: Any) -> Any:
    """Which slots hold a prompt and are paired with the responses of another one."""
    return (ids != shifted_ids) & (ids > 0) & (shifted_ids > 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KTO(ReferenceObjective):
    """KTO on single responses (Ethayarajh et al. 2024, arXiv 2402.01306).

    The reference point z0 needs the reference policy on mismatched pairs, which no cache holds: the role ``reference`` is always read,
    also where the log-ratios of the responses themselves come from the cache.

    Attributes:
      beta: inverse temperature, per nat.
      desirable_weight: lambda_D.
      undesirable_weight: lambda_U.
      labels: 'feedback' calls a response desirable if its feedback exceeds ``desirable_threshold`` (the reference code's form);
        'batch_mean' if its reward exceeds the mean of the step's batch (the DRO paper's form; ties are undesirable).
      desirable_threshold: in units of feedback; 0.5 suits thumbs stored as 0 and 1.
    """

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    labels: str = "feedback"
    desirable_threshold: float = 0.5

    batch_fields: ClassVar[tuple[str, ...]] = ("feedback", "rewards", "prompt_ids")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels not in ("feedback", "batch_mean"):
            raise UserError(f"KTO.labels must be 'feedback' or 'batch_mean', not {self.labels!r}")

        require_positive("KTO", beta=self.beta)
        require_range("KTO", "(-inf, inf)", desirable_threshold=self.desirable_threshold)
        require_nonnegative(
            "KTO",
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )

    @property
    def name(self) -> str:  # type: ignore[override]
        """The name of its gin file: the DRO paper's form is `kto`, the authors' own `kto_reference`."""
        return "kto" if self.labels == "batch_mean" else "kto_reference"

    @property
    def temperature(self) -> float:
        return self.beta

    def requirements(self) -> Requirements:
        if self.labels == "batch_mean":
            return Requirements()
        return Requirements(threshold=("desirable_threshold", "feedback"))

    def frozen_roles(self) -> tuple[str, ...]:
        return ("reference",)

    def check_batch(self, batch: Batch) -> None:
        super().check_batch(batch)
        ids = np.asarray(batch["prompt_ids"])
        if not _differs(ids, np.roll(ids, 1, axis=0)).any():
            raise UserError(
                f"KTO estimates its reference point on responses under other prompts, but in this batch of {len(ids)} row(s) no "
                "response meets another prompt: it needs at least two rows with distinct prompts. Raise BATCH_SIZE."
            )

    def prepare(self, params: Params, batch: Batch) -> Batch:
        return {
            **batch,
            "kto_reference_point": self._reference_point(params, batch),
            "mean_reward": masked_mean(responses_of(batch, "rewards"), mask_of(batch)),
        }

    def loss(self, params: Params, batch: Batch, rng: Array | None) -> LossOutput:
        if "kto_reference_point" not in batch:
            batch = self.prepare(params, batch)
        scores, log_ratios = self.log_ratios(params, batch, rng)
        mask = mask_of(batch)
        desirable = self._desirable(batch)
        reference_point = batch["kto_reference_point"]
        losses = kto_loss(
            log_ratios,
            desirable,
            reference_point,
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )
        implicit_rewards = self.beta * log_ratios
        one = jnp.ones((), jnp.float32)
        return LossOutput(
            masked_sum(losses, mask),
            jnp.sum(mask).astype(jnp.float32),
            {
                "loss": mean_metric(losses, mask),
                "reference_point": Metric(reference_point, one),
                "desirable": mean_metric(desirable.astype(jnp.float32), mask),
                "implicit_reward_desirable": mean_metric(implicit_rewards, mask & desirable),
                "implicit_reward_undesirable": mean_metric(implicit_rewards, mask & ~desirable),
                **log_ratio_metrics(scores, log_ratios, mask),
            },
        )

    def _desirable(self, batch: Batch) -> Array:
        if self.labels == "feedback":
            return responses_of(batch, "feedback") > self.desirable_threshold
        return responses_of(batch, "rewards") > batch["mean_reward"]

    def _reference_point(self, params: Params, batch: Batch) -> Float[Array, ""]:
        mixed = mismatched_batch(batch)
        frozen = jax.lax.stop_gradient(params)

        scores = self.policy.score(frozen["policy"], mixed)
        reference = self.policy.score(frozen["reference"], mixed)
        log_ratios = log_ratio(scores.log_probs, reference.log_probs, scores.lengths)
        return kto_reference_point(log_ratios, mask_of(mixed))
