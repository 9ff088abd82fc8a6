"""JPO: comparisons between responses to different prompts, and the ordinary pairs that are their control (arXiv 2404.00530)."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxalign.data.candidates import Candidates
from jaxalign.data.rejections import DataError
from jaxalign.errors import UserError, require_range
from jaxalign.selection.selectors import Selection, register_selector
from jaxalign.selection.usable import (
    SMALL_MARGIN,
    TIE,
    kept_fields,
    scores_of,
    usable_responses,
)

# (prompt, response) of the winner and of the loser.
Place = tuple[int, int]
# Rounds over all prompts before the search for joint pairs ends.
_ROUNDS = 200


@register_selector("joint_pairs")
@dataclasses.dataclass(frozen=True)
class JointPairs:
    """Comparisons within prompts and between prompts, for the objective `jpo_pairs`. Scores must be on one scale across prompts.

    A comparison is two lines of kind `triplet`, the better response first, with feedback 1 and 0; the objective reads two consecutive
    lines as a pair. The comparisons are in random order. Between prompts, every prompt stands on the first and on the second side
    equally often (up to one) before the scores decide, so that a prompt cannot win by its position.

    The arms of an experiment with equally many labels are ``within=n,joint=0``, ``within=n,joint=n``, ``within=2n,joint=0`` and
    ``within=0,joint=n``.

    Attributes:
      annotation: the scores.
      within: the number of comparisons within prompts; -1 for all.
      joint: the number of comparisons between prompts; -1 for as many as there are within prompts.
      min_margin: comparisons with a smaller difference are left out.
      seed: of the draws. The first n comparisons are the same for every larger number, so that arms share their labels.
    """

    annotation: str = "judge"
    within: int = -1
    joint: int = -1
    min_margin: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        require_range("joint_pairs", "[-1, inf)", within=self.within, joint=self.joint)
        require_range("joint_pairs", "[0, inf)", min_margin=self.min_margin)
        if self.within == self.joint == 0:
            raise UserError("selector 'joint_pairs' needs within or joint above 0")

    def __call__(self, candidates: Candidates) -> Selection:
        scores = scores_of(candidates, self.annotation)
        dropped: Counter[str] = Counter()
        usable = usable_responses(candidates, dropped, scores, minimum=1)
        inside = self._accepted(_within(usable, (self.seed, 0)), scores, dropped, None)
        wanted = len(inside) if self.within < 0 else self.within
        joint_wanted = wanted if self.joint < 0 else self.joint
        proposals = _across(candidates.prompts, usable, (self.seed, 1))
        across = self._accepted(proposals, scores, dropped, joint_wanted)
        for kind, found, number in (
            ("within prompts", len(inside), wanted),
            ("between prompts", len(across), joint_wanted),
        ):
            if found < number:
                raise DataError(
                    f"{candidates.path} gives {found} comparisons {kind} that are no ties, and {number} are wanted: ask for fewer, or give "
                    "more candidates"
                )
        comparisons = [*inside[:wanted], *across]
        order = np.random.default_rng((self.seed, 2)).permutation(len(comparisons))
        lines = [line for p in order for line in _lines(candidates, comparisons[p], pair=int(p))]
        wins = Counter(winner for (winner, _), _ in across)
        measures = {
            "within": float(min(wanted, len(inside))),
            "joint": float(len(across)),
            "length_difference": _length_difference(candidates, across),
        }
        if across:
            # A prompt that nearly always wins is an easy prompt: the comparison says more about it than about its response.
            games = Counter(place[0] for pair in across for place in pair)
            shares = [wins[prompt] / games[prompt] for prompt in games if games[prompt] > 1]
            measures["one_sided_prompts"] = float(
                np.mean([s in (0.0, 1.0) for s in shares] or [False])
            )
        return Selection(lines, "triplet", +dropped, measures)

    def _accepted(
        self,
        proposals: Iterator[tuple[Place, Place]],
        scores: Sequence[np.ndarray],
        dropped: Counter[str],
        number: int | None,
    ) -> list[tuple[Place, Place]]:
        """Returns the comparisons that are no ties, the winner first; all of them, or the first ``number``."""
        found: list[tuple[Place, Place]] = []
        seen: set[frozenset[Place]] = set()
        for one, other in proposals:
            if number is not None and len(found) >= number:
                break
            if frozenset((one, other)) in seen:
                continue
            seen.add(frozenset((one, other)))
            margin = scores[one[0]][one[1]] - scores[other[0]][other[1]]
            if margin == 0:
                dropped[TIE] += 1
            elif abs(margin) < self.min_margin:
                dropped[SMALL_MARGIN] += 1
            else:
                found.append((one, other) if margin > 0 else (other, one))
        return found


def _within(
    usable: Sequence[Sequence[int]], seed: tuple[int, int]
) -> Iterator[tuple[Place, Place]]:
    """Yields all pairs of responses to one prompt in random order."""
    pairs = [
        ((prompt, a), (prompt, b))
        for prompt, kept in enumerate(usable)
        for a, b in itertools.combinations(kept, 2)
    ]
    for p in np.random.default_rng(seed).permutation(len(pairs)):
        yield pairs[p]


def _across(
    texts: Sequence[str], usable: Sequence[Sequence[int]], seed: tuple[int, int]
) -> Iterator[tuple[Place, Place]]:
    """Yields pairs of responses to different prompts.

    In every round the prompts stand in a random cycle, and each one meets the next: once on the first side, once on the second. A prompt
    that occurs on two lines does not meet itself.
    """
    prompts = [prompt for prompt, kept in enumerate(usable) if kept]
    if len(prompts) < 2:
        return
    generator = np.random.default_rng(seed)
    for _ in range(_ROUNDS):
        cycle = generator.permutation(prompts)
        for one, other in zip(cycle, np.roll(cycle, -1), strict=True):
            a, b = (int(generator.choice(usable[prompt])) for prompt in (one, other))
            if texts[one] != texts[other]:
                yield (int(one), a), (int(other), b)


def _lines(
    candidates: Candidates, comparison: tuple[Place, Place], pair: int
) -> list[dict[str, Any]]:
    return [
        {
            **kept_fields(candidates, prompt),
            "prompt": candidates.prompts[prompt],
            "response": candidates.responses[prompt][k],
            "feedback": feedback,
            "comparison": pair,
        }
        for (prompt, k), feedback in zip(comparison, (1.0, 0.0), strict=True)
    ]


def _length_difference(candidates: Candidates, comparisons: Sequence[tuple[Place, Place]]) -> float:
    """Returns how many characters longer the winners are on average: sums of log-ratios have other scales at other lengths."""
    differences = [
        len(candidates.responses[w][a]) - len(candidates.responses[v][b])
        for (w, a), (v, b) in comparisons
    ]
    return float(np.mean(differences)) if differences else 0.0
