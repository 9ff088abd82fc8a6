"""Executes a training run of networks, an objective and a task, from gin bindings to a finished run folder."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import optax

from jaxalign import files
from jaxalign.data.task_data import TaskData
from jaxalign.errors import require_range
from jaxalign.networks.leaves import merge_roles
from jaxalign.objectives.base import Batch, Objective
from jaxalign.parallel import distributed, partitioning
from jaxalign.parallel.devices import DEFAULT_DEVICES, Devices, Placement
from jaxalign.parallel.preemption import Preempted, PreemptionHandler
from jaxalign.runs import describing
from jaxalign.runs.checkpoints import restore_frozen_leaves
from jaxalign.training import build, checkpoint_folder, run_folder, task_checks
from jaxalign.training.build import BuiltStep
from jaxalign.training.checkpointing import Checkpointer
from jaxalign.training.evaluations import Evaluator, make_evaluator
from jaxalign.training.launch import SUMMARY_FILE, open_launch
from jaxalign.training.loop import Loop, LoopConfig
from jaxalign.training.metric_writing import MetricWriter
from jaxalign.training.optimizers import Optimizer
from jaxalign.training.samples import make_sampler
from jaxalign.training.start import RANDOM_INITIALISATION, Start, StartFrom
from jaxalign.training.state import TrainState, create_state
from jaxalign.training.step import jit_eval_step, make_eval_step
from jaxalign.training.trackers import TENSORBOARD, Experiment, open_trackers, tracker_specs
from jaxalign.training.training_batches import TrainingBatches, open_batches


def train(
    *,
    model_dir: str,
    objective: Objective,
    data: TaskData,
    optimizers: Mapping[str, Optimizer],
    loop: LoopConfig,
    batch_size: int,
    start_from: StartFrom = RANDOM_INITIALISATION,
    devices: Devices = DEFAULT_DEVICES,
    random_seed: int = 0,
    reference_scores: str | None = None,
    trackers: str = TENSORBOARD,
    sample_prompts: int = 0,
    evaluators: Mapping[str, Evaluator] | None = None,
    configuration: Callable[[], str] | None = None,
) -> dict[str, Any]:
    """Trains the networks of an objective on a task, and continues an interrupted run in ``model_dir``.

    Args:
      model_dir: the run folder.
      objective: the method, with its networks.
      data: the task.
      optimizers: the optimizers by role; a trained role that has none takes the optimizer of the role ``policy``.
      loop: the number of steps and the periods.
      batch_size: the number of rows of the global batch.
      start_from: the checkpoint that the run starts from; a random initialisation by default.
      devices: the arrangement of devices and the part of the model that each device holds.
      random_seed: the seed of initialisation, data order and dropout.
      reference_scores: the name of stored reference log-probabilities; by default they are found or computed.
      trackers: where metrics go besides ``metrics.jsonl``: tensorboard, wandb, trackio, mlflow or ``module:Class``, separated by spaces
        (`training.trackers`).
      sample_prompts: the number of held-out prompts that the policy answers at every evaluation (``samples.jsonl``).
      evaluators: further evaluations by name, called as ``(step, params by role)``.
      configuration: a function that returns the text of the configuration, which is stored in ``config.gin`` and every checkpoint.

    Returns:
      The content of ``summary.json``.

    Raises:
      UserError: if configuration, data and checkpoints do not fit together; NonFiniteError on NaN or Inf.
      Preempted: on SIGTERM or a maintenance notice, after saving.
    """
    started = time.time()
    task_checks.check_numbers(batch_size, random_seed)
    require_range("train", "[0, inf)", sample_prompts=sample_prompts)
    tracker_specs(trackers)
    with run_folder.open_folder(model_dir) as folder:
        placement = devices.place(batch_size, objective.trained())
        data = task_checks.with_images(objective, data)
        metadata = data.prepare()
        task_checks.check_vocabulary_size(objective, data)
        launch = open_launch(folder, objective, data, metadata)
        finished = launch.finished_summary(loop.train_steps, loop.patience)
        if finished is not None:
            return finished
        data = task_checks.check(objective, data, metadata, quiet=not loop.progress)

        start = Start(launch, objective, placement, random_seed, start_from)
        if not launch.earlier:
            start.warn_of_t5x_steps(loop.train_steps)
            start.warn_of_random_reference()
        frozen = start.frozen()
        transformations = build.make_transformations(objective, optimizers)
        abstract = build.abstract_state(objective, transformations)
        checkpoint_folder.check_space(folder, loop.checkpoint, loop.train_steps, abstract)

        batches = open_batches(
            objective, data, start, placement, batch_size, random_seed, reference_scores
        )
        leaf_shapes, leaf_shardings = build.frozen_leaves(
            objective, placement.mesh, placement.rules
        )
        built = build.build_step(
            objective,
            transformations=transformations,
            abstract=abstract,
            mesh=placement.mesh,
            rules=placement.rules,
            frozen_shardings=_shardings(frozen) | leaf_shardings,
            batch=batches.first,
            random_seed=random_seed,
            microbatches=placement.microbatches,
        )

        checkpointer = checkpoint_folder.open_run(folder, loop.checkpoint)
        resumed = checkpointer.latest_step()
        if resumed is None:
            state, leaves = _fresh_state(start, objective, built, transformations, checkpointer)
        else:
            start.warn_of_unreadable_checkpoint()
            state = _resumed_state(checkpointer, built, batches, data, batch_size)
            base = start.frozen_base()
            stored = {role: each for role, each in leaf_shapes.items() if role not in base}
            leaves = {**restore_frozen_leaves(folder, stored, leaf_shardings), **base}
        frozen = {**frozen, **leaves}

        gin_text = configuration() if configuration is not None else ""
        origin = start.origin()
        primary = distributed.is_primary_process()
        if primary:
            run_folder.write_description(launch, objective, data, metadata, origin)
            run_folder.write_configuration(folder, gin_text)
            run_folder.write_model_info(folder, objective, abstract, placement)
        del start
        with (
            PreemptionHandler() as notice,
            MetricWriter(
                folder,
                resume_step=resumed or 0,
                enabled=primary,
                trackers=open_trackers(
                    trackers if primary else "",
                    Experiment(
                        folder, launch.run_id, _tracked(objective, data, gin_text), resumed or 0
                    ),
                ),
            ) as writer,
        ):
            sampler = make_sampler(
                objective,
                data,
                folder,
                sample_prompts,
                resume_step=resumed or 0,
                also=writer.write_samples,
            )
            runner = Loop(
                step=built.step,
                objective=objective,
                mesh=placement.mesh,
                config=loop,
                model_dir=folder,
                writer=writer,
                checkpointer=checkpointer,
                metadata=run_folder.checkpoint_metadata(
                    launch, objective, batch_size, gin_text, origin
                ),
                evaluators={
                    **_objective_evaluator(objective, data, placement, built, frozen, batches),
                    **sampler,
                    **(evaluators or {}),
                },
                frozen=frozen,
                notice=notice,
            )
            state = _run_to_the_end(runner, state, batches.iterator, checkpointer)
        summary = run_folder.summarize(runner, state, data, metadata, started, loop)
        if primary:
            files.write_text(folder / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")
        return summary


def _fresh_state(
    start: Start,
    objective: Objective,
    built: BuiltStep,
    transformations: Mapping[str, optax.GradientTransformation],
    checkpointer: Checkpointer,
) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state at step 0 and the frozen leaves of trained roles. Those that no other run holds are saved, once."""
    params, leaves = build.split_params(objective, start.trained())
    elsewhere = ("policy",) if start.refers_to_base else ()
    checkpointer.save_frozen_leaves(
        {role: each for role, each in leaves.items() if role not in elsewhere}
    )
    create = jax.jit(
        lambda tree: create_state(tree, transformations), out_shardings=built.shardings
    )
    with partitioning.set_mesh(start.placement.mesh):
        return create(params), leaves


