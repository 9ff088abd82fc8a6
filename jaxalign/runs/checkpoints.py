"""Reads the checkpoints of a run folder."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxalign import files, untrusted
from jaxalign.errors import UserError, first_line
from jaxalign.networks.leaves import merge_leaves
from jaxalign.parallel import distributed, row_devices
from jaxalign.runs import manifests, stored_arrays
from jaxalign.runs.description import NETWORKS_FILE, read_description

CHECKPOINTS = "checkpoints"
# The item with the frozen parameters of trained roles, which are the same in every checkpoint.
FROZEN_LEAVES = "frozen_leaves"
_STEP = re.compile(r"[0-9]{1,12}")


def restore_params(
    path: Path | str,
    role: str,
    *,
    step: int | str | None = None,
    abstract: Any = None,
    least_arrays: int = 0,
    shardings: Any = None,
) -> Any:
    """Restores one role's parameters from a run folder or from one of its checkpoints.

    Args:
      path: a run folder, or ``<run>/checkpoints/<step>``.
      role: 'policy', 'value', ...
      step: a number, 'best', 'latest' or None (best if a best metric was kept, else latest).
      abstract: expected shapes, or a function that computes them; checked.
      least_arrays: the minimum number of arrays, which is checked before ``abstract`` is computed.
      shardings: the shardings of the parameters; the host's first device by default.

    Raises:
      UserError: if there is no such checkpoint or role, or shapes differ.
    """
    run, found = find_checkpoint(path, step)
    folder = run / CHECKPOINTS / str(found) / "params"
    arrays = refuse_damaged(run, found)
    if arrays < least_arrays:
        raise UserError(
            f"checkpoint {folder} has {arrays} arrays, and the network that {run / NETWORKS_FILE} describes at least {least_arrays}"
        )
    if callable(abstract):
        abstract = abstract()
    quieten_orbax()
    with (
        _malformed_refused(folder),
        ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer,
    ):
        stored = _stored_shapes(checkpointer, folder)
        if role not in stored:
            raise UserError(
                f"checkpoint {folder} has no role {role!r}; it has {', '.join(sorted(stored))}"
            )
        sources = {folder: stored[role]}
        frozen = run / FROZEN_LEAVES
        if frozen.is_dir():
            _refuse_damaged_leaves(frozen)
            leaves = _stored_shapes(checkpointer, frozen)
            sources |= {frozen: leaves[role]} if role in leaves else {}
        if abstract is not None:
            _check_shapes(folder, role, _merged(sources.values()), abstract)
        params = _merged(
            _restore_role(checkpointer, source, role, shapes, shardings)
            for source, shapes in sources.items()
        )
    stored_arrays.refuse_not_finite(f"checkpoint {folder}, role {role}", params)
    return params


def restore_frozen_leaves(run: Path, shapes: Any, shardings: Any) -> dict[str, Any]:
    """Restores the frozen leaves of a run's trained roles, by role; an empty dict if there are none.

    Raises:
      UserError: the leaves are missing or damaged, or have other shapes.
    """
    if not shapes:
        return {}
    folder = run / FROZEN_LEAVES
    if not folder.is_dir():
        raise UserError(f"{folder} is missing, which holds the frozen parameters of this run")
    _refuse_damaged_leaves(folder)
    quieten_orbax()
    with (
        _malformed_refused(folder),
        ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer,
    ):
        stored = _stored_shapes(checkpointer, folder)
        for role, expected in shapes.items():
            _check_shapes(folder, role, stored.get(role, {}), expected)
        return {
            role: _restore_role(checkpointer, folder, role, stored[role], shardings[role])
            for role in shapes
        }


def _stored_shapes(checkpointer: ocp.Checkpointer, folder: Path) -> dict[str, Any]:
    tree = checkpointer.metadata(folder).item_metadata.tree
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype), dict(tree)
    )


def _restore_role(
    checkpointer: ocp.Checkpointer, folder: Path, role: str, shapes: Any, shardings: Any | None
) -> Any:
    default = row_devices.default_sharding()
    places = (
        jax.tree.map(lambda _: default, shapes) if shardings is None else _like(shardings, shapes)
    )
    target = {role: with_shardings(shapes, places)}
    restore_args = ocp.checkpoint_utils.construct_restore_args(target)
    restored = checkpointer.restore(
        folder,
        ocp.args.PyTreeRestore(item=target, restore_args=restore_args, partial_restore=True),
    )
    return restored[role]


def _like(tree: Any, shapes: Any) -> Any:
    """Returns the part of a tree that has the branches of another tree."""
    if not isinstance(shapes, dict):
        return tree
    return {name: _like(tree[name], branch) for name, branch in shapes.items()}


def _merged(trees: Iterable[Any]) -> Any:
    return functools.reduce(merge_leaves, trees)


def _refuse_damaged_leaves(folder: Path) -> None:
    distributed.broadcast_from_first(lambda: _check_leaves(folder))


def _check_leaves(folder: Path) -> None:
    size = untrusted.check_tree(folder, inside=folder.parent)
    damage = manifests.find_damage(folder, origin=manifests.Origin(manifests=True))
    if damage is not None:
        raise UserError(f"{folder} is damaged: {damage}; put a copy back")
    stored_arrays.check_item(folder, size)


@contextlib.contextmanager
def _malformed_refused(folder: Path) -> Iterator[None]:
    """Converts the errors of libraries that read a malformed checkpoint to a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if distributed.lost_process_message(error) is not None or isinstance(
            error, jax.errors.JaxRuntimeError
        ):
            raise
        raise UserError(f"checkpoint {folder} cannot be read: {first_line(error)}") from error


