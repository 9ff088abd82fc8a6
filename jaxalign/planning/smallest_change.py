"""Search for the smallest change of a run with which it fits a chip's memory."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping

from jaxalign.errors import UserError
from jaxalign.parallel.partitioning import BATCH_AXES, MeshShape
from jaxalign.planning.compile_spec import CompileResult, CompileSpec

MAX_TRIALS = 12


@dataclasses.dataclass(frozen=True)
class Trial:
    """One tried change: gin macros with their new values, and the result of compiling or the reason for refusal."""

    changes: dict[str, str | int]
    spec: CompileSpec
    outcome: CompileResult | None
    refusal: str | None = None


def smallest_change(
    spec: CompileSpec,
    mesh: Mapping[str, int],
    compile_one: Callable[[CompileSpec], CompileResult],
    *,
    max_trials: int = MAX_TRIALS,
) -> tuple[Trial | None, list[Trial]]:
    """Tries changes until the run fits: one macro before two, and among equal numbers of macros the cheapest in time first.

    Parameters over more chips cost communication only, so this change comes first. Microbatches repeat the gathering of parameters.
    Recomputation of a layer costs up to a third of the forward pass, so 'full' comes last.

    Args:
      spec: the run that does not fit.
      mesh: the sizes of its mesh.
      compile_one: compiles a step.
      max_trials: the largest number of steps to compile.

    Returns:
      The first trial that fits, or None; and all trials.
    """
    trials: list[Trial] = []
    for changes, changed in candidates(spec, mesh):
        if len(trials) == max_trials:
            break
        try:
            outcome = compile_one(changed)
        except UserError as error:
            trials.append(Trial(changes, changed, None, str(error)))
            continue
        trials.append(Trial(changes, changed, outcome))
        if outcome.fits:
            return trials[-1], trials
    return None, trials


def candidates(
    spec: CompileSpec, mesh: Mapping[str, int]
) -> Iterator[tuple[dict[str, str | int], CompileSpec]]:
    """Yields gin macros and the changed step, smallest change first."""
    axes = [_meshes(mesh), _microbatches(spec, mesh), _remat_policies(spec)]
    for number in range(1, len(axes) + 1):
        for chosen in itertools.combinations(axes, number):
            for combination in itertools.product(*chosen):
                changes = {name: value for change in combination for name, value in change.items()}
                yield changes, _apply(spec, changes)


def _meshes(mesh: Mapping[str, int]) -> list[dict[str, str | int]]:
    """Returns the mesh that shards parameters over the axis of their copies too, if there are copies."""
    if mesh["data"] == 1:
        return []
    return [{"MESH_DATA": 1, "MESH_FSDP": mesh["fsdp"] * mesh["data"]}]


def _microbatches(spec: CompileSpec, mesh: Mapping[str, int]) -> list[dict[str, str | int]]:
    parts = math.prod(mesh[axis] for axis in BATCH_AXES)
    found = spec.microbatches * 2
    values = []
    while spec.rows % (parts * found) == 0:
        values.append(found)
        found *= 2
    return [{"MICROBATCHES": value} for value in values]


def _remat_policies(spec: CompileSpec) -> list[dict[str, str | int]]:
    stronger = {"none": ("minimal", "full"), "minimal": ("full",)}
    return [{"REMAT_POLICY": value} for value in stronger.get(spec.remat_policy or "", ())]


def _apply(spec: CompileSpec, changes: Mapping[str, str | int]) -> CompileSpec:
    if "MESH_FSDP" in changes:
        shape = MeshShape(
            slice=spec.mesh.slice,
            data=1,
            fsdp=int(changes["MESH_FSDP"]),
            tensor=spec.mesh.tensor,
        )
        spec = dataclasses.replace(spec, mesh=shape)
    if "MICROBATCHES" in changes:
        spec = dataclasses.replace(spec, microbatches=int(changes["MICROBATCHES"]))
    if "REMAT_POLICY" in changes:
        spec = spec.with_config(remat_policy=changes["REMAT_POLICY"])
    return spec