def _resumed_state(
    checkpointer: Checkpointer,
    built: BuiltStep,
    batches: TrainingBatches,
    data: TaskData,
    batch_size: int,
) -> TrainState:
    """Returns the state of the newest checkpoint, and sets the data iterator to its position there."""
    state, data_state = checkpointer.restore(built.abstract, built.shardings)
    if data_state is not None:
        batches.iterator.set_state(data_state)
    before = checkpointer.metadata(int(state.step)).get("batch_size", batch_size)
    warn_of_other_batch_size(before, batch_size, data)
    return state


def warn_of_other_batch_size(before: int, now: int, data: TaskData) -> None:
    """Warns if a run continues with another batch size, because it then reads other examples than an uninterrupted run."""
    # The position in packed data is an example. In unpacked data it is a number of batches.
    if now == before or data.pack or not distributed.is_primary_process():
        return
    effect = (
        "reads some examples of this epoch again" if now < before else "passes some examples over"
    )
    print(
        f"jaxalign: this run had batches of {before} rows; with {now} it continues at the same number of batches, so it {effect}",
        file=sys.stderr,
    )


def _run_to_the_end(
    runner: Loop, state: TrainState, iterator: Any, checkpointer: Checkpointer
) -> TrainState:
    try:
        state = runner.run(state, iterator, iterator.get_state)
    except BaseException as error:
        # With several processes, closing waits for all of them. One may have ended, or may be waiting for this one.
        if isinstance(error, Preempted) or not distributed.is_multiprocess():
            checkpointer.close()
        if isinstance(error, Preempted) and distributed.is_primary_process():
            print(f"jaxalign: {error.message}", file=sys.stderr)
        raise
    checkpointer.close()
    return state


def _objective_evaluator(
    objective: Objective,
    data: TaskData,
    placement: Placement,
    built: BuiltStep,
    frozen: Mapping[str, Any],
    batches: TrainingBatches,
) -> dict[str, Evaluator]:
    """Returns an evaluator of the objective's own metrics on the evaluation split, if there is one."""
    if not data.eval_split:
        return {}
    places = merge_roles(_shardings(frozen), built.shardings.params)

    def evaluation_batches() -> Iterator[Batch]:
        return data.evaluation_batches(
            batches.global_size, batches.reference_scores, placement.rows
        )

    step = jit_eval_step(make_eval_step(objective), placement.mesh, places, batches.first)
    evaluator = make_evaluator(step, objective, placement.mesh, evaluation_batches)
    return {data.eval_split: evaluator}


def _tracked(objective: Objective, data: TaskData, gin_text: str) -> dict[str, Any]:
    """Returns what trackers show of the run's configuration."""
    described = describing.describe_method(objective)
    flat = {f"hyperparameters/{k}": v for k, v in described.pop("hyperparameters").items()}
    return {**described, **flat, "task": data.task, "config.gin": gin_text}


def _shardings(params: Mapping[str, Any]) -> dict[str, Any]:
    return jax.tree.map(lambda leaf: leaf.sharding, dict(params))
