"""Masked reductions that never divide by zero and never let a masked NaN through."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def as_float32(*arrays: Array) -> tuple[Array, ...]:
    """Returns the arrays as float32; float64 stays float64, so that finite differences can check gradients."""
    return tuple(
        array if array.dtype == jnp.float64 else array.astype(jnp.float32)
        for array in map(jnp.asarray, arrays)
    )


def masked_sum(values: Float[Array, "*shape"], where: Bool[Array, "*shape"]) -> Float[Array, ""]:
    """Sum of the values where the mask holds; 0 if it holds nowhere."""
    return jnp.sum(jnp.where(where, values, 0))


def masked_mean(values: Float[Array, "*shape"], where: Bool[Array, "*shape"]) -> Float[Array, ""]:
    """Mean of the values where the mask holds; 0 if it holds nowhere."""
    return masked_sum(values, where) / jnp.maximum(jnp.sum(where), 1)
