"""T5Gemma (Zhang et al. 2025, arXiv 2504.06225): Gemma 2's layers as an encoder-decoder.

Rows may hold several prompts, and several responses to each, distinguished by segment ids, as in `networks.t5`. Rotary positions begin
anew with every segment; windows count positions of the row, which within a segment is the same.
"""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from jaxalign.networks.blocks import Dense, take_rows
from jaxalign.networks.distributions import Projection, logits_of, soft_capped
from jaxalign.networks.gemma_config import GemmaConfig
from jaxalign.networks.positions import causal_mask, segment_mask
from jaxalign.networks.rotary import segment_positions
from jaxalign.networks.shapes import (
    AnyArray,
    Decoded,
    Encoded,
    Hidden,
    Logits,
    Params,
    SourceTokens,
    TargetTokens,
    Tokens,
    Vectors,
)
from jaxalign.networks.t5gemma_blocks import GemmaEmbedding, GemmaNorm, gemma_dropout, scaled
from jaxalign.networks.t5gemma_config import T5GemmaConfig
from jaxalign.networks.t5gemma_layers import (
    GemmaDecoderLayer,
    GemmaEncoderLayer,
    apply_layers,
    views,
)

_logits_init = nn.initializers.normal(0.02)


class GemmaEncoder(nn.Module):
    """The encoder stack over embedded tokens; its embedding table is a sibling module, as in T5."""

    config: GemmaConfig

    @nn.compact
    def __call__(
        self, embedded: Hidden, segment_ids: Tokens, *, deterministic: bool = True
    ) -> Hidden:
        """Encoded states, after the final norm; positions of segment 0 carry no meaning."""
        config, stack = self.config, self.config.encoder
        mask = segment_mask(segment_ids, segment_ids)
        index = jnp.arange(embedded.shape[1])
        distance, (before, after) = index[:, None] - index, stack.encoder_window
        near = (distance <= before) & (distance >= -after)
        x = gemma_dropout(config)(scaled(embedded), deterministic=deterministic)
        x = apply_layers(
            GemmaEncoderLayer,
            config,
            stack.kinds,
            x,
            *views(stack, segment_positions(segment_ids), near, mask),
            deterministic=deterministic,
        )
        x = GemmaNorm(config.activation_dtype, name="encoder_norm")(x)
        return gemma_dropout(config)(x, deterministic=deterministic)


class DecoderStack(nn.Module):
    """The decoder stack over embedded tokens.

    Attributes:
      config: the network.
      layer: the class of the layers; a subclass may have another one.
    """

    config: GemmaConfig
    layer: ClassVar[type[nn.Module]] = GemmaDecoderLayer

    def setup(self) -> None:
        self.decoder_norm = GemmaNorm(self.config.activation_dtype)

    @nn.compact
    def __call__(
        self,
        embedded: Decoded,
        encoded: Encoded,
        segment_ids: TargetTokens,
        prompt_ids: TargetTokens,
        encoder_segment_ids: SourceTokens,
        *,
        deterministic: bool = True,
    ) -> Decoded:
        """States after the final norm. A token sees earlier ones of its segment and the encoder segment `prompt_ids` names."""
        config, stack = self.config, self.config.decoder
        length = embedded.shape[1]
        mask = segment_mask(segment_ids, segment_ids) & causal_mask(length)
        index = jnp.arange(length)
        near = index[:, None] - index < stack.sliding_window
        x = gemma_dropout(config)(scaled(embedded), deterministic=deterministic)
        x = apply_layers(
            self.layer,
            config,
            stack.kinds,
            x,
            encoded,
            *views(stack, segment_positions(segment_ids), near, mask),
            segment_mask(prompt_ids, encoder_segment_ids),
            deterministic=deterministic,
        )
        return gemma_dropout(config)(self.decoder_norm(x), deterministic=deterministic)


class GemmaDecoder(DecoderStack):
    """The decoder of T5Gemma: its embedding table, its stack, and the output projection if it is not the table."""

    config: T5GemmaConfig

    def setup(self) -> None:
        super().setup()
        config = self.config
        self.token_embedder = GemmaEmbedding(
            config.vocab_size, config.emb_dim, config.activation_dtype
        )
        if not config.logits_via_embedding:
            self.logits_dense = Dense(
                config.vocab_size, ("embed", "vocab"), _logits_init, jnp.dtype("float32")
            )

    def embed(self, tokens: Tokens) -> Hidden:
        """Rows of the decoder's table; token 0, which starts a response, is T5Gemma's start token."""
        return self.token_embedder(with_start_token(self.config, tokens))


