"""The T5 encoder-decoder (Raffel et al. 2020, arXiv 1910.10683), with T5X's parameter tree.

Rows may hold several prompts, and several responses to each, distinguished by segment ids; a prompt is encoded once for all its
responses.
"""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from jaxalign.networks.attention_bias import attention_bias
from jaxalign.networks.blocks import Dense, Embedding, RMSNorm, length_dropout
from jaxalign.networks.config import T5Config
from jaxalign.networks.encoder_fusion import LayerConcatenation, LayerOutputs
from jaxalign.networks.image_patches import ImageEmbedder, Patches, blank, placed
from jaxalign.networks.layers import DecoderLayer, EncoderLayer, apply_layers
from jaxalign.networks.positions import RelativePositionBias
from jaxalign.networks.shapes import (
    AnyArray,
    Decoded,
    Encoded,
    Hidden,
    Logits,
    SourceTokens,
    TargetTokens,
    Tokens,
    Vectors,
)

_logits_init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


class Encoder(nn.Module):
    """The encoder stack over embedded tokens; the embedding table is a sibling module, as in T5X."""

    config: T5Config

    @nn.compact
    def __call__(
        self,
        embedded: Hidden,
        segment_ids: Tokens,
        *,
        deterministic: bool = True,
        all_layers: bool = False,
    ) -> Hidden | LayerOutputs:
        """Encoded states, after the final norm, or those of all layers; positions of segment 0 carry no meaning."""
        config = self.config
        positions = None
        if not config.relative_attention_per_layer:
            positions = RelativePositionBias(config, bidirectional=True, name="relpos_bias")
        bias = attention_bias(config, segment_ids, segment_ids, positions)
        x = length_dropout(config)(embedded, deterministic=deterministic)
        x, outputs = apply_layers(
            EncoderLayer, config, config.num_encoder_layers, x, bias, deterministic=deterministic
        )
        x = RMSNorm(config.activation_dtype, name="encoder_norm")(outputs if all_layers else x)
        # T5X drops single elements here, unlike everywhere else.
        return nn.Dropout(config.dropout_rate)(x, deterministic=deterministic)


class Decoder(nn.Module):
    """The decoder stack over embedded tokens, and the untied output projection if there is one."""

    config: T5Config

    def setup(self) -> None:
        if not self.config.relative_attention_per_layer:
            self.relpos_bias = RelativePositionBias(self.config, bidirectional=False)
        self.decoder_norm = RMSNorm(self.config.activation_dtype)
        if not self.config.logits_via_embedding:
            self.logits_dense = Dense(
                self.config.vocab_size, ("embed", "vocab"), _logits_init, jnp.dtype("float32")
            )

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
        config = self.config
        positions = None if config.relative_attention_per_layer else self.relpos_bias
        self_bias = attention_bias(config, segment_ids, segment_ids, positions, causal=True)
        cross_bias = attention_bias(config, prompt_ids, encoder_segment_ids)
        x = length_dropout(config)(embedded, deterministic=deterministic)
        x, _ = apply_layers(
            DecoderLayer,
            config,
            config.num_decoder_layers,
            x,
            encoded,
            self_bias,
            cross_bias,
            deterministic=deterministic,
        )
        return length_dropout(config)(self.decoder_norm(x), deterministic=deterministic)


class EncoderDecoder(nn.Module):
    """T5. Its unscanned parameter tree is T5X's, name by name and shape by shape.

    Attributes:
      config: the network.
      encoder_class: the encoder; a subclass may have another one.
    """

    config: T5Config
    encoder_class: ClassVar[type[nn.Module]] = Encoder

    def setup(self) -> None:
        self.token_embedder = Embedding(self.config)
        self.encoder = self.encoder_class(self.config)
        self.decoder = Decoder(self.config)
        if self.config.image_size:
            self.image_embedder = ImageEmbedder(self.config)
        if self.config.fuses_encoder_layers:
            self.encoder_concatenation = LayerConcatenation(self.config)

    def encode(
        self,
        encoder_input_tokens: Tokens,
        encoder_segment_ids: Tokens | None = None,
        encoder_input_embeddings: Hidden | None = None,
        *,
        deterministic: bool = True,
    ) -> Hidden:
        """Encoded prompts.

        Args:
          encoder_input_tokens: prompts.
          encoder_segment_ids: the prompt each token belongs to; without them every non-PAD token of a row belongs to one prompt.
          encoder_input_embeddings: what the encoder reads in place of the embedded tokens, such as `embed_prompts` returns.
          deterministic: without dropout.
        """
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
        """What `decode` reads of prompts: `encode`, or by ``config.encoder_fusion`` the outputs of all layers."""
        if not self.config.fuses_encoder_layers:
            return self.encode(
                encoder_input_tokens,
                encoder_segment_ids,
                encoder_input_embeddings,
                deterministic=deterministic,
            )
        segments = _segments(encoder_segment_ids, encoder_input_tokens)
        embedded = encoder_input_embeddings
        if embedded is None:
            embedded = self.token_embedder(encoder_input_tokens)
        outputs = self.encoder(embedded, segments, deterministic=deterministic, all_layers=True)
        return self.encoder_concatenation(outputs)

    def embed(self, tokens: Tokens) -> Hidden:
        """Rows of the embedding table, in the dtype of activations."""
        return self.token_embedder(tokens)

    def embed_prompts(self, tokens: Tokens, patches: Patches) -> Hidden:
        """What the encoder reads of prompts with images (`networks.image_patches`)."""
        return placed(self.token_embedder(tokens), tokens, self.image_embedder(patches))

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
        """Decoder states before the vocabulary projection, under teacher forcing.

        Args:
          encoded: what `encode_for_decoder` returned.
          encoder_input_tokens: prompts; read for their padding when there are no segment ids.
          decoder_input_tokens: responses shifted right.
          decoder_target_tokens: responses; read for their padding when there are no segment ids.
          encoder_segment_ids: the prompt each encoder token belongs to, 0 on padding.
          decoder_segment_ids: the response each decoder token belongs to, 0 on padding.
          decoder_prompt_ids: the encoder segment each decoder token attends to; `decoder_segment_ids` if not given.
          decoder_input_embeddings: what the decoder reads in place of the embedded `decoder_input_tokens`.
          deterministic: without dropout.
        """
        encoder_segments = _segments(encoder_segment_ids, encoder_input_tokens)
        segments = _segments(decoder_segment_ids, decoder_target_tokens)
        prompts = segments if decoder_prompt_ids is None else decoder_prompt_ids
        embedded = decoder_input_embeddings
        if embedded is None:
            embedded = self.token_embedder(decoder_input_tokens)
        return self.decoder(
            embedded, encoded, segments, prompts, encoder_segments, deterministic=deterministic
        )

    def logits(self, hidden: Vectors) -> Logits:
        """Float32 logits of decoder states. Scoring a batch never calls this: see `scoring`."""
        hidden = hidden.astype(jnp.float32)
        if not self.config.logits_via_embedding:
            return self.decoder.logits_dense(hidden)
        scaled = hidden / jnp.sqrt(jnp.float32(self.config.emb_dim))
        return jnp.dot(scaled, self.token_embedder.embedding.T)

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
        """Logits under teacher forcing: `encode_for_decoder`, `decode`, `logits`."""
        if self.config.image_size and self.is_initializing():
            self.image_embedder(blank(self.config))
        encoded = self.encode_for_decoder(
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


def _segments(segment_ids: AnyArray | None, tokens: AnyArray) -> AnyArray:
    return (tokens > 0).astype(jnp.int32) if segment_ids is None else segment_ids
