"""Value of the frozen reference policy: V(x) fitted to the feedback of responses, before advantages are computed from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxalign.errors import UserError
from jaxalign.losses.masking import masked_sum
from jaxalign.losses.value_regression import value_regression_loss
from jaxalign.networks.frozen_trunk import FrozenTrunk
from jaxalign.networks.protocols import Network, PromptValuePredictor
from jaxalign.objectives.base import (
    Batch,
    LossOutput,
    Objective,
    Params,
    mask_of,
    mean_metric,
    responses_of,
)
from jaxalign.objectives.dro import dro_metrics, summarize_value_fit

UNITS = ("rewards", "feedback")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValueRegression(Objective):
    """Mean squared error of V(x) against the feedback of responses to x (Baheti et al. 2023, arXiv 2305.14718, section 3).

    For responses from the reference policy, V becomes its expected reward; A-LoL takes one greedy response per prompt of a development
    set. On logged responses it is the expected reward of the policy that logged them. The policy is neither trained nor evaluated: it
    describes the initial checkpoint, from whose policy the value network starts.

    Attributes:
      value: the value network.
      units: 'rewards' fits feedback standardised by the training split, 'feedback' raw feedback. `jaxalign advantages` reads either;
        a network with ``max_value`` needs raw feedback between 0 and that number.
      freeze_trunk: only the head learns, on the states of the encoder that it starts from: the paper's form, for a few hundred prompts.
    """

    value: PromptValuePredictor
    units: str = "rewards"
    freeze_trunk: bool = False

    name: ClassVar[str] = "value_regression"

    def __post_init__(self) -> None:
        if self.units not in UNITS:
            raise UserError(
                f"ValueRegression.units must be 'rewards' or 'feedback', not {self.units!r}"
            )
        if self.value.max_value is not None and self.units != "feedback":
            raise UserError(
                f"a value between 0 and max_value={self.value.max_value:g} is one of raw feedback: set ValueRegression.units = 'feedback'"
            )

        if self.freeze_trunk:
            FrozenTrunk(self.value)

    def trained(self) -> dict[str, Network]:
        return {"value": FrozenTrunk(self.value) if self.freeze_trunk else self.value}

    def required_fields(self) -> tuple[str, ...]:
        return (self.units,)

    def check_batch(self, batch: Batch) -> None:
        super().check_batch(batch)
        limit = self.value.max_value
        if limit is None:
            return
        feedback = np.asarray(batch["feedback"])[np.asarray(batch["response_mask"]) > 0]
        outside = feedback[(feedback < 0) | (feedback > limit)]
        if outside.size:
            raise UserError(
                f"the value network ends at max_value={limit:g}, but this batch has the feedback {outside[0]:g}; it must lie "
                "between 0 and max_value"
            )

    def loss(self, params: Params, batch: Batch, rng: Array | None) -> LossOutput:
        targets, mask = responses_of(batch, self.units), mask_of(batch)
        prompt_values = self.value.values(params["value"], batch, rng=rng)
        values = jnp.broadcast_to(prompt_values[:, None], targets.shape)
        losses = value_regression_loss(values, targets)
        return LossOutput(
            masked_sum(losses, mask),
            jnp.sum(mask).astype(jnp.float32),
            {**dro_metrics(targets, values, targets, mask), "loss": mean_metric(losses, mask)},
        )

    def summarize(self, metrics: Mapping[str, float]) -> dict[str, float]:
        return summarize_value_fit(metrics)
