"""The command `jaxalign rounds`: sample, annotate, select, train, measure, and round again, from one gin file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxalign import files
from jaxalign.errors import UserError
from jaxalign.interop.opening import run_folder
from jaxalign.locks import Lock
from jaxalign.recipes import round_checks, round_report
from jaxalign.recipes.round_graph import stages
from jaxalign.recipes.round_measures import Measure
from jaxalign.recipes.round_prompts import PromptSource
from jaxalign.recipes.round_recipe import Labelled, Recipe
from jaxalign.recipes.round_sampling import Sampler
from jaxalign.recipes.stages import run_stages


def rounds(
    *,
    output_dir: str,
    start: str,
    prompts: PromptSource,
    training: Callable[[Mapping[str, Any]], Any],
    selector: str,
    annotators: Mapping[str, Any] | None = None,
    sampler: Sampler | None = None,
    num_rounds: int = 3,
    first: str | None = None,
    teacher: str | None = None,
    labelled: Labelled | None = None,
    measure: Measure | None = None,
    reference: str = "previous",
    accumulate: bool = False,
    held_out_fraction: float = 0.0,
    per_round: Mapping[str, Any] | None = None,
    epochs: float | Sequence[float] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Runs rounds of sampling, annotation, selection and training, and continues an interrupted command where it stopped.

    Every stage has a folder with result.json. Finished stages are kept; a finished stage that is asked for with other settings is refused.
    Each round trains a new run from the policy of the round before: parameters go on, optimizers begin anew. Training uses all devices of
    this process; the other stages use one of them.

    Args:
      output_dir: the folder of all rounds, with rounds.md, rounds.json and rounds.png.
      start: what the rounds start from: a run folder, a Hugging Face folder or its ``hf://`` address. Its vocabulary is that of all rounds.
        `first` and `teacher` take the same.
      prompts: the prompts, and how rounds divide them.
      training: a function from the hyperparameters of a round, by name, to `train` with its arguments (functools.partial); a gin file
        binds it to @run.train.
      selector: makes training records of the annotated candidates, such as best_worst:annotation=judge.
      annotators: name -> annotator, in order, such as slot_error or implicit_reward:policy={previous},reference={start}. {previous},
        {start}, {teacher} and {before} (what the previous policy was trained from) stand for run folders, {round} for the number of the
        round. 'select SELECTOR' in their place chooses the candidates that the following annotators see.
      sampler: who answers the prompts, and how.
      num_rounds: the number of rounds. More rounds later continue the same folder.
      first: the run that round 1 samples from and goes on with; by default the start, or the run of round 0 on labelled records.
      teacher: the run of the role 'teacher'.
      labelled: labelled records, to train a round 0 on, or to mix into every round.
      measure: what is measured on held-out prompts.
      reference: the reference policy of training: 'previous', or 'start' (for objectives with stored reference log-probabilities).
      accumulate: whether a round is trained on the records of earlier rounds too.
      held_out_fraction: the share of the prompts of a round's records that is kept for evaluation during training.
      per_round: macro -> value, or one value for each round, such as {'STRENGTH': (0.5, 0.25, 0.125)}; the last value holds on.
      epochs: passes over the records of a round, or of each round, in place of TRAIN_STEPS.
      seed: the seed of sampling; training adds the number of the round to its own.

    Returns:
      The content of rounds.json.

    Raises:
      UserError: the recipe is inconsistent, or a stage failed; the message names the stage.
      Waiting: a person has to label something first.
    """
    recipe = make_recipe(
        output_dir=output_dir,
        start=start,
        prompts=prompts,
        training=training,
        selector=selector,
        annotators=annotators,
        sampler=sampler,
        num_rounds=num_rounds,
        first=first,
        teacher=teacher,
        labelled=labelled,
        measure=measure,
        reference=reference,
        accumulate=accumulate,
        held_out_fraction=held_out_fraction,
        per_round=per_round,
        epochs=epochs,
        seed=seed,
    )
    folder = recipe.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"OUTPUT_DIR {folder} cannot be made: {error.strerror or error}") from error
    with contextlib.ExitStack() as stack:
        stack.enter_context(Lock(folder / ".rounds.lock", f"OUTPUT_DIR {folder}"))
        stack.enter_context(_compilation_cache(folder / "compiled"))
        checked = round_checks.check_recipe(
            recipe, side_file=str(folder / "prompts.rejected.jsonl")
        )
        found = stages(recipe, checked.prompts, checked.held_out)
        run_stages(folder, found)
        return {"output_dir": str(folder), **round_report.write_report(folder, found)}


def make_recipe(*, output_dir: str, converts: bool = True, **arguments: Any) -> Recipe:
    """Returns the recipe of the arguments of `rounds`; None stands for a default.

    A Hugging Face model is converted here, once, so that every stage reads the same run folder; without `converts` it is refused unless
    that has been done.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    for name in ("start", "first", "teacher"):
        if name in given:
            try:
                given[name] = run_folder(given[name], convert=converts)
            except UserError as error:
                raise UserError(f"{name.upper()} {given[name]}: {error}") from error
    return Recipe(folder=files.absolute_path(output_dir), **given)


@contextlib.contextmanager
def _compilation_cache(folder: Path) -> Iterator[None]:
    """Keeps compiled programs in a folder, so that all rounds and launches share them, unless the user has set another folder."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    if before[0] is not None:
        yield
        return
    try:
        for name, value in zip(names, (str(folder), 0.5), strict=True):
            jax.config.update(name, value)
        yield
    finally:
        for name, value in zip(names, before, strict=True):
            jax.config.update(name, value)
