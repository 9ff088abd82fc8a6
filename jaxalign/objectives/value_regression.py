"""Value of the frozen reference policy: V(x) fitted to the feedback of responses, before advantages are computed from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxalign.errors import UserError
from jaxalign.losses.masking import masked_sum
from jaxalign.losses.value_regression import value_regression_loss
from jaxalign.objectives.base import (
    Batch,
    LossOutput,
    Objective,
    Params,
    ValuePredictor,
    mask_of,
    mean_metric,
    responses_of,
)
from jaxalign.objectives.dro import dro_metrics, summarize_value_fit

UNITS = ("rewards", "feedback")
_HEAD = "head"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValueRegression(Objective):
    """Mean squared error of V(x) against the feedback of responses to x (Baheti et al. 2023, arXiv 2305.14718, section 3).

    Of responses from the reference policy, V becomes its expected reward; A-LoL takes one greedy response per prompt of a development
    set. On logged responses it is the expected reward of the policy that logged them. The policy is neither trained nor read: it says
    what an initial checkpoint holds, from whose policy the value network starts.

    Attributes:
      value: the value network.
      units: 'rewards' fits feedback standardised by the training split, 'feedback' raw feedback. `jaxalign advantages` reads either;
        a network with ``max_value`` needs raw feedback between 0 and that number.
      freeze_trunk: only the head learns, on the states of the encoder it started from: the paper's form, for a few hundred prompts. The
        optimizer must not decay weights.
    """

    value: ValuePredictor
    units: str = "rewards"
    freeze_trunk: bool = False

    name: ClassVar[str] = "value_regression"

    def __post_init__(self) -> None:
        if self.units not in UNITS:
            raise UserError(
                f"ValueRegression.units must be 'rewards' or 'feedback', not {self.units!r}"
            )
        if self._max_value is not None and self.units != "feedback":
            raise UserError(
                f"a value between 0 and max_value={self._max_value:g} is one of raw feedback: set ValueRegression.units = 'feedback'"
            )

    def trained(self) -> dict[str, Any]:
        return {"value": self.value}

    def required_fields(self) -> tuple[str, ...]:
        return (self.units,)

    def check_batch(self, batch: Batch) -> None:
        super().check_batch(batch)
        if self._max_value is None:
            return
        feedback = np.asarray(batch["feedback"])[np.asarray(batch["response_mask"]) > 0]
        outside = feedback[(feedback < 0) | (feedback > self._max_value)]
        if outside.size:
            raise UserError(
                f"the value network ends at max_value={self._max_value:g}, but this batch has the feedback {outside[0]:g}; it must lie "
                "between 0 and max_value"
            )

    def loss(self, params: Params, batch: Batch, rng: Array | None) -> LossOutput:
        targets, mask = responses_of(batch, self.units), mask_of(batch)
        prompt_values = self.value.values(self._trainable(params["value"]), batch, rng=rng)
        values = jnp.broadcast_to(prompt_values[:, None], targets.shape)
        losses = value_regression_loss(values, targets)
        return LossOutput(
            masked_sum(losses, mask),
            jnp.sum(mask).astype(jnp.float32),
            {**dro_metrics(targets, values, targets, mask), "loss": mean_metric(losses, mask)},
        )

    def summarize(self, metrics: Mapping[str, float]) -> dict[str, float]:
        return summarize_value_fit(metrics)

    @property
    def _max_value(self) -> float | None:
        return getattr(self.value, "max_value", None)

    def _trainable(self, params: Params) -> Params:
        if not self.freeze_trunk:
            return params
        if _HEAD not in params:
            raise UserError(
                f"ValueRegression.freeze_trunk needs a value network with a {_HEAD!r}; it has {', '.join(params)}"
            )
        return {
            name: part if name == _HEAD else jax.lax.stop_gradient(part)
            for name, part in params.items()
        }
