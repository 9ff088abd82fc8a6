"""Direct Preference Optimisation."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from jaxalign.losses.masking import masked_sum
from jaxalign.losses.pairwise import dpo_loss
from jaxalign.objectives.base import (
    Batch,
    LossOutput,
    Params,
    ReferenceObjective,
    log_ratio_metrics,
    mask_of,
    mean_metric,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPO(ReferenceObjective):
    """DPO on pairs, the preferred response first (Rafailov et al. 2023, arXiv 2305.18290).

    Attributes:
      beta: inverse temperature of the implicit reward, per nat.
    """

    beta: float = 0.1

    name: ClassVar[str] = "dpo"
    responses_per_prompt: ClassVar[int | None] = 2

    def loss(self, params: Params, batch: Batch, rng: Array | None) -> LossOutput:
        scores, log_ratios = self.log_ratios(params, batch, rng)
        mask = mask_of(batch)
        pairs = mask[:, 0] & mask[:, 1]
        losses = dpo_loss(log_ratios[:, 0], log_ratios[:, 1], beta=self.beta)
        margins = self.beta * (log_ratios[:, 0] - log_ratios[:, 1])
        loss_sum = masked_sum(losses, pairs)
        weight = jnp.sum(pairs).astype(jnp.float32)
        return LossOutput(
            loss_sum,
            weight,
            {
                "loss": mean_metric(losses, pairs),
                "margin": mean_metric(margins, pairs),
                "accuracy": mean_metric((margins > 0).astype(jnp.float32), pairs),
                **log_ratio_metrics(scores, log_ratios, mask),
            },
        )
