"""Incremental decoding: the state that is kept of a prompt and of earlier positions, and one step.

A prompt is encoded once, and its keys and values are never repeated for the sequences decoded from it. Sequences of a row are
adjacent, `[rows, sequences]`. Their self-attention caches are laid out in groups: sequences of one group share slots, and
see those that `visible` shows them. Samples are groups of one; the beams of a row are one group, so that a beam that changes
its ancestor changes which slots it sees, and the cache itself never moves.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jaxalign.networks.blocks import RMSNorm, take_rows
from jaxalign.networks.config import T5Config
from jaxalign.networks.layers import DecoderLayer
from jaxalign.networks.positions import MASKED, RelativePositionBias, additive_bias
from jaxalign.networks.shapes import AnyArray, Encoded, Params, SourceTokens
from jaxalign.networks.stacking import unstack_layers

SequenceTokens = Int[AnyArray, "rows sequences"]
SequenceStates = Float[AnyArray, "rows sequences emb"]
SequenceLogits = Float[AnyArray, "rows sequences vocab"]
Visible = Bool[AnyArray, "_groups group_size slots"]
KeysAndValues = tuple[AnyArray, AnyArray]


class Prompt(NamedTuple):
    """The constants of decoding: parameters by layer, encoded prompts, biases."""

    params: Params
    layers: tuple[Params, ...]
    cross: tuple[tuple[AnyArray, ...], ...]  # of every layer, rows first
    cross_bias: AnyArray
    # [1, heads, max_decode_len, max_decode_len]: one for all layers, or one for each (umT5).
    position_biases: tuple[AnyArray, ...]

    @property
    def by_row(self) -> tuple[Any, AnyArray]:
        """The part that has an axis of rows, which comes first: rows of several prompts may be put together."""
        return self.cross, self.cross_bias

    def with_rows(self, by_row: tuple[Any, AnyArray]) -> Prompt:
        """The same with other rows."""
        return self._replace(cross=by_row[0], cross_bias=by_row[1])


# Of every layer: keys and values [groups, heads, slots, head_dim]. Where sequences share slots, so that attention is a product of matrices,
# keys are transposed, [groups, heads * head_dim, slots]; where they do not, writing a column would cost more. Slots are axis 2 of all.
Cache = tuple[KeysAndValues, ...]


def read_prompts(
    config: T5Config,
    params: Params,
    encoded: Encoded,
    encoder_segment_ids: SourceTokens,
    max_decode_len: int,
) -> Prompt:
    """Prepares decoding of up to `max_decode_len` tokens from encoded prompts, one to a row."""
    dtype = config.activation_dtype
    # Unrolled layers: the loop over positions stays free of slicing stacked parameters. Cast once, not at every position.
    decoder = unstack_layers(params, axis=config.param_scan_axis)["decoder"]
    layers = tuple(
        jax.tree.map(lambda leaf: leaf.astype(dtype), decoder[f"layers_{index}"])
        for index in range(config.num_decoder_layers)
    )
    cross = tuple(
        DecoderLayer(config).apply({"params": layer}, encoded, method="step_sources")
        for layer in layers
    )
    tables = [decoder]
    if config.relative_attention_per_layer:
        tables = [decoder[f"layers_{index}"] for index in range(config.num_decoder_layers)]
    position_biases = tuple(
        RelativePositionBias(config, bidirectional=False).apply(
            {"params": table["relpos_bias"]}, max_decode_len, max_decode_len
        )
        for table in tables
    )
    cross_bias = additive_bias((encoder_segment_ids > 0)[:, None, None, :], None, dtype)
    return Prompt(params, layers, cross, cross_bias, position_biases)


def empty_cache(config: T5Config, num_groups: int, num_slots: int, group_size: int = 1) -> Cache:
    """A cache of zeros with `num_slots` per group: positions times sequences of a group."""
    dtype = config.activation_dtype
    values = jnp.zeros((num_groups, config.num_heads, num_slots, config.head_dim), dtype)
    keys = values
    if group_size > 1:
        keys = jnp.zeros((num_groups, config.num_heads * config.head_dim, num_slots), dtype)
    return tuple((keys, values) for _ in range(config.num_decoder_layers))


def next_states(
    config: T5Config,
    prompt: Prompt,
    cache: Cache,
    tokens: SequenceTokens,
    position: AnyArray,
    visible: Visible | None = None,
) -> tuple[SequenceStates, Cache]:
    """The decoder states after `tokens`, before the vocabulary projection, and the cache with their keys and values in it.

    Args:
      config: the network.
      prompt: from `read_prompts`.
      cache: from `empty_cache` or the previous position; slot ``t * group_size + i`` is position t of a group's sequence i. It needs
        no slots behind the current position.
      tokens: the tokens at `position`, 0 at position 0.
      position: target position, from 0.
      visible: the slots up to `position` that each sequence of a group sees; None: all.
    """
    num_groups, _, num_slots = cache[0][0].shape[:3]
    group_size = tokens.size // num_groups
    seen = (jnp.arange(num_slots) < (position + 1) * group_size)[None, None, None, :]
    if visible is not None:
        seen &= visible[:, None]

    def self_bias(position_bias: AnyArray) -> AnyArray:
        # A padded query axis of the bias is broadcast over the sequences of a group.
        bias = jax.lax.dynamic_slice_in_dim(position_bias, position, 1, axis=2)
        # The cache may be shorter than the longest response.
        bias = bias[..., : num_slots // group_size]
        bias = jnp.repeat(bias, group_size, axis=3, total_repeat_length=num_slots)
        return jnp.where(seen, bias, jnp.asarray(MASKED, config.activation_dtype))

    self_biases = tuple(self_bias(each) for each in prompt.position_biases)
    return _states(config, prompt, cache, tokens, position * group_size, self_biases)


def next_states_in_ring(
    config: T5Config,
    prompt: Prompt,
    cache: Cache,
    tokens: SequenceTokens,
    step: AnyArray,
    positions: AnyArray,
) -> tuple[SequenceStates, Cache]:
    """`next_states` of rows that began at different times, for sequences with slots of their own.

    The slots are a ring: all sequences write slot ``step % slots``. T5's position biases depend on the distance of key and query
    alone, and in the ring this is the same for all rows; a row sees as many slots back as it has positions.

    Args:
      config, prompt, cache, tokens: as for `next_states`.
      step: the number of earlier calls with this cache.
      positions: target positions ``[rows]``, less than the number of slots.
    """
    num_slots, length = cache[0][0].shape[2], prompt.position_biases[0].shape[-1]
    distances = (step - jnp.arange(num_slots)) % num_slots
    seen = jnp.repeat(distances <= positions[:, None], tokens.shape[1], axis=0)

    def self_bias(position_bias: AnyArray) -> AnyArray:
        by_distance = position_bias[0, :, -1, ::-1]
        bias = jnp.take(by_distance, jnp.minimum(distances, length - 1), axis=1)
        return jnp.where(
            seen[:, None, None, :], bias[None, :, None, :], jnp.asarray(MASKED, bias.dtype)
        )

    self_biases = tuple(self_bias(each) for each in prompt.position_biases)
    return _states(config, prompt, cache, tokens, step % num_slots, self_biases)


def _states(
    config: T5Config,
    prompt: Prompt,
    cache: Cache,
    tokens: SequenceTokens,
    slot: AnyArray,
    self_biases: tuple[AnyArray, ...],
) -> tuple[SequenceStates, Cache]:
    dtype = config.activation_dtype
    embedding = prompt.params["token_embedder"]["embedding"]
    x = take_rows(embedding, tokens, dtype)
    updated = []
    if len(self_biases) == 1:
        self_biases *= len(prompt.layers)
    for layer, layer_cache, cross, self_bias in zip(
        prompt.layers, cache, prompt.cross, self_biases, strict=True
    ):
        x, layer_cache = DecoderLayer(config).apply(
            {"params": layer},
            x,
            layer_cache,
            slot,
            self_bias,
            cross,
            prompt.cross_bias,
            method="step",
        )
        updated.append(layer_cache)
    x = RMSNorm(dtype).apply({"params": prompt.params["decoder"]["decoder_norm"]}, x)
    return x, tuple(updated)
