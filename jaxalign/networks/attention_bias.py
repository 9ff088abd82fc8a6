"""What attention adds to its scores, masks and position biases: one array, or its parts where that array would be too large."""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp

from jaxalign.networks.config import T5Config
from jaxalign.networks.positions import (
    RelativePositionBias,
    additive_bias,
    causal_mask,
    segment_mask,
)
from jaxalign.networks.shapes import Bias, CrossBias, KeySegments, OffsetBiases, QuerySegments


@flax.struct.dataclass
class BlockwiseBias:
    """The masks and position biases of an additive bias in parts that grow linearly with the length.

    Attributes:
      query_segments: the segment of each query, which sees the keys of the same segment.
      key_segments: the segment of each key; segment 0 is padding, which no query sees.
      offset_biases: the position bias of each offset (key position minus query position), from ``1 - queries`` to ``keys - 1``; None
        without position biases.
      causal: a query sees no key after it.
      block: the number of queries of a block, and of keys, is at most this.
    """

    query_segments: QuerySegments
    key_segments: KeySegments
    offset_biases: OffsetBiases | None = None
    causal: bool = flax.struct.field(pytree_node=False, default=False)
    block: int = flax.struct.field(pytree_node=False, default=512)

    def repeated(self, count: int) -> BlockwiseBias:
        """Returns a copy in which every row is repeated `count` times in place."""
        query_segments, key_segments = (
            jnp.repeat(each, count, axis=0) for each in (self.query_segments, self.key_segments)
        )
        return self.replace(query_segments=query_segments, key_segments=key_segments)  # type: ignore[attr-defined]


AnyBias = Bias | BlockwiseBias
AnyCrossBias = CrossBias | BlockwiseBias


def attention_bias(
    config: T5Config,
    query_segments: QuerySegments,
    key_segments: KeySegments,
    positions: RelativePositionBias | None = None,
    *,
    causal: bool = False,
) -> AnyBias:
    """The masks and position biases of a stack: one array, or a `BlockwiseBias` from ``config.blockwise_attention_length`` keys on.

    Args:
      config: the network.
      query_segments, key_segments: as in `BlockwiseBias`.
      positions: the table of the stack; None if it has none, or if every layer has one.
      causal: a query sees no key after it.
    """
    if config.blocks_attention(key_segments.shape[1]):
        block = max(1, config.blockwise_attention_length // 4)
        bias = BlockwiseBias(query_segments, key_segments, None, causal, block)
        return bias if positions is None else with_positions(bias, positions)
    mask = segment_mask(query_segments, key_segments)
    if causal:
        mask = mask & causal_mask(query_segments.shape[1])
    lengths = (query_segments.shape[1], key_segments.shape[1])
    biases = None if positions is None else positions(*lengths)
    return additive_bias(mask, biases, config.activation_dtype)


def with_positions(bias: AnyBias, positions: RelativePositionBias) -> AnyBias:
    """Adds the biases of a table of positions to a bias that holds masks only."""
    if not isinstance(bias, BlockwiseBias):
        return bias + positions(*bias.shape[2:])
    lengths = (bias.query_segments.shape[1], bias.key_segments.shape[1])
    return bias.replace(offset_biases=positions.of_offsets(*lengths))  # type: ignore[attr-defined]
