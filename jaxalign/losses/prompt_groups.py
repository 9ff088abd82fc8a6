"""Methods that compare the responses to one prompt: reductions over them, and how many there must be."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxalign.errors import UserError


def prompt_means(
    values: Float[Array, "examples responses"], mask: Bool[Array, "examples responses"]
) -> Float[Array, "examples 1"]:
    """Mean over the responses to each prompt that exist; 0 for a prompt without any."""
    total = jnp.sum(jnp.where(mask, values, 0), axis=-1, keepdims=True)
    return total / jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1)


def responses_in_groups(
    mask: Bool[Array, "examples responses"], least: int
) -> Bool[Array, "examples responses"]:
    """Which responses exist and belong to a prompt with at least so many of them."""
    return mask & (jnp.sum(mask, axis=-1, keepdims=True) >= least)


def require_responses(method: str, found: int, least: int) -> None:
    """Raises `UserError` if a method that compares the responses to one prompt gets too few of them."""
    if found < least:
        raise UserError(
            f"{method} compares the responses to one prompt: it needs at least {least} per prompt, not {found}"
        )
