"""The layers of T5's encoder and decoder, and stacks of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxalign.networks.attention import Attention
from jaxalign.networks.attention_bias import AnyBias, AnyCrossBias, BlockwiseBias, with_positions
from jaxalign.networks.blocks import FeedForward, RMSNorm, length_dropout
from jaxalign.networks.config import T5Config
from jaxalign.networks.encoder_fusion import GatedFusion
from jaxalign.networks.positions import RelativePositionBias
from jaxalign.networks.shapes import AnyArray, Bias, CrossBias, Encoded, Hidden


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each behind a norm and with a residual. Returns its states twice where they are kept."""

    config: T5Config

    def setup(self) -> None:
        dtype = self.config.activation_dtype
        self.pre_attention_layer_norm = RMSNorm(dtype)
        self.attention = Attention(self.config)
        if self.config.relative_attention_per_layer:
            self.relpos_bias = RelativePositionBias(self.config, bidirectional=True)
        self.pre_mlp_layer_norm = RMSNorm(dtype)
        self.mlp = FeedForward(self.config)
        self.dropout = length_dropout(self.config)

    def __call__(
        self, x: Hidden, bias: AnyBias, deterministic: bool
    ) -> tuple[Hidden, Hidden | None]:
        x = nn.with_logical_constraint(x, ("batch", "length", "embed"))
        if self.config.relative_attention_per_layer:
            bias = with_positions(bias, self.relpos_bias)
        y = self.pre_attention_layer_norm(x)
        y = self.attention(y, y, bias, deterministic=deterministic)
        x = x + self.dropout(y, deterministic=deterministic)
        y = self.mlp(self.pre_mlp_layer_norm(x), deterministic=deterministic)
        x = x + self.dropout(y, deterministic=deterministic)
        x = nn.with_logical_constraint(x, ("batch", "length", "embed"))
        return x, x if self.config.fuses_encoder_layers else None


