"""A reward model that also scores prefixes: Bradley-Terry and a contrast of decoder states."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxalign.errors import UserError, require_range
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
from jaxalign.networks.protocols import PrefixRewardPredictor
from jaxalign.networks.reward import response_spans, states_at
from jaxalign.objectives.base import Batch, LossOutput, Metric, Params, mask_of, mean_metric
from jaxalign.objectives.reward_modelling import RewardModel

CONTRASTIVE_FORMS = ("matched", "released")


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

    reward: PrefixRewardPredictor
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
        name = "GoalConditionedRewardModel"
        require_range(name, "[0, inf)", contrast_weight=self.contrast_weight, seed=self.seed)
        require_range(name, "[1, inf)", num_samples=self.num_samples)
        require_range(name, "[0, 1)", low=self.low)
        require_range(name, "(0, 1]", high=self.high)
        if self.low >= self.high:
            raise UserError(f"{name}.low is {self.low}; it must be below high, {self.high}")

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
        output = self.preference_output(rewards, batch)
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

    def _cosines(self, params: Params, batch: Batch, states: Any) -> tuple[Array, Array]:
        """Cosines of positives and negatives: ``[pairs, K]`` if matched, else ``[pairs, sources, goals]``."""
        starts, lengths = response_spans(batch)
        chosen, rejected = lengths[:, 0], lengths[:, 1]
        keys = self._keys(params, batch)
        options: dict[str, Any] = {
            "num_samples": self.num_samples,
            "low": self.low,
            "high": self.high,
        }
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
        """Three keys per example, ``[examples, 3]``. They change every step and do not depend on the layout of the batch."""
        statistics = params.get("statistics", {})
        draws = jnp.asarray(statistics.get("draws", 0)).astype(jnp.int32)
        key = jax.random.fold_in(jax.random.key(self.seed), draws)
        ids = jnp.maximum(jnp.asarray(batch["example_ids"]).reshape(-1), 0)
        return jax.vmap(lambda id: jax.random.split(jax.random.fold_in(key, id), 3))(ids)


def _pairs(batch: Batch) -> Bool[Array, " examples"]:
    mask = mask_of(batch)
    return mask[:, 0] & mask[:, 1]
