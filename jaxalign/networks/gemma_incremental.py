"""Incremental decoding of T5Gemma and T5Gemma 2, with the contract of `networks.incremental`.

Caches hold rotated keys. Slots are all kept, also those that a sliding window has left, so that every layer has the same layout.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.networks import t5gemma, t5gemma2
from jaxalign.networks.gemma_config import GemmaConfig
from jaxalign.networks.incremental import SequenceStates, SequenceTokens, Visible
from jaxalign.networks.shapes import AnyArray, Encoded, Hidden, Params, SourceTokens
from jaxalign.networks.stacking import unstack_layers
from jaxalign.networks.t5gemma2_layers import MergedDecoderLayer
from jaxalign.networks.t5gemma_blocks import GemmaNorm, Source, scaled
from jaxalign.networks.t5gemma_layers import (
    GemmaDecoderLayer,
    KeysAndValues,
    View,
    view_of,
    views,
)

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


def empty_cache(config: GemmaConfig, num_groups: int, num_slots: int, group_size: int = 1) -> Cache:
    """A cache of zeros with `num_slots` per group: positions times sequences of a group."""
    del group_size
    stack = config.decoder
    shape = (num_groups, stack.num_kv_heads, num_slots, stack.head_dim)
    zeros = jnp.zeros(shape, config.activation_dtype)
    return tuple((zeros, zeros) for _ in range(config.num_decoder_layers))


@dataclasses.dataclass(frozen=True)
class GemmaDecoding:
    """Decoding of a family.

    Attributes:
      layer: the class of its decoder layers.
      embed: what the decoder reads of tokens, before they are scaled, from the configuration, the parameters and the tokens.
    """

    layer: Any
    embed: Callable[[Any, Params, SequenceTokens], Hidden]

    def read_prompts(
        self,
        config: GemmaConfig,
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
                lambda leaf: leaf.astype(dtype) if leaf.ndim > 1 else leaf,
                decoder[f"layers_{index}"],
            )
            for index in range(config.num_decoder_layers)
        )
        cross = tuple(
            self.layer(config).apply({"params": layer}, encoded, method="sources")
            for layer in layers
        )
        return Prompt(params, layers, cross, (encoder_segment_ids > 0)[:, None, None, :])

    def next_states(
        self,
        config: GemmaConfig,
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
        own = jnp.reshape(position, (1, 1))
        return self._states(
            config, prompt, cache, tokens, position * group_size, own, distances, seen
        )

    def next_states_in_ring(
        self,
        config: GemmaConfig,
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
        return self._states(config, prompt, cache, tokens, step % num_slots, own, distances, seen)

    def _states(
        self,
        config: GemmaConfig,
        prompt: Prompt,
        cache: Cache,
        tokens: SequenceTokens,
        slot: AnyArray,
        positions: AnyArray,
        distances: AnyArray,
        seen: AnyArray,
    ) -> tuple[SequenceStates, Cache]:
        stack = config.decoder
        both: tuple[View, View] = views(stack, positions, distances < stack.sliding_window, seen)
        x = scaled(self.embed(config, prompt.params, tokens))
        updated = []
        for kind, layer, layer_cache, cross in zip(
            stack.kinds, prompt.layers, cache, prompt.cross, strict=True
        ):
            x, layer_cache = self.layer(config).apply(
                {"params": layer},
                x,
                layer_cache,
                slot,
                view_of(kind, *both),
                Source(*cross, prompt.cross_mask),
                method="step",
            )
            updated.append(layer_cache)
        norm = {"params": prompt.params["decoder"]["decoder_norm"]}
        return GemmaNorm(config.activation_dtype).apply(norm, x), tuple(updated)


T5GEMMA = GemmaDecoding(GemmaDecoderLayer, t5gemma.embed_targets)
T5GEMMA2 = GemmaDecoding(MergedDecoderLayer, t5gemma2.embed_targets)
