"""Measures how well log-ratios rank held-out responses by human feedback, without generating anything.

DRO regresses tau * log-ratio on r(x, y) - V(x) (arXiv 2405.19107), so within a prompt it should order
the responses as their feedback does. Across prompts V(x) is missing from the log-ratio; it is added if there
is a value network. Every method is shown beside the baselines that it must exceed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

from jaxalign.evaluation.statistics import (
    LEAST,
    NO_INTERVAL,
    Interval,
    area_under_curve,
    bootstrap_statistic,
    spearman,
)

# Prefixes of the names of methods that belong to a policy; the other methods are baselines, equal for all policies.
OWN_METHODS = ("tau", "policy", "V ")


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Agreement of one method's scores with feedback.

    Attributes:
      spearman, spearman_low, spearman_high: the rank correlation over all responses, with its interval; NaN if there are fewer than
        `statistics.LEAST` prompts.
      auc, auc_low, auc_high: the probability that a good response scores above a bad one; ties count half. The interval is NaN if
        there are fewer than `LEAST` prompts, or good or bad responses.
      auc_undefined: the number of resamples without good or without bad responses; the interval allows any value for them.
      within_prompt_spearman: the mean of the rank correlations inside each prompt with at least two
        different feedback values; a prompt whose scores are all equal counts as 0.
      pairwise_accuracy: the share of the pairs inside a prompt with unequal feedback that are in the correct
        order; ties count half.
      responses, good: the number of responses, and of the good ones among them.
      prompts, pairs: the number of prompts and of pairs from which `within_prompt_spearman` and `pairwise_accuracy` are computed.
    """

    spearman: float
    spearman_low: float
    spearman_high: float
    auc: float
    auc_low: float
    auc_high: float
    auc_undefined: int
    within_prompt_spearman: float
    pairwise_accuracy: float
    responses: int
    good: int
    prompts: int
    pairs: int

    def to_dict(self) -> dict[str, float | int]:
        return dataclasses.asdict(self)


def good_responses(feedback: Shaped[np.ndarray, " items"]) -> Bool[np.ndarray, " items"]:
    """Returns which responses count as good: those above the median.

    If the median is the highest value, for example if most thumbs are up, the good responses are those equal to the median.
    """
    feedback = np.asarray(feedback, np.float64)
    median = np.median(feedback)
    above = feedback > median
    return above if above.any() else feedback >= median


def rank_responses(
    scores: Shaped[np.ndarray, " items"],
    feedback: Shaped[np.ndarray, " items"],
    prompts: Sequence[Any],
    *,
    bootstrap: int = 200,
    seed: int = 0,
) -> Ranking:
    """Compares one method's scores with feedback.

    Args:
      scores: [items]; higher means better.
      feedback: [items], human feedback, higher is better.
      prompts: [items], the text or id of each response's prompt; intervals resample whole prompts.
      bootstrap: the number of resamples for the intervals; 0 leaves them undefined (NaN).
    """
    scores, feedback = np.asarray(scores, np.float64), np.asarray(feedback, np.float64)
    if not scores.shape == feedback.shape == (len(prompts),):
        raise ValueError(
            f"ranking needs equal lengths, got scores {scores.shape}, feedback {feedback.shape} "
            f"and {len(prompts)} prompts."
        )
    good = good_responses(feedback)
    groups = np.unique(np.asarray(prompts), return_inverse=True)[1]

    enough = bootstrap > 0 and len(np.unique(groups)) >= LEAST
    rarer = min(int(good.sum()), int((~good).sum()))

    def interval(statistic: Any, bounds: tuple[float, float]) -> Interval:
        return bootstrap_statistic(statistic, groups, bounds=bounds, samples=bootstrap, seed=seed)

    correlation = area = NO_INTERVAL
    if enough:
        correlation = interval(lambda i: spearman(scores[i], feedback[i]), (-1.0, 1.0))
    if enough and rarer >= LEAST:
        area = interval(lambda i: area_under_curve(scores[i], good[i]), (0.0, 1.0))
    within, accuracy, num_prompts, num_pairs = _within_prompts(scores, feedback, groups)
    return Ranking(
        spearman=spearman(scores, feedback),
        spearman_low=correlation.low,
        spearman_high=correlation.high,
        auc=area_under_curve(scores, good),
        auc_low=area.low,
        auc_high=area.high,
        auc_undefined=area.undefined,
        within_prompt_spearman=within,
        pairwise_accuracy=accuracy,
        responses=len(scores),
        good=int(good.sum()),
        prompts=num_prompts,
        pairs=num_pairs,
    )


def _within_prompts(
    scores: np.ndarray, feedback: np.ndarray, groups: np.ndarray
) -> tuple[float, float, int, int]:
    correlations: list[float] = []
    points, pairs = 0.0, 0
    order = np.argsort(groups, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        if len(members) < 2 or np.ptp(feedback[members]) == 0:
            continue
        correlation = spearman(scores[members], feedback[members])
        correlations.append(0.0 if np.isnan(correlation) else correlation)
        first, second = np.triu_indices(len(members), 1)
        wanted = np.sign(feedback[members[first]] - feedback[members[second]])
        given = np.sign(scores[members[first]] - scores[members[second]])
        points += float(0.5 * np.sum((1 + wanted * given)[wanted != 0]))
        pairs += int(np.sum(wanted != 0))
    return (
        float(np.mean(correlations)) if correlations else float("nan"),
        points / pairs if pairs else float("nan"),
        len(correlations),
        pairs,
    )


def ranking_scores(
    policy_log_probs: Float[np.ndarray, " items"],
    reference_log_probs: Float[np.ndarray, " items"],
    responses: Sequence[str],
    *,
    tau: float,
    values: Float[np.ndarray, " items"] | None = None,
    linear: Float[np.ndarray, " items"] | None = None,
) -> dict[str, Float[np.ndarray, " items"]]:
    """Returns the scores of every method for the same responses.

    Args:
      policy_log_probs, reference_log_probs: [items], sums in nats.
      responses: [items] texts, for the length baseline (characters).
      tau: the temperature; it does not change the ranking of the log-ratio alone, only that of the sum with V.
      values: [items], V(x) if there is a value network.
      linear: [items], the predictions of the TF-IDF model if one was fitted.
    """
    log_ratio = tau * (np.asarray(policy_log_probs) - np.asarray(reference_log_probs))
    methods = {"tau * log-ratio": log_ratio}
    if values is not None:
        methods["tau * log-ratio + V"] = log_ratio + np.asarray(values)
        methods["V (prompt only)"] = np.asarray(values)
    methods["policy log-prob"] = np.asarray(policy_log_probs)
    methods["reference log-prob"] = np.asarray(reference_log_probs)
    methods["longer wins"] = np.array([len(text) for text in responses], np.float64)
    if linear is not None:
        methods["TF-IDF linear"] = np.asarray(linear)
    return methods


def rank_methods(
    methods: Mapping[str, Float[np.ndarray, " items"]],
    feedback: Shaped[np.ndarray, " items"],
    prompts: Sequence[Any],
    *,
    bootstrap: int = 200,
    seed: int = 0,
) -> dict[str, Ranking]:
    """Returns `rank_responses` for every method, in order."""
    return {
        name: rank_responses(scores, feedback, prompts, bootstrap=bootstrap, seed=seed)
        for name, scores in methods.items()
    }
