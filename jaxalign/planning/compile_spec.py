"""The step of a run to compile for a topology, and the result of compiling it."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxalign.data.batches import make_batch
from jaxalign.data.stored_fields import TEACHER_TOP
from jaxalign.data.task_data import TaskData
from jaxalign.networks.network_config import NetworkConfig
from jaxalign.networks.policy import Policy
from jaxalign.objectives.base import Objective
from jaxalign.parallel import partitioning
from jaxalign.parallel.partitioning import AxisRules, MeshShape
from jaxalign.planning.flops import count_flops
from jaxalign.training.build import (
    BuiltStep,
    abstract_frozen,
    abstract_state,
    build_step,
    make_transformations,
)
from jaxalign.training.optimizers import Optimizer

_UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# The two forms of XLA's message on a program that is too large.
_USED = re.compile(
    r"(?:Used |\()([\d.]+)([BKMGT])\w*\)? (?:of|exceeds available HBM) \(?([\d.]+)([BKMGT])"
)


@dataclasses.dataclass(frozen=True)
class CompileSpec:
    """Everything that determines a run's step, except data and parameters.

    Attributes:
      objective: the method, with its networks.
      optimizers: by role, as in `run.train`.
      batch: shapes of the global batch.
      microbatches: parts of the batch whose gradients are accumulated.
      mesh: the mesh of devices.
      rules: axis rules by role.
      random_seed: seed of dropout.
    """

    objective: Objective
    optimizers: Mapping[str, Optimizer]
    batch: Mapping[str, jax.ShapeDtypeStruct]
    microbatches: int
    mesh: MeshShape
    rules: Mapping[str, AxisRules]
    random_seed: int = 0

    @property
    def rows(self) -> int:
        """Rows of the global batch."""
        return self.batch["encoder_input_tokens"].shape[0]

    @property
    def remat_policy(self) -> str | None:
        """The remat policy of the policy network; None if it is no encoder-decoder."""
        config = getattr(self.objective.policy, "config", None)
        return config.remat_policy if isinstance(config, NetworkConfig) else None

    def with_config(self, **changes: Any) -> CompileSpec:
        """Returns a copy in which fields of every network's configuration, or of every policy, are changed."""
        return dataclasses.replace(self, objective=replace_configs(self.objective, **changes))

    def flops(self, mesh: Mesh) -> float:
        """Counts the operations of matrix products in one step, on all devices together."""
        built, frozen, _ = self.build(mesh)
        with partitioning.set_mesh(mesh):
            return count_flops(built.function, built.abstract, frozen, dict(self.batch))

    def without_recomputation(self) -> CompileSpec:
        """Returns a copy that keeps all activations and logits and has no microbatches: it has only the method's own operations."""
        whole = dataclasses.replace(self, microbatches=1)
        return whole.with_config(
            remat_policy="none", logits_chunk_size=None, blockwise_attention_length=0
        )

    def build(self, mesh: Mesh) -> tuple[BuiltStep, dict[str, Any], dict[str, Any]]:
        """Builds the step on a mesh; returns it with the shapes and shardings of the frozen roles.

        Raises:
          UserError: if the mesh divides neither the batch nor a parameter.
        """
        partitioning.check_batch_size(mesh, self.rows, self.microbatches)
        frozen, frozen_shardings = abstract_frozen(self.objective, mesh, self.rules)
        transformations = make_transformations(self.objective, self.optimizers)
        built = build_step(
            self.objective,
            transformations=transformations,
            abstract=abstract_state(self.objective, transformations),
            mesh=mesh,
            rules=self.rules,
            frozen_shardings=frozen_shardings,
            batch=self.batch,
            random_seed=self.random_seed,
            microbatches=self.microbatches,
        )
        return built, frozen, frozen_shardings


@dataclasses.dataclass(frozen=True)
class CompileResult:
    """The result of compiling a step; all bytes are per chip.

    Attributes:
      mesh: sizes by axis.
      parameter_bytes: parameters of trained and frozen roles.
      optimizer_bytes: optimizer state.
      batch_bytes: the batch.
      peak_bytes: peak memory; the compiler's own figure if it refused the program.
      usable_bytes: memory that the compiler lets a program use, if its message states it.
      program_bytes: the program itself, which is also in the chip's memory.
      compile_seconds: time of tracing, lowering and compiling.
      compiled: the program; None if the compiler refused it, or if the state alone does not fit, so that nothing was compiled.
      reason: why the step does not fit; None if it fits.
    """

    mesh: dict[str, int]
    parameter_bytes: int
    optimizer_bytes: int
    batch_bytes: int
    peak_bytes: int
    usable_bytes: int | None
    program_bytes: int
    compile_seconds: float
    compiled: Any
    reason: str | None

    @property
    def fits(self) -> bool:
        """Whether the step runs on these chips."""
        return self.reason is None


