"""What networks offer to those who call them: objectives, training, run folders, decoding.

A class inherits from the widest protocol that it meets. Members with a body are defaults, which suit a small network without a checkpoint
to start from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
from jax.sharding import PartitionSpec
from jaxtyping import PRNGKeyArray

from jaxalign.errors import UserError
from jaxalign.networks.distributions import TokenDistributions
from jaxalign.networks.network_config import NetworkConfig
from jaxalign.networks.scoring import TokenStatistics
from jaxalign.networks.shapes import (
    Batch,
    Decoded,
    Embedded,
    Encoded,
    GreedyTokens,
    Params,
    PerExampleOutputs,
    PerResponseOutputs,
    SourceTokens,
    TokenOutputs,
    Tokens,
)


@runtime_checkable
class Network(Protocol):
    """What building, sharding, initialising and describing a run need of every network.

    Attributes:
      kind: the name under which run folders describe the network and `networks.registry` builds it again.
      vocab_size: rows of the embedding table; None for a network without one.
      dropout_rate: 0 for a network that takes no dropout key.
    """

    kind: ClassVar[str] = "network"

    @property
    def vocab_size(self) -> int | None:
        return None

    @property
    def dropout_rate(self) -> float:
        return 0.0

    def init(self, rng: PRNGKeyArray) -> Params:
        """Returns freshly initialised parameters."""
        ...

    def from_policy(self, rng: PRNGKeyArray, policy_params: Params) -> Params:
        """Returns the parameters for a run whose policy starts with the given ones; by default a fresh initialisation."""
        del policy_params
        return self.init(rng)

    def abstract_params(self) -> Params:
        """Returns shapes and dtypes of the parameters without computing them."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def logical_axes(self) -> Params:
        """Returns a PartitionSpec of logical axis names for every parameter; by default all are replicated."""
        return jax.tree.map(lambda leaf: PartitionSpec(*[None] * leaf.ndim), self.abstract_params())

    @property
    def base(self) -> Network:
        """Returns the network whose parameters a checkpoint to start from holds; another one if this network adds adapters to it."""
        return self

    @property
    def holds_start(self) -> bool:
        """Returns whether the parameters always hold those that training started from, so that nobody has to keep a copy."""
        return False

    def start_params(self, params: Params) -> Params:
        """Returns the parameters that training started from, if `holds_start`; otherwise the given ones."""
        return params

    def trained_leaves(self) -> Params:
        """Returns True for what training changes and False for what is frozen; one truth value may stand for a whole branch.

        Frozen parameters get no gradient and no optimizer slots, and a run stores them once instead of in every checkpoint.
        """
        return True

    def description(self) -> dict[str, Any]:
        """Returns JSON from which `networks.registry.build` makes the network again: the kind and the fields of the dataclass."""
        names = [field.name for field in dataclasses.fields(self)]  # type: ignore[arg-type]
        return {"kind": self.kind, **{name: _json(getattr(self, name)) for name in names}}


@runtime_checkable
class Scores(Protocol):
    """Log-probabilities and token counts per response, both float32 ``[examples, responses]``."""

    @property
    def log_probs(self) -> Any:
        """Summed over the response's tokens, in nats."""

    @property
    def lengths(self) -> Any:
        """Tokens of the response."""


@runtime_checkable
class PolicyNetwork(Network, Protocol):
    """A conditional distribution over responses: a T5, or a table in a bandit."""

    def score(self, params: Params, batch: Batch, *, rng: PRNGKeyArray | None = None) -> Any:
        """Returns the `Scores` of every response; dropout only with an rng."""
        ...

    def encode(self, params: Params, batch: Batch, *, rng: PRNGKeyArray | None = None) -> Any:
        """Returns the encoder states of the batch's prompts, ``[rows, length, emb]``."""
        del params, batch, rng
        raise UserError(f"{type(self).__name__} has no encoder states, which this objective reads")


@runtime_checkable
class TokenPolicy(PolicyNetwork, Protocol):
    """A policy whose distribution over the vocabulary can be read at every target position.

    Attributes:
      vocab_size: tokens of the distribution.
      logits_chunk_size: tokens whose float32 logits may exist at once on a device; None for all.
    """

    @property
    def vocab_size(self) -> int: ...

    @property
    def logits_chunk_size(self) -> int | None: ...

    def encode_for_decoder(
        self, params: Params, batch: Batch, *, rng: PRNGKeyArray | None = None
    ) -> Encoded:
        """Returns what `decode` reads of the batch's prompts; by default the states of `encode`."""
        return self.encode(params, batch, rng=rng)

    def embed(self, params: Params, tokens: Tokens) -> Embedded:
        """Returns rows of the embedding table, in the dtype of activations."""
        ...

    def decode(
        self,
        params: Params,
        batch: Batch,
        *,
        rng: PRNGKeyArray | None = None,
        encoded: Encoded | None = None,
        decoder_input_embeddings: Decoded | None = None,
    ) -> Decoded:
        """Returns the decoder states of the batch's responses before the vocabulary projection."""
        ...

    def distributions(self, params: Params, hidden: Decoded) -> TokenDistributions:
        """Returns the distribution over the vocabulary at every position, for the functions of `networks.distributions`."""
        ...

    def token_statistics(
        self,
        params: Params,
        batch: Batch,
        *,
        rng: PRNGKeyArray | None = None,
        with_mean_log_probs: bool = False,
        encoded: Encoded | None = None,
    ) -> TokenStatistics:
        """Returns log-probability, log-normaliser and (if asked) mean log-probability at every target token, in nats."""
        ...

    def token_statistics_of(
        self, params: Params, hidden: Decoded, batch: Batch, with_mean_log_probs: bool = False
    ) -> TokenStatistics:
        """Returns `token_statistics` from given decoder states."""
        ...

    def greedy_tokens(self, params: Params, hidden: Decoded) -> GreedyTokens:
        """Returns the most probable token at every position of decoder states."""
        ...


