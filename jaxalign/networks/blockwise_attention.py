"""Softmax attention block by block, in memory that is linear in the length.

Scores exist for one block of queries and one block of keys at a time. The forward pass keeps a running maximum and a running sum of the
softmax (Milakov and Gimelshein 2018, arXiv 1805.02867); the backward pass computes the scores of every block again (Dao et al. 2022, arXiv
2205.14135, algorithm 4). Masks and relative position biases are laid out for one block at a time as well: masks from segment ids, biases
from one value per offset. Maxima, sums and gradients are accumulated in float32 for every dtype of the inputs.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxalign.networks import chunks
from jaxalign.networks.attention_bias import BlockwiseBias
from jaxalign.networks.positions import MASKED, segment_mask
from jaxalign.networks.shapes import (
    AnyArray,
    Heads,
    KeySegments,
    Mask,
    OffsetBiases,
    QuerySegments,
    SourceHeads,
)

_Index = Int[Array, ""]


def blockwise_attention(
    q: Heads, keys: SourceHeads, values: SourceHeads, bias: BlockwiseBias, score_dtype: Any
) -> Heads:
    """``softmax(q keys^T + bias) values``, in the dtype of `values`.

    Args:
      q: queries.
      keys: keys.
      values: values.
      bias: masks and position biases.
      score_dtype: dtype of the factors of matrix products with scores and their gradients; the products are float32.
    """
    length, num_keys = q.shape[2], keys.shape[2]
    width, key_width = _width(length, bias.block), _width(num_keys, bias.block)
    fill, key_fill = -length % width, -num_keys % key_width
    form = _Form(width, key_width, num_keys, bias.causal, score_dtype)
    biases = bias.offset_biases
    inputs = _Inputs(
        _padded(q.astype(score_dtype), 2, 0, fill),
        _padded(keys.astype(score_dtype), 2, 0, key_fill),
        _padded(values, 2, 0, key_fill),
        None if biases is None else _padded(biases, 1, fill, key_fill),
        _padded(bias.query_segments, 1, 0, fill),
        _padded(bias.key_segments, 1, 0, key_fill),
    )
    return _attention(form, inputs)[:, :, :length]


class _Form(NamedTuple):
    """What is known when the computation is traced: queries and keys of a block, keys without those that fill the last block."""

    width: int
    key_width: int
    num_keys: int
    causal: bool
    score_dtype: Any


class _Inputs(NamedTuple):
    """Arrays whose lengths are multiples of the blocks."""

    q: Heads
    keys: SourceHeads
    values: SourceHeads
    offset_biases: OffsetBiases | None
    query_segments: QuerySegments
    key_segments: KeySegments


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(form: _Form, inputs: _Inputs) -> Heads:
    return _forward(form, inputs)[0]


def _forward(form: _Form, inputs: _Inputs) -> tuple[Heads, Any]:
    inputs, blocks, key_blocks = _tied(form, inputs)
    values = inputs.values

    def one_block_of_queries(_: None, i: _Index) -> tuple[None, Any]:
        def one_block_of_keys(carry: Any, j: _Index) -> tuple[Any, None]:
            mixed, maximum, total = carry
            scores = _scores(form, inputs, i, j)
            higher = jnp.maximum(maximum, jnp.max(scores, axis=-1, keepdims=True))
            weights, rescale = jnp.exp(scores - higher), jnp.exp(maximum - higher)
            total = total * rescale + jnp.sum(weights, axis=-1, keepdims=True)
            here = _product("bhqk,bhkd->bhqd", weights, _block(values, j, form.key_width))
            return (mixed * rescale + here, higher, total), None

        mixed = _zeros((*values.shape[:2], form.width, values.shape[-1]))
        total = _zeros((*mixed.shape[:-1], 1))
        # The least maximum is finite, so that no difference of maxima is NaN.
        start = (mixed, total + jnp.finfo(jnp.float32).min, total)
        (mixed, maximum, total), _ = jax.lax.scan(one_block_of_keys, start, key_blocks)
        return None, ((mixed / total).astype(values.dtype), maximum, total)

    _, stacked = jax.lax.scan(one_block_of_queries, None, blocks)
    mixed, maximum, total = (_joined(each) for each in stacked)
    # Not as one logarithm: beside the maximum of a fully masked row, that of its sum would be rounded away.
    return mixed, (inputs, mixed, maximum, total)


def _backward(form: _Form, residuals: Any, d_mixed: Heads) -> tuple[_Inputs]:
    inputs, mixed, maximum, total = residuals
    inputs, blocks, key_blocks = _tied(form, inputs)
    q, keys, values, biases, *_ = inputs
    mean = jnp.sum(d_mixed.astype(jnp.float32) * mixed.astype(jnp.float32), axis=-1, keepdims=True)
    # One sum per device, added up after the last block: otherwise every block ends in an all-reduce.
    shards = chunks.num_shards(q.shape[0])

    def one_block_of_keys(carry: Any, j: _Index) -> tuple[Any, Any]:
        keys_here, values_here = (_block(each, j, form.key_width) for each in (keys, values))

        def one_block_of_queries(carry: Any, i: _Index) -> tuple[Any, None]:
            d_q, d_biases, d_keys, d_values = carry
            q_here, d_here, maximum_here, total_here, mean_here = (
                _block(each, i, form.width) for each in (q, d_mixed, maximum, total, mean)
            )
            weights = jnp.exp(_scores(form, inputs, i, j) - maximum_here) / total_here
            d_weights = _product("bhqd,bhkd->bhqk", d_here, values_here)
            d_scores = weights * (d_weights - mean_here)
            d_values += _product("bhqk,bhqd->bhkd", weights, d_here)
            d_keys += _product("bhqk,bhqd->bhkd", d_scores, q_here)
            d_q = _added(d_q, _product("bhqk,bhkd->bhqd", d_scores, keys_here), i * form.width)
            if biases is not None:
                d_scores = jnp.where(_mask(form, inputs, i, j), d_scores, 0.0)
                d_scores = jnp.sum(d_scores.reshape(shards, -1, *d_scores.shape[1:]), axis=1)
                d_biases = _added(d_biases, _per_offset(d_scores), _start(form, q, i, j))
            return (d_q, d_biases, d_keys, d_values), None

        start = (*carry, _zeros(keys_here.shape), _zeros(values_here.shape))
        (*carry, d_keys, d_values), _ = jax.lax.scan(one_block_of_queries, start, blocks)
        return tuple(carry), (d_keys.astype(keys.dtype), d_values.astype(values.dtype))

    start: Any = (_zeros(q.shape), None if biases is None else _zeros((shards, *biases.shape)))
    (d_q, d_biases), stacked = jax.lax.scan(one_block_of_keys, start, key_blocks)
    if biases is not None:
        d_biases = jnp.sum(d_biases, axis=0).astype(biases.dtype)
    d_keys, d_values = (_joined(each) for each in stacked)
    gradients: Any = (d_q.astype(q.dtype), d_keys, d_values, d_biases, None, None)
    return (_Inputs(*gradients),)


_attention.defvjp(_forward, _backward)


def _tied(form: _Form, inputs: _Inputs) -> tuple[_Inputs, Array, Array]:
    """The inputs and the numbers of the blocks of queries and keys.

    All of them depend on the queries: JAX would otherwise compute masks and biases, which are the same for every layer of a scanned stack,
    once before the scan, and those of all blocks would be kept.
    """
    blocks = jnp.arange(inputs.q.shape[2] // form.width)
    key_blocks = jnp.arange(inputs.keys.shape[2] // form.key_width)
    return jax.lax.optimization_barrier((inputs, blocks, key_blocks))


def _scores(form: _Form, inputs: _Inputs, i: _Index, j: _Index) -> Array:
    """Scores with bias of block `i` of queries and block `j` of keys, float32; minus infinity for keys that fill the last block."""
    q, keys = _block(inputs.q, i, form.width), _block(inputs.keys, j, form.key_width)
    scores = _product("bhqd,bhkd->bhqk", q, keys)
    allowed = jnp.zeros((), jnp.float32)
    if inputs.offset_biases is not None:
        size = form.width + form.key_width - 1
        here = jax.lax.dynamic_slice_in_dim(
            inputs.offset_biases, _start(form, inputs.q, i, j), size, axis=1
        )
        allowed = _laid_out(here.astype(jnp.float32), form.width)
    scores = scores + jnp.where(_mask(form, inputs, i, j), allowed, MASKED)
    if inputs.keys.shape[2] == form.num_keys:
        return scores
    return jnp.where(_positions(j, form.key_width) < form.num_keys, scores, -jnp.inf)


def _mask(form: _Form, inputs: _Inputs, i: _Index, j: _Index) -> Mask:
    mask = segment_mask(
        _block(inputs.query_segments, i, form.width, axis=1),
        _block(inputs.key_segments, j, form.key_width, axis=1),
    )
    if form.causal:
        mask &= _positions(j, form.key_width) <= _positions(i, form.width)[:, None]
    return mask


def _positions(index: _Index, width: int) -> Array:
    return index * width + jnp.arange(width)


def _start(form: _Form, q: Heads, i: _Index, j: _Index) -> Array:
    """The place of a block's first offset among all offsets."""
    return j * form.key_width - (i + 1) * form.width + q.shape[2]


