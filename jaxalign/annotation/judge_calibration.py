"""Calibration of a judge of pairs: does P(i preferred to j) agree with how often i is truly better?"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How well P(i preferred to j) agrees with the truth.

    Attributes:
      pairs: the number of pairs with a probability and a truth that is not a tie.
      accuracy: the share of these pairs whose probability is on the right side of 1/2; exactly 1/2 counts one half.
      error: the expected calibration error, the mean distance of confidence and accuracy over bins, weighted by their pairs.
      brier: the mean of (p - truth)^2.
      bins: for every bin that has pairs, its mean probability, the share of true preferences and its number of pairs.
    """

    pairs: int
    accuracy: float
    error: float
    brier: float
    bins: Sequence[Mapping[str, float]]

    def describe(self) -> str:
        """Returns one line with the numbers and the reliability of every bin."""
        shown = ", ".join(
            f"{each['probability']:.2f}: {each['observed']:.2f} ({each['pairs']:.0f})"
            for each in self.bins
        )
        return (
            f"{self.pairs} pairs with a known preference: accuracy {self.accuracy:.3f}, calibration error {self.error:.3f}, "
            f"Brier score {self.brier:.3f}; probability: observed (pairs) {shown}"
        )


def calibration(
    preferences: Sequence[np.ndarray], truths: Sequence[np.ndarray], *, bins: int = 10
) -> Calibration:
    """Compares a judge's probabilities with true scores of the responses, over all pairs i < j of every prompt.

    Args:
      preferences: [K, K] of every prompt, P(i preferred to j); NaN is left out.
      truths: [K] of every prompt; the response with the higher score is truly preferred. Ties and NaN are left out.
      bins: the number of equal intervals of the probability.
    """
    probabilities: list[float] = []
    outcomes: list[float] = []
    for matrix, scores in zip(preferences, truths, strict=True):
        for i, j in itertools.combinations(range(len(scores)), 2):
            difference = scores[i] - scores[j]
            if math.isfinite(matrix[i, j]) and math.isfinite(difference) and difference:
                probabilities.append(float(matrix[i, j]))
                outcomes.append(float(difference > 0))
    p, y = np.array(probabilities), np.array(outcomes)
    if not len(p):
        return Calibration(0, math.nan, math.nan, math.nan, [])
    right = np.where(p == 0.5, 0.5, (p > 0.5) == (y > 0.5))
    index = np.minimum((p * bins).astype(int), bins - 1)
    table = [
        {
            "probability": float(p[index == b].mean()),
            "observed": float(y[index == b].mean()),
            "pairs": float((index == b).sum()),
        }
        for b in range(bins)
        if (index == b).any()
    ]
    gaps = [abs(each["probability"] - each["observed"]) * each["pairs"] for each in table]
    brier = float(np.mean((p - y) ** 2))
    return Calibration(len(p), float(right.mean()), sum(gaps) / len(p), brier, table)
