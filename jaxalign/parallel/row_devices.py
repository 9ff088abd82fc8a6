"""Divides the rows of inference among the devices on which a network's parameters lie.

Training has its own mesh (`parallel.devices`). Here the parameters decide: where each device holds a copy, or a part, of them, the rows of
every batch are split over the batch axes of their mesh, so that one program serves all devices.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding

from jaxalign.errors import UserError
from jaxalign.parallel import partitioning
from jaxalign.parallel.partitioning import BATCH_AXES, BATCH_SPEC, MeshShape

# Devices over which every copy of a network is divided.
_parts = 1


@contextlib.contextmanager
def divided_networks(parts: int) -> Iterator[None]:
    """Divides every copy of a network that is read from a run meanwhile over so many devices of this process (tensor parallelism).

    Raises:
      UserError: the number of devices is no multiple of it.
    """
    global _parts
    count = jax.local_device_count()
    if count % parts:
        raise UserError(
            f"--model_devices={parts} does not divide the {count} devices of this process"
        )
    before, _parts = _parts, parts
    try:
        yield
    finally:
        _parts = before


def local_mesh(devices: list[Any] | None = None) -> Mesh:
    """Returns a mesh of copies over the devices of this process, each of which has as many as `divided_networks` says.

    On a CPU it has the devices of one copy alone, because several devices of a CPU share its cores.

    Args:
      devices: by default the local ones, or on a CPU the first of them.
    """
    if devices is None:
        devices = jax.local_devices()
        devices = devices[:_parts] if devices[0].platform == "cpu" else devices
    return partitioning.make_mesh(MeshShape(slice=1, data=-1, fsdp=1, tensor=_parts), devices)


def divided_shardings(network: Any) -> Any:
    """Returns where the parts of a network lie by default; None if it is not divided (`default_sharding`).

    Raises:
      UserError: a parameter cannot be divided; the message names it.
    """
    if _parts == 1:
        return None
    return partitioning.role_shardings(
        local_mesh(), network.abstract_params(), network.logical_axes(), ()
    )


def default_sharding(devices: list[Any] | None = None) -> NamedSharding | SingleDeviceSharding:
    """Returns where a network of a run lies by default: a copy on every device of `local_mesh`, with the same argument."""
    mesh = local_mesh(devices)
    if mesh.size == 1:
        return SingleDeviceSharding(mesh.devices.item())
    # Copies alone: the parts of a divided network would be gathered for every token.
    return partitioning.replicated_sharding(mesh)


def divisible_rows(mesh: Mesh, rows: int) -> int:
    """Returns the least number of rows, not below `rows`, that the batch axes of a mesh divide."""
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    return -(-rows // parts) * parts


class RowDevices:
    """The devices among which rows are divided.

    Args:
      params: the parameters of the network that computes.
    """

    def __init__(self, params: Any) -> None:
        self._mesh = _mesh_of(params)

    def multiple(self, rows: int) -> int:
        """Returns the least number of rows, not below `rows`, that can be divided."""
        return rows if self._mesh is None else divisible_rows(self._mesh, rows)

    def put(self, tree: Any) -> Any:
        """Puts arrays on the devices: divided by their first dimension, numbers as copies."""
        mesh = self._mesh
        if mesh is None:
            return tree
        rows, copies = NamedSharding(mesh, BATCH_SPEC), partitioning.replicated_sharding(mesh)
        return jax.tree.map(lambda leaf: jax.device_put(leaf, rows if leaf.ndim else copies), tree)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Sets the mesh to which the constraints of networks refer."""
        if self._mesh is None:
            yield
            return
        with partitioning.set_mesh(self._mesh):
            yield


def _mesh_of(params: Any) -> Mesh | None:
    for leaf in jax.tree.leaves(params):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            return sharding.mesh if sharding.mesh.size > 1 else None
    return None
