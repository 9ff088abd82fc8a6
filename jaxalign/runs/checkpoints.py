"""Reading the checkpoints of a run folder."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxalign.errors import UserError
from jaxalign.networks.leaves import merge_leaves
from jaxalign.parallel import distributed
from jaxalign.runs import manifests

CHECKPOINTS = "checkpoints"
# Frozen parameters of trained roles, which are the same in every checkpoint.
FROZEN_LEAVES = "frozen_leaves"


def restore_params(
    path: Path | str,
    role: str,
    *,
    step: int | str | None = None,
    abstract: Any = None,
    shardings: Any = None,
) -> Any:
    """Restores one role's parameters from a run folder or from one of its checkpoints.

    Args:
      path: a run folder, or ``<run>/checkpoints/<step>``.
      role: 'policy', 'value', ...
      step: a number, 'best', 'latest' or None (best if a best metric was kept, else latest).
      abstract: expected shapes; checked.
      shardings: where to put them; the host's first device by default.

    Raises:
      UserError: if there is no such checkpoint or role, or shapes differ.
    """
    run, found = find_checkpoint(path, step)
    folder = run / CHECKPOINTS / str(found) / "params"
    refuse_damaged(run, found)
    quieten_orbax()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
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
        return _merged(
            _restore_role(checkpointer, source, role, shapes, shardings)
            for source, shapes in sources.items()
        )


def restore_frozen_leaves(run: Path, shapes: Any, shardings: Any) -> dict[str, Any]:
    """The frozen leaves of a run's trained roles, by role; nothing if it has none.

    Raises:
      UserError: they are missing, damaged or of other shapes.
    """
    if not shapes:
        return {}
    folder = run / FROZEN_LEAVES
    if not folder.is_dir():
        raise UserError(f"{folder} is missing, which holds the frozen parameters of this run")
    _refuse_damaged_leaves(folder)
    quieten_orbax()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
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
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    places = (
        jax.tree.map(lambda _: device, shapes) if shardings is None else _like(shardings, shapes)
    )
    target = {role: with_shardings(shapes, places)}
    restore_args = ocp.checkpoint_utils.construct_restore_args(target)
    restored = checkpointer.restore(
        folder,
        ocp.args.PyTreeRestore(item=target, restore_args=restore_args, partial_restore=True),
    )
    return restored[role]


def _like(tree: Any, shapes: Any) -> Any:
    """The part of a tree that has the branches of another one."""
    if not isinstance(shapes, dict):
        return tree
    return {name: _like(tree[name], branch) for name, branch in shapes.items()}


def _merged(trees: Iterable[Any]) -> Any:
    return functools.reduce(merge_leaves, trees)


def _refuse_damaged_leaves(folder: Path) -> None:
    damage = distributed.first(lambda: manifests.find_damage(folder))
    if damage is not None:
        raise UserError(f"{folder} is damaged: {damage}; put a copy back")


def refuse_damaged(run: Path | str, step: int) -> None:
    """Refuses a checkpoint whose parameters are damaged.

    Raises:
      UserError: naming the file and what is wrong with it.
    """
    checkpoint = Path(run) / CHECKPOINTS / str(step)
    damage = distributed.first(lambda: manifests.find_damage(checkpoint, "params"))
    if damage is not None:
        others = [other for other in checkpoint_steps(checkpoint.parent) if other != step]
        raise UserError(
            f"checkpoint {checkpoint} is damaged: {damage}; choose another step"
            + (f" (there are {others})" if others else ", or put a copy back")
        )


def find_checkpoint(path: Path | str, step: int | str | None = None) -> tuple[Path, int]:
    """Resolves a run folder or checkpoint folder to ``(run folder, step)``.

    Raises:
      UserError: if there is none.
    """
    # Orbax finds no metadata under a relative path.
    path = Path(path).expanduser().absolute()
    if path.parent.name == CHECKPOINTS and path.name.isdigit():
        return path.parent.parent, int(path.name)
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
    """Whether a run folder holds a finished checkpoint."""
    return bool(checkpoint_steps(run / CHECKPOINTS))


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the finished checkpoints; Orbax renames a folder to its step when it is complete."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object of a run folder.

    Raises:
      UserError: if it is missing or malformed.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: is {path.parent} a run folder?") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object")
    return content


def _best_step(run: Path, steps: list[int]) -> int | None:
    summary = run / "best.json"
    if not summary.exists():
        return None
    step = read_json(summary).get("step")
    return step if step in steps else None


def _check_shapes(folder: Path, role: str, stored: Any, expected: Any) -> None:
    shapes = {
        jax.tree_util.keystr(key): leaf.shape
        for key, leaf in jax.tree_util.tree_leaves_with_path(stored)
    }
    wanted = {
        jax.tree_util.keystr(key): leaf.shape
        for key, leaf in jax.tree_util.tree_leaves_with_path(expected)
    }
    for name in sorted(shapes.keys() | wanted.keys()):
        if shapes.get(name) != wanted.get(name):
            raise UserError(
                f"checkpoint {folder}, role {role}: parameter {name} has shape {shapes.get(name)}, the model expects {wanted.get(name)}"
            )


def with_shardings(abstract: Any, shardings: Any) -> Any:
    """The tree of abstract arrays, each with its sharding."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )


def quieten_orbax() -> None:
    """Orbax warns of files that a checkpoint item, as opposed to a whole checkpoint, never has."""
    logging.getLogger("absl").setLevel(logging.ERROR)
