"""A TF-IDF linear model of feedback: a baseline that uses only the words."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from jaxtyping import Float, Shaped

_WORD = re.compile(r"\w+|[^\w\s]")


def text_features(prompt: str, response: str) -> list[str]:
    """Returns words and word pairs of the response, and words of the prompt, distinguished by a prefix."""
    words = _WORD.findall(response.lower())
    pairs = [f"{a} {b}" for a, b in itertools.pairwise(words)]
    return ["r:" + f for f in words + pairs] + ["p:" + w for w in _WORD.findall(prompt.lower())]


class TfidfRidge:
    """Ridge regression of feedback on L2-normalised TF-IDF features of response and prompt.

    A feature's weight is (1 + log count) * (log((1 + n) / (1 + documents with it)) + 1); features in
    fewer than `min_count` training texts are left out. The intercept is the mean feedback and is not
    penalised.
    """

    def __init__(self, *, penalty: float = 1.0, min_count: int = 2) -> None:
        self.penalty = penalty
        self.min_count = min_count
        self._columns: dict[str, int] = {}
        self._idf = np.zeros(0)
        self._weights = np.zeros(0)
        self._intercept = 0.0

    def fit(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        feedback: Shaped[np.ndarray, " items"],
    ) -> TfidfRidge:
        """Fits the weights on training texts; deterministic."""
        target = np.asarray(feedback, np.float64)
        documents = [text_features(p, r) for p, r in zip(prompts, responses, strict=True)]
        if len(documents) != len(target) or not documents:
            raise ValueError(f"{len(documents)} texts and {len(target)} feedback values to fit.")
        frequency = Counter(feature for features in documents for feature in set(features))
        kept = sorted(f for f, count in frequency.items() if count >= self.min_count)
        self._columns = {feature: column for column, feature in enumerate(kept)}
        counts = np.array([frequency[feature] for feature in kept], np.float64)
        self._idf = np.log((1 + len(documents)) / (1 + counts)) + 1
        self._intercept = float(target.mean())
        if kept:
            solution = scipy.sparse.linalg.lsqr(
                self._matrix(documents),
                target - self._intercept,
                damp=self.penalty**0.5,
                atol=1e-8,
                btol=1e-8,
            )
            self._weights = solution[0]
        return self

    def predict(
        self, prompts: Sequence[str], responses: Sequence[str]
    ) -> Float[np.ndarray, " items"]:
        """Returns the predicted feedback of other texts; unknown words are ignored."""
        documents = [text_features(p, r) for p, r in zip(prompts, responses, strict=True)]
        if not self._columns:
            return np.full(len(documents), self._intercept)
        return self._matrix(documents) @ self._weights + self._intercept

    def _matrix(self, documents: Sequence[Sequence[str]]) -> scipy.sparse.csr_matrix:
        data: list[float] = []
        columns: list[int] = []
        starts = [0]
        for features in documents:
            counts = Counter(self._columns[f] for f in features if f in self._columns)
            index = np.array(list(counts), np.int64)
            weight = (1 + np.log(np.array(list(counts.values()), np.float64))) * self._idf[index]
            norm = np.linalg.norm(weight)
            data.extend(weight / norm if norm else weight)
            columns.extend(index)
            starts.append(len(columns))
        shape = (len(documents), len(self._columns))
        return scipy.sparse.csr_matrix((data, columns, starts), shape=shape)
