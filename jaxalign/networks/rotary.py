"""Rotary position embeddings (Su et al. 2021, arXiv 2104.09864), in the layout that rotates the two halves of a head."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxalign.networks.shapes import AnyArray, Tokens

# Cosines and sines of every position, [2, rows, length, head_dim / 2]; rows and length may be 1, to be broadcast.
Rotation = Float[AnyArray, "2 _rows _length _half"]


def segment_positions(segment_ids: Tokens) -> Int[Array, "rows length"]:
    """Positions counted from the start of each segment; segments are contiguous."""
    index = jnp.arange(segment_ids.shape[1])
    before = jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    starts = jnp.where(segment_ids != before, index, 0)
    return index - jax.lax.cummax(starts, axis=1)


def rotation(
    positions: Int[AnyArray, "rows length"], head_dim: int, theta: float, factor: float = 1.0
) -> Rotation:
    """The rotation of every position: pair i of a head by ``position / factor * theta ** (-2 i / head_dim)``."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim) / factor
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)])


def rotate(x: Float[AnyArray, "rows heads length head_dim"], rotation: Rotation) -> AnyArray:
    """Queries or keys, rotated in float32."""
    cosines, sines = rotation[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate(
        [first * cosines - second * sines, second * cosines + first * sines], axis=-1
    )
    return rotated.astype(x.dtype)
