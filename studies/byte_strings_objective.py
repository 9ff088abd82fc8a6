"""DRO-V on log-ratios per token, as some public code has it. A study compares it with sums; the package has the sums only."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from jaxalign.losses.masking import masked_sum
from jaxalign.networks.protocols import Network, ValuePredictor
from jaxalign.objectives.base import (
    Batch,
    LossOutput,
    Params,
    ReferenceObjective,
    log_ratio_metrics,
    mask_of,
    mean_metric,
    responses_of,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenMeanDRO(ReferenceObjective):
    """``1/2 (r - V(x) - tau l / n)^2`` with the number of tokens ``n`` (EOS included), for policy and value together.

    Its optimum has ``l = n (r - V) / tau``: the longer a response is, the further its probability moves.
    """

    value: ValuePredictor
    temperature: float = 1.0

    name: ClassVar[str] = "token_mean_dro"
    batch_fields: ClassVar[tuple[str, ...]] = ("rewards",)

    def trained(self) -> dict[str, Network]:
        return {"policy": self.policy, "value": self.value}

    def loss(self, params: Params, batch: Batch, rng: Array | None) -> LossOutput:
        scores, values = self.value.scores_and_values(self.policy, params, batch, rng=rng)
        log_ratios = self.log_ratios_of(scores, params, batch)
        rewards, mask = responses_of(batch, "rewards"), mask_of(batch)
        per_token = log_ratios / jnp.maximum(scores.lengths, 1)
        residuals = rewards - values[:, None] - self.temperature * per_token
        losses = 0.5 * jnp.square(residuals)
        return LossOutput(
            masked_sum(losses, mask),
            jnp.sum(mask).astype(jnp.float32),
            {
                "loss": mean_metric(losses, mask),
                "residual": mean_metric(residuals, mask),
                **log_ratio_metrics(scores, log_ratios, mask),
            },
        )
