"""Statistics of identifiers: how many items share one before the counter, how the codes are used, what the codes leave of the vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxalign.retrieval.identifiers import Block, Identifiers, largest_group, unique_share


def perplexity(codes: Int[np.ndarray, " items"]) -> float:
    """Returns exp of the entropy of the codes' shares: the number of codes that would be used if all were used equally."""
    _, counts = np.unique(codes, return_counts=True)
    shares = counts / counts.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def relative_error(
    vectors: Float[np.ndarray, "items size"], decoded: Float[np.ndarray, "items size"]
) -> float:
    """Returns the squared error as a share of the vectors' squared distances from their mean; 1 is as good as the mean."""
    total = np.sum(np.square(vectors - vectors.mean(axis=0), dtype=np.float64))
    left = np.sum(np.square(vectors - decoded, dtype=np.float64))
    return float(left / total) if total else 0.0


def describe_codes(identifiers: Identifiers, blocks: list[Block]) -> dict[str, Any]:
    """Returns the statistics of identifiers as JSON.

    `unique` is the share of items whose cluster and codes no other item has, `largest_group` the most items that share them, `positions`
    gives for every position before the counter the share of its tokens that are used and their perplexity.
    """
    parts = identifiers[:, :-1]
    return {
        "unique": unique_share(parts),
        "largest_group": largest_group(parts),
        "positions": {
            block.letter: {
                "tokens": block.size,
                "used": len(np.unique(parts[:, position])) / block.size,
                "perplexity": perplexity(parts[:, position]),
            }
            for position, block in enumerate(blocks[:-1])
        },
    }
