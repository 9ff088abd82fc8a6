"""HyPER: which pairs get a human label and which a model's, by a model of what a mix of labels is worth (arXiv 2410.19133).

Labels of a few mixes train a reward model each; a regression from the counts of tags among the human-labelled pairs to the measured
performance then judges other mixes. All arrays are float64 numpy arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from jaxalign.errors import UserError, require_one_of

Tags = Bool[np.ndarray, "pairs tags"]
Mask = Bool[np.ndarray, " pairs"]
Counts = Float[np.ndarray, "mixes tags"]

_SMALLEST_DEVIATION = 1e-9


def third_tags(
    values: Float[np.ndarray, " pairs"], *, ranked: bool = True
) -> Bool[np.ndarray, "pairs 3"]:
    """Returns three tags per number: low, middle, high third of [0, 1], each bin closed below and open above (1 is high).

    Args:
      values: one number per pair, over the whole pool. Ranks within a subset would put a third of every subset into each bin.
      ranked: whether to replace the numbers by their percentile ranks first, for numbers that are not in [0, 1].
    """
    scaled = np.asarray(values, np.float64)
    if ranked:
        ordered = np.sort(scaled)
        # Equal numbers get the rank of the first.
        scaled = np.searchsorted(ordered, scaled, side="left") / max(len(scaled), 1)
    bins = np.clip((scaled * 3).astype(int), 0, 2)
    return bins[:, None] == np.arange(3)


def text_tags(
    prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
) -> tuple[Tags, list[str]]:
    """Returns fifteen tags of pairs of responses and their names.

    They are thirds of: prompt length, length of the shorter and of the longer response, difference of the lengths (words, ranked over the
    pool), and overlap of the responses' words (F1, not ranked).
    """
    words = [[text.split() for text in texts] for texts in (prompts, first, second)]
    lengths = np.array([[len(text) for text in texts] for texts in words], np.float64)
    overlap = [_overlap(a, b) for a, b in zip(words[1], words[2], strict=True)]
    scalars = {
        "prompt length": (lengths[0], True),
        "shorter response": (lengths[1:].min(axis=0), True),
        "longer response": (lengths[1:].max(axis=0), True),
        "difference of lengths": (np.abs(lengths[1] - lengths[2]), True),
        "word overlap": (np.array(overlap), False),
    }
    tags = [third_tags(values, ranked=ranked) for values, ranked in scalars.values()]
    names = [f"{name}: {third}" for name in scalars for third in ("low", "middle", "high")]
    return np.concatenate(tags, axis=1), names


def group_tags(groups: Sequence[str | None]) -> tuple[Tags, list[str]]:
    """Returns one tag per group that pairs have, and their names."""
    names = sorted({group for group in groups if group is not None})
    return np.array([[group == name for name in names] for group in groups], bool).reshape(
        len(groups), len(names)
    ), [f"group: {name}" for name in names]


def mix_counts(masks: Bool[np.ndarray, "mixes pairs"], tags: Tags) -> Counts:
    """Returns how many human-labelled pairs of every mix carry each tag; zeros if all labels are the model's."""
    return masks.astype(np.float64) @ tags.astype(np.float64)


def draw_mix(generator: np.random.Generator, tags: Tags, budget: int) -> Mask:
    """Returns a mask with ``budget`` human-labelled pairs that are clustered by tag.

    Tags come in random order, each with its pairs in random order; a pair belongs to its first tag. Masks drawn pair by pair would all
    have nearly proportional counts, from which nothing can be learnt. Pairs without a tag come last.
    """
    pairs, number = tags.shape
    if not 0 <= budget <= pairs:
        raise UserError(
            f"a budget of {budget} human labels does not fit {pairs} pairs; it must lie in [0, {pairs}]"
        )
    priority = generator.permutation(number) if number else np.zeros(0, int)
    first = np.where(tags, priority, number).min(axis=1, initial=number)
    order = np.lexsort((generator.random(pairs), first))
    mask = np.zeros(pairs, bool)
    mask[order[:budget]] = True
    return mask


def candidate_mixes(
    tags: Tags, number: int, *, seed: int, budget: int | None = None
) -> Bool[np.ndarray, "mixes pairs"]:
    """Returns masks of random mixes to measure; the first two have all labels from humans, and all from the model.

    Args:
      tags: of all pairs.
      number: of random mixes.
      seed: of the draws.
      budget: human labels of a mix; by default it is drawn from 1 to all but one.
    """
    generator = np.random.default_rng(seed)
    pairs = len(tags)
    budgets = [
        int(generator.integers(1, max(pairs, 2))) if budget is None else budget
        for _ in range(number)
    ]
    drawn = [draw_mix(generator, tags, size) for size in budgets]
    return np.stack([np.ones(pairs, bool), np.zeros(pairs, bool), *drawn])


