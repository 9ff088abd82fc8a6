"""Data of the study `feature_reward`: preferences between summaries, with seven scores of each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

FEATURES = (
    "aspect-coverage",
    "opinion-faithfulness",
    "opinion-coverage",
    "conciseness",
    "relevance",
    "hallucination",
    "language-correctness",
)


def read_pairs(
    path: Path,
) -> tuple[Float[np.ndarray, "pairs two features"], list[tuple[str, str]]]:
    """Returns the features and the texts of the two summaries of every pair, the preferred one first."""
    scores, texts = [], []
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        order = np.argsort(row["feedback"])[::-1]
        scores.append([[row["scores"][i][name] for name in FEATURES] for i in order])
        texts.append(tuple(row["responses"][i] for i in order))
    return np.array(scores, np.float32), texts


def drawn(seed: int, count: int) -> np.ndarray:
    """Returns a seed's order of the training pairs; its first N are the draw of N pairs."""
    return np.random.default_rng(seed).permutation(count)


def lengths_of(texts: Sequence[tuple[str, str]]) -> Float[np.ndarray, "pairs two"]:
    """Returns the number of words of every summary."""
    return np.array([[len(text.split()) for text in pair] for pair in texts], np.float32)
