"""Explains why a checkpoint does not fit the state of a run: the first array that is missing, unknown or of another shape."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

_NAMES = ("key", "name", "idx")


def describe_mismatch(checkpoint: Path, items: Mapping[str, Any]) -> str | None:
    """Returns what differs between a checkpoint and the arrays that a run expects there; None if no difference is found.

    Args:
      checkpoint: the folder of the checkpoint.
      items: the expected arrays by Orbax item, in the order in which differences are reported.
    """
    for item, expected in items.items():
        ours = _shapes(expected)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            theirs = _shapes(checkpointer.metadata(checkpoint / item).item_metadata.tree)
        for name in sorted(ours.keys() | theirs.keys()):
            if name not in theirs:
                return f"it lacks {item} {name} of shape {ours[name]}, which this run needs"
            if name not in ours:
                return f"it has {item} {name} of shape {theirs[name]}, which this run does not have"
            if ours[name] != theirs[name]:
                return f"{item} {name} has shape {theirs[name]}, and {ours[name]} in this run"
    return None


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the leaves that are arrays by dotted names, which are the same for tuples with and without names."""
    return {
        ".".join(_name(key) for key in path): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if getattr(leaf, "shape", None) is not None
    }


def _name(key: Any) -> str:
    return str(next(getattr(key, name) for name in _NAMES if hasattr(key, name)))