@dataclasses.dataclass(frozen=True)
class PerformanceModel:
    """A ridge regression of the performance of a mix on its standardised counts.

    Attributes:
      kind: 'linear', or 'quadratic' with all products of two counts.
      mean, deviation: of the counts of the measured mixes.
      weights: of the columns of `quadratic_columns`, the constant one first.
      intercept: the mean measured performance.
    """

    kind: str
    mean: Float[np.ndarray, " tags"]
    deviation: Float[np.ndarray, " tags"]
    weights: Float[np.ndarray, " columns"]
    intercept: float

    def predict(self, counts: Counts) -> Float[np.ndarray, " mixes"]:
        """Returns the predicted performance of mixes with these counts."""
        standard = (np.asarray(counts, np.float64) - self.mean) / self.deviation
        return quadratic_columns(standard, self.kind) @ self.weights + self.intercept

    def gains(self, tags: Tags) -> Float[np.ndarray, " pairs"]:
        """Returns what the human label of each pair alone adds to labels that are all the model's."""
        none = np.zeros((1, tags.shape[1]))
        return self.predict(tags.astype(np.float64)) - self.predict(none)[0]


def quadratic_columns(values: Counts, kind: str) -> Float[np.ndarray, "mixes columns"]:
    """Returns a column of ones, the values, and if the kind is 'quadratic' all products of two of them: 1 + T + T (T + 1) / 2."""
    require_one_of("performance model", ("linear", "quadratic"), kind=kind)
    columns = [np.ones((len(values), 1)), values]
    if kind == "quadratic":
        a, b = np.triu_indices(values.shape[1])
        columns.append(values[:, a] * values[:, b])
    return np.concatenate(columns, axis=1)


def fit_performance_model(
    counts: Counts,
    performance: Float[np.ndarray, " mixes"],
    *,
    kind: str = "quadratic",
    ridge: float = 1.0,
) -> PerformanceModel:
    """Fits the regression ``w = (P'P + ridge I)^-1 P'(performance - mean)``.

    Raw counts reach thousands and their products millions, and there are fewer mixes than columns: without standardised counts and a
    ridge the regression only interpolates.
    """
    counts, performance = np.asarray(counts, np.float64), np.asarray(performance, np.float64)
    if not np.isfinite(performance).all():
        raise UserError("the measured performance of a mix is not a number")
    mean, deviation = counts.mean(axis=0), counts.std(axis=0) + _SMALLEST_DEVIATION
    # A tag with the same count in all mixes says nothing; its count must not become huge in another mix.
    deviation = np.where(counts.std(axis=0) > 0, deviation, np.inf)
    columns = quadratic_columns((counts - mean) / deviation, kind)
    gram = columns.T @ columns + ridge * np.eye(columns.shape[1])
    intercept = float(performance.mean())
    weights = np.linalg.solve(gram, columns.T @ (performance - intercept))
    return PerformanceModel(kind, mean, deviation, weights, intercept)


def cross_validated(
    counts: Counts,
    performance: Float[np.ndarray, " mixes"],
    *,
    kind: str,
    ridge: float = 1.0,
    folds: int = 5,
    seed: int = 0,
) -> Float[np.ndarray, " mixes"]:
    """Returns the prediction for every mix by a model that was fitted to the other folds."""
    order = np.random.default_rng(seed).permutation(len(performance))
    found = np.zeros(len(performance))
    for fold in np.array_split(order, folds):
        rest = np.setdiff1d(order, fold)
        model = fit_performance_model(counts[rest], performance[rest], kind=kind, ridge=ridge)
        found[fold] = model.predict(counts[fold])
    return found


def route_by_gain(model: PerformanceModel, tags: Tags, budget: int | None) -> Mask:
    """Returns a mask of the pairs with the largest gains; without a budget, of all with a positive gain. The first wins a tie.

    This is the best mix if the model is linear; if it is quadratic, the gains are the slope where all labels are the model's.
    """
    gains = model.gains(tags)
    if budget is None:
        return gains > 0
    mask = np.zeros(len(gains), bool)
    mask[np.argsort(-gains, kind="stable")[:budget]] = True
    return mask


def route_simulated(
    model: PerformanceModel, tags: Tags, budget: int | None, *, simulations: int, seed: int
) -> Mask:
    """Returns the mix with the best predicted performance among random ones."""
    mixes = candidate_mixes(tags, simulations, seed=seed, budget=budget)
    if budget is not None:
        mixes = mixes[2:]
    return mixes[int(np.argmax(model.predict(mix_counts(mixes, tags))))]


def measured_mixes(rows: Mapping[str, Any], where: str) -> tuple[Counts, np.ndarray, list[str]]:
    """Returns counts, performance and names of tags from ``{"tags": [names], "mixes": [{"counts": [...], "performance": p}]}``.

    Raises:
      UserError: the object has another form; the message begins with `where`.
    """
    message = f'{where} must hold {{"tags": [names], "mixes": [{{"counts": [...], "performance": number}}, ...]}}'
    try:
        names = [str(name) for name in rows["tags"]]
        counts = np.array([mix["counts"] for mix in rows["mixes"]], np.float64)
        performance = np.array([mix["performance"] for mix in rows["mixes"]], np.float64)
    except (KeyError, TypeError, ValueError):
        raise UserError(message) from None
    if counts.ndim != 2 or counts.shape[1] != len(names) or not np.isfinite(counts).all():
        raise UserError(message)
    if len(counts) < 3:
        raise UserError(f"{where} has {len(counts)} measured mixes, and at least 3 are needed")
    return counts, performance, names


def _overlap(one: Sequence[str], other: Sequence[str]) -> float:
    """Returns F1 of the sets of words."""
    a, b = set(one), set(other)
    return 2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0
