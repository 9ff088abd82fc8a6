"""What may be added to the score of candidate tokens: another policy's log-ratio, or the value of the prefix that a candidate makes.

A score is a pytree: weights and parameters are arguments of a compiled program. Its networks keep caches of their own, laid out as the
policy's (`networks.incremental`), which see the same ancestors in beam search and the same distances in a ring.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxalign.errors import UserError
from jaxalign.networks.allowed_tokens import machine, static
from jaxalign.networks.architecture import architecture_of
from jaxalign.networks.policy import Policy
from jaxalign.networks.reward import DecoderRewardNetwork
from jaxalign.networks.shapes import AnyArray, Params
from jaxalign.networks.token_choice import EOS, of_tokens


class AtPosition(NamedTuple):
    """Where a step of decoding writes: all sequences are at one position. See `incremental.next_states`."""

    position: AnyArray
    visible: AnyArray | None = None


class InRing(NamedTuple):
    """The same where rows began at different times. See `incremental.next_states_in_ring`."""

    step: AnyArray
    positions: AnyArray


Place = AtPosition | InRing


class Candidates(NamedTuple):
    """The tokens that may come next.

    Attributes:
      log_probs: of all tokens under the policy that decodes, ``[rows, sequences, vocab]``.
      tokens: the candidates ``[rows, sequences, candidates]``; None: all tokens.
    """

    log_probs: AnyArray
    tokens: AnyArray | None

    def of(self, values: AnyArray) -> AnyArray:
        """The entries of candidates in values of all tokens."""
        return of_tokens(values, self.tokens)


@runtime_checkable
class DecodingScore(Protocol):
    """A number for each candidate; the sum over a response's tokens, times `weight`, is added to its log-probability.

    Attributes:
      weight: of the number.
    """

    weight: Any

    def limit(self) -> int | None:
        """Returns how many of the most probable candidates of a sequence get a number, and no others are chosen; None: all."""
        return None

    def check(self, vocab_size: int) -> None:
        """Raises `UserError` if the score does not fit a policy."""
        ...

    def read_prompts(self, tokens: AnyArray, max_decode_len: int) -> tuple[Any, ...]:
        """Returns what each network reads of the prompts."""
        ...

    def empty_caches(self, num_groups: int, num_slots: int, group_size: int) -> tuple[Any, ...]:
        """Returns an empty cache of each network, for groups of `group_size` sequences that need `num_slots`."""
        ...

    def scores(
        self,
        prompts: tuple[Any, ...],
        caches: tuple[Any, ...],
        last: AnyArray,
        place: Place,
        candidates: Candidates,
    ) -> tuple[AnyArray, tuple[Any, ...]]:
        """Returns the numbers of the candidates, which follow `last`, and the caches with `last` in them."""
        ...


@machine
class PolicyLogRatio(DecodingScore):
    """``log p(token) - log q(token)`` of another policy p and a reference q, for all tokens.

    With weight w, decoding follows the product ``pi * (p / q)^w``: for p trained from q, what training changed steers pi, which may
    be larger than both (Liu et al. 2021, arXiv 2105.03023; 2024, arXiv 2401.08565).

    Attributes:
      params: of p.
      weight: w.
      policy: p.
      reference_params: of q.
      reference: q; None: the policy that decodes.
    """

    params: Any
    weight: Any
    policy: Any = static()
    reference_params: Any = None
    reference: Any = static(default=None)

    def check(self, vocab_size: int) -> None:
        for policy, _ in self._networks():
            if policy.vocab_size != vocab_size:
                raise UserError(
                    f"a policy of the log-ratio has {policy.vocab_size} tokens, and the policy that decodes has {vocab_size}"
                )

    def read_prompts(self, tokens: AnyArray, max_decode_len: int) -> tuple[Any, ...]:
        return tuple(
            policy.read_prompts(params, tokens, max_decode_len)
            for policy, params in self._networks()
        )

    def empty_caches(self, num_groups: int, num_slots: int, group_size: int) -> tuple[Any, ...]:
        return tuple(
            policy.empty_cache(num_groups, num_slots, group_size) for policy, _ in self._networks()
        )

    def scores(
        self,
        prompts: tuple[Any, ...],
        caches: tuple[Any, ...],
        last: AnyArray,
        place: Place,
        candidates: Candidates,
    ) -> tuple[AnyArray, tuple[Any, ...]]:
        log_probs, updated = [], []
        for (policy, _), prompt, cache in zip(self._networks(), prompts, caches, strict=True):
            logits, cache = next_logits(policy, prompt, cache, last, place)
            log_probs.append(jax.nn.log_softmax(logits))
            updated.append(cache)
        reference = candidates.log_probs if self.reference is None else log_probs[1]
        return candidates.of(log_probs[0] - reference), tuple(updated)

    def _networks(self) -> list[tuple[Any, Params]]:
        pairs = [(self.policy, self.params), (self.reference, self.reference_params)]
        return pairs if self.reference is not None else pairs[:1]


@machine
class PrefixValue(DecodingScore):
    """The value of the prefix with the candidate, less that of the prefix without: they sum to a response's value less the empty one's.

    So a live beam is ranked by its log-probability plus w times the value of its prefix. A value is read from the decoder state of
    another network after the prefix. EOS adds nothing: a response is valued at its last token before EOS, as reward networks read it.
    For each candidate the network computes one more position, so only the most probable ones are valued.

    Attributes:
      params: of the network.
      weight: w.
      arguments: the first argument of `value`.
      config: the network's.
      value: a function of `arguments` and of states ``[..., emb]``.
      num_candidates: per sequence; samples are then drawn from the top k with this k, and beam search needs twice its beams to be exact.
    """

    params: Any
    weight: Any
    arguments: Any
    config: Any = static()
    value: Callable[[Any, AnyArray], AnyArray] = static()
    num_candidates: int = static()

    def limit(self) -> int | None:
        return self.num_candidates

    def check(self, vocab_size: int) -> None:
        if self.config.vocab_size != vocab_size:
            raise UserError(
                f"the network of the decoding score has {self.config.vocab_size} tokens, and the policy that decodes has {vocab_size}"
            )
        if self.num_candidates < 2:
            raise UserError(f"num_candidates is {self.num_candidates}; it must be at least 2")

    def read_prompts(self, tokens: AnyArray, max_decode_len: int) -> tuple[Any, ...]:
        # One position more: that of the candidates after the last one.
        return (Policy(self.config).read_prompts(self.params, tokens, max_decode_len + 1),)

    def empty_caches(self, num_groups: int, num_slots: int, group_size: int) -> tuple[Any, ...]:
        slots = num_slots + group_size
        return (Policy(self.config).empty_cache(num_groups, slots, group_size),)

    def scores(
        self,
        prompts: tuple[Any, ...],
        caches: tuple[Any, ...],
        last: AnyArray,
        place: Place,
        candidates: Candidates,
    ) -> tuple[AnyArray, tuple[Any, ...]]:
        (prompt,), (cache,) = prompts, caches
        tokens = candidates.tokens
        if tokens is None:
            tokens = jnp.broadcast_to(
                jnp.arange(self.config.vocab_size), candidates.log_probs.shape
            )
        slots, groups = cache[0][0].shape[2], cache[0][0].shape[0]
        place = _with_slots(place, slots, last.size // groups)
        states, cache = _next_states(self.config, prompt, cache, last, place)
        following = _following(place, slots, last.size // groups)

        def of_one(token: AnyArray) -> AnyArray:
            states, _ = _next_states(self.config, prompt, cache, token, following)
            return self.value(self.arguments, states)

        values = jnp.moveaxis(jax.lax.map(of_one, jnp.moveaxis(tokens, -1, 0)), 0, -1)
        gains = values - self.value(self.arguments, states)[..., None]
        return jnp.where(tokens == EOS, 0.0, gains), (cache,)


def reward_score(
    network: DecoderRewardNetwork, params: Params, weight: float, num_candidates: int
) -> PrefixValue:
    """The reward that a reward network's head reads from every prefix."""
    return PrefixValue(
        params,
        jnp.float32(weight),
        {"head": params["head"]},
        network.config,
        network.head,
        num_candidates,
    )


