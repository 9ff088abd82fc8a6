"""Votes among the answers of sampled solutions: of all samples, with weights, or of those that a reward model did not filter out early.

Filtered votes are those of arXiv 2407.13887.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Hashable, Sequence

# Sums of equal weights in another order may differ by rounding, and are ties.
_TIE = 1e-9


@dataclasses.dataclass(frozen=True)
class Vote:
    """The outcome of a vote.

    Attributes:
      winners: the answers with the most votes, several if tied, in the order of their first vote; none if there are no votes.
      votes: the number of votes of each winner, or the sum of their weights.
      filtered: whether only kept samples voted; false if no sample was kept, so that all samples voted.
      correct: the probability that a winner drawn at random is correct; None if the correct answers were not given.
      correct_or_tied: whether a correct answer is among the winners, which the public code counts as correct.
    """

    winners: tuple[Hashable, ...]
    votes: float
    filtered: bool
    correct: float | None = None
    correct_or_tied: bool | None = None


def filtered_vote(
    answers: Sequence[Hashable],
    kept: Sequence[bool],
    *,
    weights: Sequence[float] | None = None,
    correct: Collection[Hashable] | None = None,
) -> Vote:
    """Counts the answers of the samples that a filter kept, or of all samples if it kept none.

    Args:
      answers: one per sample; None for a sample that has no answer and therefore no vote.
      kept: one per sample, from `jaxalign.losses.goal_conditioning.prefix_filter`.
      weights: one per sample, not negative; by default every vote counts 1. A sample of weight 0 does not vote.
      correct: the correct answers, if known; empty if no sample can be correct.
    """
    if len(answers) != len(kept):
        raise ValueError(f"{len(answers)} answers and {len(kept)} decisions of the filter")
    weights = [1.0] * len(answers) if weights is None else weights
    if len(answers) != len(weights):
        raise ValueError(f"{len(answers)} answers and {len(weights)} weights")
    if isinstance(correct, str):
        raise TypeError("the correct answers are a collection, not one text")
    filtered = any(kept)
    counts: dict[Hashable, float] = {}
    for answer, keep, weight in zip(answers, kept, weights, strict=True):
        if (keep or not filtered) and answer is not None and weight > 0:
            counts[answer] = counts.get(answer, 0.0) + weight
    votes = max(counts.values(), default=0.0)
    winners = tuple(answer for answer, count in counts.items() if count >= votes * (1 - _TIE))
    if correct is None:
        return Vote(winners, votes, filtered)
    right = sum(answer in correct for answer in winners)
    return Vote(winners, votes, filtered, right / max(len(winners), 1), right > 0)
