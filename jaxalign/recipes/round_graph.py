"""The graph of a recipe of rounds: its stages in order."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxalign.annotation.annotators import LabelsWanted, annotator_names, get_annotator
from jaxalign.errors import UserError
from jaxalign.plugins import own_code
from jaxalign.recipes import round_labels, round_measures, round_sampling, round_training
from jaxalign.recipes.round_labels import RECORDS, SELECT, filled_in
from jaxalign.recipes.round_prompts import DividedPrompts, Prompt, digest_of, file_digest
from jaxalign.recipes.round_recipe import Recipe
from jaxalign.recipes.round_sampling import CANDIDATES
from jaxalign.recipes.round_training import CACHE
from jaxalign.recipes.stages import Stage, Wait, result_of
from jaxalign.selection.selectors import selector_names


def stages(recipe: Recipe, prompts: DividedPrompts, held_out: Sequence[Prompt]) -> list[Stage]:
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
            "sampler": _settings(sampler),
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
        described = {
            "spec": spec,
            "code": _own_code(spec),
            "runs": recipe.identities,
        }
        yield Stage(stage, run, described, (before, *needs))
        before = stage
    yield Stage(
        f"{here}/select",
        functools.partial(
            round_labels.select,
            before=recipe.folder / before / CANDIDATES,
            spec=filled_in(recipe.selector, runs, number),
            last=True,
        ),
        {"spec": recipe.selector, "code": _own_code(recipe.selector)},
        (before,),
    )


def _annotate(folder: Path, before: Path, spec: str, name: str) -> dict[str, Any]:
    try:
        return round_labels.annotate(folder, before, spec, name)
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
            epochs=recipe.epochs_of(number),
            held_out=recipe.held_out_fraction > 0,
        )

    settings = {
        **round_training.described(recipe.training(values)),
        "values": values,
        "epochs": recipe.epochs_of(number),
        "reference": recipe.reference,
        "runs": recipe.identities,
    }
    return Stage(f"round{number}/train", run, settings, (cache, *_before(recipe, number)))


def _measure(
    recipe: Recipe, here: str, run: str, held_out: Sequence[Prompt], number: int | None
) -> Stage:
    """Returns the stage that measures the policy of a run, and the labels of its round."""
    settings, lengths = recipe.measure, _lengths(recipe, number or 0)
    filled = {
        name: filled_in(spec, {"start": recipe.start}, number or 0)
        for name, spec in (("judge", settings.judge), ("truth", settings.truth))
        if spec
    }

    def measured(folder: Path) -> dict[str, Any]:
        judge = get_annotator(filled["judge"]) if "judge" in filled else None
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
            truth = get_annotator(filled["truth"])
            found |= round_labels.label_accuracy(recipe.folder / place / RECORDS, kind, truth)
        return found

    described = {
        "settings": _settings(dataclasses.replace(settings, file="")),
        "code": {name: _own_code(spec) for name, spec in filled.items()},
        "prompts": digest_of(held_out),
        "seed": recipe.seed,
        "runs": recipe.identities,
    }
    needs = (f"round{number}/train",) if number is not None else ()
    return Stage(f"{here}/measure", measured, described, needs)


def _settings(settings: Any) -> dict[str, Any]:
    """Returns the settings on which responses depend."""
    return {
        key: value for key, value in dataclasses.asdict(settings).items() if key != "batch_size"
    }


def _own_code(spec: str) -> str | None:
    """Returns a digest of the user's own function that a specification names, so that an edited one is another setting."""
    return own_code(spec.removeprefix(SELECT), {*annotator_names(), *selector_names()})


def _before(recipe: Recipe, number: int) -> tuple[str, ...]:
    """Returns the stage that trained the previous policy, if it is one of this recipe."""
    before = number - 1
    return (f"round{before}/train",) if before in recipe.trained_rounds else ()


def _lengths(recipe: Recipe, number: int) -> dict[str, int]:
    return dict(recipe.training(recipe.values(number)).keywords["data"].feature_lengths)
