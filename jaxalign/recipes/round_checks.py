"""Checks a recipe of rounds before anything is computed, and describes its graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from jaxalign.annotation.annotators import get_annotator
from jaxalign.data.candidates import Candidates
from jaxalign.data.recorded_vocabulary import require_same_vocabulary
from jaxalign.data.vocabularies import vocabulary_from_spec
from jaxalign.errors import UserError
from jaxalign.inference.encoders import encoder_of
from jaxalign.recipes import round_training
from jaxalign.recipes.round_labels import SELECT, filled_in, waits_for_labels
from jaxalign.recipes.round_prompts import (
    DividedPrompts,
    Prompt,
    PromptSource,
    divide,
    file_digest,
    reference_fields,
)
from jaxalign.recipes.round_recipe import Recipe
from jaxalign.runs.folder import Run
from jaxalign.selection.selectors import get_selector
from jaxalign.training.build import make_transformations

# The number of prompts with which annotators check themselves.
_TRIED = 100


@dataclasses.dataclass(frozen=True)
class Checked:
    """A recipe that has passed all checks.

    Attributes:
      prompts: the prompts of the rounds.
      held_out: the prompts for measuring.
    """

    prompts: DividedPrompts
    held_out: Sequence[Prompt]


def check_recipe(recipe: Recipe, *, side_file: str = "") -> Checked:
    """Checks files, runs, vocabularies, specifications and the objective of every round. Compiles nothing.

    Raises:
      UserError: the message names the setting.
    """
    start = _opened(recipe.start, "START")
    lengths = recipe.training(recipe.values(1)).keywords["data"].feature_lengths
    for number in recipe.trained_rounds:
        _check_training(recipe, number, start)
    for name, path in (("FIRST", recipe.first), ("TEACHER", recipe.teacher)):
        if path is not None:
            _opened(path, name)
    if recipe.first is not None:
        recorded, ours = Run(recipe.first).recorded_vocabulary, start.recorded_vocabulary
        if recorded is not None and ours is not None:
            require_same_vocabulary(f"FIRST {recipe.first}", recorded, ours)
    if recipe.labelled.file is not None:
        file_digest(recipe.labelled.file)
    encoder = encoder_of(
        start, max_input_length=lengths["inputs"], max_target_length=lengths["targets"]
    )
    measured = recipe.measure
    aside = 0 if measured.file else measured.count
    prompts = divide(recipe.prompts, encoder, held_out=aside, side_file=side_file)
    for number in range(1, recipe.num_rounds + 1):
        prompts.of_round(number)
    if measured.file:
        source = PromptSource(file=measured.file, split=measured.split)
        readable = [p for p in source.read(side_file) if encoder.problem(p.text, ()) is None]
        held_out: Sequence[Prompt] = readable[: measured.count or None]
        if not held_out:
            raise UserError(
                f"MEASURE_PROMPTS {measured.file} holds no prompt that the start can read"
            )
    else:
        held_out = prompts.held_out
    if not held_out and (measured.judge or measured.truth):
        raise UserError(
            "JUDGE and TRUTH need held-out prompts: set MEASURE_PROMPTS to a file, or MEASURE_COUNT to a number of prompts set aside"
        )
    _check_specifications(recipe, prompts.of_round(1), held_out)
    return Checked(prompts, held_out)


def graph(recipe: Recipe, checked: Checked) -> Iterator[str]:
    """Yields lines that describe the stages of a recipe, with their counts."""
    run_id, step = recipe.identities["start"]
    yield (
        f"{_counted(recipe.num_rounds, 'round')} in {recipe.folder}, from {recipe.start} (run {run_id}, step {step}); "
        f"reference of training: {recipe.reference}"
    )
    if checked.prompts.unreadable:
        yield f"  {checked.prompts.unreadable} prompts of {recipe.prompts.file} are left out, because the start cannot read them"
    if checked.held_out:
        yield f"start: measure {_measures(recipe, checked)}"
    for number in recipe.trained_rounds:
        records = "the labelled records"
        yield f"round {number}:"
        if number:
            prompts = len(checked.prompts.of_round(number))
            sampler = recipe.sampler
            roles = " + ".join(f"{share:.0%} {role}" for role, share in sampler.roles.items())
            logged = ", and the logged ones" if sampler.logged else ""
            order = "fresh" if recipe.prompts.fresh else "same"
            yield (
                f"  sample: {prompts} prompts ({order}) x {sampler.num_samples} responses of {roles} at temperature "
                f"{sampler.temperature:g} = {prompts * sampler.num_samples} responses{logged}"
            )
            for name, spec in recipe.annotators.items():
                chooses = spec.startswith(SELECT)
                yield f"  {'choose' if chooses else 'annotate'} {name}: {spec.removeprefix(SELECT)}"
            most = sampler.num_samples + (2 if sampler.logged else 0)
            records = f"at most {prompts * max(most * (most - 1) // 2, most)} records"
            yield f"  select: {recipe.selector} -> {records}"
        yield f"  train: {_training(recipe, number, records)}"
        if checked.held_out:
            yield f"  measure: {_measures(recipe, checked)}"


def _training(recipe: Recipe, number: int, records: str) -> str:
    run = recipe.training(recipe.values(number))
    described = round_training.described(run)
    steps = described["train_steps"]
    epochs = recipe.epochs_of(number)
    amount = _counted(steps, "step") if epochs is None else _counted(epochs, "epoch")
    values = "".join(f", {name} = {value}" for name, value in recipe.values(number).items())
    mixed = " and the labelled ones" if recipe.labelled.mixed and number else ""
    earlier = " with those of earlier rounds" if recipe.accumulate and number > 1 else ""
    origin = "start" if recipe.runs(number)["previous"] == recipe.start else "previous"
    return (
        f"{described['objective']} on {records}{earlier}{mixed}, {amount} of {described['batch_size']} rows from the {origin} policy with "
        f"a new optimizer{values}"
    )


def _counted(number: float, what: str) -> str:
    return f"{number:g} {what}{'' if number == 1 else 's'}"


def _measures(recipe: Recipe, checked: Checked) -> str:
    measured = recipe.measure
    judged = f", judged by {measured.judge}" if measured.judge else ""
    truth = f", labels against {measured.truth}" if measured.truth else ""
    return f"{len(checked.held_out)} held-out prompts x {measured.num_samples}{judged}{truth}"


def _opened(path: str, name: str) -> Run:
    try:
        run = Run(path)
        run.network("policy")
        _ = run.vocabulary
    except UserError as error:
        raise UserError(f"{name} {path}: {error}") from error
    return run


def _check_training(recipe: Recipe, number: int, start: Run) -> None:
    keywords = recipe.training(recipe.values(number)).keywords
    objective, data = keywords["objective"], keywords["data"]
    round_training.check_reference(objective, recipe.reference)
    make_transformations(objective, keywords["optimizers"])
    if recipe.epochs_of(number) is not None and data.pack:
        raise UserError("EPOCHS needs PACK = False; with packed rows set TRAIN_STEPS")
    ours, theirs = getattr(objective.policy, "config", None), start.config("policy")
    for name in () if ours is None else ("family", *ours.COMPUTATION):
        if getattr(ours, name) != getattr(theirs, name):
            raise UserError(
                f"MODEL has {name} {getattr(ours, name)}, and the policy of START {recipe.start} has {getattr(theirs, name)}; give the "
                "--gin_file of models/ and the macros that the start was trained with"
            )
    if data.vocabulary is not None and vocabulary_from_spec(data.vocabulary, data.extra_ids) != (
        start.vocabulary
    ):
        raise UserError(
            f"VOCABULARY {data.vocabulary} is not that of START {recipe.start}, which all rounds use; leave VOCABULARY out"
        )


def _check_specifications(
    recipe: Recipe, prompts: Sequence[Prompt], held_out: Sequence[Prompt]
) -> None:
    """Checks the annotators and selectors by their names, settings and files, and whether they can judge responses to these prompts."""
    runs = {**recipe.runs(1), "previous": recipe.first or recipe.start}
    specs = {f"ANNOTATORS, {name}": (spec, prompts) for name, spec in recipe.annotators.items()}
    specs["SELECTOR"] = (f"{SELECT}{recipe.selector}", prompts)
    specs |= {
        name: (spec, held_out)
        for name, spec in (("JUDGE", recipe.measure.judge), ("TRUTH", recipe.measure.truth))
        if spec
    }
    for name, (spec, asked) in specs.items():
        try:
            filled = filled_in(spec.removeprefix(SELECT), runs, 1)
            if spec.startswith(SELECT):
                _check_annotation(get_selector(filled), recipe)
            elif not waits_for_labels(filled):
                annotator = get_annotator(filled)
                annotator.identity()
                check = getattr(annotator, "check", None)
                if check is not None:
                    check(_trial(asked[:_TRIED]))
        except UserError as error:
            raise UserError(f"{name}: {error}") from error


def _check_annotation(selector: object, recipe: Recipe) -> None:
    """Refuses a selector whose annotation no annotator makes; logged responses may have feedback of their own."""
    wanted = getattr(selector, "annotation", None)
    known = [*recipe.annotators, "feedback"]
    if isinstance(wanted, str) and wanted not in known and wanted.partition(".")[0] not in known:
        raise UserError(
            f"it reads the annotation {wanted!r}, and ANNOTATORS makes only: {', '.join(recipe.annotators) or 'none'}; give the "
            "selector annotation=NAME, or add the annotator"
        )


def _trial(prompts: Sequence[Prompt]) -> Candidates:
    """Returns candidates with which an annotator can check itself before there are samples."""
    return Candidates(
        [prompt.text for prompt in prompts],
        [["a", "b"]] * len(prompts),
        {},
        [reference_fields(prompt) for prompt in prompts],
        "trial",
    )
