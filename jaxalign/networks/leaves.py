"""The leaves of a network's parameters, which are nested dictionaries: trained and frozen ones, and their shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from jaxalign.networks.shapes import Params


def split_leaves(params: Params, trained: Params) -> tuple[Params, Params]:
    """Splits parameters into the trained and the frozen ones.

    Args:
      params: parameters, their shapes or their logical axes.
      trained: what is trained, `Network.trained_leaves`: truth values of leaves or of whole branches.

    Returns:
      Two trees without the branches that would be empty. If everything is trained, the parameters as they are and ``{}``.
    """
    if all(jax.tree.leaves(trained)):
        return params, {}
    return _kept(params, trained, True), _kept(params, trained, False)


def merge_leaves(trained: Params, frozen: Params) -> Params:
    """Inverse of `split_leaves`."""
    if not isinstance(trained, Mapping):
        return trained
    merged = dict(trained)
    for name, branch in frozen.items():
        merged[name] = merge_leaves(trained[name], branch) if name in trained else branch
    return merged


def merge_roles(frozen: Mapping[str, Params], trained: Mapping[str, Params]) -> dict[str, Params]:
    """All parameters by role, where ``frozen`` has frozen roles and the frozen leaves of trained ones."""
    merged = dict(frozen)
    for role, params in trained.items():
        merged[role] = merge_leaves(params, frozen[role]) if role in frozen else params
    return merged


def require_same_shapes(params: Any, expected: Any) -> None:
    """Raises ValueError, naming the first parameter whose name or shape differs."""
    found = {
        jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(params)
    }
    wanted = {
        jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(expected)
    }
    for path in sorted(found.keys() | wanted.keys()):
        if found.get(path) != wanted.get(path):
            raise ValueError(
                f"A network cannot start from this policy: parameter {path} has shape {found.get(path)}, "
                f"expected {wanted.get(path)}. Sizes and scan_layers of both must agree."
            )


def _kept(params: Params, trained: Params, wanted: bool) -> Params:
    kept = {}
    for name, flag in trained.items():
        if isinstance(flag, Mapping):
            branch = _kept(params[name], flag, wanted)
            if branch:
                kept[name] = branch
        elif flag is wanted:
            kept[name] = params[name]
    return kept
