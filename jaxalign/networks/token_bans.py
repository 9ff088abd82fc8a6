"""Machines that forbid tokens by those that came before: repeated n-grams and banned sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import UserError
from jaxalign.networks.allowed_tokens import AllowedTokens, machine, require_tokens, static
from jaxalign.networks.shapes import AnyArray
from jaxalign.networks.token_choice import EOS, PAD

_NONE = -1  # stands where there is no token


@machine
class NoRepeatedNGram(AllowedTokens):
    """No sequence of `size` tokens occurs twice in a response."""

    size: int = static()

    def check(self, vocab_size: int, max_decode_len: int) -> None:
        del vocab_size, max_decode_len
        if self.size < 1:
            raise UserError(f"no_repeat_ngram is {self.size}; an n-gram has at least one token")

    def start(self, prompts: AnyArray, max_decode_len: int) -> Any:
        # The newest token last: positions that do not exist yet have no token.
        return jnp.full((*prompts.shape, max(max_decode_len, self.size)), _NONE, jnp.int32)

    def allowed(self, states: Any, vocab_size: int) -> AnyArray:
        length, before = states.shape[-1], self.size - 1
        starts = length - before  # where an n-gram may begin that lies in the past
        repeats = states[..., before:] != _NONE
        for i in range(before):
            newest = states[..., length - before + i, None]
            repeats &= (states[..., i : i + starts] == newest) & (newest != _NONE)
        return ~_marked(states[..., before:], repeats, vocab_size)

    def advance(self, states: Any, tokens: AnyArray) -> Any:
        return _shifted(states, tokens)


@machine
class BannedSequences(AllowedTokens):
    """None of some sequences of tokens occurs in a response: bad words, for example.

    Attributes:
      beginnings: int32 ``[sequences, length]``: all tokens but the last, at the right end; -1 before them.
      last: int32 ``[sequences]``; -1 where there is no sequence.
    """

    beginnings: Any
    last: Any

    def check(self, vocab_size: int, max_decode_len: int) -> None:
        del max_decode_len
        for tokens in (self.beginnings, self.last):
            require_tokens("a banned sequence", np.maximum(tokens, 0), vocab_size)

    def start(self, prompts: AnyArray, max_decode_len: int) -> Any:
        del max_decode_len
        return jnp.full((*prompts.shape, self.beginnings.shape[1]), _NONE, jnp.int32)

    def allowed(self, states: Any, vocab_size: int) -> AnyArray:
        beginnings = jnp.asarray(self.beginnings)
        same = (states[..., None, :] == beginnings) | (beginnings == _NONE)
        last = jnp.asarray(self.last)
        banned = jnp.all(same, axis=-1) & (last != _NONE)
        return ~_marked(jnp.broadcast_to(last, banned.shape), banned, vocab_size)

    def advance(self, states: Any, tokens: AnyArray) -> Any:
        return _shifted(states, tokens)


def banned_sequences(sequences: Sequence[Sequence[int]]) -> BannedSequences:
    """The machine of some sequences. Its arrays grow by powers of two, so that another list rarely needs another program."""
    if not sequences:
        raise UserError("no banned sequence was given")
    for tokens in sequences:
        if not len(tokens) or PAD in tokens:
            raise UserError(f"a banned sequence is empty or has padding in it: {list(tokens)}")
        if list(tokens) == [EOS]:
            raise UserError("EOS alone is banned, so that no response could end")
    count = 1 << (len(sequences) - 1).bit_length()
    longest = max(2, *map(len, sequences))
    beginnings = np.full((count, 1 << (longest - 2).bit_length()), _NONE, np.int32)
    last = np.full(count, _NONE, np.int32)
    for row, tokens in enumerate(sequences):
        *before, last[row] = tokens
        if before:
            beginnings[row, -len(before) :] = before
    return BannedSequences(beginnings, last)


def _shifted(states: AnyArray, tokens: AnyArray) -> AnyArray:
    return jnp.concatenate([states[..., 1:], tokens[..., None].astype(states.dtype)], axis=-1)


def _marked(tokens: AnyArray, where: AnyArray, vocab_size: int) -> AnyArray:
    """A mask over the vocabulary: True for the tokens in the list where the mask is."""
    shape = tokens.shape[:-1]

    def mark(tokens: AnyArray, where: AnyArray) -> AnyArray:
        # A token outside the vocabulary is dropped.
        index = jnp.where(where, tokens, vocab_size)
        return jnp.zeros(vocab_size, bool).at[index].set(True, mode="drop")

    flat = (tokens.reshape(-1, tokens.shape[-1]), where.reshape(-1, where.shape[-1]))
    return jax.vmap(mark)(*flat).reshape(*shape, vocab_size)