def next_logits(
    policy: Any, prompt: Any, cache: Any, last: AnyArray, place: Place
) -> tuple[AnyArray, Any]:
    """The policy's logits after `last`, and its cache, wherever sequences are."""
    if isinstance(place, InRing):
        return policy.next_logits_in_ring(prompt, cache, last, *place)
    return policy.next_logits(prompt, cache, last, *place)


def _next_states(
    config: Any, prompt: Any, cache: Any, last: AnyArray, place: Place
) -> tuple[AnyArray, Any]:
    architecture = architecture_of(config)
    if isinstance(place, InRing):
        return architecture.next_states_in_ring(config, prompt, cache, last, *place)
    return architecture.next_states(config, prompt, cache, last, *place)


def _with_slots(place: Place, slots: int, group_size: int) -> Place:
    """The place in a cache that has more slots than `visible`: later slots show a sequence its own."""
    if isinstance(place, InRing) or place.visible is None:
        return place
    visible = place.visible
    own = jnp.tile(jnp.eye(group_size, dtype=bool), slots // group_size)
    later = jnp.arange(slots) >= visible.shape[-1]
    padded = jnp.pad(visible, ((0, 0), (0, 0), (0, slots - visible.shape[-1])))
    return AtPosition(place.position, jnp.where(later, own, padded))


def _following(place: Place, slots: int, group_size: int) -> Place:
    """The place one position later, where each sequence sees the slots that it sees now and its own new one."""
    if isinstance(place, InRing):
        return InRing(place.step + 1, place.positions + 1)
    position = place.position + 1
    if place.visible is None:
        return AtPosition(position)
    own = jnp.tile(jnp.eye(group_size, dtype=bool), slots // group_size)
    later = jnp.arange(slots) >= position * group_size
    return AtPosition(position, jnp.where(later, own, place.visible))
