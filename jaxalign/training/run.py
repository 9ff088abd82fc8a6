"""A training run: networks x objective x task, from gin bindings to a finished run folder."""

from __future__ import annotations

import functools
import json
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxalign import files
from jaxalign.annotation import score
from jaxalign.data.recorded_vocabulary import RecordedVocabulary
from jaxalign.data.task_data import TaskData
from jaxalign.errors import UserError
from jaxalign.networks.leaves import merge_roles
from jaxalign.networks.policy import Policy
from jaxalign.objectives.base import Objective
from jaxalign.parallel import distributed, partitioning
from jaxalign.parallel.partitioning import AxisRules, MeshShape
from jaxalign.parallel.preemption import StopNotice, Stopped
from jaxalign.runs.checkpoints import restore_frozen_leaves
from jaxalign.training import build, checkpoints, run_folder, task_checks
from jaxalign.training.loop import Evaluator, Loop, LoopConfig, make_evaluator
from jaxalign.training.metrics import MetricWriter
from jaxalign.training.model_info import model_info
from jaxalign.training.optimizers import Optimizer
from jaxalign.training.start import Start
from jaxalign.training.state import TrainState, create_state
from jaxalign.training.step import jit_eval_step, make_eval_step

# On TPUs and GPUs parameters are sharded over a slice or host; on a CPU every device holds a copy.
DEFAULT_MESH = MeshShape()


