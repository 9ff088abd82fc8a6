"""The smallest change of a run that lets it fit: found by trying."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping

from jaxalign.errors import UserError
from jaxalign.parallel.partitioning import BATCH_AXES, MeshShape
from jaxalign.planning.setting import Outcome, Setting

MAX_TRIALS = 12


@dataclasses.dataclass(frozen=True)
class Trial:
    """One change and what came of it: gin macros with their new values, and the outcome or why it was refused."""

    changes: dict[str, str | int]
    setting: Setting
    outcome: Outcome | None
    refusal: str | None = None


def smallest_change(
    setting: Setting,
    mesh: Mapping[str, int],
    compile_one: Callable[[Setting], Outcome],
    *,
    max_trials: int = MAX_TRIALS,
) -> tuple[Trial | None, list[Trial]]:
    """Tries changes until one fits: one macro before two, and among those the cheapest in time first.

    Parameters over more chips cost communication only, so they come first; microbatches repeat the gathering of parameters; recomputing
    what a layer holds costs up to a third of the forward pass, so 'full' comes last.

    Args:
      setting: the run that does not fit.
      mesh: the sizes of its mesh.
      compile_one: compiles a setting.
      max_trials: settings to compile at most.

    Returns:
      The first trial that fits, or None; and all trials.
    """
    trials: list[Trial] = []
    for changes, changed in candidates(setting, mesh):
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
    setting: Setting, mesh: Mapping[str, int]
) -> Iterator[tuple[dict[str, str | int], Setting]]:
    """Changed settings with the gin macros that make them, smallest change first."""
    axes = [_meshes(mesh), _microbatches(setting, mesh), _remat_policies(setting)]
    for number in range(1, len(axes) + 1):
        for chosen in itertools.combinations(axes, number):
            for combination in itertools.product(*chosen):
                changes = {name: value for change in combination for name, value in change.items()}
                yield changes, _apply(setting, changes)


def _meshes(mesh: Mapping[str, int]) -> list[dict[str, str | int]]:
    """Copies of the parameters turned into slices of them."""
    if mesh["data"] == 1:
        return []
    return [{"MESH_DATA": 1, "MESH_FSDP": mesh["fsdp"] * mesh["data"]}]


def _microbatches(setting: Setting, mesh: Mapping[str, int]) -> list[dict[str, str | int]]:
    parts = math.prod(mesh[axis] for axis in BATCH_AXES)
    found = setting.microbatches * 2
    values = []
    while setting.rows % (parts * found) == 0:
        values.append(found)
        found *= 2
    return [{"MICROBATCHES": value} for value in values]


def _remat_policies(setting: Setting) -> list[dict[str, str | int]]:
    stronger = {"none": ("minimal", "full"), "minimal": ("full",)}
    return [{"REMAT_POLICY": value} for value in stronger.get(setting.remat_policy or "", ())]


def _apply(setting: Setting, changes: Mapping[str, str | int]) -> Setting:
    if "MESH_FSDP" in changes:
        shape = MeshShape(
            slice=setting.mesh.slice,
            data=1,
            fsdp=int(changes["MESH_FSDP"]),
            tensor=setting.mesh.tensor,
        )
        setting = dataclasses.replace(setting, mesh=shape)
    if "MICROBATCHES" in changes:
        setting = dataclasses.replace(setting, microbatches=int(changes["MICROBATCHES"]))
    if "REMAT_POLICY" in changes:
        setting = setting.with_config(remat_policy=changes["REMAT_POLICY"])
    return setting
