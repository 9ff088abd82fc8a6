"""A policy: an encoder-decoder and how it reads batches."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from jaxalign.errors import require_range
from jaxalign.networks import distributions, encoder_fusion, image_patches, scoring
from jaxalign.networks.architecture import Architecture, architecture_of
from jaxalign.networks.distributions import Projection, TokenDistributions
from jaxalign.networks.incremental import SequenceLogits, SequenceTokens, Visible
from jaxalign.networks.network_config import NetworkConfig
from jaxalign.networks.protocols import DecodingPolicy, TokenPolicy
from jaxalign.networks.scoring import ResponseScores, TokenStatistics
from jaxalign.networks.shapes import (
    AnyArray,
    Batch,
    Decoded,
    Embedded,
    Encoded,
    GreedyTokens,
    Hidden,
    Params,
    PerExampleOutputs,
    SourceTokens,
    TargetTokens,
    Tokens,
    unboxed,
)

DEFAULT_LOGITS_CHUNK_SIZE = 512


@dataclasses.dataclass(frozen=True)
class Policy(TokenPolicy, DecodingPolicy):
    """An encoder-decoder that gives log-probabilities of the responses in a batch.

    Attributes:
      config: the network.
      logits_chunk_size: tokens whose float32 logits may exist at once on a device; None keeps all of them, without recomputation.
      value_token: a token id taken out of the softmax, whose logit at a response's first position (which sees the prompt only)
        serves as a value; None for an ordinary policy.
    """

    config: NetworkConfig
    logits_chunk_size: int | None = DEFAULT_LOGITS_CHUNK_SIZE
    value_token: int | None = None

    kind: ClassVar[str] = "policy"

    def __post_init__(self) -> None:
        require_range("Policy", "[1, inf)", logits_chunk_size=self.logits_chunk_size)
        if self.value_token is not None and not 2 <= self.value_token < self.config.vocab_size:
            raise ValueError(
                f"value_token is {self.value_token}; it must be an unused token between 2 and "
                f"{self.config.vocab_size - 1} (0 is PAD, 1 is EOS)."
            )

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def dropout_rate(self) -> float:
        return self.config.dropout_rate

    @property
    def module(self) -> nn.Module:
        """The Flax module."""
        return self._architecture.module(self.config)

    def init(self, rng: PRNGKeyArray) -> Params:
        """Random parameters, with the initialisation of the family (for T5, T5X's)."""
        return _initialise(self.config, rng)

    def abstract_params(self) -> Params:
        """Shapes and dtypes of the parameters, without making them."""
        return unboxed(_abstract(self.config))

    def logical_axes(self) -> Params:
        """A PartitionSpec of logical axis names for every parameter."""
        return nn.get_partition_spec(_abstract(self.config))

    def description(self) -> dict[str, Any]:
        # The chunk size changes memory and not results.
        description = super().description()
        del description["logits_chunk_size"]
        return description

    def encode(self, params: Params, batch: Batch, *, rng: PRNGKeyArray | None = None) -> Encoded:
        """Encoder states of the batch's prompts; `rng` switches dropout on."""
        return self._apply(
            params,
            batch["encoder_input_tokens"],
            batch["encoder_segment_ids"],
            self._prompt_embeddings(params, batch),
            method="encode",
            rng=rng,
        )

    def encode_for_decoder(
        self, params: Params, batch: Batch, *, rng: PRNGKeyArray | None = None
    ) -> Encoded:
        return self._apply(
            params,
            batch["encoder_input_tokens"],
            batch["encoder_segment_ids"],
            self._prompt_embeddings(params, batch),
            method="encode_for_decoder",
            rng=rng,
        )

    def embed(self, params: Params, tokens: Tokens) -> Embedded:
        """Rows of the embedding table, in the dtype of activations."""
        return self.module.apply({"params": params}, tokens, method="embed")

    def decode(
        self,
        params: Params,
        batch: Batch,
        *,
        rng: PRNGKeyArray | None = None,
        encoded: Encoded | None = None,
        decoder_input_embeddings: Decoded | None = None,
    ) -> Decoded:
        """Decoder states of the batch's responses before the vocabulary projection.

        Args:
          params: of the policy.
          batch: as the data pipeline makes it.
          rng: switches dropout on; half of it is the encoder's.
          encoded: what `encode_for_decoder` returns, if it is already computed.
          decoder_input_embeddings: inputs of the decoder that replace the embedded input tokens.
        """
        encode_rng, decode_rng = (None, None) if rng is None else jax.random.split(rng)
        if encoded is None:
            encoded = self.encode_for_decoder(params, batch, rng=encode_rng)
        return self._apply(
            params,
            encoded,
            batch["encoder_input_tokens"],
            batch["decoder_input_tokens"],
            batch["decoder_target_tokens"],
            batch["encoder_segment_ids"],
            batch["decoder_segment_ids"],
            prompt_ids(batch),
            decoder_input_embeddings,
            method="decode",
            rng=decode_rng,
        )

    def token_statistics(
        self,
        params: Params,
        batch: Batch,
        *,
        rng: PRNGKeyArray | None = None,
        with_mean_log_probs: bool = False,
        encoded: Encoded | None = None,
    ) -> TokenStatistics:
        """Log-probability, log-normaliser and (if asked) mean log-probability at every target token, in nats."""
        hidden = self.decode(params, batch, rng=rng, encoded=encoded)
        return self.token_statistics_of(params, hidden, batch, with_mean_log_probs)

    def distributions(self, params: Params, hidden: Decoded) -> TokenDistributions:
        """The distribution over the vocabulary at every position of decoder states, for `distributions.map_distributions`."""
        kernel, scale, soft_cap = self.projection(params)
        return TokenDistributions(hidden, kernel, scale, self.value_token, soft_cap)

    def greedy_tokens(self, params: Params, hidden: Decoded) -> GreedyTokens:
        """The most probable token at every position of decoder states."""
        return distributions.map_distributions(
            lambda log_probs: jnp.argmax(log_probs, axis=-1).astype(jnp.int32),
            [self.distributions(params, hidden)],
            chunk_size=self.logits_chunk_size,
        )

    def score(
        self, params: Params, batch: Batch, *, rng: PRNGKeyArray | None = None
    ) -> ResponseScores:
        """Log-probability of every response, summed over its tokens with EOS, and its length in tokens."""
        return scoring.response_scores(self.token_statistics(params, batch, rng=rng), batch)

    def score_and_encode(
        self, params: Params, batch: Batch, *, rng: PRNGKeyArray | None = None
    ) -> tuple[ResponseScores, Encoded]:
        """`score`, and the encoder states that it reads, of one forward pass."""
        encode_rng = None if rng is None else jax.random.split(rng)[0]
        encoded = self.encode_for_decoder(params, batch, rng=encode_rng)
        statistics = self.token_statistics(params, batch, rng=rng, encoded=encoded)
        states = encoder_fusion.last_layer(self.config, encoded)
        return scoring.response_scores(statistics, batch), states

    def value_logits(
        self, params: Params, batch: Batch, *, rng: PRNGKeyArray | None = None
    ) -> PerExampleOutputs:
        """The value token's logit at the first position of each example's first response; 0 where there is no example."""
        return self._value_logits(params, self.decode(params, batch, rng=rng), batch)

    def score_and_value_logits(
        self, params: Params, batch: Batch, *, rng: PRNGKeyArray | None = None
    ) -> tuple[ResponseScores, PerExampleOutputs]:
        """`score` and `value_logits` of one forward pass."""
        hidden = self.decode(params, batch, rng=rng)
        statistics = self.token_statistics_of(params, hidden, batch)
        return scoring.response_scores(statistics, batch), self._value_logits(params, hidden, batch)

    def projection(self, params: Params) -> Projection:
        """The vocabulary projection."""
        return self._architecture.projection(self.config, params)

    def read_prompts(
        self, params: Params, encoder_input_tokens: SourceTokens, max_decode_len: int
    ) -> Any:
        segments = (encoder_input_tokens > 0).astype(jnp.int32)
        batch = {"encoder_input_tokens": encoder_input_tokens, "encoder_segment_ids": segments}
        encoded = self.encode_for_decoder(params, batch)
        return self._architecture.read_prompts(
            self.config, params, encoded, segments, max_decode_len
        )

    def empty_cache(self, num_groups: int, num_slots: int, group_size: int = 1) -> Any:
        return self._architecture.empty_cache(self.config, num_groups, num_slots, group_size)

    def next_logits(
        self,
        prompt: Any,
        cache: Any,
        tokens: SequenceTokens,
        position: AnyArray,
        visible: Visible | None = None,
    ) -> tuple[SequenceLogits, Any]:
        states, cache = self._architecture.next_states(
            self.config, prompt, cache, tokens, position, visible
        )
        return distributions.project(self.distributions(prompt.params, states)), cache

    def next_logits_in_ring(
        self,
        prompt: Any,
        cache: Any,
        tokens: SequenceTokens,
        step: AnyArray,
        positions: AnyArray,
    ) -> tuple[SequenceLogits, Any]:
        states, cache = self._architecture.next_states_in_ring(
            self.config, prompt, cache, tokens, step, positions
        )
        return distributions.project(self.distributions(prompt.params, states)), cache

    def token_statistics_of(
        self, params: Params, hidden: Decoded, batch: Batch, with_mean_log_probs: bool = False
    ) -> TokenStatistics:
        """`token_statistics` from given decoder states."""
        kernel, scale, soft_cap = self.projection(params)
        return scoring.token_statistics(
            hidden,
            kernel,
            batch["decoder_target_tokens"],
            chunk_size=self.logits_chunk_size,
            scale=scale,
            with_mean_log_probs=with_mean_log_probs,
            forbidden_token=self.value_token,
            soft_cap=soft_cap,
        )

    @property
    def _architecture(self) -> Architecture:
        return architecture_of(self.config)

    def _prompt_embeddings(self, params: Params, batch: Batch) -> Embedded | None:
        """What the encoder reads in place of embedded tokens; None without images."""
        patches = image_patches.patches_of(self.config, params, batch)
        if patches is None:
            return None
        tokens = batch["encoder_input_tokens"]
        return self.module.apply({"params": params}, tokens, patches, method="embed_prompts")

    def _value_logits(self, params: Params, hidden: Decoded, batch: Batch) -> PerExampleOutputs:
        if self.value_token is None:
            raise ValueError("value_logits needs a Policy with value_token set to an unused token.")
        examples = jnp.arange(1, batch["response_mask"].shape[1] + 1)
        member = prompt_ids(batch)[:, :, None] == examples
        first = jnp.argmax(member, axis=1)  # [rows, P]
        states = jnp.take_along_axis(hidden, first[:, :, None], axis=1).astype(jnp.float32)
        # Without the soft cap, which belongs to the distribution over the other tokens.
        kernel, scale, _ = self.projection(params)
        logits = scale * jnp.sum(states * kernel[:, self.value_token], axis=-1)
        return jnp.where(jnp.any(member, axis=1), logits, 0.0).reshape(-1)

    def _apply(
        self,
        params: Params,
        *inputs: AnyArray | None,
        method: str,
        rng: PRNGKeyArray | None,
    ) -> Hidden:
        rngs = None if rng is None else {"dropout": rng}
        return self.module.apply(
            {"params": params}, *inputs, method=method, deterministic=rng is None, rngs=rngs
        )


def prompt_ids(batch: Batch) -> TargetTokens:
    """The encoder segment that each decoder token attends to, 0 on padding."""
    segments = batch["decoder_segment_ids"]
    num_responses = batch["response_mask"].shape[2]
    return jnp.where(segments > 0, (segments - 1) // num_responses + 1, 0)


def _boxed(config: NetworkConfig, rng: PRNGKeyArray) -> Params:
    tokens = jnp.ones((1, 2), jnp.int32)
    return architecture_of(config).module(config).init(rng, tokens, tokens, tokens)["params"]


@functools.partial(jax.jit, static_argnums=0)
def _initialise(config: NetworkConfig, rng: PRNGKeyArray) -> Params:
    return nn.meta.unbox(_boxed(config, rng))


def _abstract(config: NetworkConfig) -> Params:
    return jax.eval_shape(functools.partial(_boxed, config), jax.random.key(0))
