"""Which tokens may come next: state machines on the device, which greedy decoding, sampling and beam search obey.

A machine is a pytree of arrays, so that it is an argument of a compiled program: another one of the same shapes compiles nothing. Its
states have the axes of the sequences first (``[rows, sequences]``), and beam search reorders them with the beams. PAD is never allowed,
whatever a machine says. `networks.trie` has the machine of a set of whole responses, `networks.token_bans` those that forbid something.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, dataclass_transform, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import UserError
from jaxalign.networks.shapes import AnyArray
from jaxalign.networks.token_choice import EOS, PAD

_Machine = TypeVar("_Machine")


class Listed(NamedTuple):
    """The allowed tokens of every sequence as a list; entries that are not `valid` only fill it up."""

    tokens: AnyArray  # [*sequences, listed]
    valid: AnyArray  # [*sequences, listed]


@runtime_checkable
class AllowedTokens(Protocol):
    """A state machine that reads the tokens of a response, and says after each which may follow."""

    def check(self, vocab_size: int, max_decode_len: int) -> None:
        """Raises `UserError` if the machine does not fit; it is called before anything is compiled."""
        del vocab_size, max_decode_len

    def start(self, prompts: AnyArray, max_decode_len: int) -> Any:
        """Returns the states before the first token. `prompts` has the number of every sequence's prompt."""
        ...

    def allowed(self, states: Any, vocab_size: int) -> AnyArray:
        """Returns a mask ``[*sequences, vocab]``."""
        ...

    def listed(self, states: Any, vocab_size: int) -> Listed | None:
        """Returns the allowed tokens as a list if it is shorter than the vocabulary; by default there is none."""
        del states, vocab_size
        return None

    def advance(self, states: Any, tokens: AnyArray) -> Any:
        """Returns the states after one more token of every sequence. The state of a sequence that has ended is never read."""
        ...


def static(default: Any = dataclasses.MISSING) -> Any:
    """A field of a machine that is a part of the compiled program."""
    return dataclasses.field(default=default, metadata={"static": True})


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static))
def machine(cls: type[_Machine]) -> type[_Machine]:
    """A decorator: a frozen dataclass that is a pytree. Its checks stand in functions that make it, because JAX makes it too."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@machine
class Intersection(AllowedTokens):
    """What all of several machines allow. Where together they allow nothing, the sequence ends there, without EOS."""

    machines: tuple[Any, ...]

    def check(self, vocab_size: int, max_decode_len: int) -> None:
        for each in self.machines:
            each.check(vocab_size, max_decode_len)

    def start(self, prompts: AnyArray, max_decode_len: int) -> Any:
        return tuple(each.start(prompts, max_decode_len) for each in self.machines)

    def allowed(self, states: Any, vocab_size: int) -> AnyArray:
        masks = [each.allowed(state, vocab_size) for each, state in self._with(states)]
        return jnp.all(jnp.stack(masks), axis=0)

    def listed(self, states: Any, vocab_size: int) -> Listed | None:
        lists = [each.listed(state, vocab_size) for each, state in self._with(states)]
        known = [(found.tokens.shape[-1], i) for i, found in enumerate(lists) if found is not None]
        if not known:
            return None
        shortest = min(known)[1]
        tokens, valid = lists[shortest]  # type: ignore[misc]
        for i, (each, state) in enumerate(self._with(states)):
            if i != shortest:
                mask = each.allowed(state, vocab_size)
                valid &= jnp.take_along_axis(mask, tokens, axis=-1)
        return Listed(tokens, valid)

    def advance(self, states: Any, tokens: AnyArray) -> Any:
        return tuple(each.advance(state, tokens) for each, state in self._with(states))

    def _with(self, states: Any) -> list[tuple[Any, Any]]:
        return list(zip(self.machines, states, strict=True))


@machine
class MinimumLength(AllowedTokens):
    """No EOS before a response has `length` tokens, EOS included."""

    length: Any

    def start(self, prompts: AnyArray, max_decode_len: int) -> Any:
        del max_decode_len
        return jnp.zeros_like(jnp.asarray(prompts), jnp.int32)

    def allowed(self, states: Any, vocab_size: int) -> AnyArray:
        is_end = jnp.arange(vocab_size) == EOS
        return ~(is_end & (states + 1 < self.length)[..., None])

    def advance(self, states: Any, tokens: AnyArray) -> Any:
        del tokens
        return states + 1


@machine
class ForcedPrefix(AllowedTokens):
    """Responses begin with given tokens. What follows is free.

    Attributes:
      tokens: int32 ``[prompts, length]``, PAD behind the shorter ones; one row serves all prompts. Of several rows, a prompt with a
        higher number has none, and nothing is allowed for it. Made by `forced_prefix`.
    """

    tokens: Any

    def check(self, vocab_size: int, max_decode_len: int) -> None:
        require_tokens("a forced prefix", self.tokens, vocab_size)
        longest = int(np.count_nonzero(self.tokens, axis=1).max())
        if longest > max_decode_len:
            raise UserError(
                f"a forced prefix has {longest} tokens, and responses are cut after {max_decode_len}; raise max_target_length"
            )

    def start(self, prompts: AnyArray, max_decode_len: int) -> Any:
        del max_decode_len
        return jnp.asarray(prompts), jnp.zeros_like(jnp.asarray(prompts), jnp.int32)

    def allowed(self, states: Any, vocab_size: int) -> AnyArray:
        prompts, positions = states
        rows, length = self.tokens.shape
        forced = jnp.asarray(self.tokens)[
            jnp.minimum(prompts, rows - 1), jnp.minimum(positions, length - 1)
        ]
        forced = jnp.where(positions < length, forced, PAD)[..., None]
        has_row = (rows == 1) | (prompts < rows)
        return has_row[..., None] & ((forced == PAD) | (jnp.arange(vocab_size) == forced))

    def advance(self, states: Any, tokens: AnyArray) -> Any:
        del tokens
        return states[0], states[1] + 1


def forced_prefix(prefixes: Sequence[Sequence[int]]) -> ForcedPrefix:
    """The prefix of every prompt, in the order of the prompts' numbers; a single one is that of all. Empty ones force nothing."""
    if not prefixes:
        raise UserError("no forced prefix was given")
    table = np.full((len(prefixes), max(1, *map(len, prefixes))), PAD, np.int32)
    for row, prefix in zip(table, prefixes, strict=True):
        row[: len(prefix)] = prefix
        if PAD in prefix:
            raise UserError(f"a forced prefix contains the padding token {PAD}")
    return ForcedPrefix(table)