def _laid_out(biases: OffsetBiases, width: int) -> Array:
    """The biases of a block's offsets as ``[heads, width, keys]``; a row begins one offset before the row above it."""
    heads, offsets = biases.shape
    # By broadcasting: rows of a tiling that are one element shorter than its period.
    padded = _padded(biases, 1, 0, 1)
    tiled = jnp.broadcast_to(padded[:, None], (heads, width, offsets + 1)).reshape(heads, -1)
    rows = tiled[:, width - 1 : width - 1 + width * offsets].reshape(heads, width, offsets)
    return rows[:, :, : offsets - width + 1]


def _per_offset(d_scores: Float[AnyArray, "shards heads queries keys"]) -> Array:
    """The transpose of `_laid_out`: the sum over all pairs with one offset, ``[shards, heads, offsets]``."""
    *batch, width, keys = d_scores.shape
    offsets = width + keys - 1
    rows = _padded(d_scores, 3, 0, offsets - keys).reshape(*batch, width * offsets)
    tiled = _padded(rows, 2, width - 1, 1).reshape(*batch, width, offsets + 1)
    return jnp.sum(tiled, axis=2)[..., :offsets]


def _product(contraction: str, one: AnyArray, other: AnyArray) -> Array:
    """A product in float32 of factors in the dtype of the second one."""
    return jnp.einsum(
        contraction, one.astype(other.dtype), other, preferred_element_type=jnp.float32
    )


