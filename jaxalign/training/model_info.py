"""Builds `model-info.txt`, which lists every array of a train state with its size, its logical axes and its placement on the mesh."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jaxalign.parallel.partitioning import AxisRules
from jaxalign.training.state import TrainState, state_shardings


def model_info(
    abstract_state: TrainState,
    logical_axes: Mapping[str, Any],
    meshes: Mapping[str, Mesh | AbstractMesh],
    rules: Mapping[str, AxisRules] | None = None,
    frozen: Mapping[str, int] | None = None,
) -> str:
    """Returns a table of parameters and optimizer slots, without arrays of one element.

    Args:
      abstract_state: the shapes of the state.
      logical_axes: role -> tree of logical `PartitionSpec`.
      meshes: column heading -> mesh. The same PartitionSpec holds on all meshes; the columns show the part that one device holds.
      rules: role -> logical axis rules that come before the standard ones.
      frozen: role -> the number of its frozen parameters, which are not part of the state.

    Raises:
      UserError: if a mesh does not divide a parameter.
    """
    placed = {
        name: jax.tree.leaves(state_shardings(mesh, abstract_state, logical_axes, rules))
        for name, mesh in meshes.items()
    }
    axes = {
        f"params/{role}/{_name(path)}": spec
        for role, tree in logical_axes.items()
        for path, spec in jax.tree_util.tree_leaves_with_path(
            tree, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec)
        )
    }
    rows = [("array", "shape", "logical axes", "PartitionSpec", *meshes)]
    totals = dict.fromkeys(abstract_state.params, 0)
    for index, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(abstract_state)):
        if math.prod(leaf.shape) == 1:
            continue
        name = _name(path)
        columns: list[NamedSharding] = [shardings[index] for shardings in placed.values()]
        logical = axes.get(name)
        if name.startswith("params/"):
            totals[name.split("/")[1]] += math.prod(leaf.shape)
        rows.append(
            (
                name,
                _shape(leaf.shape),
                "-" if logical is None else " ".join(str(axis) for axis in logical),
                str(tuple(columns[0].spec)),
                *(_shape(each.shard_shape(leaf.shape)) for each in columns),
            )
        )
    heading = [f"{role}: {count:,} parameters" for role, count in totals.items()]
    heading += [f"{role}: {count:,} frozen parameters" for role, count in (frozen or {}).items()]
    heading += [f"mesh of {name}: {dict(mesh.shape)}" for name, mesh in meshes.items()]
    return "\n".join([*heading, "", *_aligned(rows)]) + "\n"


def _name(path: Any) -> str:
    parts = [
        str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", ""))))
        for entry in path
    ]
    return "/".join(parts)


def _shape(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape) or "scalar"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
