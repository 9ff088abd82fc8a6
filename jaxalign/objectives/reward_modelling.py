"""Objectives that train a reward network, in the role ``reward``, on preferences between the responses to a prompt."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxalign.errors import UserError, require_range
from jaxalign.losses.masking import masked_sum
from jaxalign.losses.requirements import Requirements
from jaxalign.losses.reward_modelling import bradley_terry_loss, won
from jaxalign.networks.feature_reward import FeatureReward
from jaxalign.networks.protocols import Network, RewardPredictor
from jaxalign.networks.scoring import per_response_sum
from jaxalign.objectives.base import (
    Batch,
    LossOutput,
    Metric,
    Objective,
    Params,
    PerResponse,
    mask_of,
    mean_metric,
    responses_of,
)

Comparisons = Float[Array, "examples responses responses"]
PREFERENCES = ("first", "feedback")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardModel(Objective):
    """A scalar reward by Bradley-Terry (Ouyang et al. 2022, arXiv 2203.02155, equation 1); the mean over comparisons.

    The policy is neither trained nor evaluated: it describes the initial checkpoint, from whose policy the reward network starts.

    Attributes:
      reward: the reward network.
      preferred: 'first' says that of two responses the first one won; 'feedback' compares all responses to a prompt by their feedback,
        and equal ones not at all.
      margin: by how much a response should win, per unit of feedback by which it is better (arXiv 2307.09288, equation 2).
    """

    reward: RewardPredictor
    preferred: str = "first"
    margin: float = 0.0

    name: ClassVar[str] = "reward_model"

    def __post_init__(self) -> None:
        if self.preferred not in PREFERENCES:
            raise UserError(
                f"{type(self).__name__}.preferred must be 'first' or 'feedback', not {self.preferred!r}"
            )
        require_range(type(self).__name__, "[0, inf)", margin=self.margin)

    @property
    def responses_per_prompt(self) -> int | None:  # type: ignore[override]
        """Two, unless feedback says which of more are better."""
        return 2 if self.preferred == "first" else None

    def trained(self) -> dict[str, Network]:
        return {"reward": self.reward}

    def required_fields(self) -> tuple[str, ...]:
        reads_feedback = self.preferred == "feedback" or self.margin > 0
        return (*self.batch_fields, *(("feedback",) if reads_feedback else ()))

    def requirements(self) -> Requirements:
        return Requirements(min_responses=2, margins=self.margin > 0)

    def check_batch(self, batch: Batch) -> None:
        super().check_batch(batch)
        responses = batch["response_mask"].shape[-1]
        if responses < 2:
            raise UserError(
                f"objective {self.name} compares the responses to one prompt: it needs at least two per prompt, but the task has "
                f"{responses}. Set TaskData.responses_per_example."
            )

    def loss(self, params: Params, batch: Batch, rng: Array | None) -> LossOutput:
        return self.preference_output(self.reward.rewards(params["reward"], batch, rng=rng), batch)

    def _better(self, batch: Batch) -> Bool[Array, "examples responses responses"]:
        """Where the response of the row was preferred to that of the column."""
        mask = mask_of(batch)
        both = mask[:, :, None] & mask[:, None, :]
        if self.preferred == "first":
            return both & jnp.array([[False, True], [False, False]])
        first, second = _compared(responses_of(batch, "feedback"))
        return both & (first > second)

    def preference_output(self, rewards: Any, batch: Batch) -> LossOutput:
        """The Bradley-Terry loss of all comparisons, and the metrics of every reward model."""
        better, mask = self._better(batch), mask_of(batch)
        margins: Comparisons | float = 0.0
        if self.margin > 0:
            first, second = _compared(responses_of(batch, "feedback"))
            margins = self.margin * jnp.where(better, first - second, 0.0)
        winners, losers = _compared(rewards)
        losses = bradley_terry_loss(winners, losers, margins)
        lengths = _lengths(batch)
        weight = jnp.sum(better).astype(jnp.float32)
        return LossOutput(
            masked_sum(losses, better),
            weight,
            {
                "loss": mean_metric(losses, better),
                "accuracy": mean_metric(won(winners, losers), better),
                # The accuracy of a judge that always prefers the longer response.
                "longer_wins": mean_metric(won(*_compared(lengths)), better),
                "margin": mean_metric(winners - losers, better),
                "reward": mean_metric(rewards, mask),
                "reward_squared": mean_metric(jnp.square(rewards), mask),
                "response_length": mean_metric(lengths, mask),
            },
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureRewardModel(RewardModel):
    """A reward from named scores of each response instead of its text (arXiv 2402.15473): few parameters, few preferences.

    Attributes:
      reward: phi; reads the batch field ``scores``.
      preferred: as in `RewardModel`; records with scores carry their preference as feedback.
      l2: coefficient of the sum of phi's squared weights, added to the mean loss.
    """

    reward: FeatureReward
    preferred: str = "feedback"
    l2: float = 1e-3

    name: ClassVar[str] = "feature_reward_model"
    batch_fields: ClassVar[tuple[str, ...]] = ("scores",)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("FeatureRewardModel", "[0, inf)", l2=self.l2)

    def check_batch(self, batch: Batch) -> None:
        super().check_batch(batch)
        found = batch["scores"].shape[-1]
        if found != self.reward.num_features:
            raise UserError(
                f"objective {self.name} expects {self.reward.num_features} scores per response (FeatureReward.num_features), but the "
                f"task has {found}"
            )

    def loss(self, params: Params, batch: Batch, rng: Array | None) -> LossOutput:
        output = super().loss(params, batch, rng)
        penalty = self.l2 * self.reward.penalty(params["reward"])
        # Times the weight, so that dividing by the weight of all microbatches leaves one penalty.
        return LossOutput(
            output.loss_sum + penalty * output.weight,
            output.weight,
            {**output.metrics, "penalty": Metric(penalty * output.weight, output.weight)},
        )


def _compared(values: PerResponse) -> tuple[Comparisons, Comparisons]:
    """Each response's value broadcast along its row, and along its column."""
    shape = (*values.shape, values.shape[1])
    return jnp.broadcast_to(values[:, :, None], shape), jnp.broadcast_to(values[:, None, :], shape)


def _lengths(batch: Batch) -> PerResponse:
    """Tokens of every response, EOS included."""
    _, examples, responses = batch["response_mask"].shape
    weights = jnp.asarray(batch["decoder_loss_weights"], jnp.float32)
    sums = per_response_sum(weights, batch["decoder_segment_ids"], examples, responses)
    return jnp.asarray(sums)
