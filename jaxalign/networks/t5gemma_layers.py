"""The layers of T5Gemma's encoder and decoder: every block has a norm before it and another behind it. T5Gemma 2 has the same encoder."""

from __future__ import annotations

import functools
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxalign.networks.gemma_config import FULL, SLIDING, GemmaConfig, Stack
from jaxalign.networks.layers import remat_policy
from jaxalign.networks.rotary import Rotation, rotation
from jaxalign.networks.shapes import AnyArray, AnyMask, Encoded, Hidden, Tokens
from jaxalign.networks.t5gemma_blocks import (
    GemmaFeedForward,
    GemmaNorm,
    GroupedAttention,
    Source,
    gemma_dropout,
)

AXES = ("batch", "length", "embed")
Kind = int | AnyArray  # SLIDING or FULL; an array where layers are scanned
KeysAndValues = tuple[AnyArray, AnyArray]


class View(NamedTuple):
    """What the positions of a stack are to the layers of a kind: how they are rotated, and what they see of their own stack."""

    rotation: Rotation
    mask: AnyMask


def views(stack: Stack, positions: Tokens, near: AnyArray, mask: AnyMask) -> tuple[View, View]:
    """The views of sliding layers, which see what is in `near` and in `mask`, and of full layers."""
    turned = {
        rotary: rotation(positions, stack.head_dim, *rotary) for rotary in set(stack.rotaries)
    }
    sliding, full = stack.rotaries
    return View(turned[sliding], mask & near), View(turned[full], mask)


def view_of(kind: Kind, sliding: View, full: View) -> View:
    """The view of a layer of that kind."""
    if isinstance(kind, int):
        return full if kind == FULL else sliding
    return jax.tree.map(lambda far, near: jnp.where(kind == FULL, far, near), full, sliding)


class GemmaEncoderLayer(nn.Module):
    """Self-attention in both directions, over everything or over a window, and feed-forward."""

    config: GemmaConfig
    stack: ClassVar[str] = "encoder"

    def setup(self) -> None:
        config, dtype = self.config, self.config.activation_dtype
        stack = config.stack(self.stack)
        self.pre_attention_layer_norm = GemmaNorm(dtype)
        self.attention = GroupedAttention(stack, dtype)
        self.post_attention_layer_norm = GemmaNorm(dtype)
        self.pre_mlp_layer_norm = GemmaNorm(dtype)
        self.mlp = GemmaFeedForward(stack, config)
        self.post_mlp_layer_norm = GemmaNorm(dtype)
        self.dropout = gemma_dropout(config)

    def __call__(
        self, x: Hidden, kind: Kind, sliding: View, full: View, deterministic: bool
    ) -> Hidden:
        x = nn.with_logical_constraint(x, AXES)
        view = view_of(kind, sliding, full)
        y = self.pre_attention_layer_norm(x)
        source = Source(*self.attention.keys_and_values(y, view.rotation), view.mask)
        y = self.attention.attend(y, source, rotation=view.rotation)
        return self.rest(x, y, deterministic)

    def rest(self, x: Hidden, y: Hidden, deterministic: bool) -> Hidden:
        """What follows attention: its output `y` joins the residual stream, and the feed-forward block."""
        x = x + self.dropout(self.post_attention_layer_norm(y), deterministic=deterministic)
        y = self.mlp(self.pre_mlp_layer_norm(x), deterministic=deterministic)
        x = x + self.dropout(self.post_mlp_layer_norm(y), deterministic=deterministic)
        return nn.with_logical_constraint(x, AXES)


