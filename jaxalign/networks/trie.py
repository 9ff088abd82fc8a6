"""A trie of whole responses, packed in arrays: decoding returns one of them. Generative retrieval decodes identifiers so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import UserError
from jaxalign.networks.allowed_tokens import (
    AllowedTokens,
    Listed,
    machine,
    require_tokens,
    static,
)
from jaxalign.networks.shapes import AnyArray
from jaxalign.networks.token_choice import EOS, PAD


@machine
class Trie(AllowedTokens):
    """The responses of a set, each followed by EOS.

    Node 0 is the root and edge e leads to node e + 1; the edges of a node are neighbours, in the order of their tokens. The arrays are
    filled up to a power of two, so that tries of similar size share their programs.

    Attributes:
      first_edge: int32 ``[nodes]``.
      num_edges: int32 ``[nodes]``; 0 for a node after EOS.
      edge_tokens: int32 ``[edges]``.
      longest: the most tokens of a response, EOS included.
      vocab_size: tokens of the policy.
      max_edges: at least the most edges of a node.
    """

    first_edge: Any
    num_edges: Any
    edge_tokens: Any
    longest: Any
    vocab_size: int = static()
    max_edges: int = static()

    @classmethod
    def from_sequences(cls, sequences: Any, vocab_size: int) -> Trie:
        """The trie of some responses, with or without their EOS; one that occurs twice counts once.

        Args:
          sequences: lists of token ids, or an array ``[responses, length]`` of responses of one length.
          vocab_size: tokens of the policy.

        Raises:
          UserError: there is no sequence, or one is empty, has padding or EOS before its end, or a token outside the vocabulary.
        """
        levels = _edges_by_level(_table(sequences, vocab_size))
        tokens = np.concatenate([level for level, _ in levels])
        parents = np.concatenate([parent for _, parent in levels])
        nodes = len(tokens) + 1
        num_edges = np.bincount(parents, minlength=nodes)
        first_edge = np.searchsorted(parents, np.arange(nodes))
        size = 1 << (nodes - 1).bit_length()
        return cls(
            np.pad(first_edge, (0, size - nodes)).astype(np.int32),
            np.pad(num_edges, (0, size - nodes)).astype(np.int32),
            np.pad(tokens, (0, size - len(tokens))).astype(np.int32),
            np.int32(len(levels)),
            vocab_size,
            # Two at least: beam search takes twice as many candidates as beams.
            max(2, 1 << (int(num_edges.max()) - 1).bit_length()),
        )

    def check(self, vocab_size: int, max_decode_len: int) -> None:
        if self.vocab_size != vocab_size:
            raise UserError(
                f"the trie is of a vocabulary of {self.vocab_size} tokens, and the policy has {vocab_size}"
            )
        if int(self.longest) > max_decode_len:
            raise UserError(
                f"the trie has a response of {int(self.longest)} tokens with EOS, and responses are cut after {max_decode_len}"
            )

    def start(self, prompts: AnyArray, max_decode_len: int) -> Any:
        del max_decode_len
        return jnp.zeros_like(jnp.asarray(prompts), jnp.int32)

    def allowed(self, states: Any, vocab_size: int) -> AnyArray:
        tokens, valid = self._edges(states)

        def mark(tokens: AnyArray, valid: AnyArray) -> AnyArray:
            index = jnp.where(valid, tokens, vocab_size)
            return jnp.zeros(vocab_size, bool).at[index].set(True, mode="drop")

        flat = jax.vmap(mark)(tokens.reshape(-1, self.max_edges), valid.reshape(-1, self.max_edges))
        return flat.reshape(*states.shape, vocab_size)

    def listed(self, states: Any, vocab_size: int) -> Listed | None:
        return self._edges(states) if self.max_edges < vocab_size else None

    def advance(self, states: Any, tokens: AnyArray) -> Any:
        listed = self._edges(states)
        same = listed.valid & (listed.tokens == tokens[..., None])
        edge = jnp.asarray(self.first_edge)[states] + jnp.argmax(same, axis=-1)
        # Without such an edge the sequence has ended. Its state stays, and is not read.
        return jnp.where(jnp.any(same, axis=-1), edge + 1, states).astype(jnp.int32)

    def _edges(self, nodes: AnyArray) -> Listed:
        offsets = jnp.arange(self.max_edges)
        edges = jnp.asarray(self.first_edge)[nodes][..., None] + offsets
        tokens = jnp.take(jnp.asarray(self.edge_tokens), edges, mode="clip")
        return Listed(tokens, offsets < jnp.asarray(self.num_edges)[nodes][..., None])


def _table(sequences: Any, vocab_size: int) -> np.ndarray:
    """The distinct responses with their EOS, sorted, -1 behind them."""
    lists: Sequence[Any] = [np.asarray(tokens, np.int64).reshape(-1) for tokens in sequences]
    if not lists:
        raise UserError("the trie has no responses, so it allows nothing")
    require_tokens("a response of the trie", np.concatenate(lists), vocab_size)
    lengths = np.array([len(tokens) for tokens in lists])
    table = np.full((len(lists), int(lengths.max()) + 1), -1, np.int64)
    table[np.arange(table.shape[1]) < lengths[:, None]] = np.concatenate(lists)
    ends = (lengths > 0) & (table[np.arange(len(lists)), lengths - 1] == EOS)
    lengths = lengths - ends
    table[np.arange(len(lists)), lengths] = EOS
    table = table[:, : int(lengths.max()) + 1]
    inside = np.arange(table.shape[1]) < lengths[:, None]
    wrong = (lengths == 0) | np.any(inside & ((table == PAD) | (table == EOS)), axis=1)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise UserError(
            f"response {row} of the trie is empty, or has padding or EOS before its end: {lists[row].tolist()}"
        )
    return np.unique(table, axis=0)


def _edges_by_level(table: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The tokens of the edges and the nodes that they leave, for every length of a prefix."""
    nodes = np.zeros(len(table), np.int64)  # of the prefix of every response
    count = 0
    levels = []
    for position in range(table.shape[1]):
        tokens = table[:, position]
        exists = tokens >= 0
        before = np.roll(nodes, 1), np.roll(tokens, 1)
        new = exists & ((nodes != before[0]) | (tokens != before[1]))
        new[0] = exists[0]
        levels.append((tokens[new], nodes[new]))
        edges = count + np.cumsum(new) - 1
        nodes = np.where(exists, edges + 1, -1)
        count += int(new.sum())
    return levels