def compile_step(spec: CompileSpec, devices: Sequence[Any], memory_bytes: int) -> CompileResult:
    """Compiles a step for devices that need not be present.

    Args:
      spec: the step.
      devices: the devices of a topology.
      memory_bytes: memory of one chip.

    Raises:
      UserError: if mesh and batch do not fit together.
    """
    started = time.perf_counter()
    mesh = partitioning.make_mesh(spec.mesh, list(devices))
    built, frozen, frozen_shardings = spec.build(mesh)
    held = {
        "parameter_bytes": device_bytes(built.abstract.params, built.shardings.params)
        + device_bytes(frozen, frozen_shardings),
        "optimizer_bytes": device_bytes(built.abstract.opt_state, built.shardings.opt_state),
        "batch_bytes": device_bytes(
            dict(spec.batch), partitioning.batch_shardings(mesh, spec.batch)
        ),
    }
    outcome: dict[str, Any] = {
        **held,
        "mesh": dict(mesh.shape),
        "usable_bytes": None,
        "program_bytes": 0,
        "compiled": None,
    }
    state = sum(held.values())
    if state > memory_bytes:
        return CompileResult(
            **outcome,
            peak_bytes=state,
            compile_seconds=0.0,
            reason="parameters and optimizer alone exceed the chip's memory",
        )
    lowered = built.step.lower(built.abstract, frozen, dict(spec.batch))  # type: ignore[attr-defined]
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        peak, outcome["usable_bytes"] = refused_bytes(str(error))
        return CompileResult(
            **outcome,
            peak_bytes=state if peak is None else peak,
            compile_seconds=time.perf_counter() - started,
            reason="the compiler found no schedule that fits"
            + (", and did not state the missing memory" if peak is None else ""),
        )
    memory = compiled.memory_analysis()
    peak = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    outcome |= {"program_bytes": memory.generated_code_size_in_bytes, "compiled": compiled}
    return CompileResult(
        **outcome,
        peak_bytes=peak,
        compile_seconds=time.perf_counter() - started,
        reason=None if peak <= memory_bytes else "the peak exceeds the chip's memory",
    )


def refused_bytes(message: str) -> tuple[int | None, int | None]:
    """Reads the required and the usable bytes from XLA's message on a program that is too large; None if the message lacks them."""
    used = _USED.search(message)
    if used is None:
        return None, None
    peak, usable = (int(float(used[i]) * _UNITS[used[i + 1]]) for i in (1, 3))
    return peak, usable


def device_bytes(shapes: Any, shardings: Any) -> int:
    """Returns the bytes of a tree of arrays on one device."""

    def one(leaf: Any, sharding: Any) -> int:
        return int(np.prod(sharding.shard_shape(leaf.shape), dtype=np.int64)) * leaf.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(one, shapes, shardings)))


def batch_shapes(
    objective: Objective,
    data: TaskData,
    batch_size: int,
    *,
    responses_per_prompt: int | None = None,
    num_scores: int | None = None,
    teacher_top: int = 32,
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a run's global batch from its configuration alone.

    Args:
      objective: the objective, which determines the fields and the number of responses.
      data: lengths and packing.
      batch_size: number of rows.
      responses_per_prompt: number of responses, if neither the objective nor the task determines it.
      num_scores: scores per response, for objectives with several scores; by default the number that the objective's reward network
        reads, otherwise 2.
      teacher_top: number of a teacher's tokens that are stored per position, for objectives that read them.

    Raises:
      UserError: if the objective needs a field that no batch has.
    """
    responses = responses_per_prompt or objective.responses_per_prompt
    if responses is None:
        responses = max(data.responses_per_example, objective.requirements().min_responses)
    lengths = {
        "inputs": data.feature_lengths["inputs"],
        "targets": responses * data.feature_lengths["targets"],
        **((data.row_lengths or {}) if data.pack else {}),
    }
    if num_scores is None:
        num_scores = getattr(getattr(objective, "reward", None), "num_features", 2)
    required = objective.required_fields()
    batch = make_batch(
        [],
        num_rows=batch_size,
        input_length=lengths["inputs"],
        target_length=lengths["targets"],
        examples_per_row=data.max_examples_per_row if data.pack else 1,
        responses_per_example=responses,
        num_scores=num_scores if "scores" in required else 0,
        reference_samples=1 if "reference_rewards" in required else 0,
        teacher_top=teacher_top if "teacher_top_ids" in required else 0,
    )
    stored = [name for name in data.stored if name != TEACHER_TOP]
    batch |= {name: batch["rewards"] for name in (*stored, *required) if name not in batch}
    return {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in batch.items()}


def replace_configs(value: Any, **changes: Any) -> Any:
    """Changes the named fields of every network's configuration and every policy in a dataclass, at any depth."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    fields = {
        field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init
    }
    own = set(changes) & set(fields) if isinstance(value, (NetworkConfig, Policy)) else set()
    replaced = {
        name: changes[name] if name in own else replace_configs(item, **changes)
        for name, item in fields.items()
    }
    changed = {name: item for name, item in replaced.items() if item is not fields[name]}
    return dataclasses.replace(value, **changed) if changed else value
