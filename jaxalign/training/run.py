"""A training run: networks x objective x task, from gin bindings to a finished run folder."""

from __future__ import annotations

import functools
import json
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxalign.errors import UserError
from jaxalign.networks.policy import Policy
from jaxalign.objectives.base import Objective
from jaxalign.training import (
    build,
    checkpoints,
    distributed,
    files,
    initial_checkpoint,
    partitioning,
    run_folder,
    score,
    task_checks,
)
from jaxalign.training.inputs import TaskData
from jaxalign.training.loop import Evaluator, Loop, LoopConfig, make_evaluator
from jaxalign.training.metrics import MetricWriter
from jaxalign.training.model_info import model_info
from jaxalign.training.optimizers import Optimizer
from jaxalign.training.partitioning import AxisRules, MeshShape
from jaxalign.training.preemption import StopNotice, Stopped
from jaxalign.training.state import TrainState, create_state, role_shardings
from jaxalign.training.step import jit_eval_step, make_eval_step

# On TPUs and GPUs parameters are sharded over a slice or host; on a CPU every device holds a copy.
DEFAULT_MESH = MeshShape()


def train(
    *,
    model_dir: str,
    objective: Objective,
    data: TaskData,
    optimizer: Optimizer,
    loop: LoopConfig,
    batch_size: int,
    value_optimizer: Optimizer | None = None,
    initial_checkpoint_path: str | None = None,
    initial_checkpoint_step: int | str | None = None,
    microbatches: int = 1,
    mesh: MeshShape = DEFAULT_MESH,
    axis_rules: Mapping[str, AxisRules] | None = None,
    random_seed: int = 0,
    reference_scores: str | None = None,
    evaluators: Mapping[str, Evaluator] | None = None,
) -> dict[str, Any]:
    """Trains the networks of an objective on a task; continues where a run in ``model_dir`` stopped.

    Args:
      model_dir: the run folder.
      objective: the method, with its networks.
      data: the task.
      optimizer: of the policy, and of the value if it has none of its own.
      loop: steps and periods.
      batch_size: rows of the global batch.
      value_optimizer: of the value network.
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

    Returns:
      The content of ``summary.json``.

    Raises:
      UserError: if configuration, data and checkpoints do not fit together; NonFiniteError on NaN or Inf.
      Stopped: on SIGTERM or a maintenance notice, after saving.
    """
    started = time.time()
    folder = Path(model_dir).expanduser().absolute()
    distributed.first(lambda: files.make_writable_folder(folder))
    device_mesh = partitioning.make_mesh(mesh)
    partitioning.check_batch_size(device_mesh, batch_size, microbatches)
    rules = partitioning.check_axis_rules(axis_rules or {}, objective.trained())
    metadata = data.prepare()
    _check_vocabulary(objective, data)
    earlier = distributed.first(lambda: run_folder.earlier_launch(folder))
    run_folder.check_same_method(folder, earlier, objective)
    finished = distributed.first(lambda: run_folder.finished_summary(folder, loop.train_steps))
    if finished is not None:
        return finished
    data = task_checks.check(objective, data, metadata, quiet=not loop.progress)
    run_id = distributed.first(lambda: earlier.get("run_id") or uuid.uuid4().hex[:12])
    start = earlier.get("initial_checkpoint")
    if start and initial_checkpoint_path and initial_checkpoint_step is None:
        # That run may have gone on since; this one keeps its reference.
        initial_checkpoint_step = start["step"]
    pinned = earlier.get("frozen_checkpoints", {})
    params, frozen, reference, frozen_checkpoints = _initial_params(
        objective,
        device_mesh,
        rules,
        random_seed,
        initial_checkpoint_path,
        initial_checkpoint_step,
        run_id,
        pinned,
    )
    if initial_checkpoint_path:
        run_folder.check_same_origin(folder, "initial checkpoint", start, reference)
    transformations = build.make_transformations(objective, optimizer, value_optimizer)
    abstract = build.abstract_state(params, transformations)
    checkpoints.check_space(folder, loop.checkpoint, loop.train_steps, abstract)
    rows = distributed.local_rows(device_mesh, batch_size)
    check = functools.partial(task_checks.check_batch, objective, task=data.task)
    if "reference_log_probs" in objective.required_fields():
        # Before hours of scoring: does the task have the other fields?
        probe = next(iter(data.training_dataset(batch_size, random_seed, None, rows)))
        probe = {**probe, "reference_log_probs": probe["response_mask"]}
        distributed.check_batch(check, device_mesh, probe)
        reference_scores = _ensure_reference_scores(
            objective, data, params, reference_scores, reference, device_mesh, batch_size
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
        frozen_shardings=jax.tree.map(lambda leaf: leaf.sharding, frozen),
        batch=first,
        random_seed=random_seed,
        microbatches=microbatches,
    )
    shardings = built.shardings
    checkpointer = checkpoints.open_run(folder, loop.checkpoint)
    resumed = checkpointer.latest_step()
    if resumed is None:
        with partitioning.activate(device_mesh):
            state = jax.jit(
                lambda tree: create_state(tree, transformations), out_shardings=shardings
            )(params)
    else:
        state, data_state = checkpointer.restore(abstract, shardings)
        if data_state is not None:
            iterator.set_state(data_state)
    del params
    start_info: dict[str, Any] = {}
    if initial_checkpoint_path:
        start_info["initial_checkpoint"] = reference
    if frozen_checkpoints:
        start_info["frozen_checkpoints"] = frozen_checkpoints
    primary = distributed.is_first()
    if primary:
        run_folder.write_description(
            folder, objective, data, metadata, {"run_id": run_id, **start_info}
        )
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
                "gin": run_folder.gin_text(),
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
    summary = run_folder.summarize(runner, state, metadata, started, loop)
    if primary:
        run_folder.write_gin(folder)
        files.write_text(folder / run_folder.SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")
    return summary


def _initial_params(
    objective: Objective,
    mesh: Any,
    rules: Mapping[str, AxisRules],
    seed: int,
    path: str | None,
    step: int | str | None,
    run_id: str,
    pinned: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Parameters of the trained roles, of the frozen ones, who the reference policy is, and who the frozen roles are.

    ``pinned`` are the frozen roles of the run's earlier launch, which may have gone on since.
    """
    axes = build.logical_axes(objective)
    networks = objective.trained()
    keys = dict(zip(networks, jax.random.split(jax.random.key(seed), len(networks)), strict=True))
    shapes = {role: jax.eval_shape(net.init, keys[role]) for role, net in networks.items()}
    places = {
        role: role_shardings(mesh, shapes[role], axes.get(role), rules.get(role, ()))
        for role in networks
    }
    reference = {"run_id": f"{run_id}-init", "step": seed}
    params: dict[str, Any] = {}
    policy = None
    if path is not None:
        initial = initial_checkpoint.open_checkpoint(path, step)
        reference = initial.identity
        policy = initial.restore(objective.policy, mesh, rules.get("policy", ()))
        if "policy" in networks:
            params["policy"] = policy
    for role, network in networks.items():
        if role in params:
            continue
        if hasattr(network, "from_policy") and path is not None:
            from_policy = jax.jit(network.from_policy, out_shardings=places[role])
            with partitioning.activate(mesh):
                params[role] = from_policy(keys[role], policy)
        else:
            with partitioning.activate(mesh):
                params[role] = jax.jit(network.init, out_shardings=places[role])(keys[role])
    statistics = objective.initial_statistics()
    if statistics:
        params["statistics"] = jax.device_put(statistics, partitioning.replicated(mesh))
    policy = params.get("policy", policy)
    sources = objective.frozen_sources()
    copied = [role for role in objective.frozen_roles() if role not in sources]
    if policy is None and copied:
        raise UserError(
            f"objective {objective.name} reads a policy that it does not train: set INITIAL_CHECKPOINT_PATH"
        )
    # The reference is a copy: the policy's own buffers are donated to the step.
    frozen = {role: jax.tree.map(lambda leaf: leaf.copy(), policy) for role in copied}
    identities: dict[str, Any] = {}
    for role, (network, run) in sources.items():
        before = pinned.get(role)
        opened = initial_checkpoint.open_checkpoint(run, before["step"] if before else None)
        identities[role] = opened.identity
        run_folder.check_same_origin(
            Path(run), f"checkpoint of the {role}", before, opened.identity
        )
        frozen[role] = opened.restore(network, mesh)
    return params, frozen, reference, identities


def _ensure_reference_scores(
    objective: Objective,
    data: TaskData,
    params: Mapping[str, Any],
    name: str | None,
    reference: Mapping[str, Any],
    mesh: Any,
    batch_size: int,
) -> str:
    if name is not None:
        return name
    assert isinstance(objective.policy, Policy)
    name = score.reference_name(reference, objective.policy)
    splits = [split for split in (data.train_split, data.eval_split) if split]
    score.score_splits(
        objective.policy,
        params["policy"],
        data.cache_dir,
        name,
        splits=splits,
        feature_lengths=data.feature_lengths,
        batch_size=batch_size,
        mesh=mesh,
        info=reference,
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
    places = {**jax.tree.map(lambda leaf: leaf.sharding, dict(frozen)), **shardings.params}

    def batches() -> Any:
        return data.evaluation_batches(batch_size, reference_scores, rows)

    step = jit_eval_step(make_eval_step(objective), mesh, places, example_batch)
    return {data.eval_split: make_evaluator(step, objective, mesh, batches)}


def _check_vocabulary(objective: Objective, data: TaskData) -> None:
    size = data.load_vocabulary().size
    for network in objective.trained().values():
        limit = getattr(getattr(network, "config", None), "vocab_size", size)
        if size > limit:
            raise UserError(
                f"the vocabulary of {data.cache_dir} has {size} tokens, but the model's vocab_size is {limit}; "
                f"set VOCAB_SIZE to at least {size}"
            )
