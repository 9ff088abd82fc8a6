"""The layers of T5Gemma's encoder and decoder: every block has a norm before it and another behind it."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from jaxalign.networks.layers import remat_policy
from jaxalign.networks.rotary import Rotation
from jaxalign.networks.shapes import AnyArray, AnyMask, Encoded, Hidden, SourceHeads
from jaxalign.networks.t5gemma_blocks import (
    GemmaFeedForward,
    GemmaNorm,
    GroupedAttention,
    gemma_dropout,
)
from jaxalign.networks.t5gemma_config import T5GemmaConfig

_AXES = ("batch", "length", "embed")


class GemmaEncoderLayer(nn.Module):
    """Self-attention in both directions, over everything or over a window, and feed-forward."""

    config: T5GemmaConfig
    sliding: bool

    def setup(self) -> None:
        config, dtype = self.config, self.config.activation_dtype
        self.pre_attention_layer_norm = GemmaNorm(dtype)
        self.attention = GroupedAttention(config.encoder, dtype)
        self.post_attention_layer_norm = GemmaNorm(dtype)
        self.pre_mlp_layer_norm = GemmaNorm(dtype)
        self.mlp = GemmaFeedForward(config.encoder, config)
        self.post_mlp_layer_norm = GemmaNorm(dtype)
        self.dropout = gemma_dropout(config)

    def __call__(
        self,
        x: Hidden,
        rotation: Rotation,
        mask: AnyMask,
        window_mask: AnyMask,
        deterministic: bool,
    ) -> Hidden:
        x = nn.with_logical_constraint(x, _AXES)
        y = self.pre_attention_layer_norm(x)
        keys, values = self.attention.keys_and_values(y, rotation)
        seen = window_mask if self.sliding else mask
        y = self.attention.attend(y, keys, values, seen, rotation)
        x = x + self.dropout(self.post_attention_layer_norm(y), deterministic=deterministic)
        y = self.mlp(self.pre_mlp_layer_norm(x), deterministic=deterministic)
        x = x + self.dropout(self.post_mlp_layer_norm(y), deterministic=deterministic)
        return nn.with_logical_constraint(x, _AXES)


class GemmaDecoderLayer(nn.Module):
    """Causal self-attention, over everything or over a window; attention over the encoded prompt; feed-forward."""

    config: T5GemmaConfig
    sliding: bool

    def setup(self) -> None:
        config, dtype = self.config, self.config.activation_dtype
        self.pre_self_attention_layer_norm = GemmaNorm(dtype)
        self.self_attention = GroupedAttention(config.decoder, dtype)
        self.post_self_attention_layer_norm = GemmaNorm(dtype)
        self.pre_cross_attention_layer_norm = GemmaNorm(dtype)
        self.encoder_decoder_attention = GroupedAttention(config.decoder, dtype)
        self.post_cross_attention_layer_norm = GemmaNorm(dtype)
        self.pre_mlp_layer_norm = GemmaNorm(dtype)
        self.mlp = GemmaFeedForward(config.decoder, config)
        self.post_mlp_layer_norm = GemmaNorm(dtype)
        self.dropout = gemma_dropout(config)

    def __call__(
        self,
        x: Hidden,
        encoded: Encoded,
        rotation: Rotation,
        mask: AnyMask,
        window_mask: AnyMask,
        cross_mask: AnyMask,
        deterministic: bool,
    ) -> Hidden:
        x = nn.with_logical_constraint(x, _AXES)
        y = self.pre_self_attention_layer_norm(x)
        keys, values = self.self_attention.keys_and_values(y, rotation)
        seen = window_mask if self.sliding else mask
        y = self.self_attention.attend(y, keys, values, seen, rotation)
        x = x + self.dropout(self.post_self_attention_layer_norm(y), deterministic=deterministic)
        y = self._read(x, self.sources(encoded), cross_mask)
        x = x + self.dropout(y, deterministic=deterministic)
        y = self.mlp(self.pre_mlp_layer_norm(x), deterministic=deterministic)
        x = x + self.dropout(self.post_mlp_layer_norm(y), deterministic=deterministic)
        return nn.with_logical_constraint(x, _AXES)

    def sources(self, encoded: Encoded) -> tuple[SourceHeads, SourceHeads]:
        """The keys and values of an encoded prompt; they have no positions."""
        return self.encoder_decoder_attention.keys_and_values(encoded)

    def _read(
        self, x: Hidden, sources: tuple[SourceHeads, SourceHeads], cross_mask: AnyMask
    ) -> Hidden:
        y = self.pre_cross_attention_layer_norm(x)
        y = self.encoder_decoder_attention.attend(y, *sources, cross_mask)
        return self.post_cross_attention_layer_norm(y)

    def step(
        self,
        x: Hidden,
        cache: tuple[AnyArray, AnyArray],
        slot: AnyArray,
        rotation: Rotation,
        mask: AnyMask,
        cross: tuple[SourceHeads, SourceHeads],
        cross_mask: AnyMask,
    ) -> tuple[Hidden, tuple[AnyArray, AnyArray]]:
        """One target position of several sequences per row, without dropout.

        Args:
          x: states ``[rows, sequences, emb]``: the axis of sequences takes the place of the positions in `__call__`.
          cache: keys, which are rotated, and values of earlier positions; sequences of a group share slots.
          slot: where this position's keys and values start.
          rotation: the positions of the groups' sequences.
          mask: the slots that each sequence of a group sees in this layer.
          cross: keys and values of the encoded prompt, from `sources`.
          cross_mask: masks the prompt's padding.
        """
        keys, values = cache
        y = self.pre_self_attention_layer_norm(x).reshape(keys.shape[0], -1, x.shape[-1])
        new_keys, new_values = self.self_attention.keys_and_values(y, rotation)
        keys = jax.lax.dynamic_update_slice_in_dim(keys, new_keys, slot, axis=2)
        values = jax.lax.dynamic_update_slice_in_dim(values, new_values, slot, axis=2)
        y = self.self_attention.attend(y, keys, values, mask, rotation)
        x = x + self.post_self_attention_layer_norm(y).reshape(x.shape)
        x = x + self._read(x, cross, cross_mask)
        y = self.mlp(self.pre_mlp_layer_norm(x))
        return x + self.post_mlp_layer_norm(y), (keys, values)


class LayerPair(nn.Module):
    """A layer with a sliding window, then one that sees everything: what `jax.lax.scan` repeats."""

    config: T5GemmaConfig
    layer: Any  # the class of the layers

    @nn.compact
    def __call__(self, x: Hidden, *inputs: Any) -> tuple[Hidden, None]:
        x = self.layer(self.config, sliding=True, name="sliding")(x, *inputs)
        return self.layer(self.config, sliding=False, name="full")(x, *inputs), None


def apply_layers(
    layer: Any,
    config: T5GemmaConfig,
    num_layers: int,
    x: Hidden,
    *inputs: AnyArray,
    deterministic: bool,
) -> Hidden:
    """Apply `num_layers` layers, sliding and full in turn, inside a compact method: ``layers_0``, ... or ``layers``, pairs scanned.

    `inputs` are the same for every layer. Rematerialisation follows ``config.remat_policy``, layer by layer.
    """
    if config.remat_policy != "none":
        layer = nn.remat(
            layer,
            policy=remat_policy(config.remat_policy),
            prevent_cse=not config.scan_layers,
            static_argnums=(len(inputs) + 2,),  # `deterministic`; 0 is self
        )
    if not config.scan_layers:
        for index in range(num_layers):
            one = layer(config, sliding=index % 2 == 0, name=f"layers_{index}")
            x = one(x, *inputs, deterministic)
        return x
    scanned = nn.scan(
        LayerPair,
        variable_axes={"params": config.param_scan_axis},
        split_rngs={"params": True, "dropout": True},
        in_axes=(nn.broadcast,) * (len(inputs) + 1),
        length=num_layers // len(config.LAYER_CYCLE),
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    x, _ = scanned(config, layer, name="layers")(x, *inputs, deterministic)
    return x
