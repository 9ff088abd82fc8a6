"""Objectives that are one pure loss function on tokens, and functions that token-level objectives share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

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
from jaxalign.losses.segments import (
    first_tokens,
    segment_lengths,
    segment_totals,
    spread,
)
from jaxalign.networks.protocols import TokenPolicy
from jaxalign.objectives.base import Batch, LossOutput, Metric, Objective, Params, mean_metric
from jaxalign.objectives.tracing import check_hyperparameters

PerToken = Float[Array, "rows length"]

# Per-response fields of the batch, passed at every token of the response.
_FIELDS = ("rewards", "feedback", "advantages")
_FROM_REFERENCE = ("reference_log_probs", "log_ratios")
QUANTITIES = ("log_probs", *_FROM_REFERENCE, "segments", *_FIELDS)
NORMALIZATIONS = ("responses", "tokens")


def check_normalization(objective: str, normalization: str) -> None:
    """Raises `UserError` unless the normalisation is one of `NORMALIZATIONS`."""
    if normalization not in NORMALIZATIONS:
        raise UserError(
            f"{objective}.normalization must be one of {', '.join(NORMALIZATIONS)}, not {normalization!r}"
        )


def segments_of(batch: Batch) -> Any:
    """The response that each target token belongs to, 0 on padding."""
    return jnp.asarray(batch["decoder_segment_ids"])


def token_mask(batch: Batch) -> Bool[Array, "rows length"]:
    """Which positions hold a target token."""
    return jnp.asarray(batch["decoder_loss_weights"]) > 0


def tokens_of(batch: Batch, field: str) -> PerToken:
    """A per-response field ``[rows, examples per row, responses]`` at every token of each response."""
    values = jnp.asarray(batch[field])
    return spread(values.reshape(values.shape[0], -1), segments_of(batch))


def token_sum(losses: PerToken, batch: Batch) -> Float[Array, ""]:
    """Sum over target tokens; values on padding are ignored."""
    weights = jnp.asarray(batch["decoder_loss_weights"], jnp.float32)
    return jnp.sum(jnp.where(weights > 0, losses, 0) * weights)


def num_tokens(batch: Batch) -> Float[Array, ""]:
    """Target tokens of the batch."""
    return jnp.asarray(batch["decoder_loss_weights"], jnp.float32).sum()


def num_responses(batch: Batch) -> Float[Array, ""]:
    """Responses of the batch."""
    return jnp.sum(jnp.asarray(batch["response_mask"])).astype(jnp.float32)


def mean_over_tokens(losses: PerToken, batch: Batch) -> PerToken:
    """Losses divided by the number of tokens of their response, so that a response's sum is a mean."""
    return losses / jnp.maximum(segment_lengths(segments_of(batch)), 1)


def divisor(batch: Batch, normalization: str) -> Float[Array, ""]:
    """The divisor of the sum of token losses: the number of 'responses' or 'tokens' of the step's batch."""
    return num_tokens(batch) if normalization == "tokens" else num_responses(batch)


def likelihood_metrics(log_probs: PerToken, batch: Batch) -> dict[str, Metric]:
    """Mean log-probability of a response, negative log-probability of a token, and the response length."""
    tokens, responses = num_tokens(batch), num_responses(batch)
    total = token_sum(log_probs, batch)
    return {
        "log_prob": Metric(total, responses),
        "negative_log_prob_per_token": Metric(-total, tokens),
        "response_length": Metric(tokens, responses),
    }


def token_log_ratio_metrics(log_ratios: PerToken, batch: Batch) -> dict[str, Metric]:
    """The log-ratio of a response (the sum over its tokens) and its square."""
    segments = segments_of(batch)
    totals = segment_totals(log_ratios, segments)
    first = first_tokens(segments)
    return {
        "log_ratio": mean_metric(totals, first),
        "log_ratio_squared": mean_metric(jnp.square(totals), first),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenWeighted(Objective):
    """A loss on every token from its log-probability under the policy and, if the function asks, under the frozen reference.

    Reference log-probabilities of tokens are not stored, so the role ``reference`` is in memory. Positional parameters of the loss function
    name its arrays, all ``[rows, length]``: ``log_probs``, ``reference_log_probs``, ``log_ratios``, ``segments`` (the response of each
    token, 0 on padding), and ``rewards`` (standardised), ``feedback`` (as logged) or ``advantages`` of the token's response.

    Attributes:
      policy: the policy network.
      loss_function: returns losses ``[rows, length]``; values on padding are ignored.
      normalization: what the summed losses are divided by: the number of 'responses' or of 'tokens' in the step's batch.
    """

    policy: TokenPolicy
    loss_function: Callable[..., Any]
    normalization: str = "responses"

    def __post_init__(self) -> None:
        check_normalization("TokenWeighted", self.normalization)
        for name in self._names():
            if name not in QUANTITIES:
                raise UserError(
                    f"the loss function of objective {self.name} asks for {name!r}; TokenWeighted knows {', '.join(QUANTITIES)}"
                )
        tokens = jax.ShapeDtypeStruct((2, 8), jnp.float32)
        segments = jax.ShapeDtypeStruct((2, 8), jnp.int32)
        arrays = {name: segments if name == "segments" else tokens for name in self._names()}
        check_hyperparameters(self.name, self.loss_function, arrays)

    @property
    def name(self) -> str:  # type: ignore[override]
        """The method's name: that of its loss function."""
        return method_name(self.loss_function)

    def frozen_roles(self) -> tuple[str, ...]:
        return ("reference",) if self._needs_reference() else ()

    def required_fields(self) -> tuple[str, ...]:
        return tuple(name for name in self._names() if name in _FIELDS)

    def requirements(self) -> Requirements:
        return requirements_of(self.loss_function)

    def check_batch(self, batch: Batch) -> None:
        super().check_batch(batch)
        mask = np.asarray(batch["response_mask"]) > 0
        for name in requirements_of(self.loss_function).nonnegative:
            values = np.asarray(batch[name])[mask]
            if (values < 0).any():
                raise UserError(
                    f"objective {self.name} needs {name} that are not negative, but this batch has {values.min():g}"
                )

    def loss(self, params: Params, batch: Batch, rng: Array | None) -> LossOutput:
        policy = self.policy
        log_probs = policy.token_statistics(params["policy"], batch, rng=rng).log_probs
        found: dict[str, Any] = {"log_probs": log_probs, "segments": segments_of(batch)}
        if self._needs_reference():
            frozen = jax.lax.stop_gradient(params["reference"])
            reference = policy.token_statistics(frozen, batch).log_probs
            found["reference_log_probs"] = reference
            found["log_ratios"] = log_ratio(log_probs, reference, jnp.ones_like(reference))
        found |= {name: tokens_of(batch, name) for name in self.required_fields()}
        losses = self.loss_function(**{name: found[name] for name in self._names()})
        loss_sum, weight = token_sum(losses, batch), divisor(batch, self.normalization)
        metrics = {"loss": Metric(loss_sum, weight), **likelihood_metrics(log_probs, batch)}
        if self._needs_reference():
            metrics |= token_log_ratio_metrics(found["log_ratios"], batch)
        return LossOutput(loss_sum, weight, metrics)

    def _names(self) -> tuple[str, ...]:
        required, _ = quantities_of(self.loss_function)
        return required

    def _needs_reference(self) -> bool:
        return any(name in _FROM_REFERENCE for name in self._names())
