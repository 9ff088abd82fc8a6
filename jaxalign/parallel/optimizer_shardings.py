"""Shardings of optimizer states, derived from those of the parameters."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jaxalign.parallel import partitioning


def optimizer_state_shardings(
    mesh: Mesh | AbstractMesh,
    abstract_state: Any,
    params: Any,
    logical_axes: Any,
    rules: partitioning.AxisRules = (),
) -> Any:
    """Shards every optimizer slot like its parameter, and factored second moments like the dimensions that they keep.

    Counters and Adafactor's placeholders are replicated.

    Args:
      mesh: the mesh.
      abstract_state: shapes of the optimizer state.
      params: shapes of the role's parameters.
      logical_axes: the logical `PartitionSpec` of these parameters.
      rules: rules that take precedence over `partitioning.LOGICAL_AXIS_RULES`.
    """
    axes = jax.tree.leaves(logical_axes, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))
    by_path = {
        tuple(_key(entry) for entry in path): (leaf.shape, tuple(names))
        for (path, leaf), names in zip(
            jax.tree_util.tree_leaves_with_path(params), axes, strict=True
        )
    }
    longest = max((len(path) for path in by_path), default=0)

    def shard(path: Any, leaf: Any) -> NamedSharding:
        keys = tuple(_key(entry) for entry in path)
        for length in range(min(longest, len(keys)), 0, -1):
            match = by_path.get(keys[-length:])
            if match is not None:
                names = _slot_axes(keys[:-length], leaf.shape, *match)
                return NamedSharding(mesh, partitioning.mesh_axes(names, rules))
        return partitioning.replicated_sharding(mesh)

    return jax.tree_util.tree_map_with_path(shard, abstract_state)


def _slot_axes(
    slot: tuple[str, ...], shape: tuple[int, ...], param: tuple[int, ...], names: tuple[Any, ...]
) -> tuple[Any, ...]:
    """Returns the logical axes of an optimizer slot; none if the slot's shape does not derive from the parameter's shape."""
    names = (*names, *[None] * (len(param) - len(names)))
    if shape == param:
        return names
    dimensions = list(zip(param, names, strict=True))
    leading = [each for each in dimensions if each[1] == "layers"]
    # Layer-stacked parameters are optimised layer by layer, and the first axis of their slots is the layer axis.
    rest = [each for each in dimensions if each[1] != "layers"]
    if len(rest) >= 2 and slot and slot[-1] in ("v_row", "v_col"):
        # optax reduces rows over the longest dimension and columns over the second longest (`optax.scale_by_factored_rms`).
        second, first = np.argsort([size for size, _ in rest])[-2:]
        del rest[first if slot[-1] == "v_row" else second]
    kept = [*leading, *rest]
    return tuple(name for _, name in kept) if tuple(size for size, _ in kept) == shape else ()


def _key(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)
