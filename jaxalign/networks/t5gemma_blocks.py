"""The parts of the layers of T5Gemma and T5Gemma 2: grouped attention, norm, token table, feed-forward. Parameters are float32 and named
as T5's."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxalign.networks.blocks import Dense, take_rows
from jaxalign.networks.distributions import soft_capped
from jaxalign.networks.gemma_config import GemmaConfig, Stack
from jaxalign.networks.positions import MASKED
from jaxalign.networks.rotary import Rotation, rotate
from jaxalign.networks.shapes import (
    AnyArray,
    AnyMask,
    Encoded,
    Hidden,
    SourceHeads,
    Tokens,
    Vectors,
)

GroupedQueries = Float[AnyArray, "rows kv_heads group length head_dim"]
GroupedScores = Float[AnyArray, "rows kv_heads group length keys"]
_init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
_table_init = nn.initializers.normal(0.02)


class GemmaNorm(nn.Module):
    """Division by the root mean square and multiplication by one plus a learned scale, both in float32."""

    dtype: jnp.dtype
    axis: str = "embed"  # the logical name of what is normalised

    @nn.compact
    def __call__(self, x: Vectors) -> Vectors:
        scale = self.param(
            "scale",
            nn.with_logical_partitioning(nn.initializers.zeros, (self.axis,)),
            (x.shape[-1],),
            jnp.float32,
        )
        x = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return (x * jax.lax.rsqrt(mean_square + 1e-6) * (1.0 + scale)).astype(self.dtype)


class GemmaEmbedding(nn.Module):
    """The token table of a stack."""

    vocab_size: int
    emb_dim: int
    dtype: jnp.dtype

    def setup(self) -> None:
        self.embedding = self.param(
            "embedding",
            nn.with_logical_partitioning(_table_init, ("vocab", "embed")),
            (self.vocab_size, self.emb_dim),
            jnp.float32,
        )

    def __call__(self, tokens: Tokens) -> Hidden:
        embedded = take_rows(self.embedding, tokens, self.dtype)
        return nn.with_logical_constraint(embedded, ("batch", "length", "embed"))


def scaled(embedded: Hidden) -> Hidden:
    """Embedded tokens times `scale_of` them."""
    return embedded * scale_of(embedded)


def scale_of(embedded: Hidden) -> AnyArray:
    """The square root of the width of embedded tokens, which is rounded to their dtype as in Gemma."""
    return jnp.sqrt(jnp.float32(embedded.shape[-1])).astype(embedded.dtype)


class Source(NamedTuple):
    """Keys, values and the mask of what each query sees. Its rows may be groups of queries: whole rows, or equal parts of them."""

    keys: SourceHeads
    values: SourceHeads
    mask: AnyMask


def joined(first: Source, second: Source) -> Source:
    """Two sources with the same rows as one."""
    return Source(
        jnp.concatenate([first.keys, second.keys], axis=2),
        jnp.concatenate([first.values, second.values], axis=2),
        jnp.concatenate([first.mask, second.mask], axis=3),
    )


class GroupedAttention(nn.Module):
    """Attention in which several heads of queries share a head of keys and values, with scores under a soft cap.

    Scores and their softmax are float32 for every dtype of activations.
    """

    stack: Stack
    dtype: jnp.dtype

    def setup(self) -> None:
        stack = self.stack
        if stack.NORMS_HEADS:
            self.query_norm = GemmaNorm(self.dtype, "kv")
            self.key_norm = GemmaNorm(self.dtype, "kv")
        joined, joined_kv = (n * stack.head_dim for n in (stack.num_heads, stack.num_kv_heads))
        inwards = ("embed", "joined_kv")
        self.query = Dense(joined, inwards, _init, self.dtype)
        self.key = Dense(joined_kv, inwards, _init, self.dtype)
        self.value = Dense(joined_kv, inwards, _init, self.dtype)
        self.out = Dense(stack.emb_dim, ("joined_kv", "embed"), _init, self.dtype)

    def keys_and_values(
        self, sources: Encoded, rotation: Rotation | None = None
    ) -> tuple[SourceHeads, SourceHeads]:
        """The keys, rotated if they have positions, and the values that `attend` reads, for callers that keep them."""
        shape = (*sources.shape[:2], self.stack.num_kv_heads, self.stack.head_dim)
        keys, values = (
            project(sources).reshape(shape).swapaxes(1, 2) for project in (self.key, self.value)
        )
        if self.stack.NORMS_HEADS:
            keys = self.key_norm(keys)
        return keys if rotation is None else rotate(keys, rotation), values

    def attend(self, x: Hidden, *sources: Source, rotation: Rotation | None = None) -> Hidden:
        """Softmax attention over all keys of all sources together; `rotation` has the positions of the queries."""
        stack = self.stack
        queries = self.query(x).reshape(*x.shape[:2], stack.num_heads, stack.head_dim)
        queries = nn.with_logical_constraint(queries, ("batch", "length", "heads", "kv"))
        if stack.NORMS_HEADS:
            queries = self.query_norm(queries)
        queries = queries.swapaxes(1, 2)
        if rotation is not None:
            queries = rotate(queries, rotation)
        grouped = queries.reshape(
            queries.shape[0], stack.num_kv_heads, -1, *queries.shape[2:]
        )  # head h reads keys and values h // (heads of a group)
        mixed = self._mix(grouped, sources)
        mixed = mixed.reshape(queries.shape).swapaxes(1, 2)
        return self.out(mixed.reshape(*x.shape[:2], -1))

    def _mix(self, queries: GroupedQueries, sources: Sequence[Source]) -> GroupedQueries:
        rows = queries.shape[0]
        scores = [self._scores(queries, source) for source in sources]
        weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1)
        mixed, start = [], 0
        for _, values, _ in sources:
            own = weights[..., start : start + values.shape[2]].astype(values.dtype)
            part = jnp.einsum("bngqk,bnkd->bngqd", _in_rows(own, values.shape[0]), values)
            mixed.append(_in_rows(part, rows))
            start += values.shape[2]
        return functools.reduce(jnp.add, mixed)

    def _scores(self, queries: GroupedQueries, source: Source) -> GroupedScores:
        scores = jnp.einsum(
            "bngqd,bnkd->bngqk",
            _in_rows(queries, source.keys.shape[0]),
            source.keys,
            preferred_element_type=jnp.float32,
        )
        scores = scores * self.stack.query_pre_attn_scalar**-0.5
        scores = soft_capped(scores, self.stack.attention_soft_cap)
        scores = jnp.where(source.mask[:, :, None], scores, MASKED)
        return _in_rows(scores, queries.shape[0])


def _in_rows(x: AnyArray, rows: int) -> AnyArray:
    """The axes ``[rows, kv_heads, group, length, any]`` with another number of rows and the same order of positions."""
    held, heads, group, length, width = x.shape
    if held == rows:
        return x
    if held > rows:
        parts = x.reshape(rows, held // rows, heads, group, length, width)
        return jnp.moveaxis(parts, 1, 3).reshape(rows, heads, group, -1, width)
    parts = x.reshape(held, heads, group, rows // held, -1, width)
    return jnp.moveaxis(parts, 3, 1).reshape(rows, heads, group, -1, width)


class GemmaFeedForward(nn.Module):
    """The gated feed-forward block: gelu (tanh form) of one branch times the other, projected back."""

    stack: Stack
    config: GemmaConfig

    @nn.compact
    def __call__(self, x: Hidden, *, deterministic: bool = True) -> Hidden:
        dtype = self.config.activation_dtype
        branches = [
            Dense(self.stack.mlp_dim, ("embed", "mlp"), _init, dtype, name=f"wi_{index}")(x)
            for index in range(2)
        ]

        def activate(gate: AnyArray, linear: AnyArray) -> AnyArray:
            return nn.gelu(gate, approximate=True) * linear

        # The backward pass recomputes it, which is cheaper than storing the inputs of gelu's derivative.
        hidden = jax.checkpoint(activate)(*branches)
        hidden = gemma_dropout(self.config)(hidden, deterministic=deterministic)
        hidden = nn.with_logical_constraint(hidden, ("batch", "length", "mlp"))
        return Dense(self.stack.emb_dim, ("mlp", "embed"), _init, dtype, name="wo")(hidden)


def gemma_dropout(config: GemmaConfig) -> nn.Dropout:
    """Dropout with one mask for all positions of a row, as in this package's T5."""
    return nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))
