"""The methods of `jaxalign vote` on extracted answers, and the table that compares them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxalign.annotation.prefixes import PrefixScores, lowest_scores, threshold_that_drops
from jaxalign.annotation.voting import Vote, filtered_vote
from jaxalign.evaluation.statistics import bootstrap_mean
from jaxalign.evaluation.tables import format_interval
from jaxalign.losses.goal_conditioning import prefix_filter

Answers = Sequence[Sequence[str | None]]
Truths = Sequence[Collection[str]]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The votes of one method.

    Attributes:
      votes: one per prompt.
      kept: the responses that a filter kept; None without a filter.
      tokens_read, tokens: tokens of every response until it was dropped, and all of them; None without a filter.
    """

    votes: Sequence[Vote]
    kept: Bool[np.ndarray, "prompts responses"] | None = None
    tokens_read: Int[np.ndarray, "prompts responses"] | None = None
    tokens: Int[np.ndarray, "prompts responses"] | None = None

    @property
    def tokens_needed(self) -> Int[np.ndarray, "prompts responses"]:
        """Tokens that the vote needs: those read, but all of them where every response was dropped and therefore votes.

        The public code counts these as saved too.
        """
        assert self.tokens_read is not None and self.tokens is not None
        filtered = np.array([vote.filtered for vote in self.votes])
        return np.where(filtered[:, None], self.tokens_read, self.tokens)

    def of_filter(self, index: int) -> dict[str, Any]:
        """Returns what the filter did with the responses to a prompt, as JSON."""
        assert self.kept is not None and self.tokens_read is not None and self.tokens is not None
        return {
            "filtered": self.votes[index].filtered,
            "kept": self.kept[index].tolist(),
            "tokens_read": self.tokens_read[index].tolist(),
            "tokens": self.tokens[index].tolist(),
        }


def voted(
    answers: Answers,
    truths: Truths | None,
    *,
    kept: Bool[np.ndarray, "prompts responses"] | None = None,
    weights: Sequence[Float[np.ndarray, " responses"]] | None = None,
) -> Outcome:
    """Returns the votes of all responses, with weights if given, or of those that are kept."""
    return Outcome(
        [
            filtered_vote(
                group,
                [True] * len(group) if kept is None else kept[index].tolist(),
                weights=None if weights is None else weights[index].tolist(),
                correct=None if truths is None else truths[index],
            )
            for index, group in enumerate(answers)
        ]
    )


def filtered_outcome(
    answers: Answers,
    truths: Truths | None,
    values: Float[np.ndarray, "all_responses length"],
    mask: Bool[np.ndarray, "all_responses length"],
    *,
    threshold: float,
    ignored_tokens: int,
) -> Outcome:
    """Returns the votes of the responses whose prefixes all have a score of at least the threshold.

    Args:
      answers: equally many per prompt.
      truths: the correct answers, if known.
      values: a score of every prefix of every response, in the order of the prompts.
      mask: where prefixes are.
      threshold, ignored_tokens: see `jaxalign.losses.goal_conditioning.prefix_filter`.
    """
    kept, read = prefix_filter(
        jnp.asarray(values, jnp.float32),
        jnp.asarray(mask),
        threshold=threshold,
        ignored_tokens=ignored_tokens,
    )
    shape = (len(answers), len(answers[0]))
    kept_array = np.asarray(kept).reshape(shape)
    return dataclasses.replace(
        voted(answers, truths, kept=kept_array),
        kept=kept_array,
        tokens_read=np.asarray(read).reshape(shape),
        tokens=mask.sum(axis=1).reshape(shape),
    )


def matched_threshold(scores: PrefixScores, threshold: float, ignored_tokens: int) -> float:
    """Returns the threshold at which the reward head drops as many responses as Q at its threshold."""
    by_q = lowest_scores(scores.values, scores.mask, ignored_tokens)
    by_reward = lowest_scores(scores.rewards, scores.mask, ignored_tokens)
    return threshold_that_drops(by_reward, int((by_q < threshold).sum()))


def softmax_weights(
    scores: Sequence[Float[np.ndarray, " responses"]], temperature: float
) -> list[Float[np.ndarray, " responses"]]:
    """Returns the softmax of every prompt's scores; a missing score has weight 0."""
    weights = []
    for values in scores:
        known = np.isfinite(values)
        highest = np.max(values[known], initial=-np.inf)
        # The largest exponent is 0, so that no weight overflows; those of others may be minus infinity.
        with np.errstate(over="ignore"):
            exponents = np.where(known, values - (highest if known.any() else 0), 0) / temperature
        powers = np.where(known, np.exp(exponents), 0.0)
        weights.append(powers / max(float(powers.sum()), 1e-300))
    return weights


def summarise(
    outcomes: Mapping[str, Outcome],
    answers: Answers,
    truths: Truths | None,
    bootstrap_samples: int,
) -> list[dict[str, Any]]:
    """Returns a row per method; with correct answers also of one response drawn at random and of the best possible choice.

    `accuracy` has a bootstrap interval over prompts, and `minus majority` that of the paired difference. A tie is right by its share of
    correct winners.
    """
    rows: list[dict[str, Any]] = []
    majority = outcomes["majority"]
    right = None
    if truths is not None:
        right = np.array(
            [
                [answer in truth for answer in group]
                for group, truth in zip(answers, truths, strict=True)
            ]
        )
        baselines = {"one response": right.mean(axis=1), "any response": right.max(axis=1) * 1.0}
        rows += [
            {"method": name, **_accuracy(values, majority, bootstrap_samples)}
            for name, values in baselines.items()
        ]
    for name, outcome in outcomes.items():
        row: dict[str, Any] = {"method": name}
        if truths is not None:
            values = np.array([vote.correct for vote in outcome.votes], np.float64)
            row |= _accuracy(values, majority, bootstrap_samples)
        row["ties"] = sum(len(vote.winners) > 1 for vote in outcome.votes)
        if outcome.kept is not None and outcome.tokens is not None:
            row |= {
                "dropped": int((~outcome.kept).sum()),
                "all dropped": sum(not vote.filtered for vote in outcome.votes),
                "tokens read": int(outcome.tokens_needed.sum()),
                "tokens saved": float(1 - outcome.tokens_needed.sum() / outcome.tokens.sum()),
            }
        rows.append(row)
    return rows


def _accuracy(
    values: Float[np.ndarray, " prompts"], majority: Outcome, samples: int
) -> dict[str, str]:
    base = np.array([vote.correct for vote in majority.votes], np.float64)
    found = bootstrap_mean(values, samples=samples)
    difference = bootstrap_mean(values - base, samples=samples)
    return {
        "accuracy": format_interval(found.mean, found.low, found.high),
        "minus majority": format_interval(difference.mean, difference.low, difference.high),
    }
