"""Retrieval: beam search for identifiers, which obeys the trie of an index, so that every result is an item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxalign.errors import UserError
from jaxalign.inference.rows import Tokens
from jaxalign.inference.sampling import DecodingSettings, generate_tokens
from jaxalign.networks.decoding_hooks import NO_HOOKS, Hooks
from jaxalign.networks.trie import Trie
from jaxalign.retrieval.identifier_vocabulary import PIECES
from jaxalign.retrieval.index_folder import Index
from jaxalign.retrieval.recall import Ranked
from jaxalign.runs.folder import Run


class Retrieved(NamedTuple):
    """Ranked items.

    Attributes:
      ranked: rows of items, best first; -1 where a response is no identifier of the index, which only an unconstrained search gives.
      log_probs: log-probabilities of the identifiers with EOS under the policy, over its whole vocabulary; -inf where there is none.
    """

    ranked: Ranked
    log_probs: Float[np.ndarray, "queries listed"]

    @property
    def validity(self) -> float:
        """The share of responses that are identifiers of the index."""
        return float(np.mean(self.ranked >= 0))


def trie_of(index: Index, vocab_size: int) -> Trie:
    """Returns the trie of the identifiers of an index."""
    return Trie.from_sequences(index.tokens, vocab_size)


def search(
    policy: Any,
    params: Any,
    queries: Sequence[Tokens],
    index: Index,
    *,
    num_beams: int,
    listed: int,
    batch_size: int = 32,
    constrained: bool = True,
    renormalize: bool = False,
) -> Retrieved:
    """Returns the items whose identifiers are the most probable responses to the queries.

    With at least as many beams as items, the ranking is that of scoring all identifiers.

    Args:
      policy, params: a policy that was trained to write the identifiers of this index.
      queries: token ids that end with EOS.
      index: the index.
      num_beams: beams of the search.
      listed: items of a query; at most as many as beams.
      batch_size: queries decoded together.
      constrained: obey the trie of the index.
      renormalize: rank by probabilities among the allowed tokens only.

    Raises:
      UserError: the policy gives NaN, of which no ranking can be made.
    """
    beams = min(num_beams, len(index.items)) if constrained else num_beams
    settings = DecodingSettings(
        max_target_length=len(index.blocks) + 1,
        num_samples=min(listed, beams),
        num_beams=beams,
        # All identifiers have the same length.
        alpha=0.0,
    )
    hooks = NO_HOOKS
    if constrained:
        hooks = Hooks(allowed=trie_of(index, policy.vocab_size), renormalize=renormalize)
    tokens, log_probs = generate_tokens(
        policy, params, queries, settings, batch_size=batch_size, hooks=hooks
    )
    if np.isnan(log_probs).any():
        raise UserError(
            "the policy gives NaN log-probabilities; its parameters are not usable, choose another --step or --checkpoint"
        )
    ranked = items_of(tokens, index)
    return Retrieved(ranked, np.where(ranked >= 0, log_probs, -np.inf))


def items_of(tokens: np.ndarray, index: Index) -> Ranked:
    """Returns the items of responses, [..., length] token ids with EOS; -1 for a response that is no identifier of the index."""
    known = {row.tobytes(): item for item, row in enumerate(_ended(index.tokens))}
    rows = np.ascontiguousarray(tokens[..., : len(index.blocks) + 1], np.int32)
    flat = rows.reshape(-1, rows.shape[-1])
    found = np.array([known.get(row.tobytes(), -1) for row in flat], np.int64)
    return found.reshape(tokens.shape[:-1])


def _ended(tokens: np.ndarray) -> np.ndarray:
    ends = np.ones((len(tokens), 1), np.int32)
    return np.ascontiguousarray(np.concatenate([tokens, ends], axis=1), np.int32)


def require_vocabulary(run: Run, index: Index) -> None:
    """Refuses a run that was not trained on the identifiers of an index.

    Raises:
      UserError: the vocabularies differ.
    """
    recorded = run.recorded_vocabulary
    if recorded is None:
        _ = run.vocabulary  # which says what is missing
        return
    ours = index.recorded_vocabulary
    # Pieces name the index in their model; sentinels are those of any checkpoint.
    exact = index.settings.get("tokens", PIECES) == PIECES
    same = run.vocabulary == index.vocabulary if exact else recorded.agrees_with(ours)
    if not same:
        raise UserError(
            f"{run.folder} was trained with {recorded.describe()}, and the index {index.path} has {ours.describe()}: its identifiers mean "
            "something else to the run; give the index that wrote its training file, or train on this one"
        )