@runtime_checkable
class DecodingPolicy(Network, Protocol):
    """A policy that writes responses one position at a time."""

    @property
    def vocab_size(self) -> int: ...

    def read_prompts(
        self, params: Params, encoder_input_tokens: SourceTokens, max_decode_len: int
    ) -> Any:
        """Encodes prompts, one to a row, and prepares decoding of up to `max_decode_len` tokens."""
        ...

    def empty_cache(self, num_groups: int, num_slots: int, group_size: int = 1) -> Any:
        """Returns a cache with `num_slots` per group: positions times the `group_size` sequences of one. Slots are axis 2."""
        ...

    def next_logits(
        self, prompt: Any, cache: Any, tokens: Any, position: Any, visible: Any = None
    ) -> tuple[Any, Any]:
        """Returns float32 logits of the token after `tokens`, and the cache with their keys and values in it."""
        ...

    def next_logits_in_ring(
        self, prompt: Any, cache: Any, tokens: Any, step: Any, positions: Any
    ) -> tuple[Any, Any]:
        """Returns the same for rows at different positions, which write slot ``step % slots`` of their caches."""
        ...


@runtime_checkable
class ValuePredictor(Network, Protocol):
    """A scalar function of the prompt, with parameters of its own or on the policy's.

    Attributes:
      needs_reference: the value also reads the role ``reference``.
    """

    needs_reference: ClassVar[bool] = False

    def scores_and_values(
        self,
        policy: PolicyNetwork,
        params: Mapping[str, Params],
        batch: Batch,
        *,
        rng: PRNGKeyArray | None = None,
    ) -> tuple[Any, Any]:
        """Returns the policy's `Scores` and V of every example's prompt, ``[examples]`` in units of reward.

        Args:
          policy: the policy network.
          params: by role.
          batch: as the data pipeline makes it.
          rng: switches dropout on.
        """
        ...

    def check_policy(self, policy: PolicyNetwork) -> None:
        """Raises `UserError` if the value reads the states of another policy network than the one that is trained."""
        del policy


@runtime_checkable
class PromptValuePredictor(ValuePredictor, Protocol):
    """A value with parameters of its own, the role ``value``.

    Attributes:
      max_value: values lie between 0 and this number; None for unbounded ones.
    """

    @property
    def max_value(self) -> float | None:
        return None

    def values(
        self, params: Params, batch: Batch, *, rng: PRNGKeyArray | None = None
    ) -> PerExampleOutputs:
        """Returns V of every example's prompt, in units of reward; dropout only with an rng."""
        ...

    def scores_and_values(
        self,
        policy: PolicyNetwork,
        params: Mapping[str, Params],
        batch: Batch,
        *,
        rng: PRNGKeyArray | None = None,
    ) -> tuple[Any, Any]:
        policy_rng, value_rng = (None, None) if rng is None else jax.random.split(rng)
        scores = policy.score(params["policy"], batch, rng=policy_rng)
        return scores, self.values(params["value"], batch, rng=value_rng)


@runtime_checkable
class PrefixValuePredictor(PromptValuePredictor, Protocol):
    """A value of every prefix of a response."""

    def token_values(
        self, params: Params, batch: Batch, *, rng: PRNGKeyArray | None = None
    ) -> TokenOutputs:
        """Returns V before every target token, in units of reward; 0 on padding."""
        ...


@runtime_checkable
class RewardPredictor(Network, Protocol):
    """A scalar function of prompt and response."""

    def rewards(
        self, params: Params, batch: Batch, *, rng: PRNGKeyArray | None = None
    ) -> PerResponseOutputs:
        """Returns the rewards of all responses, known up to a constant per prompt; dropout only with an rng."""
        ...


@runtime_checkable
class PrefixRewardPredictor(RewardPredictor, Protocol):
    """A reward that is read from decoder states, so that every prefix of a response has a state too."""

    def states(self, params: Params, batch: Batch, *, rng: PRNGKeyArray | None = None) -> Decoded:
        """Returns the decoder states, one for every target position."""
        ...

    def rewards_of(self, params: Params, states: Decoded, batch: Batch) -> PerResponseOutputs:
        """Returns `rewards` from given states."""
        ...

    def prefix_states(self, params: Params, batch: Batch) -> tuple[Any, Any]:
        """Returns the states of every response from its first position on, and a mask of the positions that exist."""
        ...

    def head(self, params: Params, states: Any) -> Any:
        """Returns the reward read at any state."""
        ...


def _json(value: Any) -> Any:
    if isinstance(value, NetworkConfig):
        return value.described()
    if isinstance(value, Network):
        return value.description()
    return list(value) if isinstance(value, tuple) else value
