"""Parameters of the parts that a network has in addition to the T5 of its initial checkpoint; they begin with random values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from jaxalign.networks.leaves import merge_leaves
from jaxalign.networks.network_config import NetworkConfig
from jaxalign.networks.shapes import Params
from jaxalign.parallel import partitioning


def lacking(config: Any, stored: NetworkConfig | None) -> dict[str, Any]:
    """Returns the fields of the extensions that a network has and a stored one has not, with the values of the stored one.

    Args:
      config: of the network; one that is no encoder-decoder lacks nothing.
      stored: of the stored network; None for a checkpoint of another system.
    """
    if not isinstance(config, NetworkConfig) or not isinstance(stored, type(config) | None):
        return {}
    stored = stored or config.stock()
    return {
        name: stock
        for name, stock in config.EXTENSIONS.items()
        if getattr(stored, name) == stock and getattr(config, name) != stock
    }


def without(network: Any, fields: Mapping[str, Any]) -> Any:
    """Returns the network without these extensions."""
    if not fields:
        return network
    return dataclasses.replace(network, config=network.config.replace(**fields))


def completed(
    network: Any, params: Params, rng: PRNGKeyArray, mesh: Mesh, shardings: Any
) -> Params:
    """Returns the parameters of a network, from those of the network without its extensions and freshly initialised ones.

    Args:
      network: with its extensions.
      params: those that are already there.
      rng: the key of the initialisation.
      mesh: the mesh of the run.
      shardings: a tree with a sharding for each parameter of `network`.
    """

    def fresh(rng: PRNGKeyArray) -> Params:
        return _other_leaves(network.init(rng), params)

    with partitioning.set_mesh(mesh):
        made = jax.jit(fresh, out_shardings=_other_leaves(shardings, params))(rng)
    return merge_leaves(params, made)


def _other_leaves(tree: Mapping[str, Any], there: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the branches of nested dictionaries that another tree does not have."""
    found: dict[str, Any] = {}
    for name, branch in tree.items():
        if name not in there:
            found[name] = branch
        elif isinstance(branch, Mapping):
            inner = _other_leaves(branch, there[name])
            found |= {name: inner} if inner else {}
    return found
