"""Supervised fine-tuning."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from jaxalign.errors import require_range
from jaxalign.losses.requirements import Requirements
from jaxalign.losses.token_level import cross_entropy
from jaxalign.networks.protocols import TokenPolicy
from jaxalign.objectives.base import Batch, LossOutput, Metric, Objective, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFT(Objective):
    """Cross entropy on every response, as T5X trains.

    Attributes:
      policy: the policy network.
      z_loss: coefficient of ``log(Z)^2``.
      label_smoothing: mass spread over the other tokens.
      loss_normalizing_factor: what the summed loss is divided by: None for the number of response tokens in the step's batch, or a
        constant, as T5X's ``LOSS_NORMALIZING_FACTOR`` (its public checkpoints used 233472).
    """

    policy: TokenPolicy
    z_loss: float = 1e-4
    label_smoothing: float = 0.0
    loss_normalizing_factor: float | None = None

    name: ClassVar[str] = "sft"

    def __post_init__(self) -> None:
        require_range("SFT", "[0, inf)", z_loss=self.z_loss)
        require_range("SFT", "[0, 1)", label_smoothing=self.label_smoothing)
        require_range("SFT", "(0, inf)", loss_normalizing_factor=self.loss_normalizing_factor)

    def requirements(self) -> Requirements:
        return Requirements(imitates=True)

    def loss(self, params: Params, batch: Batch, rng: Array | None) -> LossOutput:
        statistics = self.policy.token_statistics(
            params["policy"], batch, rng=rng, with_mean_log_probs=self.label_smoothing > 0
        )
        losses = cross_entropy(
            statistics.log_probs,
            statistics.log_normalizers,
            statistics.mean_log_probs,
            vocab_size=self.policy.vocab_size,
            z_loss=self.z_loss,
            label_smoothing=self.label_smoothing,
        )
        weights = batch["decoder_loss_weights"].astype(jnp.float32)
        tokens = weights.sum()
        loss_sum = jnp.sum(jnp.where(weights > 0, losses, 0) * weights)
        negative_log_probs = -jnp.sum(jnp.where(weights > 0, statistics.log_probs, 0) * weights)
        examples = jnp.sum(batch["response_mask"]).astype(jnp.float32)
        weight = tokens
        if self.loss_normalizing_factor is not None:
            # A constant must be divided by once per step, not once per microbatch: each contributes its share of the tokens.
            total = batch.get("step_tokens", tokens)
            weight = self.loss_normalizing_factor * tokens / jnp.maximum(total, 1)
        return LossOutput(
            loss_sum,
            weight,
            {
                "loss": Metric(loss_sum, weight),
                "negative_log_prob_per_token": Metric(negative_log_probs, tokens),
                "response_length": Metric(tokens, examples),
            },
        )

    def prepare(self, params: Params, batch: Batch) -> Batch:
        del params
        if self.loss_normalizing_factor is None:
            return batch
        return {**batch, "step_tokens": batch["decoder_loss_weights"].astype(jnp.float32).sum()}
