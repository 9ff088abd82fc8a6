"""The parts that T5's layers have in common: linear maps, RMS norm, the token table, feed-forward, dropout.

Parameters are float32 and carry T5X's names, shapes, initialisation and logical axes; activations are in `T5Config.dtype`.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxalign.networks import adapters
from jaxalign.networks.config import T5Config
from jaxalign.networks.shapes import AnyArray, Hidden, Tokens, Vectors

_ACTIVATIONS = {
    "gelu": lambda x: nn.gelu(x, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
    "linear": lambda x: x,
}
_mlp_init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


def take_rows(table: AnyArray, tokens: AnyArray, dtype: jnp.dtype) -> jax.Array:
    """The rows [..., emb] of a token table at the tokens. Tokens outside of it have its first or its last row."""
    return jnp.take(table, tokens, axis=0, mode="clip").astype(dtype)


class Dense(nn.Module):
    """A linear map over the last axis, without bias."""

    features: int
    axes: tuple[str | None, str]
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
        inputs = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        flat = jnp.dot(inputs, kernel.astype(self.dtype))
        if self.has_variable("params", adapters.NAME):
            flat += self.get_variable("params", adapters.NAME)(self, inputs)
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
            embedded = take_rows(self.embedding, tokens, dtype)
        return nn.with_logical_constraint(embedded, ("batch", "length", "embed"))


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
