"""The selector that keeps as many prompts as labels can be paid for."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict

import numpy as np
from jaxtyping import Float

from jaxalign.data.candidates import Candidates
from jaxalign.data.rejections import DataError
from jaxalign.errors import UserError, require_one_of, require_range
from jaxalign.selection.selectors import Selection, register_selector
from jaxalign.selection.usable import scores_of

MODES = ("random", "lowest", "highest", "first")
REDUCTIONS = ("spread", "mean", "max", "min")


@register_selector("budget")
@dataclasses.dataclass(frozen=True)
class Budget:
    """Keeps n prompts of the candidates, with all their responses and annotations.

    Attributes:
      n: the number of prompts, a whole one; or their share if below 1. So 1 and 1.0 are one prompt.
      mode: 'random'; 'lowest' or 'highest' by a number of each prompt; or 'first'. The order of the file is kept.
      by: a number of each line, such as `similarity`, or an annotation.
      reduce: what makes one number of an annotation of K responses: 'spread' (largest minus smallest), 'mean', 'max' or 'min'.
      group: a field of the lines; the budget is shared among its values in proportion to their numbers of prompts.
      seed: of 'random'.
    """

    n: float
    mode: str = "random"
    by: str = ""
    reduce: str = "spread"
    group: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        require_range("budget", "(0, inf)", n=self.n)
        if self.n > 1 and self.n != int(self.n):
            raise UserError(
                f"selector 'budget': n is {self.n:g}; give a whole number of prompts, or a share below 1"
            )
        require_one_of("budget", MODES, mode=self.mode)
        require_one_of("budget", REDUCTIONS, reduce=self.reduce)
        if self.mode in ("lowest", "highest") and not self.by:
            raise UserError(
                f"selector 'budget' with mode={self.mode} needs by=..., an annotation or a field"
            )

    def __call__(self, candidates: Candidates) -> Selection:
        dropped: Counter[str] = Counter()
        priority = self._priority(candidates)
        known = np.flatnonzero(np.isfinite(priority))
        dropped[f"prompt without {self.by or 'a number'}"] += len(candidates) - len(known)
        wanted = math.ceil(self.n * len(candidates)) if self.n < 1 else int(self.n)
        if wanted > len(known):
            raise DataError(
                f"{candidates.path} has {len(known)} prompts to choose from, and the budget is {wanted}: lower budget:n=..., or give more"
            )
        kept: list[int] = []
        for members, number in self._shares(candidates, known, wanted):
            order = members[np.argsort(priority[members], kind="stable")]
            kept += order[:number].tolist()
        dropped["prompt beyond the budget"] += len(known) - len(kept)
        chosen = candidates.take(sorted(kept))
        return Selection(list(chosen.lines()), "candidates", dropped, {"prompts": float(len(kept))})

    def _priority(self, candidates: Candidates) -> Float[np.ndarray, " prompts"]:
        """Returns a number for every prompt; the lowest ones are kept."""
        if self.mode == "random":
            return np.random.default_rng(self.seed).random(len(candidates))
        if self.mode == "first":
            return np.arange(len(candidates), dtype=float)
        # `NAME.COLUMN` is a column of the annotation NAME.
        if {self.by, self.by.rpartition(".")[0]} & set(candidates.annotations):
            values = np.array(
                [_reduced(row, self.reduce) for row in scores_of(candidates, self.by)]
            )
        else:
            values = np.array([_number(fields.get(self.by)) for fields in candidates.fields])
            if not np.isfinite(values).any():
                known = ", ".join(candidates.annotations) or "none"
                raise DataError(
                    f"{candidates.path} has no annotation and no numbers {self.by!r} (annotations: {known}); add them with "
                    "jaxalign annotate, or set budget:by=..."
                )
        return values if self.mode == "lowest" else -values

    def _shares(
        self, candidates: Candidates, known: np.ndarray, wanted: int
    ) -> list[tuple[np.ndarray, int]]:
        """Returns the prompts of every group and how many of them to keep; the largest remainders get what rounding down leaves."""
        if not self.group:
            return [(known, wanted)]
        groups: defaultdict[str, list[int]] = defaultdict(list)
        for index in known.tolist():
            groups[str(candidates.fields[index].get(self.group))].append(index)
        members = [np.array(groups[name]) for name in sorted(groups)]
        exact = np.array([wanted * len(each) / len(known) for each in members])
        numbers = np.floor(exact).astype(int)
        for position in np.argsort(numbers - exact, kind="stable")[: wanted - int(numbers.sum())]:
            numbers[position] += 1
        return [(each, int(number)) for each, number in zip(members, numbers, strict=True)]


def _reduced(values: Float[np.ndarray, " responses"], reduce: str) -> float:
    known = values[np.isfinite(values)]
    if not len(known):
        return math.nan
    return float(np.ptp(known) if reduce == "spread" else getattr(np, reduce)(known))


def _number(value: object) -> float:
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if plain else math.nan  # type: ignore[arg-type]
