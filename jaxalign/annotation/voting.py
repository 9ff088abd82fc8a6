"""Majority voting among sampled solutions, some of which a reward model has filtered out early (arXiv 2407.13887)."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Hashable, Sequence


@dataclasses.dataclass(frozen=True)
class Vote:
    """The outcome of a vote.

    Attributes:
      winners: the answers with the most votes, several if tied, in the order of their first vote; none if there are no votes.
      votes: the number of votes of each winner.
      filtered: whether only kept samples voted; false if no sample was kept, so that all samples voted.
      correct: the probability that a winner drawn at random is correct; None if the correct answer was not given.
      correct_or_tied: whether the correct answer is among the winners, which the public code counts as correct.
    """

    winners: tuple[Hashable, ...]
    votes: int
    filtered: bool
    correct: float | None = None
    correct_or_tied: bool | None = None


def filtered_vote(
    answers: Sequence[Hashable], kept: Sequence[bool], *, correct: Hashable = None
) -> Vote:
    """Counts the answers of the samples that a filter kept, or of all samples if it kept none.

    Args:
      answers: one per sample; None for a sample that has no answer and therefore no vote.
      kept: one per sample, from `jaxalign.losses.goal_conditioning.prefix_filter`.
      correct: the correct answer, if known.
    """
    if len(answers) != len(kept):
        raise ValueError(f"{len(answers)} answers and {len(kept)} decisions of the filter")
    chosen = [answer for answer, keep in zip(answers, kept, strict=True) if keep]
    filtered = bool(chosen)
    counts = Counter(answer for answer in (chosen if filtered else answers) if answer is not None)
    votes = max(counts.values(), default=0)
    winners = tuple(answer for answer, count in counts.items() if count == votes)
    if correct is None:
        return Vote(winners, votes, filtered)
    right = correct in winners
    return Vote(winners, votes, filtered, 1 / len(winners) if right else 0.0, right)
