"""How high the right item stands in ranked lists: recall at k, the mean reciprocal rank, and the recall of the cluster."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

Ranked = Int[np.ndarray, "queries listed"]  # rows of items, best first; -1 where there is none

AT = (1, 5, 10)


def per_query(
    ranked: Ranked, right: Int[np.ndarray, " queries"]
) -> dict[str, Float[np.ndarray, " queries"]]:
    """Returns the measures of every query; their means are R@1, R@5, R@10 and MRR. An item that is not listed counts 0.

    Args:
      ranked: the listed items.
      right: the item that each query asks for.

    >>> found = per_query(np.array([[3, 1], [2, -1]]), np.array([1, 0]))
    >>> found["R@1"].tolist(), found["R@5"].tolist(), found["MRR"].tolist()
    ([0.0, 0.0], [1.0, 0.0], [0.5, 0.0])
    """
    hits = ranked == right[:, None]
    places = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1.0, np.inf)
    return {
        **{f"R@{k}": (places <= k).astype(np.float64) for k in AT},
        "MRR": 1.0 / places,
    }


def cluster_recall(
    ranked: Ranked, right: Int[np.ndarray, " queries"], clusters: Int[np.ndarray, " items"]
) -> dict[str, Float[np.ndarray, " queries"]]:
    """Returns whether the first listed item, and any of them, is in the cluster of the right one: a wrong cluster is never corrected."""
    found = np.where(ranked >= 0, clusters[ranked], -1) == clusters[right][:, None]
    return {
        "cluster@1": found[:, 0].astype(np.float64),
        f"cluster@{ranked.shape[1]}": found.any(axis=1).astype(np.float64),
    }


def best_first(scores: Float[np.ndarray, "queries items"], listed: int) -> Ranked:
    """Returns the items with the highest scores; of equal ones the first. Lists are shorter if there are fewer items."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :listed].astype(np.int64)


def padded(ranked: Sequence[Sequence[int]], listed: int) -> Ranked:
    """Returns lists of items as an array with -1 behind the shorter ones."""
    table = np.full((len(ranked), listed), -1, np.int64)
    for row, items in zip(table, ranked, strict=True):
        row[: len(items)] = items[:listed]
    return table
