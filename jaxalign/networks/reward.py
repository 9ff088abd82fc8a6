"""Reward networks: a scalar for every response to a prompt, from a T5's encoder over both texts or from its decoder's states."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxalign.networks.decoder_trunk import DecoderTrunk
from jaxalign.networks.image_patches import Patches, patches_of
from jaxalign.networks.network_config import NetworkConfig
from jaxalign.networks.protocols import PrefixRewardPredictor, RewardPredictor
from jaxalign.networks.shapes import (
    AnyArray,
    Batch,
    Decoded,
    Params,
    PerResponseOutputs,
    Tokens,
)
from jaxalign.networks.value import PromptValue, ValueNetwork

Spans = Int[Array, "rows segments"]


@dataclasses.dataclass(frozen=True)
class RewardNetwork(RewardPredictor):
    """r(x, y) from a T5 encoder that reads prompt and response as one text: masked mean of its states, float32 linear head.

    The parameters are those of a `ValueNetwork`; only what the encoder reads differs. Each response gets a separate row, with its
    prompt's tokens, then its own, both with their EOS; so neither packing nor the other responses change its reward.

    Attributes:
      config: the network; only its encoder half is used.
      max_length: tokens of prompt and response together that the encoder reads; the beginning of a longer text is left
        out. None reads everything, in rows as long as an encoder and a decoder row of the batch together; for several responses per
        prompt most of that is padding, and the sum of the task's feature lengths is enough.
    """

    config: NetworkConfig
    max_length: int | None = None

    kind: ClassVar[str] = "encoder_reward"

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(
                f"RewardNetwork.max_length is {self.max_length}; it must be at least 1, or None."
            )

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def dropout_rate(self) -> float:
        return self.config.dropout_rate

    def init(self, rng: PRNGKeyArray) -> Params:
        """Random parameters ``{'token_embedder', 'encoder', 'head'}``."""
        return self._twin.init(rng)

    def from_policy(self, rng: PRNGKeyArray, policy_params: Params) -> Params:
        """Embedding and encoder copied from a policy, and a new random head; ValueError if sizes differ."""
        return self._twin.from_policy(rng, policy_params)

    def abstract_params(self) -> Params:
        """Shapes and dtypes of the parameters, without making them."""
        return self._twin.abstract_params()

    def logical_axes(self) -> Params:
        """A PartitionSpec of logical axis names for every parameter."""
        return self._twin.logical_axes()

    def rewards(
        self, params: Params, batch: Batch, *, rng: PRNGKeyArray | None = None
    ) -> PerResponseOutputs:
        """Rewards of all responses; `rng` switches dropout on. Absent responses get the head's bias."""
        tokens, segment_ids = joined_rows(batch, self.max_length)
        rewards = PromptValue(self.config).apply(
            {"params": params},
            tokens,
            segment_ids,
            1,
            _joined_patches(self.config, params, batch),
            deterministic=rng is None,
            rngs=None if rng is None else {"dropout": rng},
        )
        return rewards.reshape(-1, batch["response_mask"].shape[2])

    @property
    def _twin(self) -> ValueNetwork:
        return ValueNetwork(self.config)


@dataclasses.dataclass(frozen=True)
class DecoderRewardNetwork(DecoderTrunk, PrefixRewardPredictor):
    """r(x, y) from the decoder's state at the response's last token, by a float32 linear head without bias.

    That state has read the prompt and all of the response but its EOS. The states of earlier positions are representations of prefixes,
    which `jaxalign.losses.goal_conditioning` trains.

    Attributes:
      config: the network; all of it but the vocabulary projection is used.
    """

    config: NetworkConfig

    kind: ClassVar[str] = "decoder_reward"

    def init_head(self, rng: PRNGKeyArray) -> Params:
        emb_dim = self.config.emb_dim
        # The scale of the public code (arXiv 2407.13887).
        return {"kernel": jax.random.normal(rng, (emb_dim, 1), jnp.float32) / (emb_dim + 1)}

    def head_axes(self) -> Params:
        return {"kernel": PartitionSpec("embed", None)}

    def head(self, params: Params, states: Float[AnyArray, "*batch emb"]) -> Array:
        """The reward read at any state, in float32."""
        # A sum instead of a matmul: full float32 on every backend.
        return jnp.sum(states.astype(jnp.float32) * params["head"]["kernel"][:, 0], axis=-1)

    def rewards(
        self, params: Params, batch: Batch, *, rng: PRNGKeyArray | None = None
    ) -> PerResponseOutputs:
        """Rewards of all responses; `rng` switches dropout on. 0 for absent responses."""
        return self.rewards_of(params, self.states(params, batch, rng=rng), batch)

    def rewards_of(self, params: Params, states: Decoded, batch: Batch) -> PerResponseOutputs:
        """`rewards` from given states."""
        _, lengths = response_spans(batch)
        rewards = self.head(params, last_states(states, batch))
        return jnp.where(lengths > 0, rewards, 0.0)

    def prefix_states(
        self, params: Params, batch: Batch
    ) -> tuple[
        Float[Array, "examples responses target emb"], Bool[Array, "examples responses target"]
    ]:
        """The states of every response from its first position on, and a mask of the positions that exist."""
        starts, lengths = response_spans(batch)
        states = self.states(params, batch)
        positions = jnp.broadcast_to(jnp.arange(states.shape[1]), (*starts.shape, states.shape[1]))
        gathered = states_at(states, starts, positions)
        return gathered, positions < lengths[..., None]


