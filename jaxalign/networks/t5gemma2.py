"""T5Gemma 2 (Zhang et al. 2025, arXiv 2512.14856): Gemma 3's layers as an encoder-decoder with one embedding table. Text only.

It differs from T5Gemma in its tables, in attention (merged in the decoder; heads are normalised) and in the positions of full layers. Rows
are packed as in `networks.t5gemma`.
"""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from jaxalign.networks.blocks import take_rows
from jaxalign.networks.distributions import Projection, logits_of
from jaxalign.networks.shapes import AnyArray, Hidden, Logits, Params, Tokens, Vectors
from jaxalign.networks.t5gemma import (
    DecoderStack,
    GemmaEncoder,
    GemmaStacks,
    with_start_token,
)
from jaxalign.networks.t5gemma2_config import T5Gemma2Config
from jaxalign.networks.t5gemma2_layers import MergedDecoderLayer
from jaxalign.networks.t5gemma_blocks import GemmaEmbedding, scale_of


class SharedEmbedding(GemmaEmbedding):
    """The token table of both stacks, and the embedding of the token that ends an image, which `scaled` does not change."""

    eoi_token: int

    def setup(self) -> None:
        super().setup()
        self.eoi_embedding = self.param(
            "eoi_embedding",
            nn.with_logical_partitioning(nn.initializers.zeros, ("embed",)),
            (self.emb_dim,),
            jnp.float32,
        )

    def __call__(self, tokens: Tokens) -> Hidden:
        embedded = super().__call__(tokens)
        return _with_eoi(embedded, tokens, self.eoi_token, self.eoi_embedding)


class MergedDecoder(DecoderStack):
    """The decoder stack of T5Gemma 2."""

    layer: ClassVar[type[nn.Module]] = MergedDecoderLayer


class T5Gemma2EncoderDecoder(GemmaStacks):
    """T5Gemma 2, with the methods of `t5.EncoderDecoder`."""

    config: T5Gemma2Config

    def setup(self) -> None:
        self.token_embedder = shared_embedding(self.config)
        self.encoder = GemmaEncoder(self.config)
        self.decoder = MergedDecoder(self.config)

    def embed(self, tokens: Tokens) -> Hidden:
        return self.token_embedder(with_start_token(self.config, tokens))

    def logits(self, hidden: Vectors) -> Logits:
        kernel = self.token_embedder.embedding.T
        return logits_of(hidden, kernel, soft_cap=self.config.logits_soft_cap)


def shared_embedding(config: T5Gemma2Config, name: str | None = None) -> SharedEmbedding:
    """The embedding table as a module of that name."""
    return SharedEmbedding(
        config.vocab_size, config.emb_dim, config.activation_dtype, config.eoi_token, name=name
    )


def projection(config: T5Gemma2Config, params: Params) -> Projection:
    """The vocabulary projection: the embedding table."""
    return Projection(params["token_embedder"]["embedding"].T, soft_cap=config.logits_soft_cap)


def embed_targets(config: T5Gemma2Config, params: Params, tokens: Tokens) -> Hidden:
    """What `T5Gemma2EncoderDecoder.embed` returns, from the parameters."""
    own = params["token_embedder"]
    tokens = with_start_token(config, tokens)
    embedded = take_rows(own["embedding"], tokens, config.activation_dtype)
    return _with_eoi(embedded, tokens, config.eoi_token, own["eoi_embedding"])


def _with_eoi(embedded: Hidden, tokens: Tokens, eoi_token: int, eoi: AnyArray) -> Hidden:
    before_scaling = (eoi / scale_of(embedded).astype(jnp.float32)).astype(embedded.dtype)
    return jnp.where((tokens == eoi_token)[..., None], before_scaling, embedded)
