"""Incremental decoding of T5Gemma, with the contract of `networks.incremental`.

Caches hold rotated keys. Slots are all kept, also those that a sliding window has left, so that every layer has the same layout.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.networks.incremental import SequenceStates, SequenceTokens, Visible
from jaxalign.networks.rotary import Rotation, rotation
from jaxalign.networks.shapes import AnyArray, Encoded, Params, SourceTokens
from jaxalign.networks.stacking import unstack_layers
from jaxalign.networks.t5gemma import with_start_token
from jaxalign.networks.t5gemma_blocks import GemmaNorm, scaled
from jaxalign.networks.t5gemma_config import T5GemmaConfig
from jaxalign.networks.t5gemma_layers import GemmaDecoderLayer

KeysAndValues = tuple[AnyArray, AnyArray]
Cache = tuple[KeysAndValues, ...]  # of every layer: [groups, kv_heads, slots, head_dim], twice


class Prompt(NamedTuple):
    """The constants of decoding: parameters by layer, encoded prompts, the mask of their padding."""

    params: Params
    layers: tuple[Params, ...]
    cross: tuple[KeysAndValues, ...]  # of every layer, rows first
    cross_mask: AnyArray

    @property
    def by_row(self) -> tuple[Any, AnyArray]:
        """The part that has an axis of rows, which comes first: rows of several prompts may be put together."""
        return self.cross, self.cross_mask

    def with_rows(self, by_row: tuple[Any, AnyArray]) -> Prompt:
        """The same with other rows."""
        return self._replace(cross=by_row[0], cross_mask=by_row[1])


def read_prompts(
    config: T5GemmaConfig,
    params: Params,
    encoded: Encoded,
    encoder_segment_ids: SourceTokens,
    max_decode_len: int,
) -> Prompt:
    """Prepares decoding from encoded prompts, one to a row."""
    del max_decode_len  # rotary positions need no table
    dtype = config.activation_dtype
    # Unrolled layers: the loop over positions stays free of slicing stacked parameters. Cast once, not at every position; norms are
    # computed in float32 and keep their scales.
    decoder = unstack_layers(params, axis=config.param_scan_axis, cycle=config.LAYER_CYCLE)[
        "decoder"
    ]
    layers = tuple(
        jax.tree.map(
            lambda leaf: leaf.astype(dtype) if leaf.ndim > 1 else leaf, decoder[f"layers_{index}"]
        )
        for index in range(config.num_decoder_layers)
    )
    cross = tuple(
        GemmaDecoderLayer(config, sliding=False).apply({"params": layer}, encoded, method="sources")
        for layer in layers
    )
    return Prompt(params, layers, cross, (encoder_segment_ids > 0)[:, None, None, :])


def empty_cache(
    config: T5GemmaConfig, num_groups: int, num_slots: int, group_size: int = 1
) -> Cache:
    """A cache of zeros with `num_slots` per group: positions times sequences of a group."""
    del group_size
    stack = config.decoder
    shape = (num_groups, stack.num_kv_heads, num_slots, stack.head_dim)
    zeros = jnp.zeros(shape, config.activation_dtype)
    return tuple((zeros, zeros) for _ in range(config.num_decoder_layers))


def next_states(
    config: T5GemmaConfig,
    prompt: Prompt,
    cache: Cache,
    tokens: SequenceTokens,
    position: AnyArray,
    visible: Visible | None = None,
) -> tuple[SequenceStates, Cache]:
    """The decoder states after `tokens`, before the vocabulary projection; arguments as in `incremental.next_states`."""
    num_groups, _, num_slots = cache[0][0].shape[:3]
    group_size = tokens.size // num_groups
    distances = position - jnp.arange(num_slots) // group_size
    seen = (distances >= 0)[None, None, None, :]
    if visible is not None:
        seen &= visible[:, None]
    near = distances < config.decoder.sliding_window
    turned = _rotation(config, jnp.reshape(position, (1, 1)))
    return _states(config, prompt, cache, tokens, position * group_size, turned, seen, seen & near)


def next_states_in_ring(
    config: T5GemmaConfig,
    prompt: Prompt,
    cache: Cache,
    tokens: SequenceTokens,
    step: AnyArray,
    positions: AnyArray,
) -> tuple[SequenceStates, Cache]:
    """`next_states` of rows that began at different times; arguments as in `incremental.next_states_in_ring`."""
    num_slots = cache[0][0].shape[2]
    distances = (step - jnp.arange(num_slots)) % num_slots
    own = jnp.repeat(positions, tokens.shape[1], axis=0)[:, None]
    seen = (distances <= own)[:, None, None, :]
    near = distances < config.decoder.sliding_window
    turned = _rotation(config, own)
    return _states(config, prompt, cache, tokens, step % num_slots, turned, seen, seen & near)


def _rotation(config: T5GemmaConfig, positions: AnyArray) -> Rotation:
    return rotation(positions, config.decoder.head_dim, config.decoder.rope_theta)


def _states(
    config: T5GemmaConfig,
    prompt: Prompt,
    cache: Cache,
    tokens: SequenceTokens,
    slot: AnyArray,
    turned: Rotation,
    seen: AnyArray,
    seen_near: AnyArray,
) -> tuple[SequenceStates, Cache]:
    dtype = config.activation_dtype
    decoder = prompt.params["decoder"]
    table = decoder["token_embedder"]["embedding"]
    inputs = with_start_token(config, tokens)
    x = scaled(jnp.take(table, inputs, axis=0, mode="clip").astype(dtype))
    updated = []
    for index, (layer, layer_cache, cross) in enumerate(
        zip(prompt.layers, cache, prompt.cross, strict=True)
    ):
        sliding = index % 2 == 0
        x, layer_cache = GemmaDecoderLayer(config, sliding=sliding).apply(
            {"params": layer},
            x,
            layer_cache,
            slot,
            turned,
            seen_near if sliding else seen,
            cross,
            prompt.cross_mask,
            method="step",
        )
        updated.append(layer_cache)
    x = GemmaNorm(dtype).apply({"params": decoder["decoder_norm"]}, x)
    return x, tuple(updated)
