"""Objectives that are one pure loss function: they feed it the arrays that its parameters name.

`Responses` passes arrays ``[examples, responses]``, `Pairwise` arrays ``[pairs]`` with the prefixes ``chosen_`` and ``rejected_``, and
`whole_batch.WholeBatch` lets the function mix all examples of a step. Positional parameters of the function are arrays, keyword-only
ones are hyperparameters, which gin or `functools.partial` binds. See docs/adding_a_method.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxalign.errors import UserError
from jaxalign.losses.log_ratios import log_ratio
from jaxalign.losses.requirements import (
    Requirements,
    method_name,
    quantities_of,
    requirements_of,
)
from jaxalign.networks.value import pool_segments
from jaxalign.objectives.base import (
    Batch,
    LossOutput,
    Metric,
    Params,
    PerResponse,
    ReferenceObjective,
    Scores,
    log_ratio_metrics,
    mask_of,
    mean_metric,
)
from jaxalign.objectives.quantities import (
    FIELDS,
    FROM_REFERENCE,
    PER_EXAMPLE,
    PREFIXES,
    QUANTITIES,
    Quantities,
    Statistics,
    base_name,
    without_row_axis,
)
from jaxalign.objectives.tracing import abstract_array, check_hyperparameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Responses(ReferenceObjective):
    """A loss on every response, or on the responses of every prompt.

    Attributes:
      loss_function: returns losses ``[examples, responses]`` or ``[examples]``, or ``(losses, weights)`` where the sum of the weights
        is what the sum of the losses is divided by (by default the number of responses, or of prompts).
      statistics: what the method carries from step to step, passed to the loss as ``statistics``.
    """

    loss_function: Callable[..., Any]
    statistics: Statistics | None = None

    prefixes: ClassVar[tuple[str, ...]] = ("",)
    sees_whole_batch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self._names():
            if base_name(name, self.prefixes) not in QUANTITIES:
                given = self.prefixes != ("",)
                prefixes = f" with the prefixes {', '.join(self.prefixes)}" if given else ""
                raise UserError(
                    f"the loss function of objective {self.name} asks for {name!r}; {type(self).__name__} knows "
                    f"{', '.join(QUANTITIES)}{prefixes}"
                )
        mixes = requirements_of(self.loss_function).distinct_prompts
        if mixes and not self.sees_whole_batch:
            raise UserError(
                f"objective {self.name} contrasts prompts with each other, so it must be a WholeBatch and not a {type(self).__name__}: "
                "microbatches would change it"
            )
        if "statistics" in self._names() and self.statistics is None:
            raise UserError(f"objective {self.name} needs {type(self).__name__}.statistics")
        required, _ = quantities_of(self.loss_function)
        arguments = {name: abstract_array(name, self._base_name(name)) for name in required}
        if "statistics" in arguments and self.statistics is not None:
            arguments["statistics"] = jax.eval_shape(self.statistics.initial)
        check_hyperparameters(self.name, self.loss_function, arguments)

    @property
    def name(self) -> str:  # type: ignore[override]
        """The method's name: that of its loss function."""
        return method_name(self.loss_function)

    def frozen_roles(self) -> tuple[str, ...]:
        live = self.reference == "live" and self._needs_reference()
        return ("reference",) if live or "prompt_embeddings" in self._names() else ()

    def required_fields(self) -> tuple[str, ...]:
        required, _ = quantities_of(self.loss_function)
        fields = [name for name in map(self._base_name, required) if name in FIELDS]
        if self._needs_reference() and self.reference == "cached":
            fields.append("reference_log_probs")
        return tuple(dict.fromkeys(fields))

    def requirements(self) -> Requirements:
        return requirements_of(self.loss_function)

    def initial_statistics(self) -> dict[str, Any]:
        return {} if self.statistics is None else self.statistics.initial()

    def observe(self, params: Params, batch: Batch) -> dict[str, Any]:
        if self.statistics is None:
            return {}
        _, quantities = self._quantities(jax.lax.stop_gradient(dict(params)), batch, None)
        return jax.lax.stop_gradient(self.statistics.update(params["statistics"], quantities))

    def check_batch(self, batch: Batch) -> None:
        super().check_batch(batch)
        needs = requirements_of(self.loss_function)
        responses = batch["response_mask"].shape[-1]
        if responses < needs.min_responses:
            raise UserError(
                f"objective {self.name} compares the responses to one prompt: it needs at least {needs.min_responses} per prompt, but "
                f"the task has {responses}. Set TaskData.responses_per_example."
            )
        if needs.distinct_prompts:
            ids = np.unique(np.asarray(batch["prompt_ids"]))
            if (ids > 0).sum() < 2:
                raise UserError(
                    f"objective {self.name} contrasts prompts with each other, but this batch holds a single one. Raise BATCH_SIZE."
                )
        for names, low, high, what in (
            (needs.probabilities, 0.0, 1.0, "probabilities in [0, 1]"),
            (needs.nonnegative, 0.0, np.inf, "not negative"),
        ):
            for name in names:
                values = self._host_values(batch, name)
                outside = values[(values < low) | (values > high)]
                if outside.size:
                    raise UserError(
                        f"objective {self.name} needs {name} that are {what}, but this batch has {outside[0]:g}"
                    )

    def loss(self, params: Params, batch: Batch, rng: Array | None) -> LossOutput:
        scores, quantities = self._quantities(params, batch, rng)
        losses, weights = self._call(quantities, batch)
        return LossOutput(
            jnp.sum(losses),
            jnp.sum(weights),
            self._metrics(scores, quantities, batch, jnp.sum(losses), jnp.sum(weights)),
        )

    def _names(self) -> tuple[str, ...]:
        required, optional = quantities_of(self.loss_function)
        return (*required, *optional)

    def _base_name(self, name: str) -> str:
        return base_name(name, self.prefixes)

    def _needs_reference(self) -> bool:
        return any(self._base_name(name) in FROM_REFERENCE for name in self._names())

    def _quantities(
        self, params: Params, batch: Batch, rng: Array | None
    ) -> tuple[Scores, Quantities]:
        """The policy's scores, and the arrays by name, ``[examples, responses]`` unless `QUANTITIES` says otherwise."""
        scores = self.policy.score(params["policy"], batch, rng=rng)
        return scores, self._others(params, batch, scores.log_probs, scores.lengths)

    def _others(
        self, params: Params, batch: Batch, log_probs: PerResponse, lengths: PerResponse
    ) -> Quantities:
        found: Quantities = {"log_probs": log_probs, "lengths": lengths, "mask": mask_of(batch)}
        if self._needs_reference():
            reference = self.reference_log_probs(params, batch)
            found["reference_log_probs"] = reference
            found["log_ratios"] = log_ratio(log_probs, reference, lengths)
        for name in FIELDS:
            if name in batch:
                found[name] = without_row_axis(batch[name], per_example=name == "prompt_ids")
        if "prompt_embeddings" in self._names():
            found["prompt_embeddings"] = self._prompt_embeddings(params, batch)
        if self.statistics is not None:
            found["statistics"] = jax.lax.stop_gradient(dict(params["statistics"]))
        return found

    def _prompt_embeddings(self, params: Params, batch: Batch) -> Float[Array, "examples emb"]:
        """Mean of the frozen reference's encoder states over every prompt, without gradient."""
        states = self.policy.encode(params["reference"], batch)
        pooled = pool_segments(
            states, batch["encoder_segment_ids"], batch["response_mask"].shape[1]
        )
        return jax.lax.stop_gradient(jnp.asarray(pooled).reshape(-1, pooled.shape[-1]))

    def _arguments(self, quantities: Quantities) -> Quantities:
        """The arrays that the function reads; those with a default only if the batch has them."""
        required, optional = quantities_of(self.loss_function)
        return {
            name: quantities[name]
            for name in (*required, *optional)
            if name in required or name in quantities
        }

    def _exists(self, batch: Batch, like: Array) -> Bool[Array, ...]:
        mask = mask_of(batch)
        return mask if like.ndim == 2 else mask.any(axis=-1)

    def _call(self, quantities: Quantities, batch: Batch) -> tuple[Array, Array]:
        """Losses and weights, 0 where nothing exists."""
        result = self.loss_function(**self._arguments(quantities))
        losses, weights = result if isinstance(result, tuple) else (result, None)
        exists = self._exists(batch, losses)
        ones = jnp.ones_like(losses) if weights is None else jax.lax.stop_gradient(weights)
        return jnp.where(exists, losses, 0), jnp.where(exists, ones, 0).astype(jnp.float32)

    def _metrics(
        self,
        scores: Scores,
        quantities: Quantities,
        batch: Batch,
        loss_sum: Array,
        weight: Array,
    ) -> dict[str, Metric]:
        mask = mask_of(batch)
        metrics = {"loss": Metric(loss_sum, weight)}
        if "log_ratios" in quantities:
            metrics |= log_ratio_metrics(scores, quantities["log_ratios"], mask)
        else:
            metrics |= {
                "log_prob": mean_metric(scores.log_probs, mask),
                "response_length": mean_metric(scores.lengths, mask),
            }
        return metrics

    def _host_values(self, batch: Batch, name: str) -> np.ndarray:
        """A field's values where responses exist."""
        mask = np.asarray(batch["response_mask"]) > 0
        return np.asarray(batch[name])[mask]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairwise(Responses):
    """A loss on pairs of responses to one prompt, the preferred one first; some methods read a third response.

    The function's arrays are ``[pairs]``; ``chosen_log_ratios`` are those of the first response, ``rejected_log_ratios`` of the second,
    ``third_log_ratios`` of the third.
    """

    prefixes: ClassVar[tuple[str, ...]] = PREFIXES

    @property
    def responses_per_prompt(self) -> int:  # type: ignore[override]
        """3 if the function reads a third response, else 2."""
        return 3 if any(name.startswith("third_") for name in self._names()) else 2

    def _quantities(
        self, params: Params, batch: Batch, rng: Array | None
    ) -> tuple[Scores, Quantities]:
        scores, found = super()._quantities(params, batch, rng)
        responses = batch["response_mask"].shape[-1]
        for name, values in list(found.items()):
            if name in PER_EXAMPLE:
                continue
            for index, prefix in enumerate(PREFIXES[:responses]):
                found[f"{prefix}{name}"] = values[:, index]
        return scores, found

    def _exists(self, batch: Batch, like: Array) -> Bool[Array, ...]:
        del like
        mask = mask_of(batch)
        return mask[:, 0] & mask[:, 1]

    def _metrics(
        self,
        scores: Scores,
        quantities: Quantities,
        batch: Batch,
        loss_sum: Array,
        weight: Array,
    ) -> dict[str, Metric]:
        metrics = super()._metrics(scores, quantities, batch, loss_sum, weight)
        name = "log_ratios" if "log_ratios" in quantities else "log_probs"
        values = quantities[name]
        pairs = self._exists(batch, values)
        difference = values[:, 0] - values[:, 1]
        return metrics | {
            "margin": mean_metric(difference, pairs),
            "accuracy": mean_metric((difference > 0).astype(jnp.float32), pairs),
            "chosen": mean_metric(values[:, 0], pairs),
            "rejected": mean_metric(values[:, 1], pairs),
        }

    def _host_values(self, batch: Batch, name: str) -> np.ndarray:
        mask = np.asarray(batch["response_mask"]) > 0
        for index, prefix in enumerate(PREFIXES):
            if name.startswith(prefix):
                field = np.asarray(batch[name.removeprefix(prefix)])
                return field[:, :, index][mask[:, :, index]]
        return super()._host_values(batch, name)