class GemmaStacks(nn.Module):
    """The methods of `t5.EncoderDecoder` for a subclass that has ``token_embedder``, ``encoder``, ``decoder``, `embed` and `logits`."""

    config: GemmaConfig

    def encode(
        self,
        encoder_input_tokens: Tokens,
        encoder_segment_ids: Tokens | None = None,
        encoder_input_embeddings: Hidden | None = None,
        *,
        deterministic: bool = True,
    ) -> Hidden:
        """Encoded prompts; arguments as in `t5.EncoderDecoder.encode`."""
        segments = _segments(encoder_segment_ids, encoder_input_tokens)
        embedded = encoder_input_embeddings
        if embedded is None:
            embedded = self.token_embedder(encoder_input_tokens)
        return self.encoder(embedded, segments, deterministic=deterministic)

    def encode_for_decoder(
        self,
        encoder_input_tokens: Tokens,
        encoder_segment_ids: Tokens | None = None,
        encoder_input_embeddings: Hidden | None = None,
        *,
        deterministic: bool = True,
    ) -> Encoded:
        """What `decode` reads of prompts, the same as `encode`."""
        return self.encode(
            encoder_input_tokens,
            encoder_segment_ids,
            encoder_input_embeddings,
            deterministic=deterministic,
        )

    def embed(self, tokens: Tokens) -> Hidden:
        """What the decoder reads of tokens, before they are scaled."""
        raise NotImplementedError

    def decode(
        self,
        encoded: Encoded,
        encoder_input_tokens: SourceTokens,
        decoder_input_tokens: TargetTokens,
        decoder_target_tokens: TargetTokens,
        encoder_segment_ids: SourceTokens | None = None,
        decoder_segment_ids: TargetTokens | None = None,
        decoder_prompt_ids: TargetTokens | None = None,
        decoder_input_embeddings: Decoded | None = None,
        *,
        deterministic: bool = True,
    ) -> Decoded:
        """Decoder states before the vocabulary projection; arguments as in `t5.EncoderDecoder.decode`."""
        encoder_segments = _segments(encoder_segment_ids, encoder_input_tokens)
        segments = _segments(decoder_segment_ids, decoder_target_tokens)
        prompts = segments if decoder_prompt_ids is None else decoder_prompt_ids
        embedded = decoder_input_embeddings
        if embedded is None:
            embedded = self.embed(decoder_input_tokens)
        return self.decoder(
            embedded, encoded, segments, prompts, encoder_segments, deterministic=deterministic
        )

    def logits(self, hidden: Vectors) -> Logits:
        """Float32 logits of decoder states. Scoring a batch never calls this: see `scoring`."""
        raise NotImplementedError

    def __call__(
        self,
        encoder_input_tokens: SourceTokens,
        decoder_input_tokens: TargetTokens,
        decoder_target_tokens: TargetTokens,
        encoder_segment_ids: SourceTokens | None = None,
        decoder_segment_ids: TargetTokens | None = None,
        decoder_prompt_ids: TargetTokens | None = None,
        *,
        deterministic: bool = True,
    ) -> Logits:
        """Logits under teacher forcing: `encode`, `decode`, `logits`."""
        encoded = self.encode(
            encoder_input_tokens, encoder_segment_ids, deterministic=deterministic
        )
        hidden = self.decode(
            encoded,
            encoder_input_tokens,
            decoder_input_tokens,
            decoder_target_tokens,
            encoder_segment_ids,
            decoder_segment_ids,
            decoder_prompt_ids,
            deterministic=deterministic,
        )
        return self.logits(hidden)


class GemmaEncoderDecoder(GemmaStacks):
    """T5Gemma, with the methods of `t5.EncoderDecoder`."""

    config: T5GemmaConfig

    def setup(self) -> None:
        config = self.config
        self.token_embedder = GemmaEmbedding(
            config.vocab_size, config.encoder_width, config.activation_dtype
        )
        self.encoder = GemmaEncoder(config)
        self.decoder = GemmaDecoder(config)

    def embed(self, tokens: Tokens) -> Hidden:
        return self.decoder.embed(tokens)

    def logits(self, hidden: Vectors) -> Logits:
        if self.config.logits_via_embedding:
            kernel = self.decoder.token_embedder.embedding.T
            return logits_of(hidden, kernel, soft_cap=self.config.logits_soft_cap)
        return soft_capped(
            self.decoder.logits_dense(hidden.astype(jnp.float32)), self.config.logits_soft_cap
        )


def encoder_embedding(config: T5GemmaConfig, name: str) -> GemmaEmbedding:
    """The encoder's embedding table as a module of that name."""
    return GemmaEmbedding(
        config.vocab_size, config.encoder_width, config.activation_dtype, name=name
    )


def projection(config: T5GemmaConfig, params: Params) -> Projection:
    """The vocabulary projection: the decoder's own table, or a separate head."""
    decoder = params["decoder"]
    if config.logits_via_embedding:
        kernel = decoder["token_embedder"]["embedding"].T
    else:
        kernel = decoder["logits_dense"]["kernel"]
    return Projection(kernel, soft_cap=config.logits_soft_cap)


def embed_targets(config: T5GemmaConfig, params: Params, tokens: Tokens) -> Hidden:
    """What `GemmaEncoderDecoder.embed` returns, from the parameters."""
    table = params["decoder"]["token_embedder"]["embedding"]
    return take_rows(table, with_start_token(config, tokens), config.activation_dtype)


def with_start_token(config: GemmaConfig, tokens: AnyArray) -> AnyArray:
    """Decoder inputs with the family's start token where they have token 0."""
    return jnp.where(tokens == 0, config.start_token, tokens)


def _segments(segment_ids: AnyArray | None, tokens: AnyArray) -> AnyArray:
    return (tokens > 0).astype(jnp.int32) if segment_ids is None else segment_ids
