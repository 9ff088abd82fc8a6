"""T5's attention. It has T5X's names, shapes, initialisation and logical axes of parameters."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from jaxalign.networks.attention_bias import AnyBias, BlockwiseBias
from jaxalign.networks.blocks import Dense
from jaxalign.networks.blockwise_attention import blockwise_attention
from jaxalign.networks.config import T5Config
from jaxalign.networks.shapes import (
    AnyArray,
    Encoded,
    Heads,
    Hidden,
    Joined,
    SourceHeads,
    SourceLayers,
)

_kernel_init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


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

        def query_init(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
            return _kernel_init(key, shape, dtype) / jnp.sqrt(config.head_dim)

        inwards, outwards = ("embed", "joined_kv"), ("joined_kv", "embed")
        self.query = Dense(joined, inwards, query_init, dtype)
        self.key = Dense(joined, inwards, _kernel_init, dtype)
        self.value = Dense(joined, inwards, _kernel_init, dtype)
        self.out = Dense(config.emb_dim, outwards, _kernel_init, dtype)
        self.dropout = nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))

    def __call__(
        self, queries: Hidden, sources: Encoded, bias: AnyBias, *, deterministic: bool = True
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
        keys: AnyArray,
        values: SourceHeads,
        bias: AnyBias,
        *,
        deterministic: bool = True,
        transposed_keys: bool = False,
    ) -> Hidden:
        """Softmax attention over given keys and values; `bias` holds masks and relative positions.

        `transposed_keys` are laid out ``[rows, heads, head_dim, source]``. For the few queries of a step of decoding, XLA on a CPU would
        otherwise transpose all keys at each step, which took three quarters of the product's time.
        """
        q = self._split(self.query(queries))
        mixed = self._mix(q, keys, values, bias, deterministic, transposed_keys).swapaxes(1, 2)
        return self.out(mixed.reshape(*queries.shape[:-1], -1))

    def attend_mixture(
        self,
        queries: Hidden,
        keys: SourceLayers,
        values: SourceLayers,
        bias: AnyBias,
        weights: Float[AnyArray, " mixed"],
        *,
        deterministic: bool = True,
    ) -> Hidden:
        """The weighted sum of `attend` over several sources, which share the masks; weighted before the (linear) output map."""
        count = keys.shape[1]
        q = self._split(self.query(queries))
        if isinstance(bias, BlockwiseBias):
            bias = bias.repeated(count)
        elif bias.shape[0] > 1:
            bias = jnp.repeat(bias, count, axis=0)
        keys, values = (each.reshape(-1, *each.shape[2:]) for each in (keys, values))
        mixed = self._mix(jnp.repeat(q, count, axis=0), keys, values, bias, deterministic)
        mixed = jnp.einsum("s,rshqd->rqhd", weights, mixed.reshape(-1, count, *mixed.shape[1:]))
        return self.out(mixed.reshape(*queries.shape[:-1], -1))

    def _mix(
        self,
        q: Heads,
        keys: AnyArray,
        values: SourceHeads,
        bias: AnyBias,
        deterministic: bool,
        transposed_keys: bool = False,
    ) -> Heads:
        """The values, averaged for every query and head."""
        score_dtype = jnp.float32 if self.config.float32_attention_logits else q.dtype
        if isinstance(bias, BlockwiseBias):
            # Dropout of weights is the same for all queries, so that it can be that of the values.
            kept = jnp.ones((*values.shape[:2], 1, values.shape[2]), values.dtype)
            kept = self.dropout(kept, deterministic=deterministic).swapaxes(2, 3)
            return blockwise_attention(q, keys, values * kept, bias, score_dtype)
        contraction = "bhqd,bhdk->bhqk" if transposed_keys else "bhqd,bhkd->bhqk"
        scores = jnp.einsum(contraction, q.astype(score_dtype), keys.astype(score_dtype))
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
        return mixed

    def _split(self, x: Joined) -> Heads:
        x = x.reshape(*x.shape[:-1], self.config.num_heads, self.config.head_dim)
        x = nn.with_logical_constraint(x, ("batch", "length", "heads", "kv"))
        return x.swapaxes(1, 2)
