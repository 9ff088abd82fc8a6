"""T5's relative position biases (Raffel et al. 2020, arXiv 1910.10683, section 2.1) and attention masks.

In T5 both end up in one additive bias per stack, computed once and shared by all its layers. In umT5 that bias holds the masks only, and
every layer adds position biases from a table of its own.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxalign.networks.config import T5Config
from jaxalign.networks.shapes import (
    Bias,
    KeySegments,
    Mask,
    OffsetBiases,
    PositionBias,
    QuerySegments,
)

MASKED = -1e10  # T5X's bias of a forbidden position: finite, so that a fully masked row has no NaN


def relative_position_buckets(
    offsets: np.ndarray, *, bidirectional: bool, num_buckets: int, max_distance: int
) -> np.ndarray:
    """The bucket of each offset (key position minus query position).

    Half of a direction's buckets hold one distance each; the other half grow logarithmically up to `max_distance`, and the last
    one holds everything beyond. A bidirectional table gives its upper half to keys after the query; in a causal one they share
    bucket 0 with distance zero.
    """
    if bidirectional:
        num_buckets //= 2
        base = np.where(offsets > 0, num_buckets, 0)
        distance = np.abs(offsets)
    else:
        base = np.zeros_like(offsets)
        distance = np.maximum(-offsets, 0)
    num_exact = num_buckets // 2
    # float32 like T5X, so that a distance on a bucket's edge falls on the same side.
    log_ratio = np.log(np.maximum(distance, 1).astype(np.float32) / num_exact, dtype=np.float32)
    scale = np.float32(np.log(max_distance / num_exact))
    far = num_exact + (log_ratio / scale * (num_buckets - num_exact)).astype(np.int32)
    bucket = np.where(distance < num_exact, distance, np.minimum(far, num_buckets - 1))
    return (base + bucket).astype(np.int32)


class RelativePositionBias(nn.Module):
    """One table ``[heads, buckets]``, of a stack or of a layer."""

    config: T5Config
    bidirectional: bool

    def setup(self) -> None:
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        self.rel_embedding = self.param(
            "rel_embedding",
            nn.with_logical_partitioning(init, ("heads", "relpos_buckets")),
            (self.config.num_heads, self.config.relative_attention_num_buckets),
            jnp.float32,
        )

    def __call__(self, query_length: int, key_length: int) -> PositionBias:
        """The bias of every (query, key) pair, queries and keys counted from the same origin."""
        num_heads = self.config.num_heads
        # The bias depends on key - query alone, so look up one value per offset (non-negative ones first, negative ones from the
        # back) and lay the matrix out by broadcasting: row i of a tiling with period - 1 columns starts one step further back.
        # The backward pass is then sums and pads, without a scatter over queries x keys.
        period = query_length + key_length
        offsets = np.arange(period)
        offsets = np.where(offsets < key_length, offsets, offsets - period)
        per_offset = self._looked_up(offsets)
        tiled = jnp.broadcast_to(per_offset[:, None, :], (num_heads, query_length, period))
        tiled = tiled.reshape(num_heads, query_length * period)
        rows = tiled[:, : query_length * (period - 1)].reshape(num_heads, query_length, period - 1)
        return rows[None, :, :, :key_length]

    def of_offsets(self, query_length: int, key_length: int) -> OffsetBiases:
        """The bias of every offset (key position minus query position), from ``1 - query_length`` to ``key_length - 1``."""
        return self._looked_up(np.arange(1 - query_length, key_length))

    def _looked_up(self, offsets: np.ndarray) -> OffsetBiases:
        config = self.config
        num_buckets = config.relative_attention_num_buckets
        buckets = relative_position_buckets(
            offsets,
            bidirectional=self.bidirectional,
            num_buckets=num_buckets,
            max_distance=config.relative_attention_max_distance,
        )
        one_hot = jnp.asarray(buckets[None, :] == np.arange(num_buckets)[:, None], jnp.float32)
        per_offset = jnp.matmul(self.rel_embedding, one_hot, precision="highest")
        return per_offset.astype(config.activation_dtype)


def segment_mask(query_segments: QuerySegments, key_segments: KeySegments) -> Mask:
    """True where query and key belong to one segment; segment 0 is padding, which no query attends to."""
    keys = key_segments[:, None, :]
    return ((query_segments[:, :, None] == keys) & (keys > 0))[:, None]


def causal_mask(length: int) -> Mask:
    """True where the key is not after the query."""
    return jnp.tril(jnp.ones((length, length), bool))[None, None]


def additive_bias(
    mask: Mask,
    position_bias: PositionBias | None,
    dtype: jnp.dtype,
) -> Bias:
    """The bias that a stack's layers add to their attention scores: the position bias where `mask`, else `MASKED`."""
    allowed = jnp.zeros((), dtype) if position_bias is None else position_bias
    return jnp.where(mask, allowed, jnp.asarray(MASKED, dtype))
