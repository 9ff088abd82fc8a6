"""Identifiers of items: the cluster, the codes, and a counter for items that share these; and how they are written as tokens."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxalign.errors import UserError

Identifiers = Int[np.ndarray, "items positions"]

COARSE, COUNTER = "c", "u"
# Letters of the levels of codes, without those of the cluster and the counter.
_LEVELS = "abdefghijklmnopqrst"
MOST_LEVELS = len(_LEVELS)


def assign(parts: Identifiers, taken: Sequence[Sequence[int]] = ()) -> Identifiers:
    """Returns identifiers: the given cluster and codes with a counter behind them.

    Args:
      parts: cluster and codes of every item.
      taken: identifiers of other items, whose counters are not used again.
    """
    counts: Counter[tuple[int, ...]] = Counter()
    for row in taken:
        key = tuple(map(int, row[:-1]))
        counts[key] = max(counts[key], int(row[-1]) + 1)
    counters = np.zeros((len(parts), 1), np.int32)
    for index, row in enumerate(parts.tolist()):
        counters[index] = counts[tuple(row)]
        counts[tuple(row)] += 1
    return np.concatenate([parts, counters], axis=1).astype(np.int32)


def unique_share(parts: Identifiers) -> float:
    """Returns the share of items that share their cluster and codes with no other item."""
    return float(np.mean(_group_sizes(parts) == 1))


def largest_group(parts: Identifiers) -> int:
    """Returns the number of items in the largest group that shares its cluster and codes."""
    return int(_group_sizes(parts).max())


def _group_sizes(parts: Identifiers) -> Int[np.ndarray, " items"]:
    _, inverse, counts = np.unique(parts, axis=0, return_inverse=True, return_counts=True)
    return counts[inverse.reshape(-1)]


@dataclasses.dataclass(frozen=True)
class Block:
    """The tokens of one position of the identifiers; no two positions share a token.

    Attributes:
      letter: `c` for the cluster, `u` for the counter, other letters for levels of codes.
      size: the number of tokens.
      first: the id of the first token; the others follow.
    """

    letter: str
    size: int
    first: int

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON."""
        return dataclasses.asdict(self)


def block_sizes(coarse: int, levels: int, codes: int, counters: int) -> list[tuple[str, int]]:
    """Returns the letter and the number of tokens of every position; without clusters (coarse 0) there is no position for them."""
    clusters = [(COARSE, coarse)] if coarse else []
    return [*clusters, *((_LEVELS[m], codes) for m in range(levels)), (COUNTER, counters)]


def make_blocks(sizes: Sequence[tuple[str, int]], first: int) -> list[Block]:
    """Returns blocks of consecutive ids."""
    blocks = []
    for letter, size in sizes:
        blocks.append(Block(letter, size, first))
        first += size
    return blocks


def pieces(sizes: Sequence[tuple[str, int]]) -> list[str]:
    """Returns the pieces of all positions, in the order of their ids.

    >>> pieces([("c", 2), ("u", 1)])
    ['<c0>', '<c1>', '<u0>']
    """
    return [f"<{letter}{number}>" for letter, size in sizes for number in range(size)]


def token_ids(
    identifiers: Identifiers, blocks: Sequence[Block]
) -> Int[np.ndarray, "items positions"]:
    """Returns the token ids of identifiers.

    Raises:
      UserError: a number is not in its block.
    """
    sizes = np.array([block.size for block in blocks])
    if identifiers.ndim != 2 or identifiers.shape[1] != len(blocks):
        raise UserError(
            f"identifiers of shape {list(identifiers.shape)} do not have the {len(blocks)} positions of the index"
        )
    wrong = np.argwhere((identifiers < 0) | (identifiers >= sizes))
    if len(wrong):
        item, position = wrong[0]
        raise UserError(
            f"the identifier of item {item} has {identifiers[item, position]} at position {position}, where the index has "
            f"{sizes[position]} tokens; an index with more counters (--counters) has room for it"
        )
    return (identifiers + np.array([block.first for block in blocks])).astype(np.int32)