def train(
    *,
    model_dir: str,
    objective: Objective,
    data: TaskData,
    optimizers: Mapping[str, Optimizer],
    loop: LoopConfig,
    batch_size: int,
    initial_checkpoint_path: str | None = None,
    initial_checkpoint_step: int | str | None = None,
    microbatches: int = 1,
    mesh: MeshShape = DEFAULT_MESH,
    axis_rules: Mapping[str, AxisRules] | None = None,
    random_seed: int = 0,
    reference_scores: str | None = None,
    evaluators: Mapping[str, Evaluator] | None = None,
    configuration: Callable[[], str] | None = None,
) -> dict[str, Any]:
    """Trains the networks of an objective on a task; continues where a run in ``model_dir`` stopped.

    Args:
      model_dir: the run folder.
      objective: the method, with its networks.
      data: the task.
      optimizers: by role; a trained role without one of its own takes that of the role ``policy``.
      loop: steps and periods.
      batch_size: rows of the global batch.
      initial_checkpoint_path: run folder, T5X checkpoint or Hugging Face folder (docs/checkpoints.md) whose policy is the start
        (also of value and reward networks) and the reference; a random initialisation by default.
      initial_checkpoint_step: which checkpoint of it: a number, 'best' or 'latest'; best if kept, else latest, by default.
      microbatches: parts of the batch whose gradients are accumulated; changes memory, not results.
      mesh: how devices are arranged.
      axis_rules: role -> ((logical axis, mesh axis, mesh axes or None), ...) that come before the standard rules for that role's
        parameters, for example ``{'value': (('mlp', None),)}``.
      random_seed: of initialisation, data order and dropout.
      reference_scores: name of stored reference log-probabilities; found or computed by default.
      evaluators: further evaluations by name, called as ``(step, params by role)``.
      configuration: gives the text of the configuration, which ``config.gin`` and every checkpoint keep.

    Returns:
      The content of ``summary.json``.

    Raises:
      UserError: if configuration, data and checkpoints do not fit together; NonFiniteError on NaN or Inf.
      Stopped: on SIGTERM or a maintenance notice, after saving.
    """
    started = time.time()
    task_checks.check_numbers(batch_size, microbatches, random_seed)
    folder, lock = run_folder.open_folder(model_dir)
    device_mesh = partitioning.make_mesh(mesh)
    partitioning.check_batch_size(device_mesh, batch_size, microbatches)
    rules = partitioning.check_axis_rules(axis_rules or {}, objective.trained())
    metadata = data.prepare()
    _check_vocabulary(objective, data)
    earlier = distributed.first(lambda: run_folder.earlier_launch(folder))
    run_folder.check_same_method(folder, earlier, objective)
    vocabulary = RecordedVocabulary(metadata.vocabulary, data.cache_dir)
    run_folder.check_same_vocabulary(folder, earlier, vocabulary)
    finished = distributed.first(lambda: run_folder.finished_summary(folder, loop.train_steps))
    if finished is not None:
        return finished
    data = task_checks.check(objective, data, metadata, quiet=not loop.progress)
    teacher = data.teacher()
    run_folder.check_same_teacher(folder, earlier.get("teacher_tokens", teacher), teacher)
    run_id = distributed.first(lambda: earlier.get("run_id") or uuid.uuid4().hex[:12])
    start = Start(
        folder,
        objective,
        device_mesh,
        rules,
        random_seed,
        path=initial_checkpoint_path,
        step=initial_checkpoint_step,
        run_id=run_id,
        earlier=earlier,
        vocabulary=vocabulary,
    )
    if not earlier:
        start.say_how_steps_count(loop.train_steps)
    frozen, frozen_checkpoints = start.frozen()
    leaf_shapes, leaf_shardings = build.frozen_leaves(objective, device_mesh, rules)
    transformations = build.make_transformations(objective, optimizers)
    abstract = build.abstract_state(objective, transformations)
    checkpoints.check_space(folder, loop.checkpoint, loop.train_steps, abstract)
    rows = distributed.local_rows(device_mesh, batch_size)
    check = functools.partial(task_checks.check_batch, objective, task=data.task)
    if "reference_log_probs" in objective.required_fields():
        # Before hours of scoring: does the task have the other fields?
        probe = next(iter(data.training_dataset(batch_size, random_seed, None, rows)))
        probe = {**probe, "reference_log_probs": probe["response_mask"]}
        distributed.check_batch(check, device_mesh, probe)
        reference_scores = _ensure_reference_scores(
            objective, data, start, reference_scores, device_mesh, batch_size
        )
    else:
        reference_scores = None
    dataset = data.training_dataset(batch_size, random_seed, reference_scores, rows)
    iterator = iter(dataset)
    beginning = iterator.get_state()
    first = next(iterator)
    iterator.set_state(beginning)
    distributed.check_batch(check, device_mesh, first)
    built = build.build_step(
        objective,
        transformations=transformations,
        abstract=abstract,
        mesh=device_mesh,
        rules=rules,
        frozen_shardings=jax.tree.map(lambda leaf: leaf.sharding, frozen) | leaf_shardings,
        batch=first,
        random_seed=random_seed,
        microbatches=microbatches,
    )
    shardings = built.shardings
    checkpointer = checkpoints.open_run(folder, loop.checkpoint)
    resumed = checkpointer.latest_step()
    if resumed is None:
        params, leaves = build.split_params(objective, start.trained())
        checkpointer.save_frozen_leaves(leaves)
        with partitioning.activate(device_mesh):
            state = jax.jit(
                lambda tree: create_state(tree, transformations), out_shardings=shardings
            )(params)
        del params
    else:
        start.say_what_is_unreadable()
        state, data_state = checkpointer.restore(abstract, shardings)
        leaves = restore_frozen_leaves(folder, leaf_shapes, leaf_shardings)
        if data_state is not None:
            iterator.set_state(data_state)
        before = checkpointer.metadata(resumed).get("batch_size", batch_size)
        _say_other_batch_size(before, batch_size, data)
    frozen = {**frozen, **leaves}
    origin: dict[str, Any] = {"run_id": run_id}
    if teacher:
        origin["teacher_tokens"] = teacher
    if initial_checkpoint_path:
        origin["initial_checkpoint"] = start.identity
    if frozen_checkpoints:
        origin["frozen_checkpoints"] = frozen_checkpoints
    del start
    configuration_text = configuration() if configuration is not None else ""
    primary = distributed.is_first()
    if primary:
        run_folder.write_description(folder, objective, data, metadata, origin)
        run_folder.write_configuration(folder, configuration_text)
        files.write_text(
            folder / run_folder.MODEL_INFO_FILE,
            model_info(
                abstract, build.logical_axes(objective), {"each device": device_mesh}, rules
            ),
        )
    with (
        StopNotice() as notice,
        MetricWriter(folder, resume_step=resumed or 0, enabled=primary) as writer,
    ):
        runner = Loop(
            step=built.step,
            objective=objective,
            mesh=device_mesh,
            config=loop,
            model_dir=folder,
            writer=writer,
            checkpointer=checkpointer,
            metadata={
                "run_id": run_id,
                "objective": objective.name,
                "batch_size": batch_size,
                "gin": configuration_text,
                **run_folder.versions(),
            },
            evaluators={
                **_objective_evaluator(
                    objective,
                    data,
                    device_mesh,
                    shardings,
                    frozen,
                    batch_size,
                    reference_scores,
                    first,
                    rows,
                ),
                **(evaluators or {}),
            },
            frozen=frozen,
            notice=notice,
        )
        try:
            state = runner.run(state, iterator, iterator.get_state)
        except BaseException as error:
            # With several processes closing waits for all of them, and one may be gone or waiting for this one.
            if isinstance(error, Stopped) or not distributed.several():
                checkpointer.close()
            if isinstance(error, Stopped) and primary:
                print(f"jaxalign: {error.message}", file=sys.stderr)
            raise
        checkpointer.close()
    summary = run_folder.summarize(runner, state, data, metadata, started, loop)
    if primary:
        files.write_text(folder / run_folder.SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")
    if lock is not None:
        lock.release()
    return summary


def _say_other_batch_size(before: int, now: int, data: TaskData) -> None:
    """Unpacked data stand at a number of batches; packed data at an example, wherever batches end."""
    if now == before or data.pack or not distributed.is_first():
        return
    told = (
        "reads some examples of this epoch again" if now < before else "passes some examples over"
    )
    print(
        f"jaxalign: this run had batches of {before} rows; with {now} it goes on at the same number of batches, so it {told}",
        file=sys.stderr,
    )


def _ensure_reference_scores(
    objective: Objective,
    data: TaskData,
    start: Start,
    name: str | None,
    mesh: Any,
    batch_size: int,
) -> str:
    """The name of the reference's log-probabilities, which are computed where they are not stored."""
    if name is not None:
        return name
    assert isinstance(objective.policy, Policy)
    name = score.reference_name(start.identity, objective.policy)
    splits = [split for split in (data.train_split, data.eval_split) if split]
    missing = score.unscored(data.cache(), splits, name)
    if missing:
        score.score_splits(
            objective.policy,
            start.policy,
            data.cache(),
            name,
            splits=missing,
            feature_lengths=data.feature_lengths,
            batch_size=batch_size,
            mesh=mesh,
            info=start.identity,
        )
    return name


def _objective_evaluator(
    objective: Objective,
    data: TaskData,
    mesh: Any,
    shardings: TrainState,
    frozen: Mapping[str, Any],
    batch_size: int,
    reference_scores: str | None,
    example_batch: Any,
    rows: Any,
) -> dict[str, Evaluator]:
    """The objective's own metrics on the evaluation split."""
    if not data.eval_split:
        return {}
    places = merge_roles(jax.tree.map(lambda leaf: leaf.sharding, dict(frozen)), shardings.params)

    def batches() -> Any:
        return data.evaluation_batches(batch_size, reference_scores, rows)

    step = jit_eval_step(make_eval_step(objective), mesh, places, example_batch)
    return {data.eval_split: make_evaluator(step, objective, mesh, batches)}


def _check_vocabulary(objective: Objective, data: TaskData) -> None:
    size = data.load_vocabulary().size
    for network in objective.trained().values():
        limit = network.vocab_size
        if limit is not None and size > limit:
            raise UserError(
                f"the vocabulary of {data.cache_dir} has {size} tokens, but the model's vocab_size is {limit}; "
                f"set VOCAB_SIZE to at least {size}"
            )
