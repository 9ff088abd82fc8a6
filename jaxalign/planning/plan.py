"""`jaxalign plan`: memory and time of a run's step on a TPU topology, found by compiling the step for it without a TPU."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxalign import files
from jaxalign.data.task_data import TaskData
from jaxalign.errors import UserError, require_range
from jaxalign.objectives.base import Objective
from jaxalign.parallel import partitioning
from jaxalign.parallel.accelerators import Accelerator
from jaxalign.parallel.devices import DEFAULT_DEVICES, Devices
from jaxalign.planning import (
    collectives,
    flops,
    hlo,
    plan_report,
    roofline,
    smallest_change,
    topologies,
    traffic,
)
from jaxalign.planning.compile_spec import CompileResult, CompileSpec, batch_shapes, compile_step
from jaxalign.training.build import abstract_params, parameter_counts
from jaxalign.training.optimizers import Optimizer

SCHEMA = 1
AUTO = "auto"


def plan(
    *,
    topology: str,
    objective: Objective,
    data: TaskData,
    optimizers: Mapping[str, Optimizer],
    batch_size: int,
    devices: Devices = DEFAULT_DEVICES,
    random_seed: int = 0,
    responses_per_prompt: int | None = None,
    num_scores: int | None = None,
    teacher_top: int = 32,
    search_change: bool = True,
    title: str = "",
    output: str | None = None,
) -> dict[str, Any]:
    """Determines whether a run fits a TPU slice, and bounds its speed, by compiling its step with libtpu on a CPU.

    The gin files and flags are those of `jaxalign train`; folders, checkpoints and data files may be missing. The function prints a table
    and the same content as JSON. docs/plan.md explains how each number is obtained.

    Args:
      topology: generation and chips along each axis, such as 'v5e:4x4', with '*2' for two slices; 'auto' compares common topologies.
      objective: as in train.
      data: as in train; only lengths and packing are read.
      optimizers: as in train.
      batch_size: as in train.
      devices: as in train.
      random_seed: as in train.
      responses_per_prompt: responses per prompt of the task, if neither the objective nor data.responses_per_example determines them.
      num_scores: scores per response, for objectives with several scores; by default the number that the objective's reward network
        reads, otherwise 2.
      teacher_top: number of a teacher's tokens that are stored per position, for distillation from them.
      search_change: if the run does not fit, search for a change with which it fits; every trial is one more compilation.
      title: heading of the table.
      output: path without suffix; the table is also written to .md and the JSON to .json.

    Returns:
      The content of the JSON.

    Raises:
      UserError: if libtpu is missing, if the topology is unknown, or if mesh and batch do not fit together.
    """
    require_range("plan", "[1, inf)", batch_size=batch_size, microbatches=devices.microbatches)
    require_range("plan", "[1, inf)", responses_per_prompt=responses_per_prompt)
    require_range("plan", "[1, inf)", num_scores=num_scores, teacher_top=teacher_top)
    if not getattr(jax.config, "jax_platforms", None):
        # Otherwise JAX finds libtpu and searches for a TPU on this machine.
        jax.config.update("jax_platforms", "cpu")
    batch = batch_shapes(
        objective,
        data,
        batch_size,
        responses_per_prompt=responses_per_prompt,
        num_scores=num_scores,
        teacher_top=teacher_top,
    )
    rules = partitioning.check_axis_rules(devices.axis_rules, objective.trained())
    spec = CompileSpec(
        objective=objective,
        optimizers=optimizers,
        batch=batch,
        microbatches=devices.microbatches,
        mesh=devices.mesh,
        rules=rules,
        random_seed=random_seed,
    )
    if topology == AUTO:
        topologies.require_libtpu()
        result: dict[str, Any] = compare(spec)
        text = plan_report.comparison(result)
    else:
        accelerator, chips = topologies.describe(topology)
        result = plan_topology(spec, topology, accelerator, chips, search_change)
        result["title"] = title or _title(result)
        text = plan_report.table(result)
    print(text)
    print(json.dumps(result, indent=2))
    if output is not None:
        path = Path(output).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(f"{path}.md", text + "\n")
        files.write_text(f"{path}.json", json.dumps(result, indent=2) + "\n")
    return result


def compare(spec: CompileSpec) -> dict[str, Any]:
    """Plans a run on each of `topologies.DEFAULT_TOPOLOGIES`, without a search for changes."""
    rows = []
    for name in topologies.DEFAULT_TOPOLOGIES:
        print(f"compiling for {name}", file=sys.stderr)
        try:
            accelerator, devices = topologies.describe(name)
            found = plan_topology(spec, name, accelerator, devices, search_change=False)
        except UserError as error:
            rows.append({"topology": name, "fits": False, "reason": str(error)})
            continue
        rows.append(
            {
                "topology": name,
                "fits": found["fits"],
                "reason": found["reason"],
                "memory": found["memory"],
                "roofline": found["roofline"],
                "compile_seconds": found["compile"]["seconds"],
            }
        )
    return {"schema": SCHEMA, "run": describe_run(spec), "topologies": rows}


def plan_topology(
    spec: CompileSpec,
    name: str,
    accelerator: Accelerator,
    devices: Sequence[Any],
    search_change: bool,
) -> dict[str, Any]:
    """Returns the plan of a run on one topology, as JSON.

    Raises:
      UserError: if mesh and batch do not fit together.
    """

    def compile_one(changed: CompileSpec) -> CompileResult:
        return compile_step(changed, devices, accelerator.memory_bytes)

    outcome = compile_one(spec)
    found = describe_outcome(spec, outcome, accelerator, devices)
    change: smallest_change.Trial | None = None
    trials: list[smallest_change.Trial] = []
    if not outcome.fits and search_change:
        change, trials = smallest_change.smallest_change(spec, outcome.mesh, compile_one)
    with_change = None
    if change is not None and change.outcome is not None:
        with_change = describe_outcome(change.spec, change.outcome, accelerator, devices)
    return {
        "schema": SCHEMA,
        "run": describe_run(spec),
        "topology": {
            "name": name,
            "accelerator": accelerator.name,
            "chips": len(devices),
            **{
                field.name: getattr(accelerator, field.name)
                for field in dataclasses.fields(accelerator)
                if field.name not in ("name", "device_kinds", "max_fsdp")
            },
        },
        **found,
        "change": None if change is None else change.changes,
        "with_change": with_change,
        "trials": [_describe_trial(trial) for trial in trials],
    }


def describe_run(spec: CompileSpec) -> dict[str, Any]:
    """Describes the planned run: parameters, network and batch."""
    config: Any = getattr(spec.objective.policy, "config", None)
    shapes = {name: list(shape.shape) for name, shape in spec.batch.items()}
    counts = parameter_counts(spec.objective)
    return {
        "objective": spec.objective.name,
        "parameters": {
            role: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
            for role, tree in abstract_params(spec.objective).items()
        },
        "trained_parameters": {role: trained for role, (trained, _) in counts.items()},
        "frozen_roles": [
            role
            for role in spec.objective.frozen_roles()
            if role not in spec.objective.roles_in_policy()
        ],
        "network": config.to_dict() if hasattr(config, "to_dict") else None,
        "logits_chunk_size": getattr(spec.objective.policy, "logits_chunk_size", None),
        "batch_size": spec.rows,
        "input_tokens": shapes["encoder_input_tokens"][1],
        "target_tokens": shapes["decoder_input_tokens"][1],
        "microbatches": spec.microbatches,
    }


def describe_outcome(
    spec: CompileSpec, outcome: CompileResult, accelerator: Accelerator, devices: Sequence[Any]
) -> dict[str, Any]:
    """Describes memory, operations, communication and time bounds of one compiled step."""
    mesh = partitioning.make_mesh(spec.mesh, list(devices))
    chips = len(devices)
    step = spec.flops(mesh)
    model = spec.without_recomputation().flops(mesh)
    found: dict[str, Any] = {
        "mesh": outcome.mesh,
        "fits": outcome.fits,
        "reason": outcome.reason,
        "memory": _describe_memory(outcome, accelerator),
        "flops": {
            "step": step,
            "per_chip": step / chips,
            "model_step": model,
            "forward_parts": _forward_parts(spec),
        },
        "collectives": None,
        "roofline": None,
        "compile": {
            "seconds": round(outcome.compile_seconds, 1),
            "versions": {name: _version(name) for name in ("jax", "jaxlib", "libtpu")},
        },
    }
    if outcome.compiled is None:
        return found
    module = hlo.parse_module(outcome.compiled.as_text())
    sent = collectives.count_collectives(module)
    bound = roofline.roofline(
        accelerator,
        flops=step / chips,
        model_flops=model / chips,
        memory_bytes=(moved := traffic.memory_bytes(module)),
        sent_bytes=sum(each.sent_bytes for each in sent.values()),
    )
    found["memory"]["traffic"] = moved
    found["collectives"] = {
        "kinds": {
            kind: {"count": each.count, "bytes": each.num_bytes, "sent_bytes": each.sent_bytes}
            for kind, each in sent.items()
        },
        "unknown_loops": list(module.unknown_loops),
    }
    found["roofline"] = dataclasses.asdict(bound)
    return found


def _describe_memory(outcome: CompileResult, accelerator: Accelerator) -> dict[str, Any]:
    held = outcome.parameter_bytes + outcome.optimizer_bytes + outcome.batch_bytes
    return {
        "chip": accelerator.memory_bytes,
        "peak": outcome.peak_bytes,
        "parameters": outcome.parameter_bytes,
        "optimizer": outcome.optimizer_bytes,
        "batch": outcome.batch_bytes,
        "program": outcome.program_bytes,
        "activations": max(0, outcome.peak_bytes - held - outcome.program_bytes),
        "usable": outcome.usable_bytes,
        "traffic": None,
    }


def _forward_parts(spec: CompileSpec) -> dict[str, float] | None:
    """Returns the forward operations of the policy by part; None if it is not a T5."""
    config = getattr(spec.objective.policy, "config", None)
    if config is None or not hasattr(config, "num_encoder_layers"):
        return None
    source = spec.batch["encoder_input_tokens"].shape[1]
    target = spec.batch["decoder_input_tokens"].shape[1]
    return flops.parts(config, spec.rows, source, target)


def _describe_trial(trial: smallest_change.Trial) -> dict[str, Any]:
    outcome = trial.outcome
    return {
        "changes": trial.changes,
        "fits": outcome is not None and outcome.fits,
        "peak": None if outcome is None else outcome.peak_bytes,
        "reason": trial.refusal if outcome is None else outcome.reason,
    }


def _title(result: Mapping[str, Any]) -> str:
    millions = sum(result["run"]["parameters"].values()) / 1e6
    objective, topology = result["run"]["objective"], result["topology"]["name"]
    return f"{objective} with {millions:,.0f} M parameters on {topology}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
