"""The graph of a recipe of rounds: its settings, and its stages in order."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.annotation.annotators import LabelsWanted
from jaxalign.data.candidates import TOP_LEVEL
from jaxalign.data.records import KINDS
from jaxalign.errors import UserError, require_one_of, require_range
from jaxalign.recipes import round_labels, round_measures, round_sampling, round_training
from jaxalign.recipes.annotator_names import annotator_of
from jaxalign.recipes.round_labels import RECORDS, SELECT, filled_in
from jaxalign.recipes.round_measures import Measure
from jaxalign.recipes.round_prompts import (
    DividedPrompts,
    Prompt,
    PromptSource,
    digest_of,
    file_digest,
)
from jaxalign.recipes.round_sampling import CANDIDATES, Sampler
from jaxalign.recipes.round_training import CACHE, RUN, Training
from jaxalign.recipes.stages import Stage, Wait, result_of
from jaxalign.runs.folder import Run

REFERENCES = ("previous", "start")
LABELLED_USES = ("mix", "first", "both")
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled:
    """Labelled records, such as a few human preferences.

    Attributes:
      file: records of our own layout; None for none.
      kind: their kind.
      use: 'first' trains a round 0 on them from the start, 'mix' adds them to the records of every round, 'both' does both.
      values: hyperparameters of round 0, by macro.
    """

    file: str | None = None
    kind: str = "pair"
    use: str = "first"
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
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
    epochs: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_range("rounds", "[1, inf)", num_rounds=self.num_rounds)
        require_range("rounds", "(0, inf)", epochs=self.epochs)
        require_range("rounds", "[0, 1)", held_out_fraction=self.held_out_fraction)
        require_range("rounds", "[0, 4294967]", seed=self.seed)
        require_one_of("rounds", REFERENCES, reference=self.reference)
        for name in self.annotators:
            if not _NAME.fullmatch(name) or name in TOP_LEVEL:
                raise UserError(
                    f"ANNOTATORS: {name!r} cannot name an annotation; use letters, digits, '_' or '-', and none of {', '.join(TOP_LEVEL)}"
                )
        for name, values in self.per_round.items():
            if isinstance(values, Sequence) and not isinstance(values, str) and not values:
                raise UserError(f"PER_ROUND: {name} has no values")
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
        return {
            name: values[min(number, len(values)) - 1]
            if isinstance(values, (list, tuple))
            else values
            for name, values in self.per_round.items()
        }

    def run_of(self, number: int) -> str:
        """Returns the run of a round."""
        return str(self.folder / f"round{number}" / "train" / RUN)

    def runs(self, number: int) -> dict[str, str]:
        """Returns the run of each role in a round."""
        if number > 1 or (number == 1 and self.labelled.first):
            previous = self.run_of(number - 1)
        else:
            previous = self.first or self.start
        found = {"start": self.start, "previous": previous if number else self.start}
        return found | ({"teacher": self.teacher} if self.teacher is not None else {})

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


def stages(recipe: Recipe, prompts: DividedPrompts, held_out: Sequence[str]) -> list[Stage]:
    """Returns all stages of a recipe in order.

    Args:
      recipe: the settings.
      prompts: the prompts of the rounds.
      held_out: the prompts for measuring; none to measure nothing.
    """
    found: list[Stage] = []
    if held_out:
        found.append(_measure(recipe, "start", recipe.start, held_out, None))
        if recipe.first is not None:
            found.append(_measure(recipe, "first", recipe.first, held_out, None))
    for number in recipe.trained_rounds:
        labelling = list(_labelling(recipe, prompts, number)) if number else []
        cache = _cache(recipe, number)
        found += [*labelling, cache, _train(recipe, number)]
        if held_out:
            found.append(
                _measure(recipe, f"round{number}", recipe.run_of(number), held_out, number)
            )
    return found


def _labelling(recipe: Recipe, prompts: DividedPrompts, number: int) -> Iterator[Stage]:
    """Yields the stages of a round that make its records."""
    here, runs = f"round{number}", recipe.runs(number)
    sampler, lengths = recipe.sampler, _lengths(recipe, number)
    used = [role for role in sampler.roles if role in runs]
    if len(used) < len(sampler.roles):
        raise UserError("SAMPLER names the role 'teacher', and the recipe has none: set TEACHER")
    before = f"{here}/sample"
    yield Stage(
        before,
        lambda folder: round_sampling.sample(
            folder,
            prompts.of_round(number),
            sampler,
            runs,
            lengths=lengths,
            number=number,
            seed=recipe.seed,
        ),
        {
            "prompts": digest_of(prompts.of_round(number)),
            "sampler": dataclasses.asdict(sampler),
            "lengths": lengths,
            "seed": recipe.seed,
            "runs": recipe.identities,
        },
        _before(recipe, number),
    )
    needs = _before(recipe, number)
    for name, spec in recipe.annotators.items():
        chooses = spec.startswith(SELECT)
        stage = f"{here}/{'choose' if chooses else 'annotate'}/{name}"
        source = recipe.folder / before / CANDIDATES
        filled = filled_in(spec.removeprefix(SELECT), runs, number)
        run: Any = functools.partial(
            round_labels.select if chooses else _annotate,
            before=source,
            spec=filled,
            **({"last": False} if chooses else {"name": name}),
        )
        yield Stage(stage, run, {"spec": spec, "runs": recipe.identities}, (before, *needs))
        before = stage
    yield Stage(
        f"{here}/select",
        functools.partial(
            round_labels.select,
            before=recipe.folder / before / CANDIDATES,
            spec=filled_in(recipe.selector, runs, number),
            last=True,
        ),
        {"spec": recipe.selector},
        (before,),
    )


def _annotate(folder: Path, before: Path, spec: str, name: str) -> dict[str, Any]:
    try:
        return round_labels.annotate(folder, before, annotator_of(spec), name)
    except LabelsWanted as wanted:
        raise Wait(f"{wanted}; give the command again when the labels are there") from wanted


def _cache(recipe: Recipe, number: int) -> Stage:
    """Returns the stage that tokenises the records of a round."""
    earlier = range(1, number) if recipe.accumulate else range(0)
    selections = [f"round{each}/select" for each in (*earlier, *([number] if number else []))]
    labelled = recipe.labelled

    def run(folder: Path) -> dict[str, Any]:
        parts = {f"round {name[5:-7]}": recipe.folder / name / RECORDS for name in selections}
        kinds = {
            part: result_of(recipe.folder, name)["kind"]
            for part, name in zip(parts, selections, strict=True)
        }
        if labelled.file is not None and (labelled.mixed or not number):
            parts["labelled"] = Path(labelled.file).expanduser()
            kinds["labelled"] = labelled.kind
        records, kind, counts = round_labels.mix(folder, parts, kinds)
        data = recipe.training(recipe.values(number)).keywords["data"]
        made = round_training.make_cache(
            folder, records, kind, data, recipe.start, recipe.held_out_fraction
        )
        return {"kind": kind, "records": counts, **made}

    settings = {
        "labelled": [labelled.kind, file_digest(labelled.file)]
        if labelled.file is not None and (labelled.mixed or not number)
        else None,
        "lengths": _lengths(recipe, number),
        "held_out_fraction": recipe.held_out_fraction,
        "start": recipe.identities["start"],
    }
    return Stage(f"round{number}/cache", run, settings, tuple(reversed(selections)))


def _train(recipe: Recipe, number: int) -> Stage:
    """Returns the stage that trains the policy of a round."""
    runs, values = recipe.runs(number), recipe.values(number)
    cache = f"round{number}/cache"

    def run(folder: Path) -> dict[str, Any]:
        return round_training.train_round(
            folder,
            recipe.folder / cache / CACHE,
            recipe.training,
            values,
            previous=runs["previous"],
            start=recipe.start,
            reference=recipe.reference,
            number=number,
            epochs=recipe.epochs,
            held_out=recipe.held_out_fraction > 0,
        )

    settings = {
        **round_training.described(recipe.training(values)),
        "values": values,
        "epochs": recipe.epochs,
        "reference": recipe.reference,
        "runs": recipe.identities,
    }
    return Stage(
        f"round{number}/train", run, settings, (cache, *_before(recipe, number)), everywhere=True
    )


def _measure(
    recipe: Recipe, here: str, run: str, held_out: Sequence[str], number: int | None
) -> Stage:
    """Returns the stage that measures the policy of a run, and the labels of its round."""
    settings, lengths = recipe.measure, _lengths(recipe, number or 0)
    filled = {
        name: filled_in(spec, {"start": recipe.start}, number or 0)
        for name, spec in (("judge", settings.judge), ("truth", settings.truth))
        if spec
    }

    def measured(folder: Path) -> dict[str, Any]:
        judge = annotator_of(filled["judge"]) if "judge" in filled else None
        found = round_measures.measure(
            folder,
            run,
            recipe.start,
            held_out,
            settings,
            judge,
            lengths=lengths,
            seed=recipe.seed,
        )
        if number and "truth" in filled:
            place = f"round{number}/select"
            kind = result_of(recipe.folder, place)["kind"]
            truth = annotator_of(filled["truth"])
            found |= round_labels.label_accuracy(recipe.folder / place / RECORDS, kind, truth)
        return found

    described = {
        "settings": dataclasses.asdict(dataclasses.replace(settings, file="")),
        "prompts": digest_of([Prompt(text) for text in held_out]),
        "seed": recipe.seed,
        "runs": recipe.identities,
    }
    needs = (f"round{number}/train",) if number is not None else ()
    return Stage(f"{here}/measure", measured, described, needs)


def _before(recipe: Recipe, number: int) -> tuple[str, ...]:
    """Returns the stage that trained the previous policy, if it is one of this recipe."""
    before = number - 1
    return (f"round{before}/train",) if before in recipe.trained_rounds else ()


def _lengths(recipe: Recipe, number: int) -> dict[str, int]:
    return dict(recipe.training(recipe.values(number)).keywords["data"].feature_lengths)
