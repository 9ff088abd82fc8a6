"""Maps from the scores of a pairwise reward model to the units of absolute feedback.

Bradley-Terry determines only differences: the level and the unit of its rewards are arbitrary. A map fitted on responses with
absolute feedback (a rating, a thumb) determines both, so that rewards can be combined with logged feedback or replace it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Shaped

from jaxalign.errors import UserError

Items = Shaped[np.ndarray, " items"]


@dataclasses.dataclass(frozen=True)
class ConstantMap:
    """A map of every score to one number; it is the correct map if the scores say nothing about the feedback."""

    value: float

    def __call__(self, scores: Items) -> Float[np.ndarray, " items"]:
        return np.full(len(scores), self.value)


@dataclasses.dataclass(frozen=True)
class LinearMap:
    """The map ``intercept + slope * score``."""

    slope: float
    intercept: float

    def __call__(self, scores: Items) -> Float[np.ndarray, " items"]:
        return self.intercept + self.slope * np.asarray(scores, np.float64)


@dataclasses.dataclass(frozen=True)
class LogisticMap:
    """The map ``low + (high - low) sigmoid(intercept + slope * score)``, for feedback that has bounds, such as thumbs."""

    slope: float
    intercept: float
    low: float
    high: float

    def __call__(self, scores: Items) -> Float[np.ndarray, " items"]:
        logits = self.intercept + self.slope * np.asarray(scores, np.float64)
        return self.low + (self.high - self.low) * _sigmoid(logits)


@dataclasses.dataclass(frozen=True)
class IsotonicMap:
    """A non-decreasing map: linear between knots, constant beyond the first and the last."""

    knots: tuple[float, ...]
    values: tuple[float, ...]

    def __call__(self, scores: Items) -> Float[np.ndarray, " items"]:
        return np.interp(np.asarray(scores, np.float64), self.knots, self.values)


RewardMap = ConstantMap | LinearMap | LogisticMap | IsotonicMap


def fit_constant(scores: Items, feedback: Items) -> ConstantMap:
    """Fits the mean of the feedback."""
    _, feedback = checked_items(scores, feedback)
    return ConstantMap(float(feedback.mean()))


def fit_linear(scores: Items, feedback: Items) -> LinearMap:
    """Fits the least-squares line; it is flat if all scores are equal."""
    scores, feedback = checked_items(scores, feedback)
    centred = scores - scores.mean()
    variance = float(centred @ centred)
    slope = float(centred @ feedback) / variance if variance > 0 else 0.0
    return LinearMap(slope, float(feedback.mean() - slope * scores.mean()))


def fit_logistic(
    scores: Items,
    feedback: Items,
    *,
    low: float | None = None,
    high: float | None = None,
    ridge: float = 1e-4,
) -> LogisticMap:
    """Fits a logistic regression of feedback, scaled to [0, 1] by its bounds (Platt 1999 uses labels 0 and 1).

    Args:
      scores: the scores of the reward model.
      feedback: the feedback in its own unit.
      low, high: the bounds of feedback; by default the lowest and the highest value in `feedback`.
      ridge: the penalty of the slope per standard deviation of the scores, so that separable labels have a finite slope.
    """
    scores, feedback = checked_items(scores, feedback)
    low = float(feedback.min()) if low is None else low
    high = float(feedback.max()) if high is None else high
    if not low <= feedback.min() or not feedback.max() <= high:
        raise UserError(
            f"feedback lies between {feedback.min():g} and {feedback.max():g}, outside of {low:g} and {high:g}"
        )
    mean, deviation = float(scores.mean()), float(scores.std()) or 1.0
    inputs = np.stack([(scores - mean) / deviation, np.ones_like(scores)], axis=1)
    targets = (feedback - low) / (high - low) if high > low else np.full_like(feedback, 0.5)
    penalty = np.array([ridge, 1e-9])
    weights = np.zeros(2)

    def loss(weights: np.ndarray) -> float:
        logits = inputs @ weights
        return float(np.mean(np.logaddexp(0, logits) - targets * logits) + penalty @ weights**2 / 2)

    for _ in range(100):  # Newton's method on a strictly convex function of two numbers
        found = _sigmoid(inputs @ weights)
        gradient = inputs.T @ (found - targets) / len(scores) + penalty * weights
        curvature = (inputs * (found * (1 - found))[:, None]).T @ inputs / len(scores)
        step = np.linalg.solve(curvature + np.diag(penalty), gradient)
        size = 1.0
        while loss(weights - size * step) > loss(weights) and size > 1e-6:
            size /= 2
        weights = weights - size * step
        if np.abs(step).max() < 1e-10:
            break
    slope = float(weights[0] / deviation)
    return LogisticMap(slope, float(weights[1] - slope * mean), low, high)


def fit_isotonic(scores: Items, feedback: Items) -> IsotonicMap:
    """Fits the non-decreasing map with the least squared error; equal scores get one value."""
    scores, feedback = checked_items(scores, feedback)
    knots, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    means = np.bincount(inverse, weights=feedback) / counts
    values = pool_adjacent_violators(means, counts)
    # Inside a flat section only its ends are needed.
    inner = np.zeros(len(values), bool)
    inner[1:-1] = (values[1:-1] == values[:-2]) & (values[1:-1] == values[2:])
    return IsotonicMap(tuple(knots[~inner].tolist()), tuple(values[~inner].tolist()))


def pool_adjacent_violators(values: Items, weights: Items) -> Float[np.ndarray, " items"]:
    """Returns the non-decreasing sequence with the least weighted squared distance (Ayer et al. 1955)."""
    blocks: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(np.asarray(values, np.float64), weights, strict=True):
        block = (float(value), float(weight), 1)
        while blocks and blocks[-1][0] >= block[0]:
            mean, mass, length = blocks.pop()
            total = mass + block[1]
            block = ((mean * mass + block[0] * block[1]) / total, total, length + block[2])
        blocks.append(block)
    return np.repeat([mean for mean, _, _ in blocks], [length for _, _, length in blocks])


FITS: dict[str, Callable[[Items, Items], RewardMap]] = {
    "constant": fit_constant,
    "linear": fit_linear,
    "logistic": fit_logistic,
    "isotonic": fit_isotonic,
}


def checked_items(first: Items, second: Items) -> tuple[np.ndarray, np.ndarray]:
    """Returns both as float64; raises ValueError unless they are equal-length vectors of finite numbers."""
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.ndim != 1 or first.shape != second.shape or not len(first):
        raise ValueError(
            f"two equal vectors are needed, not shapes {first.shape} and {second.shape}"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("scores and feedback must be finite")
    return first, second


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * logits))
