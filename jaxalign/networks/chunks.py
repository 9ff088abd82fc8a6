"""Chunks of target positions, one of which at a time is projected to the vocabulary.

Chunks run along the positions of a row, so that the sharding of a batch over its rows survives.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign.networks.shapes import AnyArray, Kernel

Copies = Float[
    AnyArray, "shards emb vocab"
]  # a projection, or a part of its gradient, on every device


def num_chunks(rows: int, length: int, chunk_size: int | None) -> int:
    """The number of chunks in which `chunk_size` tokens exist at once on a device; at least one position of every row does.

    Raises:
      ValueError: `chunk_size` is not positive.
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; it must be at least 1, or None.")
    local_rows = rows // num_shards(rows)
    positions = length if chunk_size is None else max(1, chunk_size // max(local_rows, 1))
    return max(1, math.ceil(length / positions))


def num_shards(rows: int) -> int:
    """Over how many devices the rows of a batch are spread, by the mesh and the axis rules in force; 1 without them."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = nn.logical_to_mesh_axes(("batch",))
    if mesh.empty or axes is None or axes[0] is None:
        return 1
    names = (axes[0],) if isinstance(axes[0], str) else axes[0]
    shards = math.prod(mesh.shape[name] for name in names)
    return shards if rows % shards == 0 else 1


def gathered(kernel: Kernel) -> Kernel:
    """A projection that every device holds whole, but for the axis ``vocab``: what each chunk reads is gathered once, before the first."""
    return nn.with_logical_constraint(kernel, (None, "vocab"))


def copies(kernel: Kernel, shards: int) -> Copies:
    """A projection repeated, so that each of the devices over which rows are spread has a copy. The gradient is summed over the copies."""
    repeated = jnp.broadcast_to(kernel, (shards, *kernel.shape))
    return nn.with_logical_constraint(repeated, ("batch", None, "vocab"))


def one_chunk(values: AnyArray, index: AnyArray, chunks: int) -> Array:
    """Chunk `index` of `chunks` along axis 1; the last ones end in zeros."""
    width = math.ceil(values.shape[1] / chunks)
    return jax.lax.dynamic_slice_in_dim(_padded(values, chunks, width), index * width, width, 1)


def split(values: AnyArray, chunks: int) -> Array:
    """All chunks along axis 1, stacked on axis 0; the last ones end in zeros."""
    width = math.ceil(values.shape[1] / chunks)
    padded = _padded(values, chunks, width)
    return jnp.moveaxis(padded.reshape(values.shape[0], chunks, width, *values.shape[2:]), 1, 0)


def join(stacked: AnyArray, length: int) -> Array:
    """Inverse of `split` for an array of `length` positions."""
    joined = jnp.moveaxis(stacked, 0, 1)
    joined = joined.reshape(joined.shape[0], -1, *joined.shape[3:])
    return joined[:, :length]


def _padded(values: AnyArray, chunks: int, width: int) -> AnyArray:
    padding = chunks * width - values.shape[1]
    if not padding:
        return values
    return jnp.pad(values, [(0, 0), (0, padding)] + [(0, 0)] * (values.ndim - 2))
