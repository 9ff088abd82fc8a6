"""Sums and shifts within the responses of packed rows.

A row holds several responses, distinguished by segment ids (0 is padding). These functions never mix responses, so
a token-level loss built from these functions does not depend on packing.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

PerToken = Float[Array, "rows length"]
Segments = Int[Array, "rows length"]


def shifted(values: Any, segments: Segments, steps: int, fill: Any) -> Any:
    """The value ``steps`` tokens later in the same response (earlier if negative), ``fill`` where the response has no such token.

    Args:
      values: floats or ints ``[rows, length]``.
      segments: the response of each token, 0 on padding.
      steps: how far to look.
      fill: the value past a response's end or before its start, and on padding.
    """
    length = segments.shape[1]
    positions = jnp.arange(length) + steps
    inside = (positions >= 0) & (positions < length)
    same = (jnp.roll(segments, -steps, axis=1) == segments) & (segments > 0) & inside
    return jnp.where(same, jnp.roll(values, -steps, axis=1), fill)


def first_tokens(segments: Segments) -> Bool[Array, "rows length"]:
    """True at the first token of every response."""
    before = jnp.pad(segments[:, :-1], ((0, 0), (1, 0)))
    return (segments > 0) & (segments != before)


def suffix_sums(values: PerToken, segments: Segments, *, discount: float = 1.0) -> PerToken:
    """``c_t = sum_{j >= t} discount^(j - t) values_j`` over the tokens of the same response; 0 on padding.

    Args:
      values: anything on padding, NaN included.
      segments: the response of each token.
      discount: in [0, 1].
    """
    sums = jnp.where(segments > 0, values, 0)
    span = 1  # tokens that each sum covers
    while span < segments.shape[1]:
        sums += discount**span * shifted(sums, segments, span, 0)
        span *= 2
    return sums


def segment_totals(values: PerToken, segments: Segments) -> PerToken:
    """The sum over the whole response, at each of its tokens; 0 on padding."""
    sums = suffix_sums(values, segments)
    # The position of the first token of each position's segment.
    starts = jnp.where(first_tokens(segments), jnp.arange(segments.shape[1]), 0)
    totals = jnp.take_along_axis(sums, jax.lax.cummax(starts, axis=1), axis=1)
    return jnp.where(segments > 0, totals, 0)


def segment_lengths(segments: Segments) -> PerToken:
    """Tokens of the response, at each of them; 0 on padding. Float32."""
    return segment_totals(jnp.ones(segments.shape, jnp.float32), segments)


def segment_positions(segments: Segments) -> PerToken:
    """How many tokens of the same response come before; 0 on padding. Float32."""
    positions = jnp.arange(segments.shape[1])
    starts = jax.lax.cummax(jnp.where(first_tokens(segments), positions, 0), axis=1)
    return jnp.where(segments > 0, positions - starts, 0).astype(jnp.float32)


def spread(values: Float[Array, "rows responses"], segments: Segments) -> PerToken:
    """Values of responses at each of their tokens; 0 on padding.

    Args:
      values: of the responses of each row, in the order of their segments 1, 2, ...
      segments: the response of each token.
    """
    chosen = jnp.take_along_axis(values, jnp.maximum(segments - 1, 0), axis=1, mode="clip")
    return jnp.where(segments > 0, chosen, 0)