def _zeros(shape: tuple[int, ...]) -> Array:
    """A float32 accumulator, sharded over rows and heads."""
    axes = ("batch", "heads", *(None,) * (len(shape) - 2))
    return nn.with_logical_constraint(jnp.zeros(shape, jnp.float32), axes)


def _block(x: AnyArray, index: _Index, width: int, axis: int = 2) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, index * width, width, axis)


def _added(total: Array, part: Array, start: Array) -> Array:
    """`total` with `part` added from `start` on along axis 2."""
    here = jax.lax.dynamic_slice_in_dim(total, start, part.shape[2], axis=2)
    return jax.lax.dynamic_update_slice_in_dim(total, here + part, start, axis=2)


def _joined(stacked: Float[AnyArray, "blocks rows heads width _size"]) -> Array:
    blocks, rows, heads, width, size = stacked.shape
    return jnp.moveaxis(stacked, 0, 2).reshape(rows, heads, blocks * width, size)


def _width(length: int, block: int) -> int:
    """The width of the blocks of a length: as even as possible, and at most `block`."""
    return math.ceil(length / math.ceil(length / block))


def _padded(x: AnyArray, axis: int, before: int, after: int) -> AnyArray:
    if not before and not after:
        return x
    widths = [(0, 0)] * x.ndim
    widths[axis] = (before, after)
    return jnp.pad(x, widths)
