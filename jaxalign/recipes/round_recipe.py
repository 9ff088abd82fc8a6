"""The settings of a recipe of rounds, and what they mean for each round."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.data.candidates import TOP_LEVEL
from jaxalign.data.records import KINDS
from jaxalign.errors import UserError, require_one_of, require_range
from jaxalign.recipes.round_measures import Measure
from jaxalign.recipes.round_prompts import PromptSource
from jaxalign.recipes.round_sampling import Sampler
from jaxalign.recipes.round_training import RUN, Training
from jaxalign.runs.folder import Run

REFERENCES = ("previous", "start")
LABELLED_USES = ("mix", "first", "both")
_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled:
    """Labelled records, such as a few human preferences.

    Attributes:
      file: records of our own layout; None for none.
      kind: their kind.
      use: 'first' trains a round 0 on them from the start, 'mix' adds them to the records of every round, 'both' does both.
      values: hyperparameters of round 0, by macro.
      epochs: passes over the records in round 0, in place of TRAIN_STEPS.
    """

    file: str | None = None
    kind: str = "pair"
    use: str = "first"
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    epochs: float | None = None

    def __post_init__(self) -> None:
        require_range("Labelled", "(0, inf)", epochs=self.epochs)
        require_one_of("Labelled", KINDS, kind=self.kind)
        require_one_of("Labelled", LABELLED_USES, use=self.use)

    @property
    def first(self) -> bool:
        """Whether a round 0 is trained on the records."""
        return self.file is not None and self.use in ("first", "both")

    @property
    def mixed(self) -> bool:
        """Whether every round is trained on the records too."""
        return self.file is not None and self.use in ("mix", "both")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of `jaxalign.recipes.rounds.rounds`, which describes them."""

    folder: Path
    start: str
    prompts: PromptSource
    training: Training
    selector: str
    annotators: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sampler: Sampler = dataclasses.field(default_factory=Sampler)
    num_rounds: int = 3
    first: str | None = None
    teacher: str | None = None
    labelled: Labelled = dataclasses.field(default_factory=Labelled)
    measure: Measure = dataclasses.field(default_factory=Measure)
    reference: str = "previous"
    accumulate: bool = False
    held_out_fraction: float = 0.0
    per_round: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    epochs: float | Sequence[float] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_range("rounds", "[1, inf)", num_rounds=self.num_rounds)
        require_range("rounds", "[0, 1)", held_out_fraction=self.held_out_fraction)
        require_range("rounds", "[0, 4294967]", seed=self.seed)
        require_one_of("rounds", REFERENCES, reference=self.reference)
        for name in self.annotators:
            if not _NAME.fullmatch(name) or name in TOP_LEVEL:
                raise UserError(
                    f"ANNOTATORS: {name!r} cannot name an annotation; use letters, digits, '_' or '-', and none of {', '.join(TOP_LEVEL)}"
                )
        for name, values in {**self.per_round, "EPOCHS": self.epochs}.items():
            if isinstance(values, (list, tuple)) and not values:
                raise UserError(f"PER_ROUND: {name} has no values")
        for number in range(1, self.num_rounds + 1):
            require_range("rounds", "(0, inf)", epochs=self.epochs_of(number))
        for name, path in self.paths.items():
            if "," in path:
                raise UserError(
                    f"{name} {path} has a comma, which separates the settings of an annotator; choose a path without"
                )
        if self.first is not None and self.labelled.first:
            raise UserError(
                "FIRST names the policy of round 0, and LABELLED_FILE trains one: give one of the two, or set LABELLED_USE = 'mix'"
            )

    @property
    def paths(self) -> dict[str, str]:
        """The paths that specifications may hold, by setting."""
        found = {"OUTPUT_DIR": str(self.folder), "START": self.start}
        found |= {"FIRST": self.first} if self.first is not None else {}
        return found | ({"TEACHER": self.teacher} if self.teacher is not None else {})

    @property
    def trained_rounds(self) -> list[int]:
        """The rounds that train a policy; 0 is the round on labelled records alone."""
        return [*([0] if self.labelled.first else []), *range(1, self.num_rounds + 1)]

    def values(self, number: int) -> dict[str, Any]:
        """Returns the hyperparameters of a round by macro; a list has one value for each round, of which the last one holds on."""
        if number == 0:
            return dict(self.labelled.values)
        return {name: _of_round(values, number) for name, values in self.per_round.items()}

    def epochs_of(self, number: int) -> float | None:
        """Returns the passes over the records of a round; None if TRAIN_STEPS determines its length."""
        if number == 0:
            return self.labelled.epochs
        return _of_round(self.epochs, number)

    def run_of(self, number: int) -> str:
        """Returns the run of a round."""
        return str(self.folder / f"round{number}" / "train" / RUN)

    def runs(self, number: int) -> dict[str, str]:
        """Returns the run of each role in a round; ``before`` is what the previous policy was trained from, for round 1 the start."""
        found = {"start": self.start, "previous": self._previous(number)}
        found["before"] = self._previous(number - 1) if number > 1 else self.start
        return found | ({"teacher": self.teacher} if self.teacher is not None else {})

    def _previous(self, number: int) -> str:
        if number > 1 or (number == 1 and self.labelled.first):
            return self.run_of(number - 1)
        return (self.first or self.start) if number else self.start

    @functools.cached_property
    def identities(self) -> dict[str, Any]:
        """The run id and step of the runs that the recipe was given."""
        given = {"start": self.start, "first": self.first, "teacher": self.teacher}
        found = {}
        for role, path in given.items():
            if path is not None:
                run = Run(path)
                found[role] = [run.description.run_id, run.step]
        return found


def _of_round(values: Any, number: int) -> Any:
    """Returns a value of a round; a list has one for each round, of which the last one holds on."""
    if isinstance(values, (list, tuple)):
        return values[min(number, len(values)) - 1]
    return values
