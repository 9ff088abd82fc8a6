"""Objectives that are one pure loss function: they feed it the arrays that its parameters name.

`Responses` passes arrays ``[examples, responses]``, `Pairwise` arrays ``[pairs]`` with the prefixes ``chosen_`` and ``rejected_``, and
`WholeBatch` lets the function mix all examples of a step. Positional parameters of the function are arrays, keyword-only ones are
hyperparameters, which gin or `functools.partial` binds. See docs/adding_a_method.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxalign.errors import UserError
from jaxalign.losses.log_ratios import log_ratio
from jaxalign.losses.masking import masked_sum
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
from jaxalign.objectives.tracing import abstract_array, check_hyperparameters

# Batch fields with one number per response, which may be stored beside the cache.
_STORED = ("advantages", "density_ratios", "margin_rewards", "margin_log_probs")
_FIELDS = ("rewards", "feedback", "scores", "prompt_ids", "reference_rewards", *_STORED)
_FROM_POLICY = ("log_probs", "lengths", "mask")
_FROM_REFERENCE = ("reference_log_probs", "log_ratios")
_COMPUTED = ("prompt_embeddings", "statistics")
QUANTITIES = (*_FROM_POLICY, *_FROM_REFERENCE, *_FIELDS, *_COMPUTED)
# These do not belong to one response, so `Pairwise` passes them under their own name.
_PER_EXAMPLE = ("prompt_ids", "reference_rewards", "prompt_embeddings", "statistics")
_PREFIXES = ("chosen_", "rejected_", "third_")

Quantities = dict[str, Any]


@runtime_checkable
class Statistics(Protocol):
    """Numbers that a method carries from step to step, for example a running mean."""

    def initial(self) -> dict[str, Any]:
        """Their values before the first step; float32 arrays."""

    def update(
        self, statistics: Mapping[str, Any], quantities: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Their values after seeing a step's whole batch; ``quantities`` as a loss function would get them."""


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

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self._names():
            if _base_name(name, self.prefixes) not in QUANTITIES:
                raise UserError(
                    f"the loss function of objective {self.name} asks for {name!r}; {type(self).__name__} knows "
                    f"{', '.join(QUANTITIES)}"
                    + (
                        f" with the prefixes {', '.join(self.prefixes)}"
                        if self.prefixes != ("",)
                        else ""
                    )
                )
        mixes = requirements_of(self.loss_function).distinct_prompts
        if mixes and not isinstance(self, WholeBatch):
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
        fields = [name for name in map(self._base_name, required) if name in _FIELDS]
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
        return _base_name(name, self.prefixes)

    def _needs_reference(self) -> bool:
        return any(self._base_name(name) in _FROM_REFERENCE for name in self._names())

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
        for name in _FIELDS:
            if name in batch:
                found[name] = _without_row_axis(batch[name], per_example=name == "prompt_ids")
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

    prefixes: ClassVar[tuple[str, ...]] = _PREFIXES

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
            if name in _PER_EXAMPLE:
                continue
            for index, prefix in enumerate(_PREFIXES[:responses]):
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
        for index, prefix in enumerate(_PREFIXES):
            if name.startswith(prefix):
                field = np.asarray(batch[name.removeprefix(prefix)])
                return field[:, :, index][mask[:, :, index]]
        return super()._host_values(batch, name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WholeBatch(Responses):
    """A loss in which the examples of a step meet: contrast matrices, batch means, pairs across prompts.

    The step may split its batch into microbatches, and then no microbatch sees all examples. So the derivative of the loss with respect
    to every response's log-probability is computed first, for the whole batch, and each microbatch only multiplies its share by the
    gradient of its own log-probabilities. This is the chain rule, split between loss and network. Dropout must be
    off, since the log-probabilities are computed twice.
    """

    def prepare(self, params: Params, batch: Batch) -> Batch:
        scores, _ = self._quantities(jax.lax.stop_gradient(dict(params)), batch, None)

        def total(log_probs: PerResponse) -> tuple[Array, tuple[Array, Array]]:
            quantities = self._others(params, batch, log_probs, scores.lengths)
            losses, weights = self._call(quantities, batch)
            return jnp.sum(losses), (losses, weights)

        coefficients, (losses, weights) = jax.grad(total, has_aux=True)(scores.log_probs)
        rows = batch["response_mask"].shape[0]
        shares = {"coefficients": coefficients, "losses": losses, "weights": weights}
        return {
            **batch,
            **{
                f"whole_batch_{name}": jax.lax.stop_gradient(array.reshape(rows, -1))
                for name, array in shares.items()
            },
        }

    def loss(self, params: Params, batch: Batch, rng: Array | None) -> LossOutput:
        if "whole_batch_coefficients" not in batch:
            return super().loss(params, batch, rng)
        if rng is not None:
            raise UserError(
                f"objective {self.name} with microbatches cannot use dropout: log-probabilities are computed twice. Set DROPOUT_RATE = 0."
            )
        scores, quantities = self._quantities(params, batch, rng)
        log_probs = scores.log_probs
        coefficients = batch["whole_batch_coefficients"].reshape(log_probs.shape)
        losses, weight = batch["whole_batch_losses"].sum(), batch["whole_batch_weights"].sum()
        # x - sg(x) is 0 with the gradient of x.
        linear = masked_sum(
            coefficients * (log_probs - jax.lax.stop_gradient(log_probs)), mask_of(batch)
        )
        return LossOutput(
            losses + linear,
            weight,
            self._metrics(scores, quantities, batch, losses, weight),
        )


def _base_name(name: str, prefixes: tuple[str, ...]) -> str:
    if name in _PER_EXAMPLE:
        return name
    for prefix in prefixes:
        if prefix and name.startswith(prefix):
            return name.removeprefix(prefix)
    return name if "" in prefixes else f"{name} without a prefix"


def _without_row_axis(array: Any, *, per_example: bool) -> Any:
    """``[rows, examples per row, ...]`` as ``[examples, ...]``."""
    array = jnp.asarray(array)
    return array.reshape(-1) if per_example else array.reshape(-1, *array.shape[2:])
