"""Supervised fine-tuning."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxalign.errors import require_range
from jaxalign.losses.r_drop import bidirectional_kl
from jaxalign.losses.requirements import Requirements
from jaxalign.losses.token_level import cross_entropy
from jaxalign.networks.distributions import map_logits
from jaxalign.networks.protocols import TokenPolicy
from jaxalign.networks.scoring import TokenStatistics, statistics_of_logits
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
      r_drop_weight: omega of R-Drop (arXiv 2106.14448): the mean loss of two passes with different dropout, and omega times the
        divergence of `losses.r_drop` between their distributions, at every target token. 0 is one pass, and so is a pass without dropout.
    """

    policy: TokenPolicy
    z_loss: float = 1e-4
    label_smoothing: float = 0.0
    loss_normalizing_factor: float | None = None
    r_drop_weight: float = 0.0

    name: ClassVar[str] = "sft"

    def __post_init__(self) -> None:
        require_range("SFT", "[0, inf)", z_loss=self.z_loss)
        require_range("SFT", "[0, 1)", label_smoothing=self.label_smoothing)
        require_range("SFT", "[0, inf)", r_drop_weight=self.r_drop_weight)
        require_range("SFT", "(0, inf)", loss_normalizing_factor=self.loss_normalizing_factor)

    def requirements(self) -> Requirements:
        return Requirements(imitates=True)

    def loss(self, params: Params, batch: Batch, rng: Array | None) -> LossOutput:
        # Without dropout a second pass would repeat the first.
        if self.r_drop_weight and rng is not None and self.policy.dropout_rate:
            losses, log_probs, divergences = self._two_passes(params, batch, rng)
        else:
            statistics = self.policy.token_statistics(
                params["policy"], batch, rng=rng, with_mean_log_probs=self.label_smoothing > 0
            )
            losses, log_probs = self._cross_entropy(statistics), statistics.log_probs
            divergences = jnp.zeros_like(losses)
        weights = batch["decoder_loss_weights"].astype(jnp.float32)
        tokens = weights.sum()
        loss_sum = jnp.sum(jnp.where(weights > 0, losses, 0) * weights)
        negative_log_probs = -jnp.sum(jnp.where(weights > 0, log_probs, 0) * weights)
        examples = jnp.sum(batch["response_mask"]).astype(jnp.float32)
        weight = tokens
        if self.loss_normalizing_factor is not None:
            # A constant must be divided by once per step, not once per microbatch: each contributes its share of the tokens.
            total = batch.get("step_tokens", tokens)
            weight = self.loss_normalizing_factor * tokens / jnp.maximum(total, 1)
        metrics = {
            "loss": Metric(loss_sum, weight),
            "negative_log_prob_per_token": Metric(negative_log_probs, tokens),
            "response_length": Metric(tokens, examples),
        }
        if self.r_drop_weight:
            divergence_sum = jnp.sum(jnp.where(weights > 0, divergences, 0) * weights)
            metrics["divergence_per_token"] = Metric(divergence_sum, tokens)
        return LossOutput(loss_sum, weight, metrics)

    def _two_passes(self, params: Params, batch: Batch, rng: Array) -> tuple[Array, Array, Array]:
        """Losses, log-probabilities (the means of two passes with different dropout) and the divergence between the passes."""
        policy = self.policy
        distributions = [
            policy.distributions(params["policy"], policy.decode(params["policy"], batch, rng=key))
            for key in jax.random.split(rng)
        ]

        def read(*arrays: Array) -> tuple[Array, Array, Array]:
            *logits, targets = arrays
            passes = [
                statistics_of_logits(
                    each,
                    targets,
                    with_mean_log_probs=self.label_smoothing > 0,
                    forbidden_token=distributions[0].forbidden_token,
                )
                for each in logits
            ]
            first, second = (
                each - statistics.log_normalizers[..., None]
                for each, statistics in zip(logits, passes, strict=True)
            )
            divergences = bidirectional_kl(first, second)
            first_losses, second_losses = map(self._cross_entropy, passes)
            losses = (first_losses + second_losses) / 2 + self.r_drop_weight * divergences
            return losses, (passes[0].log_probs + passes[1].log_probs) / 2, divergences

        return map_logits(
            read,
            distributions,
            jnp.asarray(batch["decoder_target_tokens"]),
            chunk_size=policy.logits_chunk_size,
        )

    def _cross_entropy(self, statistics: TokenStatistics) -> Array:
        return cross_entropy(
            statistics.log_probs,
            statistics.log_normalizers,
            statistics.mean_log_probs,
            vocab_size=self.policy.vocab_size,
            z_loss=self.z_loss,
            label_smoothing=self.label_smoothing,
        )

    def prepare(self, params: Params, batch: Batch) -> Batch:
        del params
        if self.loss_normalizing_factor is None:
            return batch
        return {**batch, "step_tokens": batch["decoder_loss_weights"].astype(jnp.float32).sum()}
