"""Statistics of an evaluation: win rates, intervals, rank correlations, diversity, KL. Uses only numpy.

A *unit* of resampling is always a prompt. Several responses to one prompt share its difficulty, so
intervals that treat them as independent are too narrow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

# Fewer prompts, or fewer responses of the rarer class, give no interval: resamples of so few say little about the population.
LEAST = 10
# Resamples are drawn in blocks so that 1,000 resamples of 100,000 prompts do not need 800 MB.
_RESAMPLE_BLOCK = 4_000_000


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean with a percentile interval, NaN if there is none; `count` is the number of prompts in the mean."""

    mean: float
    low: float
    high: float
    count: int

    def to_dict(self) -> dict[str, float | int]:
        return dataclasses.asdict(self)


def _finite(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.size and not np.all(np.isfinite(array)):
        bad = int(np.flatnonzero(~np.isfinite(array.ravel()))[0])
        raise ValueError(
            f"{name} (shape {array.shape}) holds NaN or infinity, first at flat {bad}."
        )
    return array


def _per_prompt(name: str, values: Any) -> Float[np.ndarray, " prompts"]:
    """Returns the mean of each prompt, from [prompts] or [prompts, samples]."""
    array = _finite(name, values)
    if array.ndim not in (1, 2) or array.shape[0] == 0:
        raise ValueError(f"{name} must be [prompts] or [prompts, samples], got {array.shape}.")
    return array if array.ndim == 1 else array.mean(axis=1)


def bootstrap_mean(
    values: Shaped[np.ndarray, "prompts ..."],
    *,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Returns the mean over prompts with a bootstrap percentile interval.

    Args:
      values: [prompts] or [prompts, samples]; a prompt's samples are averaged first.
      samples: the number of bootstrap resamples. With 0, or fewer than `LEAST` prompts, there is no interval (NaN).
      level: the coverage of the interval, between 0 and 1.
      seed: the seed of the resampling; equal seeds draw equal prompts, so intervals of two quantities
        on the same prompts are paired.

    Raises:
      ValueError: there are no values, a value is NaN or infinite, or the level is outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}.")
    per_prompt = _per_prompt("values", values)
    count = len(per_prompt)
    mean = float(per_prompt.mean())
    if samples <= 0 or count < LEAST:
        return Estimate(mean, float("nan"), float("nan"), count)
    rng = np.random.default_rng(seed)
    block = max(1, _RESAMPLE_BLOCK // count)
    means = [
        per_prompt[rng.integers(0, count, (min(block, samples - start), count))].mean(axis=1)
        for start in range(0, samples, block)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Estimate(mean, float(low), float(high), count)


class Interval(NamedTuple):
    """A percentile interval, NaN if there is none, and the number of resamples in which the statistic was undefined."""

    low: float
    high: float
    undefined: int = 0


NO_INTERVAL = Interval(float("nan"), float("nan"))


def bootstrap_statistic(
    statistic: Callable[[Int[np.ndarray, " resampled"]], float],
    groups: Shaped[np.ndarray, " items"],
    *,
    bounds: tuple[float, float],
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Returns the percentile interval of a statistic of items, resampling whole groups (prompts).

    Args:
      statistic: a function from item indices (with repetition) to a number, or NaN if it is undefined, such
        as an AUC in a resample without a negative.
      groups: [items], the prompt of every item.
      bounds: the least and the greatest value of the statistic. An undefined statistic could have any value
        between them: such a resample counts as the least for the lower end of the interval and as the
        greatest for the upper end. If it were left out, the interval would describe only the other resamples,
        and would be too narrow when all items of a class belong to one prompt.
    """
    _, inverse = np.unique(np.asarray(groups), return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    counts = np.bincount(inverse)
    members = np.split(order, np.cumsum(counts)[:-1])
    rng = np.random.default_rng(seed)
    draws = np.array(
        [
            statistic(
                np.concatenate([members[g] for g in rng.integers(0, len(members), len(members))])
            )
            for _ in range(samples)
        ],
        np.float64,
    )
    defined = np.isfinite(draws)
    if not defined.any():
        return NO_INTERVAL._replace(undefined=samples)
    low = np.quantile(np.where(defined, draws, bounds[0]), (1 - level) / 2)
    high = np.quantile(np.where(defined, draws, bounds[1]), (1 + level) / 2)
    return Interval(float(low), float(high), int(np.sum(~defined)))


def win_points(
    first: Shaped[np.ndarray, "prompts ..."], second: Shaped[np.ndarray, "prompts ..."]
) -> Float[np.ndarray, "prompts ..."]:
    """Returns 1 where `first` scores higher, 0 where it scores lower, 0.5 where equal, for scores of one judge."""
    first, second = _finite("first", first), _finite("second", second)
    if first.shape != second.shape:
        raise ValueError(
            f"side-by-side needs equal shapes, got {first.shape} and {second.shape}: "
            "both policies must answer the same prompts the same number of times."
        )
    return 0.5 * (1.0 + np.sign(first - second))


def win_rate(
    first: Shaped[np.ndarray, "prompts ..."],
    second: Shaped[np.ndarray, "prompts ..."],
    *,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Returns the side-by-side win rate of `first` over `second`; ties count as half (arXiv 2405.19107).

    Args:
      first, second: [prompts] or [prompts, samples], scores by one judge, higher is better.

    Returns:
      The rate in [0, 1]. win_rate(a, b) + win_rate(b, a) is 1, and with equal seeds the two intervals
      are mirror images of each other.
    """
    return bootstrap_mean(win_points(first, second), samples=samples, level=level, seed=seed)


def average_ranks(values: Shaped[np.ndarray, " items"]) -> Float[np.ndarray, " items"]:
    """Returns ranks from 1; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - 0.5 * (counts - 1))[inverse].astype(np.float64)


def mean_by_group(
    values: Shaped[np.ndarray, " items"], groups: Sequence[Hashable]
) -> Float[np.ndarray, " groups"]:
    """Returns the mean of the values of each group, in the order in which groups appear."""
    index = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    members = np.array([index[group] for group in groups], np.int64)
    return np.bincount(members, weights=np.asarray(values, np.float64)) / np.bincount(members)


def pearson(first: Shaped[np.ndarray, " items"], second: Shaped[np.ndarray, " items"]) -> float:
    """Returns the linear correlation; NaN if either side is constant or there are fewer than two items."""
    first, second = _finite("first", first), _finite("second", second)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"correlation needs two equal vectors, got {first.shape}, {second.shape}.")
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    first, second = first - first.mean(), second - second.mean()
    return float(first @ second / np.sqrt((first @ first) * (second @ second)))


def spearman(first: Shaped[np.ndarray, " items"], second: Shaped[np.ndarray, " items"]) -> float:
    """Returns Spearman's rank correlation with average ranks for ties; NaN if either side is constant."""
    first, second = _finite("first", first), _finite("second", second)
    return pearson(average_ranks(first), average_ranks(second))


def area_under_curve(
    scores: Shaped[np.ndarray, " items"], positive: Bool[np.ndarray, " items"]
) -> float:
    """Returns the probability that a positive item scores above a negative one; ties count half (Mann-Whitney).

    Args:
      scores: [items]; higher means positive.
      positive: [items], truth values.

    Returns:
      The area under the ROC curve; NaN if only one class is present.
    """
    scores, positive = _finite("scores", scores), np.asarray(positive, bool)
    if scores.shape != positive.shape or scores.ndim != 1:
        raise ValueError(f"AUC needs two equal vectors, got {scores.shape} and {positive.shape}.")
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return float("nan")
    rank_sum = float(average_ranks(scores)[positive].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Returns the share of distinct n-grams among all n-grams of the texts, with words split at white space (arXiv 1510.03055).

    The result is 0 if no text has n words. It falls as the number of texts grows, so compare only equal numbers of texts.
    """
    if n < 1:
        raise ValueError(f"distinct-n needs n >= 1, got {n}.")
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        words = text.split()
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        seen.update(grams)
        total += len(grams)
    return len(seen) / total if total else 0.0


@dataclasses.dataclass(frozen=True)
class KLEstimate:
    """An estimate of KL(policy || reference) in nats for each response, averaged over prompts, with standard error."""

    mean: float
    standard_error: float
    count: int

    def to_dict(self) -> dict[str, float | int]:
        return dataclasses.asdict(self)


def kl_estimate(divergences: Shaped[np.ndarray, "prompts ..."]) -> KLEstimate:
    """Averages the KL along sampled responses (`inference.sequence_kl`) over prompts.

    Args:
      divergences: [prompts] or [prompts, samples], in nats, of responses drawn from the policy at temperature 1. Those of
        another temperature, or of top-k, give another quantity.

    Returns:
      The mean and its standard error over prompts (a prompt's samples are averaged first). The error is 0 for a single prompt.
    """
    found = _per_prompt("divergences", divergences)
    count = len(found)
    error = float(found.std(ddof=1) / np.sqrt(count)) if count > 1 else 0.0
    return KLEstimate(float(found.mean()), error, count)