@machine
class TokenSets(AllowedTokens):
    """A set of tokens for every position; after the last position only EOS.

    Attributes:
      masks: bool ``[positions, vocab]``. Made by `token_sets`.
    """

    masks: Any

    def check(self, vocab_size: int, max_decode_len: int) -> None:
        del max_decode_len
        if self.masks.shape[1] != vocab_size:
            raise UserError(
                f"token sets are of a vocabulary of {self.masks.shape[1]} tokens, and the policy has {vocab_size}"
            )

    def start(self, prompts: AnyArray, max_decode_len: int) -> Any:
        del max_decode_len
        return jnp.zeros_like(jnp.asarray(prompts), jnp.int32)

    def allowed(self, states: Any, vocab_size: int) -> AnyArray:
        count = self.masks.shape[0]
        masks = jnp.asarray(self.masks)[jnp.minimum(states, count - 1)]
        return jnp.where((states < count)[..., None], masks, jnp.arange(vocab_size) == EOS)

    def advance(self, states: Any, tokens: AnyArray) -> Any:
        del tokens
        return states + 1


def token_sets(sets: Sequence[Sequence[int]], vocab_size: int) -> TokenSets:
    """The allowed tokens of every position."""
    masks = np.zeros((max(1, len(sets)), vocab_size), bool)
    for position, tokens in enumerate(sets):
        require_tokens(f"the token set of position {position}", tokens, vocab_size)
        masks[position, list(tokens)] = True
        masks[position, PAD] = False
        if not masks[position].any():
            raise UserError(f"the token set of position {position} allows nothing")
    if not sets:
        raise UserError("no token set was given")
    return TokenSets(masks)


def require_tokens(what: str, tokens: Any, vocab_size: int) -> None:
    """Raises `UserError` if a token is not in the vocabulary."""
    found = np.asarray(tokens).reshape(-1)
    wrong = found[(found < 0) | (found >= vocab_size)]
    if wrong.size:
        raise UserError(
            f"{what} has token {int(wrong[0])}, and the vocabulary has tokens 0 to {vocab_size - 1}"
        )
