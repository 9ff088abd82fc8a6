"""SPA: DPO on pairs that a policy labelled itself, with softer labels for pairs that look mislabelled (arXiv 2406.04412)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxalign.errors import UserError
from jaxalign.losses.hyperparameters import (
    require_nonnegative,
    require_positive,
    require_probability,
)
from jaxalign.losses.masking import masked_sum
from jaxalign.losses.self_annotation import (
    RunningQuantile,
    extrapolated_token_log_probs,
    find_suspects,
    spa_loss,
)
from jaxalign.networks.distributions import map_logits
from jaxalign.networks.protocols import TokenPolicy
from jaxalign.networks.scoring import TokenStatistics, response_scores
from jaxalign.objectives.base import (
    Batch,
    LossOutput,
    Metric,
    Params,
    PerResponse,
    ReferenceObjective,
    log_ratio_metrics,
    mask_of,
    mean_metric,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SPA(ReferenceObjective):
    """SPA's round loss with de-coupled noise detection (Kim et al. 2024, arXiv 2406.04412, equations 9-12).

    Suspects are pairs whose margin under extrapolated logits is among the lowest of the recent ones. The extrapolation needs logits of
    policy and reference over the whole vocabulary, so the role ``reference`` (the policy of the previous round) is always in memory;
    logits exist for one chunk of positions at a time and carry no gradient.

    Attributes:
      policy: the policy network.
      beta: inverse temperature, per nat.
      alpha: how far a suspect's label is smoothed, in [0, 1]; 0 is DPO.
      strength: lambda of the extrapolation, at least 0; 0 detects noise with the policy's own margins.
      window: number of recent margins that the threshold is a quantile of.
      fraction: that quantile.
      until_full: 'none': no suspects until the window is full; 'zero': negative margins are suspects until then, as in the public code.
      warmup_fraction: share of all steps before the first suspect; a fifth in the public code.
      total_steps: of the run.
    """

    policy: TokenPolicy
    beta: float = 0.1
    alpha: float = 0.1
    strength: float = 0.5
    window: int = 50
    fraction: float = 0.1
    until_full: str = "none"
    warmup_fraction: float = 0.2
    total_steps: int

    name: ClassVar[str] = "spa"
    responses_per_prompt: ClassVar[int | None] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("SPA", beta=self.beta)
        require_probability("SPA", alpha=self.alpha)
        require_probability("SPA", warmup_fraction=self.warmup_fraction)
        require_nonnegative("SPA", strength=self.strength, total_steps=self.total_steps)
        if self.quantile.window < 2:
            raise UserError(f"SPA.window must be at least 2, not {self.window}")

    @property
    def temperature(self) -> float:
        return self.beta

    @property
    def quantile(self) -> RunningQuantile:
        """The rule of the threshold."""
        return RunningQuantile(
            window=self.window, fraction=self.fraction, until_full=self.until_full
        )

    def frozen_roles(self) -> tuple[str, ...]:
        return ("reference",)

    def initial_statistics(self) -> dict[str, Any]:
        return {**self.quantile.initial(), "steps": jnp.zeros((), jnp.float32)}

    def observe(self, params: Params, batch: Batch) -> dict[str, Any]:
        statistics = params["statistics"]
        extrapolated = self.extrapolated_log_ratios(params, batch)
        margins = self.beta * (extrapolated[:, 0] - extrapolated[:, 1])
        mask = mask_of(batch)
        return {
            **self.quantile.add(statistics, margins, mask[:, 0] & mask[:, 1]),
            "steps": statistics["steps"] + 1,
        }

    def loss(self, params: Params, batch: Batch, rng: Array | None) -> LossOutput:
        scores, log_ratios = self.log_ratios(params, batch, rng)
        chosen, rejected = log_ratios[:, 0], log_ratios[:, 1]
        extrapolated = self.extrapolated_log_ratios(params, batch)
        statistics = params["statistics"]
        warm = statistics["steps"] > self.warmup_fraction * self.total_steps
        threshold = jnp.where(warm, self.quantile.value(statistics), -jnp.inf)
        suspects = find_suspects(extrapolated[:, 0], extrapolated[:, 1], threshold, beta=self.beta)
        losses = spa_loss(chosen, rejected, suspects, beta=self.beta, alpha=self.alpha)
        mask = mask_of(batch)
        pairs = mask[:, 0] & mask[:, 1]
        margins = self.beta * (chosen - rejected)
        extrapolated_margins = self.beta * (extrapolated[:, 0] - extrapolated[:, 1])
        known = jnp.isfinite(threshold)
        return LossOutput(
            masked_sum(losses, pairs),
            jnp.sum(pairs).astype(jnp.float32),
            {
                "loss": mean_metric(losses, pairs),
                "margin": mean_metric(margins, pairs),
                "accuracy": mean_metric((margins > 0).astype(jnp.float32), pairs),
                "extrapolated_margin": mean_metric(extrapolated_margins, pairs),
                "suspects": mean_metric(suspects.astype(jnp.float32), pairs),
                "suspect_threshold": Metric(
                    jnp.where(known, threshold, 0.0), known.astype(jnp.float32)
                ),
                **log_ratio_metrics(scores, log_ratios, mask),
            },
        )

    def extrapolated_log_ratios(self, params: Params, batch: Batch) -> PerResponse:
        """Log-probability under extrapolated logits minus the reference's, of every response; without gradient or dropout."""
        policy = self.policy
        frozen = jax.lax.stop_gradient({role: params[role] for role in ("policy", "reference")})

        def read(of_policy: Array, of_reference: Array, targets: Array) -> Array:
            extrapolated = extrapolated_token_log_probs(
                of_policy, of_reference, targets, strength=self.strength
            )
            own = extrapolated_token_log_probs(of_reference, of_reference, targets, strength=0.0)
            return extrapolated - own

        tokens = map_logits(
            read,
            [policy.distributions(each, policy.decode(each, batch)) for each in frozen.values()],
            batch["decoder_target_tokens"],
            chunk_size=policy.logits_chunk_size,
        )
        statistics = TokenStatistics(tokens, jnp.zeros_like(tokens), None)
        return jnp.asarray(response_scores(statistics, batch).log_probs)