class DecoderLayer(nn.Module):
    """Causal self-attention, attention over the encoded prompt, feed-forward."""

    config: T5Config

    def setup(self) -> None:
        dtype = self.config.activation_dtype
        self.pre_self_attention_layer_norm = RMSNorm(dtype)
        self.self_attention = Attention(self.config)
        if self.config.relative_attention_per_layer:
            self.relpos_bias = RelativePositionBias(self.config, bidirectional=False)
        self.pre_cross_attention_layer_norm = RMSNorm(dtype)
        self.encoder_decoder_attention = Attention(self.config)
        if self.config.fuses_encoder_layers:
            self.encoder_fusion = GatedFusion(self.config)
        self.pre_mlp_layer_norm = RMSNorm(dtype)
        self.mlp = FeedForward(self.config)
        self.dropout = length_dropout(self.config)

    def __call__(
        self,
        x: Hidden,
        encoded: Encoded,
        self_bias: AnyBias,
        cross_bias: AnyCrossBias,
        deterministic: bool,
    ) -> tuple[Hidden, None]:
        x = nn.with_logical_constraint(x, ("batch", "length", "embed"))
        if self.config.relative_attention_per_layer:
            self_bias = with_positions(self_bias, self.relpos_bias)
        y = self.pre_self_attention_layer_norm(x)
        y = self.self_attention(y, y, self_bias, deterministic=deterministic)
        x = x + self.dropout(y, deterministic=deterministic)
        y = self.pre_cross_attention_layer_norm(x)
        y = self._read(y, self.sources(encoded), cross_bias, deterministic)
        x = x + self.dropout(y, deterministic=deterministic)
        y = self.mlp(self.pre_mlp_layer_norm(x), deterministic=deterministic)
        x = x + self.dropout(y, deterministic=deterministic)
        return nn.with_logical_constraint(x, ("batch", "length", "embed")), None

    def sources(self, encoded: Encoded) -> tuple[AnyArray, ...]:
        """The keys and values of an encoded prompt, rows first."""
        if not self.config.fuses_encoder_layers:
            return self.encoder_decoder_attention.keys_and_values(encoded)
        return self.encoder_fusion.sources(self.encoder_decoder_attention, encoded)

    def step_sources(self, encoded: Encoded) -> tuple[AnyArray, ...]:
        """The same as `step` reads them: keys are transposed, except those of fused encoder layers."""
        sources = self.sources(encoded)
        if self.config.fuses_encoder_layers:
            return sources
        return sources[0].swapaxes(-1, -2), *sources[1:]

    def _read(
        self,
        y: Hidden,
        sources: Any,
        bias: AnyCrossBias,
        deterministic: bool,
        transposed_keys: bool = False,
    ) -> Hidden:
        attention = self.encoder_decoder_attention
        if not self.config.fuses_encoder_layers:
            keys, values = sources
            return attention.attend(
                y, keys, values, bias, deterministic=deterministic, transposed_keys=transposed_keys
            )
        return self.encoder_fusion.fused(attention, y, sources, bias, deterministic=deterministic)

    def step(
        self,
        x: Hidden,
        cache: tuple[AnyArray, AnyArray],
        slot: AnyArray,
        self_bias: Bias,
        cross: tuple[AnyArray, ...],
        cross_bias: CrossBias,
    ) -> tuple[Hidden, tuple[AnyArray, AnyArray]]:
        """One target position of several sequences per row, without dropout.

        Args:
          x: states ``[rows, sequences, emb]``: the axis of sequences takes the place of the positions in `__call__`.
          cache: keys and values of earlier positions, from `incremental.empty_cache`; sequences of a group share slots.
          slot: where this position's keys and values start.
          self_bias: which slots each sequence of a group sees, and their position biases.
          cross: keys and values of the encoded prompt, from `step_sources`.
          cross_bias: masks the prompt's padding.
        """
        keys, values = cache
        y = self.pre_self_attention_layer_norm(x).reshape(keys.shape[0], -1, x.shape[-1])
        new_keys, new_values = self.self_attention.keys_and_values(y)
        transposed = keys.ndim == 3
        if transposed:
            new_keys = new_keys.swapaxes(-1, -2).reshape(*keys.shape[:2], -1)
        keys = jax.lax.dynamic_update_slice_in_dim(keys, new_keys, slot, axis=2)
        values = jax.lax.dynamic_update_slice_in_dim(values, new_values, slot, axis=2)
        seen = keys
        if transposed:
            seen = keys.reshape(*values.shape[:2], values.shape[3], values.shape[2])
        y = self.self_attention.attend(y, seen, values, self_bias, transposed_keys=transposed)
        x = x + y.reshape(x.shape)
        y = self.pre_cross_attention_layer_norm(x)
        x = x + self._read(y, cross, cross_bias, deterministic=True, transposed_keys=True)
        return x + self.mlp(self.pre_mlp_layer_norm(x)), (keys, values)


def apply_layers(
    layer: type[nn.Module],
    config: T5Config,
    num_layers: int,
    x: Hidden,
    *inputs: AnyArray | BlockwiseBias,
    deterministic: bool,
) -> tuple[Hidden, Float[AnyArray, "layers rows length emb"] | None]:
    """Apply `num_layers` copies of `layer` inside a compact method: ``layers_0``, ... unrolled, or ``layers`` scanned.

    `inputs` are the same for every layer. Rematerialisation follows ``config.remat_policy``. Returns the last states, and what the layers
    returned besides, stacked, if they return anything.
    """
    if config.remat_policy != "none":
        layer = nn.remat(
            layer,
            policy=remat_policy(config.remat_policy),
            prevent_cse=not config.scan_layers,
            static_argnums=(len(inputs) + 2,),  # `deterministic`; 0 is self
        )
    if not config.scan_layers:
        outputs = []
        for index in range(num_layers):
            x, output = layer(config, name=f"layers_{index}")(x, *inputs, deterministic)
            outputs.append(output)
        return x, None if outputs[0] is None else jnp.stack(outputs)
    scanned = nn.scan(
        layer,
        variable_axes={"params": config.param_scan_axis},
        split_rngs={"params": True, "dropout": True},
        in_axes=(nn.broadcast,) * (len(inputs) + 1),
        length=num_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scanned(config, name="layers")(x, *inputs, deterministic)


def remat_policy(name: str) -> Callable[..., bool] | None:
    """What of a layer the backward pass keeps, as a policy of `jax.checkpoint`."""
    if name == "minimal":
        return jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims
    return None