def refuse_damaged(run: Path | str, step: int) -> int:
    """Refuses a checkpoint whose parameters are damaged, belong to another step or run, or are not plain files.

    Returns:
      The number of arrays that it holds.

    Raises:
      UserError: the checkpoint is refused; the message names the file and the problem.
    """
    return distributed.broadcast_from_first(lambda: _check_parameters(Path(run), step))


def _check_parameters(run: Path, step: int) -> int:
    checkpoint = run / CHECKPOINTS / str(step)
    try:
        untrusted.check_tree(checkpoint, inside=run)
        size = untrusted.check_tree(checkpoint / "params", inside=run)
    except FileNotFoundError as error:
        raise UserError(
            f"checkpoint {checkpoint} is damaged: {error.filename} is missing"
        ) from error
    damage = manifests.find_damage(checkpoint, "params", origin=recorded_origin(run))
    if damage is not None:
        others = [other for other in checkpoint_steps(checkpoint.parent) if other != step]
        raise UserError(
            f"checkpoint {checkpoint} is damaged: {damage}; choose another step"
            + (f" (there are {others})" if others else ", or put a copy back")
        )
    return stored_arrays.check_item(checkpoint / "params", size)


def recorded_origin(run: Path) -> manifests.Origin:
    """Returns the run that the checkpoints of a folder must belong to, as far as the folder records it."""
    if not (run / NETWORKS_FILE).exists():
        return manifests.Origin()
    described = read_description(run)
    recorded = described.content.get("run_id")
    return manifests.Origin(None if recorded is None else str(recorded), described.manifests)


def find_checkpoint(path: Path | str, step: int | str | None = None) -> tuple[Path, int]:
    """Resolves a run folder or checkpoint folder to ``(run folder, step)``.

    Raises:
      UserError: if there is no such checkpoint.
    """
    # Orbax finds no metadata under a relative path.
    path = files.absolute_path(path)
    step = checked_step(step)
    if path.parent.name == CHECKPOINTS and _STEP.fullmatch(path.name):
        own = int(path.name)
        if isinstance(step, int) and step != own:
            raise UserError(f"{path} is the checkpoint of step {own}, not of step {step}")
        return path.parent.parent, own
    folder = path / CHECKPOINTS
    steps = checkpoint_steps(folder)
    if not steps:
        raise UserError(
            f"no checkpoint under {folder}: is {path} the folder of a finished or running training run? "
            "(`jaxalign convert` makes one of a T5X or Hugging Face checkpoint)"
        )
    if isinstance(step, int):
        if step not in steps:
            raise UserError(f"no checkpoint at step {step} under {folder}; there are {steps}")
        return path, step
    best = _best_step(path, steps) if step in (None, "best") else None
    if step == "best" and best is None:
        raise UserError(f"{path} kept no best checkpoint: set a best metric when training")
    return path, steps[-1] if best is None else best


def has_checkpoint(run: Path) -> bool:
    """Returns whether a run folder holds a finished checkpoint."""
    return bool(checkpoint_steps(run / CHECKPOINTS))


def checkpoint_steps(folder: Path) -> list[int]:
    """Returns the steps of the finished checkpoints. Orbax renames a folder to its step when it is complete."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if _STEP.fullmatch(entry.name))


def checked_step(step: int | str | None) -> int | str | None:
    """Returns a number, 'best', 'latest' or None, from any of these or from a number as text.

    Raises:
      UserError: the value is anything else.
    """
    if step is None or step == "":
        return None
    if isinstance(step, str) and _STEP.fullmatch(step):
        return int(step)
    named = step in ("best", "latest")
    number = isinstance(step, int) and not isinstance(step, bool) and step >= 0
    if not named and not number:
        raise UserError(f"step {step!r} is none: give a number, 'best' or 'latest'")
    return step


def _best_step(run: Path, steps: list[int]) -> int | None:
    summary = run / "best.json"
    if not summary.exists():
        return None
    step = untrusted.read_json_object(summary, inside=run).get("step")
    return step if isinstance(step, int) and step in steps else None


def _check_shapes(folder: Path, role: str, stored: Any, expected: Any) -> None:
    shapes = {
        jax.tree_util.keystr(key): leaf.shape
        for key, leaf in jax.tree_util.tree_leaves_with_path(stored)
    }
    wanted = {
        jax.tree_util.keystr(key): leaf.shape
        for key, leaf in jax.tree_util.tree_leaves_with_path(expected)
    }
    where = f"checkpoint {folder}, role {role}"
    for name in sorted(shapes.keys() | wanted.keys()):
        if name not in shapes:
            raise UserError(f"{where}: it lacks parameter {name}, which the model needs")
        if name not in wanted:
            raise UserError(f"{where}: it has parameter {name}, which the model does not have")
        if shapes[name] != wanted[name]:
            raise UserError(
                f"{where}: parameter {name} has shape {shapes[name]}, the model expects {wanted[name]}"
            )


def with_shardings(abstract: Any, shardings: Any) -> Any:
    """Returns the tree of abstract arrays, each with its sharding."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )


def quieten_orbax() -> None:
    """Silences Orbax, which warns about files that a checkpoint item never has, and which prints the errors that it raises."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
