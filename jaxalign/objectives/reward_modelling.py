"""Objectives that train a reward network, in the role ``reward``, on preferences between the responses to a prompt."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxalign.errors import UserError
from jaxalign.losses.goal_conditioning import (
    ContrastMeans,
    contrast_means,
    cosine,
    matched_contrastive_loss,
    released_contrastive_loss,
    sample_positions,
    sample_source_and_goal,
)
from jaxalign.losses.masking import masked_sum
from jaxalign.losses.reward_modelling import bradley_terry_loss, won
from jaxalign.networks.feature_reward import FeatureReward
from jaxalign.networks.reward import DecoderRewardNetwork, response_spans, states_at
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
CONTRASTIVE_FORMS = ("matched", "released")


class RewardPredictor(Protocol):
    """A scalar function of prompt and response."""

    def init(self, rng: Array) -> Any:
        """Returns freshly initialised parameters."""

    def rewards(self, params: Any, batch: Batch, *, rng: Array | None = None) -> Any:
        """Returns ``[examples, responses]`` rewards, known up to a constant per prompt; dropout only with an rng."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardModel(Objective):
    """A scalar reward by Bradley-Terry (Ouyang et al. 2022, arXiv 2203.02155, equation 1); the mean over comparisons.

    The policy is neither trained nor read: it says what an initial checkpoint holds, from whose policy the reward network starts.

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
        if not self.margin >= 0:
            raise UserError(f"{type(self).__name__}.margin must be at least 0, not {self.margin}")

    @property
    def responses_per_prompt(self) -> int | None:  # type: ignore[override]
        """Two, unless feedback says which of more are better."""
        return 2 if self.preferred == "first" else None

    def trained(self) -> dict[str, Any]:
        return {"reward": self.reward}

    def required_fields(self) -> tuple[str, ...]:
        reads_feedback = self.preferred == "feedback" or self.margin > 0
        return (*self.batch_fields, *(("feedback",) if reads_feedback else ()))

    def check_batch(self, batch: Batch) -> None:
        super().check_batch(batch)
        responses = batch["response_mask"].shape[-1]
        if responses < 2:
            raise UserError(
                f"objective {self.name} compares the responses to one prompt: it needs at least two per prompt, but the task has "
                f"{responses}. Set TaskData.responses_per_example."
            )

    def loss(self, params: Params, batch: Batch, rng: Array | None) -> LossOutput:
        return self._output(self.reward.rewards(params["reward"], batch, rng=rng), batch)

    def _better(self, batch: Batch) -> Bool[Array, "examples responses responses"]:
        """Where the response of the row was preferred to that of the column."""
        mask = mask_of(batch)
        both = mask[:, :, None] & mask[:, None, :]
        if self.preferred == "first":
            return both & jnp.array([[False, True], [False, False]])
        first, second = _compared(responses_of(batch, "feedback"))
        return both & (first > second)

    def _output(self, rewards: PerResponse, batch: Batch) -> LossOutput:
        """The Bradley-Terry loss of all comparisons, and what every reward model reports."""
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
                # What a judge without understanding gets: the longer response wins.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class GoalConditionedRewardModel(RewardModel):
    """Bradley-Terry plus a contrast of the states of prefixes (Nath et al. 2024, arXiv 2407.13887), on pairs.

    Attributes:
      reward: the reward network, on decoder states.
      contrast_weight: the paper's beta; 0 is plain Bradley-Terry.
      form: 'matched' compares K source prefixes with one goal each (ours, recommended); 'released' is the public code's: all K x K, with
        the batch's mean inside the logarithm.
      num_samples: K.
      average_goals: contrast with the mean of the K goals.
      low, high: the part of a response from which positions are drawn, as fractions counted from its start.
      seed: of the positions, which depend on it, the number of the step and the example only.
    """

    reward: DecoderRewardNetwork
    contrast_weight: float = 0.5
    form: str = "matched"
    num_samples: int = 16
    average_goals: bool = False
    low: float = 0.0
    high: float = 1.0
    seed: int = 0

    name: ClassVar[str] = "goal_conditioned_reward_model"
    batch_fields: ClassVar[tuple[str, ...]] = ("example_ids",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preferred != "first":
            raise UserError("GoalConditionedRewardModel.preferred must be 'first': it reads pairs")
        if self.form not in CONTRASTIVE_FORMS:
            raise UserError(
                f"GoalConditionedRewardModel.form must be 'matched' or 'released', not {self.form!r}"
            )
        if not self.contrast_weight >= 0 or self.num_samples < 1:
            raise UserError(
                "GoalConditionedRewardModel needs contrast_weight >= 0 and num_samples >= 1, not "
                f"{self.contrast_weight} and {self.num_samples}"
            )

    def initial_statistics(self) -> dict[str, Any]:
        return {"draws": jnp.zeros((), jnp.float32)}

    def observe(self, params: Params, batch: Batch) -> dict[str, Any]:
        del batch
        return {"draws": params["statistics"]["draws"] + 1}

    def prepare(self, params: Params, batch: Batch) -> Batch:
        if self.form == "matched" or self.contrast_weight == 0:
            return batch
        states = self.reward.states(jax.lax.stop_gradient(params["reward"]), batch)
        means = contrast_means(*self._cosines(params, batch, states), _pairs(batch))
        return {**batch, "contrast_positive": means.positive, "contrast_negative": means.negative}

    def loss(self, params: Params, batch: Batch, rng: Array | None) -> LossOutput:
        states = self.reward.states(params["reward"], batch, rng=rng)
        rewards = self.reward.rewards_of(params["reward"], states, batch)
        output = self._output(rewards, batch)
        if self.contrast_weight == 0:
            return output
        pairs = _pairs(batch)
        positive, negative = self._cosines(params, batch, states)
        if self.form == "matched":
            contrast = matched_contrastive_loss(positive, negative)
        else:
            means = contrast_means(positive, negative, pairs)
            if "contrast_positive" in batch:
                means = ContrastMeans(batch["contrast_positive"], batch["contrast_negative"])
            contrast = released_contrastive_loss(positive, negative, means)
        contrast_sum = self.contrast_weight * masked_sum(contrast, pairs)
        loss_sum = output.loss_sum + contrast_sum
        axes = tuple(range(1, positive.ndim))
        return LossOutput(
            loss_sum,
            output.weight,
            {
                **output.metrics,
                "loss": Metric(loss_sum, output.weight),
                "preference_loss": output.metrics["loss"],
                "contrastive_loss": mean_metric(contrast, pairs),
                "positive_cosine": mean_metric(jnp.mean(positive, axes), pairs),
                "negative_cosine": mean_metric(jnp.mean(negative, axes), pairs),
            },
        )

    def _cosines(self, params: Params, batch: Batch, states: Array) -> tuple[Array, Array]:
        """Of positives and negatives: ``[pairs, K]`` if matched, else ``[pairs, sources, goals]``."""
        starts, lengths = response_spans(batch)
        chosen, rejected = lengths[:, 0], lengths[:, 1]
        keys = self._keys(params, batch)
        options = {"num_samples": self.num_samples, "low": self.low, "high": self.high}
        sources, goals = sample_source_and_goal(keys[:, 0], chosen, **options)
        other_sources = sample_positions(keys[:, 1], chosen, **options)
        other_goals = sample_positions(keys[:, 2], rejected, **options)
        of_chosen = jnp.concatenate([sources, goals, other_sources], axis=1)
        found = states_at(states, starts[:, :1], of_chosen[:, None])[:, 0]
        source_states, goal_states, other_source_states = jnp.split(found, 3, axis=1)
        other_goal_states = states_at(states, starts[:, 1:], other_goals[:, None])[:, 0]
        return (
            self._contrast(source_states, goal_states),
            self._contrast(other_source_states, other_goal_states),
        )

    def _contrast(self, sources: Array, goals: Array) -> Array:
        if self.average_goals:
            goals = jnp.mean(goals.astype(jnp.float32), axis=1, keepdims=True)
        if self.form == "matched":
            return cosine(sources, goals)
        return cosine(sources[:, :, None], goals[:, None, :])

    def _keys(self, params: Params, batch: Batch) -> Array:
        """Three keys an example, ``[examples, 3]``: new ones every step, the same in every layout of the batch."""
        statistics = params.get("statistics", {})
        draws = jnp.asarray(statistics.get("draws", 0)).astype(jnp.int32)
        key = jax.random.fold_in(jax.random.key(self.seed), draws)
        ids = jnp.maximum(jnp.asarray(batch["example_ids"]).reshape(-1), 0)
        return jax.vmap(lambda id: jax.random.split(jax.random.fold_in(key, id), 3))(ids)


def _pairs(batch: Batch) -> Bool[Array, " examples"]:
    mask = mask_of(batch)
    return mask[:, 0] & mask[:, 1]


def _compared(values: PerResponse) -> tuple[Comparisons, Comparisons]:
    """Every response's value in its row, and in its column."""
    shape = (*values.shape, values.shape[1])
    return jnp.broadcast_to(values[:, :, None], shape), jnp.broadcast_to(values[:, None, :], shape)


def _lengths(batch: Batch) -> PerResponse:
    """Tokens of every response, EOS included."""
    _, examples, responses = batch["response_mask"].shape
    weights = jnp.asarray(batch["decoder_loss_weights"], jnp.float32)
    return per_response_sum(weights, batch["decoder_segment_ids"], examples, responses)