def segment_spans(segment_ids: Tokens, num_segments: int) -> tuple[Spans, Spans]:
    """Where segments 1..num_segments start in their row, and how many tokens they have; segments are contiguous."""
    member = segment_ids[:, :, None] == jnp.arange(1, num_segments + 1)
    return jnp.argmax(member, axis=1), jnp.sum(member, axis=1)


def response_spans(
    batch: Batch,
) -> tuple[Int[Array, "examples responses"], Int[Array, "examples responses"]]:
    """Where every response starts in its decoder row, and how many tokens it has; 0 and 0 if there is none."""
    _, num_examples, num_responses = batch["response_mask"].shape
    starts, lengths = segment_spans(batch["decoder_segment_ids"], num_examples * num_responses)
    return starts.reshape(-1, num_responses), lengths.reshape(-1, num_responses)


def joined_rows(batch: Batch, max_length: int | None = None) -> tuple[Tokens, Tokens]:
    """One row for every response a batch has room for: its prompt's tokens and then its own, contiguous from position 0.

    Args:
      batch: as the data pipeline makes it.
      max_length: tokens of a row; by default an encoder row and a decoder row together, which holds everything. The beginning of
        a longer text is left out.

    Returns:
      Tokens and segment ids (1, and 0 on padding), ``[rows * examples per row * responses, length]``.
    """
    rows, num_examples, num_responses = batch["response_mask"].shape
    prompts, targets = batch["encoder_input_tokens"], batch["decoder_target_tokens"]
    per_response = [
        jnp.repeat(array, num_responses, axis=1)
        for array in segment_spans(batch["encoder_segment_ids"], num_examples)
    ]
    response_starts, response_lengths = segment_spans(
        batch["decoder_segment_ids"], num_examples * num_responses
    )
    prompt_starts, prompt_lengths = per_response
    prompt_lengths = jnp.where(response_lengths > 0, prompt_lengths, 0)
    totals = prompt_lengths + response_lengths
    length = prompts.shape[1] + targets.shape[1]
    length = length if max_length is None else min(length, max_length)
    # Position of each place of the new row in the joined text.
    places = jnp.arange(length) + jnp.maximum(totals - length, 0)[:, :, None]
    from_prompt = _take(prompts, prompt_starts[:, :, None] + places)
    from_response = _take(targets, (response_starts - prompt_lengths)[:, :, None] + places)
    exists = places < totals[:, :, None]
    tokens = jnp.where(places < prompt_lengths[:, :, None], from_prompt, from_response)
    shape = (rows * num_examples * num_responses, length)
    return jnp.where(exists, tokens, 0).reshape(shape), exists.astype(jnp.int32).reshape(shape)


def _joined_patches(config: NetworkConfig, params: Params, batch: Batch) -> Patches | None:
    """The images of every row of `joined_rows`: those of the row that it was taken from."""
    patches = patches_of(config, params, batch)
    if patches is None or patches.ndim == 3:
        return patches
    _, num_examples, num_responses = batch["response_mask"].shape
    return jnp.repeat(patches, num_examples * num_responses, axis=0)


def states_at(
    states: Decoded,
    starts: Int[Array, "examples segments"],
    positions: Int[Array, "examples segments samples"],
) -> Float[Array, "examples segments samples emb"]:
    """The states at positions counted from where segments (some of the responses) start in their rows."""
    indices = (starts[:, :, None] + positions).reshape(states.shape[0], -1)
    return _take(states, indices).reshape(*positions.shape, states.shape[-1])


def last_states(states: Decoded, batch: Batch) -> Float[Array, "examples responses emb"]:
    """The state at every response's last token."""
    starts, lengths = response_spans(batch)
    return states_at(states, starts, jnp.maximum(lengths - 1, 0)[:, :, None])[:, :, 0]


def _take(rows: AnyArray, indices: Array) -> Array:
    """Row by row, the entries at ``indices``, which may point outside where the result is not used."""
    return jax.vmap(lambda row, index: jnp.take(row, index, axis=0, mode="clip"))(rows, indices)
