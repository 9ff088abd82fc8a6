"""The arrays that the parameters of a loss function may name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp

# Batch fields with one number per response, which may be stored beside the cache.
STORED = ("advantages", "density_ratios", "margin_rewards", "margin_log_probs")
FIELDS = ("rewards", "feedback", "scores", "prompt_ids", "reference_rewards", *STORED)
FROM_POLICY = ("log_probs", "lengths", "mask")
FROM_REFERENCE = ("reference_log_probs", "log_ratios")
COMPUTED = ("prompt_embeddings", "statistics")
QUANTITIES = (*FROM_POLICY, *FROM_REFERENCE, *FIELDS, *COMPUTED)
# These do not belong to one response, so `Pairwise` passes them under their own name.
PER_EXAMPLE = ("prompt_ids", "reference_rewards", "prompt_embeddings", "statistics")
PREFIXES = ("chosen_", "rejected_", "third_")

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


def base_name(name: str, prefixes: tuple[str, ...]) -> str:
    """The quantity that a parameter's name means, without the prefix that selects a response."""
    if name in PER_EXAMPLE:
        return name
    for prefix in prefixes:
        if prefix and name.startswith(prefix):
            return name.removeprefix(prefix)
    return name if "" in prefixes else f"{name} without a prefix"


def without_row_axis(array: Any, *, per_example: bool) -> Any:
    """``[rows, examples per row, ...]`` as ``[examples, ...]``."""
    array = jnp.asarray(array)
    return array.reshape(-1) if per_example else array.reshape(-1, *array.shape[2:])
