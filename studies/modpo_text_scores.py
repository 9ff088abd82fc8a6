"""Objectives of the study `modpo_text`, and its arithmetic on scored pairs, rewards and parameters."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from jaxalign.evaluation.pareto import hypervolume
from studies import rnnlg_data
from studies.equal_footing_forms import read_rows

# In alphabetical order, which is that of the scores of a record.
OBJECTIVES = ("brevity", "likeness", "slots")


def word_f1(text: str, reference: str) -> float:
    """Returns the F1 of words, counted as often as they stand in both texts."""
    own, other = Counter(text.split()), Counter(reference.split())
    shared = sum((own & other).values())
    return 2 * shared / (sum(own.values()) + sum(other.values())) if shared else 0.0


class Scorer:
    """Exact scores of responses to the acts of a split."""

    def __init__(self, data: Path, split: str) -> None:
        self._sentences: dict[str, list[str]] = {}
        for row in read_rows(data / f"{split}.jsonl"):
            self._sentences.setdefault(row["prompt"], []).append(row["response"])

    def scores(self, act: str, text: str, tokens: int) -> dict[str, float]:
        """Returns every objective of a response with a number of tokens, EOS included."""
        return {
            "brevity": -tokens / 10,
            "likeness": max(word_f1(text, each) for each in self._sentences[act]),
            "slots": rnnlg_data.feedback(act, text),
        }

    def means(
        self, acts: Sequence[str], texts: Sequence[str], lengths: Sequence[int]
    ) -> dict[str, float]:
        """Returns the mean of every objective."""
        found = [self.scores(*each) for each in zip(acts, texts, lengths, strict=True)]
        return {name: float(np.mean([each[name] for each in found])) for name in OBJECTIVES}


def ordered_pairs(rows: Sequence[Mapping[str, Any]], name: str) -> list[dict[str, str]]:
    """Returns the pairs that differ in one objective, the better response first."""
    found = []
    for row in rows:
        first, second = (scores[name] for scores in row["scores"])
        if first != second:
            chosen, rejected = row["responses"] if first > second else row["responses"][::-1]
            found.append({"prompt": row["prompt"], "chosen": chosen, "rejected": rejected})
    return found


def with_margins(
    rows: Sequence[Mapping[str, Any]], rewards: Mapping[str, Float[np.ndarray, "pairs two"]]
) -> list[dict[str, Any]]:
    """Returns the pairs with rewards in place of the scores of the same name."""
    return [
        {
            **row,
            "scores": [
                {**scores, **{name: float(values[index, side]) for name, values in rewards.items()}}
                for side, scores in enumerate(row["scores"])
            ],
        }
        for index, row in enumerate(rows)
    ]


def best_of(
    rewards: Float[np.ndarray, "objectives prompts samples"], weighting: Sequence[float]
) -> Int[np.ndarray, " prompts"]:
    """Returns the sample of every prompt with the highest weighted reward, each reward in units of its deviation over all samples."""
    deviations = np.maximum(rewards.std(axis=(1, 2)), 1e-12)
    return np.argmax(np.einsum("o,ops->ps", np.asarray(weighting) / deviations, rewards), axis=1)


def mean_params(params: Sequence[Any], weights: Sequence[float]) -> Any:
    """Returns the weighted mean of parameter trees."""
    return jax.tree.map(
        lambda *leaves: sum(w * leaf for w, leaf in zip(weights, leaves, strict=True)), *params
    )


def volume(points: Float[np.ndarray, "points 3"], corner: Float[np.ndarray, " 3"]) -> float:
    """Returns the volume between a reference point and the front of three objectives: areas of two, summed over layers of the third."""
    points, corner = np.asarray(points, float), np.asarray(corner, float)
    levels = np.unique(np.maximum(points[:, 2], corner[2]))
    bottoms = np.concatenate([[corner[2]], levels[:-1]])
    return sum(
        (top - bottom) * hypervolume(points[points[:, 2] >= top, :2], corner[:2])
        for bottom, top in zip(bottoms, levels, strict=True)
        if top > bottom
    )


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes JSON Lines."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
