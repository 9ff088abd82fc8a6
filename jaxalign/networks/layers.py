"""The layers of T5's encoder and decoder, and stacks of them."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax

from jaxalign.networks.attention import Attention
from jaxalign.networks.blocks import FeedForward, RMSNorm, length_dropout
from jaxalign.networks.config import T5Config
from jaxalign.networks.shapes import AnyArray, Bias, CrossBias, Encoded, Hidden


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each behind a norm and with a residual."""

    config: T5Config

    def setup(self) -> None:
        dtype = self.config.activation_dtype
        self.pre_attention_layer_norm = RMSNorm(dtype)
        self.attention = Attention(self.config)
        self.pre_mlp_layer_norm = RMSNorm(dtype)
        self.mlp = FeedForward(self.config)
        self.dropout = length_dropout(self.config)

    def __call__(self, x: Hidden, bias: Bias, deterministic: bool) -> tuple[Hidden, None]:
        x = nn.with_logical_constraint(x, ("batch", "length", "embed"))
        y = self.pre_attention_layer_norm(x)
        y = self.attention(y, y, bias, deterministic=deterministic)
        x = x + self.dropout(y, deterministic=deterministic)
        y = self.mlp(self.pre_mlp_layer_norm(x), deterministic=deterministic)
        x = x + self.dropout(y, deterministic=deterministic)
        return nn.with_logical_constraint(x, ("batch", "length", "embed")), None


class DecoderLayer(nn.Module):
    """Causal self-attention, attention over the encoded prompt, feed-forward."""

    config: T5Config

    def setup(self) -> None:
        dtype = self.config.activation_dtype
        self.pre_self_attention_layer_norm = RMSNorm(dtype)
        self.self_attention = Attention(self.config)
        self.pre_cross_attention_layer_norm = RMSNorm(dtype)
        self.encoder_decoder_attention = Attention(self.config)
        self.pre_mlp_layer_norm = RMSNorm(dtype)
        self.mlp = FeedForward(self.config)
        self.dropout = length_dropout(self.config)

    def __call__(
        self,
        x: Hidden,
        encoded: Encoded,
        self_bias: Bias,
        cross_bias: CrossBias,
        deterministic: bool,
    ) -> tuple[Hidden, None]:
        x = nn.with_logical_constraint(x, ("batch", "length", "embed"))
        y = self.pre_self_attention_layer_norm(x)
        y = self.self_attention(y, y, self_bias, deterministic=deterministic)
        x = x + self.dropout(y, deterministic=deterministic)
        y = self.pre_cross_attention_layer_norm(x)
        y = self.encoder_decoder_attention(y, encoded, cross_bias, deterministic=deterministic)
        x = x + self.dropout(y, deterministic=deterministic)
        y = self.mlp(self.pre_mlp_layer_norm(x), deterministic=deterministic)
        x = x + self.dropout(y, deterministic=deterministic)
        return nn.with_logical_constraint(x, ("batch", "length", "embed")), None

    def step(
        self,
        x: Hidden,
        cache: tuple[AnyArray, AnyArray],
        slot: AnyArray,
        self_bias: Bias,
        cross: tuple[AnyArray, AnyArray],
        cross_bias: CrossBias,
    ) -> tuple[Hidden, tuple[AnyArray, AnyArray]]:
        """One target position of several sequences per row, without dropout.

        Args:
          x: states ``[rows, sequences, emb]``: the axis of sequences takes the place of the positions in `__call__`.
          cache: keys and values ``[groups, heads, slots, head_dim]`` of earlier positions; sequences of a group share slots.
          slot: where this position's keys and values start.
          self_bias: which slots each sequence of a group sees, and their position biases.
          cross: keys and values of the encoded prompt, ``[rows, heads, source, head_dim]``.
          cross_bias: masks the prompt's padding.
        """
        keys, values = cache
        y = self.pre_self_attention_layer_norm(x).reshape(keys.shape[0], -1, x.shape[-1])
        new_keys, new_values = self.self_attention.keys_and_values(y)
        keys = jax.lax.dynamic_update_slice_in_dim(keys, new_keys, slot, axis=2)
        values = jax.lax.dynamic_update_slice_in_dim(values, new_values, slot, axis=2)
        x = x + self.self_attention.attend(y, keys, values, self_bias).reshape(x.shape)
        y = self.pre_cross_attention_layer_norm(x)
        x = x + self.encoder_decoder_attention.attend(y, *cross, cross_bias)
        return x + self.mlp(self.pre_mlp_layer_norm(x)), (keys, values)


def apply_layers(
    layer: type[nn.Module],
    config: T5Config,
    num_layers: int,
    x: Hidden,
    *inputs: AnyArray,
    deterministic: bool,
) -> Hidden:
    """Apply `num_layers` copies of `layer` inside a compact method: ``layers_0``, ... unrolled, or ``layers`` scanned.

    `inputs` are the same for every layer. Rematerialisation follows ``config.remat_policy``.
    """
    if config.remat_policy != "none":
        layer = nn.remat(
            layer,
            policy=_remat_policy(config.remat_policy),
            prevent_cse=not config.scan_layers,
            static_argnums=(len(inputs) + 2,),  # `deterministic`; 0 is self
        )
    if not config.scan_layers:
        for index in range(num_layers):
            x, _ = layer(config, name=f"layers_{index}")(x, *inputs, deterministic)
        return x
    scanned = nn.scan(
        layer,
        variable_axes={"params": config.param_scan_axis},
        split_rngs={"params": True, "dropout": True},
        in_axes=(nn.broadcast,) * (len(inputs) + 1),
        length=num_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    x, _ = scanned(config, name="layers")(x, *inputs, deterministic)
    return x


def _remat_policy(name: str) -> Callable[..., bool] | None:
    if name == "minimal":
        return jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims
    return None
