"""Between per-layer parameters (``layers_0``, ``layers_1``, ...: T5X's tree) and stacked ones (``layers``: scanned).

Where layers of several kinds repeat in a stack (`NetworkConfig.LAYER_CYCLE`), those of one kind are stacked together, under its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.networks.shapes import Params

_LAYER = re.compile(r"layers_(\d+)")
STACKS = ("encoder", "decoder")


def stack_layers(params: Params, *, axis: int = 1, cycle: tuple[str, ...] = ()) -> Params:
    """Parameters of a scanned model from those of an unrolled one.

    Args:
      params: parameters of a policy or a value network; a tree that is already stacked is returned unchanged.
      axis: where the layer axis goes, `NetworkConfig.param_scan_axis`.
      cycle: `NetworkConfig.LAYER_CYCLE`.

    Raises:
      ValueError: a layer is missing, or the layers of a stack differ in their parameters or do not fill the last cycle.
    """

    def stack(name: str, branch: Mapping[str, Any]) -> Params:
        layers = {int(m[1]): key for key in branch if (m := _LAYER.fullmatch(key))}
        if not layers:
            return dict(branch)
        if sorted(layers) != list(range(len(layers))):
            raise ValueError(
                f"{name} has layers {sorted(layers)}; they must count from 0 without a gap."
            )
        if cycle and len(layers) % len(cycle):
            raise ValueError(
                f"{name} has {len(layers)} layers, which do not consist of {' and '.join(cycle)} in turn."
            )
        trees = [branch[layers[index]] for index in range(len(layers))]
        for index, tree in enumerate(trees):
            if jax.tree.map(jnp.shape, tree) != jax.tree.map(jnp.shape, trees[0]):
                raise ValueError(
                    f"{name}.layers_{index} has other parameters than {name}.layers_0."
                )
        rest = {key: value for key, value in branch.items() if key not in layers.values()}

        def joined(trees: list[Params]) -> Params:
            return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis), *trees)

        if not cycle:
            return rest | {"layers": joined(trees)}
        kinds = {kind: joined(trees[i :: len(cycle)]) for i, kind in enumerate(cycle)}
        return rest | {"layers": kinds}

    return _map_stacks(params, stack)


def unstack_layers(params: Params, *, axis: int = 1, cycle: tuple[str, ...] = ()) -> Params:
    """Parameters of an unrolled model from those of a scanned one; inverse of `stack_layers`."""

    def unstack(name: str, branch: Mapping[str, Any]) -> Params:
        if "layers" not in branch:
            return dict(branch)
        sizes = {leaf.shape[axis] for leaf in jax.tree.leaves(branch["layers"])}
        if len(sizes) != 1:
            raise ValueError(
                f"{name}.layers has {sorted(sizes)} entries along axis {axis}; every parameter must have the same "
                "number of layers there. Was it stacked along another axis?"
            )
        rest = {key: value for key, value in branch.items() if key != "layers"}
        kinds = [branch["layers"][kind] for kind in cycle] if cycle else [branch["layers"]]
        for index in range(sizes.pop()):
            for place, kind in enumerate(kinds):
                rest[f"layers_{index * len(kinds) + place}"] = jax.tree.map(
                    lambda leaf, i=index: jnp.take(leaf, i, axis=axis), kind
                )
        return rest

    return _map_stacks(params, unstack)


def stacked_name(number: int, cycle: tuple[str, ...]) -> tuple[str, int]:
    """Where layer `number` is among stacked parameters: the dotted name of its stack, and its place along the layer axis."""
    if not cycle:
        return "layers", number
    return f"layers.{cycle[number % len(cycle)]}", number // len(cycle)


def _map_stacks(params: Params, function: Any) -> Params:
    return {
        name: function(name, branch) if name in STACKS else branch
        for name, branch in params.items()
    }
