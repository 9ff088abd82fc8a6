"""The blocks of T5: RMS norm, attention, feed-forward, embedding, and the two kinds of layer.

Parameters are float32 and carry T5X's names, shapes, initialisation and logical axes; activations are in `T5Config.dtype`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxalign.networks.config import T5Config
from jaxalign.networks.shapes import (
    AnyArray,
    Bias,
    CrossBias,
    Encoded,
    Heads,
    Hidden,
    Joined,
    SourceHeads,
    Tokens,
    Vectors,
)

_ACTIVATIONS = {
    "gelu": lambda x: nn.gelu(x, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
    "linear": lambda x: x,
}
_attention_init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
_mlp_init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


class Dense(nn.Module):
    """A linear map over the last axis, without bias."""

    features: int
    axes: tuple[str, str]
    kernel_init: nn.initializers.Initializer
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: AnyArray) -> AnyArray:
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(self.kernel_init, self.axes),
            (x.shape[-1], self.features),
            jnp.float32,
        )
        # As one flat matmul: for a batched one, XLA on CPU transposes the output's gradient to get the kernel's.
        flat = jnp.dot(x.reshape(-1, x.shape[-1]).astype(self.dtype), kernel.astype(self.dtype))
        return flat.reshape(*x.shape[:-1], self.features)


class RMSNorm(nn.Module):
    """Division by the root mean square (in float32) and a learned scale; T5 has neither centring nor bias."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Vectors) -> Vectors:
        scale = self.param(
            "scale",
            nn.with_logical_partitioning(nn.initializers.ones, ("embed",)),
            (x.shape[-1],),
            jnp.float32,
        )
        x = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return (x * jax.lax.rsqrt(mean_square + 1e-6)).astype(self.dtype) * scale.astype(self.dtype)


class Embedding(nn.Module):
    """The token table, shared by encoder, decoder and (T5 1.0) the output projection."""

    config: T5Config

    def setup(self) -> None:
        self.embedding = self.param(
            "embedding",
            nn.with_logical_partitioning(nn.initializers.normal(1.0), ("vocab", "embed")),
            (self.config.vocab_size, self.config.emb_dim),
            jnp.float32,
        )

    def __call__(self, tokens: Tokens) -> Hidden:
        dtype = self.config.activation_dtype
        if self.config.one_hot_embedding:
            one_hot = jax.nn.one_hot(tokens, self.config.vocab_size, dtype=dtype)
            embedded = jnp.dot(one_hot, self.embedding.astype(dtype))
        else:
            embedded = jnp.take(self.embedding, tokens, axis=0, mode="clip").astype(dtype)
        return nn.with_logical_constraint(embedded, ("batch", "length", "embed"))


class Attention(nn.Module):
    """Multi-head attention without scaling by 1/sqrt(head_dim), which the initialisation of `query` contains instead.

    Queries, keys and values are laid out ``[rows, heads, length, head_dim]``, so that both contractions are batched matmuls
    without a transpose, and a decoding cache never moves.
    """

    config: T5Config

    def setup(self) -> None:
        config = self.config
        joined = config.num_heads * config.head_dim
        dtype = config.activation_dtype

        def query_init(*args: Any) -> Any:
            return _attention_init(*args) / jnp.sqrt(config.head_dim)

        inwards, outwards = ("embed", "joined_kv"), ("joined_kv", "embed")
        self.query = Dense(joined, inwards, query_init, dtype)
        self.key = Dense(joined, inwards, _attention_init, dtype)
        self.value = Dense(joined, inwards, _attention_init, dtype)
        self.out = Dense(config.emb_dim, outwards, _attention_init, dtype)
        self.dropout = nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))

    def __call__(
        self, queries: Hidden, sources: Encoded, bias: Bias, *, deterministic: bool = True
    ) -> Hidden:
        """Attention of `queries` over `sources` (the same array for self-attention)."""
        keys, values = self.keys_and_values(sources)
        return self.attend(queries, keys, values, bias, deterministic=deterministic)

    def keys_and_values(self, sources: Encoded) -> tuple[SourceHeads, SourceHeads]:
        """The keys and values that `attend` reads, for callers that keep them."""
        return self._split(self.key(sources)), self._split(self.value(sources))

    def attend(
        self,
        queries: Hidden,
        keys: SourceHeads,
        values: SourceHeads,
        bias: Bias,
        *,
        deterministic: bool = True,
    ) -> Hidden:
        """Softmax attention over given keys and values; `bias` holds masks and relative positions."""
        q = self._split(self.query(queries))
        score_dtype = jnp.float32 if self.config.float32_attention_logits else q.dtype
        scores = jnp.einsum("bhqd,bhkd->bhqk", q.astype(score_dtype), keys.astype(score_dtype))
        scores = scores + bias.astype(score_dtype)
        if values.dtype == jnp.float32:
            # Divided by its sum only after mixing: a pass over [queries, head_dim] instead of over [queries, keys].
            maximum = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
            weights = jnp.exp(scores - maximum)
            scale = 1.0 / jnp.sum(weights, axis=-1, keepdims=True)
        else:  # in the order in which T5X rounds to bfloat16
            weights, scale = jax.nn.softmax(scores, axis=-1).astype(values.dtype), None
        weights = self.dropout(weights, deterministic=deterministic)
        mixed = jnp.einsum("bhqk,bhkd->bhqd", weights, values)
        if scale is not None:
            mixed *= scale
        mixed = mixed.swapaxes(1, 2)
        return self.out(mixed.reshape(*queries.shape[:-1], -1))

    def _split(self, x: Joined) -> Heads:
        x = x.reshape(*x.shape[:-1], self.config.num_heads, self.config.head_dim)
        x = nn.with_logical_constraint(x, ("batch", "length", "heads", "kv"))
        return x.swapaxes(1, 2)


class FeedForward(nn.Module):
    """The (gated) feed-forward block: the product of its activations, projected back."""

    config: T5Config

    @nn.compact
    def __call__(self, x: Hidden, *, deterministic: bool = True) -> Hidden:
        config = self.config
        dtype = config.activation_dtype
        gated = len(config.mlp_activations) > 1
        branches = [
            Dense(
                config.mlp_dim,
                ("embed", "mlp"),
                _mlp_init,
                dtype,
                name=f"wi_{index}" if gated else "wi",
            )(x)
            for index in range(len(config.mlp_activations))
        ]

        def activate(branches: list[AnyArray]) -> AnyArray:
            activations = (_ACTIVATIONS[name] for name in config.mlp_activations)
            activated = [f(branch) for f, branch in zip(activations, branches, strict=True)]
            return functools.reduce(jnp.multiply, activated)

        # The backward pass recomputes it, which is cheaper than storing the inputs of gelu's derivative.
        hidden = jax.checkpoint(activate)(branches)
        hidden = length_dropout(config)(hidden, deterministic=deterministic)
        hidden = nn.with_logical_constraint(hidden, ("batch", "length", "mlp"))
        return Dense(config.emb_dim, ("mlp", "embed"), _mlp_init, dtype, name="wo")(hidden)


def length_dropout(config: T5Config) -> nn.Dropout:
    """T5's dropout: one mask for all positions of a row."""
    return nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))


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


def _remat_policy(name: str) -> Any:
    if name == "minimal":
        return jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims
    return None


__all__: Sequence[str] = (
    "Attention",
    "DecoderLayer",
    "Dense",
    "Embedding",
    "EncoderLayer",
    "FeedForward",
    "RMSNorm",
    "apply_layers",
    "length_dropout",
)
