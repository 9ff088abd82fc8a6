"""Text features without a trained network, and Bradley-Terry heads on them: a reward model that is fitted in milliseconds."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from jaxtyping import Float

_WORD = re.compile(r"\w+|[^\w\s]")
_NEWTON_STEPS = 8


def word_features(text: str) -> list[str]:
    """Returns words and pairs of neighbouring words."""
    words = _WORD.findall(text.lower())
    return [*words, *(f"{a} {b}" for a, b in itertools.pairwise(words))]


def character_features(text: str) -> list[str]:
    """Returns all sequences of 2 to 4 characters."""
    lowered = text.lower()
    return [lowered[i : i + n] for n in (2, 3, 4) for i in range(len(lowered) - n + 1)]


def tfidf(
    texts: Sequence[str],
    features: Callable[[str], list[str]],
    *,
    width: int,
    min_count: int = 2,
    seed: int = 0,
) -> Float[np.ndarray, "texts width"]:
    """Returns L2-normalised TF-IDF vectors, (1 + log count) * idf, projected to their leading singular directions."""
    counts = [Counter(features(text)) for text in texts]
    frequency = Counter(feature for count in counts for feature in count)
    columns = {
        feature: i
        for i, feature in enumerate(sorted(f for f, n in frequency.items() if n >= min_count))
    }
    idf = {f: np.log((1 + len(texts)) / (1 + frequency[f])) + 1 for f in columns}
    rows, found, values = [], [], []
    for row, count in enumerate(counts):
        for feature, number in count.items():
            if feature in columns:
                rows.append(row)
                found.append(columns[feature])
                values.append((1 + np.log(number)) * idf[feature])
    matrix = scipy.sparse.csr_matrix((values, (rows, found)), shape=(len(texts), len(columns)))
    norms = np.sqrt(matrix.multiply(matrix).sum(axis=1)).A1
    matrix = scipy.sparse.diags(1 / np.maximum(norms, 1e-12)) @ matrix
    start = np.random.default_rng(seed).normal(size=min(matrix.shape))
    left, singular, _ = scipy.sparse.linalg.svds(
        matrix, k=min(width, min(matrix.shape) - 1), v0=start
    )
    return left * singular


def fit_heads(
    differences: Float[np.ndarray, "pairs width"],
    labels: Float[np.ndarray, "mixes pairs"],
    *,
    penalty: float,
) -> Float[np.ndarray, "mixes width"]:
    """Returns one logistic Bradley-Terry head per row of labels (1 if the first response wins), by Newton's method.

    The loss is the mean over pairs plus ``penalty / (2 pairs) |w|^2``.
    """
    # Single precision is enough for a convex problem with a penalty, and twice as fast.
    differences = differences.astype(np.float32)
    width = differences.shape[1]
    weights = np.zeros((len(labels), width), np.float32)
    # One matrix product for the curvatures of all heads.
    products = (differences[:, :, None] * differences[:, None, :]).reshape(-1, width * width)
    for _ in range(_NEWTON_STEPS):
        probabilities = 1 / (1 + np.exp(-weights @ differences.T))
        gradients = (probabilities - labels.astype(np.float32)) @ differences + penalty * weights
        curvature = (probabilities * (1 - probabilities)) @ products
        curvature = curvature.reshape(-1, width, width)
        curvature += penalty * np.eye(width, dtype=np.float32)
        weights -= np.linalg.solve(curvature, gradients[..., None])[..., 0]
    return weights


def accuracy(
    weights: Float[np.ndarray, "mixes width"],
    differences: Float[np.ndarray, "pairs width"],
    labels: Float[np.ndarray, " pairs"],
) -> Float[np.ndarray, " mixes"]:
    """Returns the share of pairs that each head orders as labelled; a tie counts half."""
    margins = weights @ differences.T
    return np.mean(np.where(margins == 0, 0.5, (margins > 0) == (labels > 0.5)), axis=1)