class GemmaDecoderLayer(nn.Module):
    """Causal self-attention, over everything or over a window; attention over the encoded prompt; feed-forward."""

    config: GemmaConfig

    def setup(self) -> None:
        config, dtype = self.config, self.config.activation_dtype
        stack = config.stack("decoder")
        self.pre_self_attention_layer_norm = GemmaNorm(dtype)
        self.self_attention = GroupedAttention(stack, dtype)
        self.post_self_attention_layer_norm = GemmaNorm(dtype)
        self.pre_cross_attention_layer_norm = GemmaNorm(dtype)
        self.encoder_decoder_attention = GroupedAttention(stack, dtype)
        self.post_cross_attention_layer_norm = GemmaNorm(dtype)
        self.pre_mlp_layer_norm = GemmaNorm(dtype)
        self.mlp = GemmaFeedForward(stack, config)
        self.post_mlp_layer_norm = GemmaNorm(dtype)
        self.dropout = gemma_dropout(config)

    def __call__(
        self,
        x: Hidden,
        kind: Kind,
        encoded: Encoded,
        sliding: View,
        full: View,
        cross_mask: AnyMask,
        deterministic: bool,
    ) -> Hidden:
        x = nn.with_logical_constraint(x, AXES)
        view = view_of(kind, sliding, full)
        y = self.pre_self_attention_layer_norm(x)
        source = Source(*self.self_attention.keys_and_values(y, view.rotation), view.mask)
        y = self.self_attention.attend(y, source, rotation=view.rotation)
        x = x + self.dropout(self.post_self_attention_layer_norm(y), deterministic=deterministic)
        y = self._read(x, Source(*self.sources(encoded), cross_mask))
        x = x + self.dropout(y, deterministic=deterministic)
        y = self.mlp(self.pre_mlp_layer_norm(x), deterministic=deterministic)
        x = x + self.dropout(self.post_mlp_layer_norm(y), deterministic=deterministic)
        return nn.with_logical_constraint(x, AXES)

    def sources(self, encoded: Encoded) -> KeysAndValues:
        """The keys and values of an encoded prompt; they have no positions."""
        return self.encoder_decoder_attention.keys_and_values(encoded)

    def _read(self, x: Hidden, prompt: Source) -> Hidden:
        y = self.encoder_decoder_attention.attend(self.pre_cross_attention_layer_norm(x), prompt)
        return self.post_cross_attention_layer_norm(y)

    def step(
        self, x: Hidden, cache: KeysAndValues, slot: AnyArray, view: View, prompt: Source
    ) -> tuple[Hidden, KeysAndValues]:
        """One target position of several sequences per row, without dropout.

        Args:
          x: states ``[rows, sequences, emb]``: the axis of sequences takes the place of the positions in `__call__`.
          cache: keys, which are rotated, and values of earlier positions; sequences of a group share slots.
          slot: where this position's keys and values start.
          view: the positions of the groups' sequences, and the slots that each sequence of a group sees in this layer.
          prompt: from `sources`, with a mask of the prompt's padding.
        """
        y = in_groups(self.pre_self_attention_layer_norm(x), cache)
        cache = extended(cache, self.self_attention.keys_and_values(y, view.rotation), slot)
        y = self.self_attention.attend(y, Source(*cache, view.mask), rotation=view.rotation)
        x = x + self.post_self_attention_layer_norm(y).reshape(x.shape)
        x = x + self._read(x, prompt)
        y = self.mlp(self.pre_mlp_layer_norm(x))
        return x + self.post_mlp_layer_norm(y), cache


def in_groups(x: Hidden, cache: KeysAndValues) -> Hidden:
    """States ``[rows, sequences, emb]`` as ``[groups, sequences of a group, emb]``."""
    return x.reshape(cache[0].shape[0], -1, x.shape[-1])


def extended(cache: KeysAndValues, new: KeysAndValues, slot: AnyArray) -> KeysAndValues:
    """A cache with the keys and values of one more position, from `slot` on."""
    keys, values = (
        jax.lax.dynamic_update_slice_in_dim(held, one, slot, axis=2)
        for held, one in zip(cache, new, strict=True)
    )
    return keys, values


class LayerPair(nn.Module):
    """A layer with a sliding window, then one that sees everything: what `jax.lax.scan` repeats in T5Gemma."""

    config: GemmaConfig
    layer: Any  # the class of the layers

    @nn.compact
    def __call__(self, x: Hidden, *inputs: Any) -> tuple[Hidden, None]:
        x = self.layer(self.config, name="sliding")(x, SLIDING, *inputs)
        return self.layer(self.config, name="full")(x, FULL, *inputs), None


def _one_layer(layer: nn.Module, x: Hidden, *inputs: Any) -> tuple[Hidden, None]:
    return layer(x, *inputs), None


def apply_layers(
    layer: Any,
    config: GemmaConfig,
    kinds: tuple[int, ...],
    x: Hidden,
    *inputs: Any,
    deterministic: bool,
) -> Hidden:
    """Apply layers of these kinds inside a compact method: ``layers_0``, ... or ``layers``, scanned.

    Where ``config.LAYER_CYCLE`` is a pair of kinds, pairs are scanned; else layers, whose kind is an input. `inputs` are the same for every
    layer. Rematerialisation follows ``config.remat_policy``, layer by layer.
    """
    kind_is_input = config.scan_layers and not config.LAYER_CYCLE
    if config.remat_policy != "none":
        last = len(inputs) + 3  # `deterministic`; 0 is self
        layer = nn.remat(
            layer,
            policy=remat_policy(config.remat_policy),
            prevent_cse=not config.scan_layers,
            static_argnums=(last,) if kind_is_input else (2, last),
        )
    if not config.scan_layers:
        for index, kind in enumerate(kinds):
            x = layer(config, name=f"layers_{index}")(x, kind, *inputs, deterministic)
        return x
    shared = (nn.broadcast,) * (len(inputs) + 1)
    scan = functools.partial(
        nn.scan,
        variable_axes={"params": config.param_scan_axis},
        split_rngs={"params": True, "dropout": True},
        length=len(kinds) // max(1, len(config.LAYER_CYCLE)),
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    if kind_is_input:
        one = layer(config, name="layers")
        x, _ = scan(_one_layer, in_axes=(0, *shared))(
            one, x, jnp.asarray(kinds), *inputs, deterministic
        )
        return x
    x, _ = scan(LayerPair, in_axes=shared)(config, layer, name="layers")(x, *inputs, deterministic)
    return x
