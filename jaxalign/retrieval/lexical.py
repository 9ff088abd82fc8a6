"""The lexical baseline: TF-IDF over the training queries of every item. Whatever learns from these queries has to be compared with it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxalign.inference.rows import chunks
from jaxalign.retrieval.recall import Ranked, best_first

_BLOCK = 256  # queries whose similarities to all items are in memory together


class LexicalIndex:
    """One document per item, its training queries; words with logarithmic counts, and cosine similarity.

    Args:
      queries: training queries.
      items: the item of each.
      num_items: items; one without queries has an empty document.
    """

    def __init__(self, queries: Sequence[str], items: Sequence[int], num_items: int) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        documents: list[list[str]] = [[] for _ in range(num_items)]
        for query, item in zip(queries, items, strict=True):
            documents[item].append(query)
        # The default pattern leaves out words of one letter.
        self._vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\w+|[^\w\s]")
        self._documents = self._vectorizer.fit_transform(map("\n".join, documents))

    def scores(self, queries: Sequence[str]) -> Float[np.ndarray, "queries items"]:
        """Returns the cosine similarity of every query with every item."""
        found = self._vectorizer.transform(list(queries)) @ self._documents.T
        return np.asarray(found.todense(), np.float64)

    def ranked(self, queries: Sequence[str], listed: int) -> Ranked:
        """Returns the most similar items, -1 in place of items that share no word with the query."""
        parts = [self._ranked(queries[part], listed) for part in chunks(len(queries), _BLOCK)]
        return np.concatenate(parts)

    def _ranked(self, queries: Sequence[str], listed: int) -> Ranked:
        scores = self.scores(queries)
        order = best_first(scores, listed)
        return np.where(np.take_along_axis(scores, order, axis=1) > 0, order, -1)
