"""Meshes and shardings: logical axis names on one side, mesh axes on the other.

Parameters carry T5X's logical names (vocab, embed, mlp, heads, joined_kv, relpos_buckets, layers), activations batch, length and so on.
`LOGICAL_AXIS_RULES` maps them to the mesh axes ``data`` (batch only), ``fsdp`` (batch and parameters) and ``tensor`` (model parallel).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")

# Priority order: the first rule whose mesh axis is still free in an array wins, as in T5X. So an activation's batch takes data and
# fsdp before its embed can, while a parameter's embed takes fsdp.
LOGICAL_AXIS_RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("batch", ("data", "fsdp")),
    ("vocab", "tensor"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("joined_kv", "tensor"),
    ("embed", "fsdp"),
    ("kv", None),
    ("length", None),
    ("relpos_buckets", None),
    ("layers", None),
    ("value", None),
)

BATCH_SPEC = PartitionSpec(("data", "fsdp"))


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """How many devices each mesh axis takes; one of them may be -1 for all that remain.

    Attributes:
      data: copies of the parameters, each on a slice of the batch.
      fsdp: slices of the batch over which the parameters are sharded too.
      tensor: model parallelism within a layer.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def resolve(self, num_devices: int) -> tuple[int, int, int]:
        """The sizes for a number of devices.

        Raises:
          UserError: if the product of the axes is not the number of devices.
        """
        sizes = [self.data, self.fsdp, self.tensor]
        if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
            raise UserError(f"mesh axes must be positive, and at most one may be -1: {self}")
        if -1 in sizes:
            known = math.prod(size for size in sizes if size != -1)
            if num_devices % known:
                raise UserError(
                    f"{num_devices} devices cannot be split into {self}: {known} does not divide them"
                )
            sizes[sizes.index(-1)] = num_devices // known
        if math.prod(sizes) != num_devices:
            raise UserError(f"{self} needs {math.prod(sizes)} devices, but there are {num_devices}")
        return sizes[0], sizes[1], sizes[2]


def make_mesh(shape: MeshShape = MeshShape(), devices: list[Any] | None = None) -> Mesh:
    """Arranges the devices (all by default) as a mesh with axes data, fsdp and tensor."""
    devices = jax.devices() if devices is None else devices
    sizes = shape.resolve(len(devices))
    if len(devices) == len(jax.devices()):
        from jax.experimental import mesh_utils

        return Mesh(mesh_utils.create_device_mesh(sizes, devices=devices), MESH_AXES)
    return Mesh(np.asarray(devices).reshape(sizes), MESH_AXES)


@contextlib.contextmanager
def activate(mesh: Mesh) -> Iterator[None]:
    """Makes logical sharding constraints inside networks refer to a mesh while a function is traced."""
    # `with mesh` alone would leave Flax's constraints without effect.
    with jax.set_mesh(mesh), nn.logical_axis_rules(LOGICAL_AXIS_RULES):
        yield


def parameter_shardings(mesh: Mesh, logical_axes: Any) -> Any:
    """Maps a tree of logical `PartitionSpec` to `NamedSharding`."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, nn.logical_to_mesh_axes(spec, LOGICAL_AXIS_RULES)),
        logical_axes,
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of scalars and metrics."""
    return NamedSharding(mesh, PartitionSpec())


def batch_shardings(mesh: Mesh, batch: Mapping[str, Any]) -> dict[str, NamedSharding]:
    """Rows are split over data and fsdp."""
    return {name: NamedSharding(mesh, BATCH_SPEC) for name in batch}


def check_divisible(shapes: Any, shardings: Any) -> None:
    """Refuses a mesh that does not divide a parameter.

    Raises:
      UserError: naming the parameter, its dimension and the mesh axis.
    """

    def check(path: Any, shape: Any, sharding: NamedSharding) -> None:
        for dimension, axes in enumerate(sharding.spec):
            if axes is None:
                continue
            names = axes if isinstance(axes, tuple) else (axes,)
            parts = math.prod(sharding.mesh.shape[name] for name in names)
            if shape.shape[dimension] % parts:
                raise UserError(
                    f"mesh axis {'x'.join(names)} of size {parts} does not divide dimension {dimension} (size "
                    f"{shape.shape[dimension]}) of parameter {jax.tree_util.keystr(path)} {shape.shape}; choose another mesh"
                )

    jax.tree_util.tree_map_with_path(check, shapes, shardings)


def check_batch_size(mesh: Mesh, batch_size: int, microbatches: int) -> None:
    """Refuses a batch whose rows cannot be spread over the mesh and the microbatches.

    Raises:
      UserError: naming the sizes.
    """
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if microbatches < 1 or batch_size % (parts * microbatches):
        raise UserError(
            f"batch size {batch_size} is not a multiple of data x fsdp = {parts} devices times {microbatches} microbatches"
        )


def optimizer_state_shardings(mesh: Mesh, abstract_state: Any, params: Any, shardings: Any) -> Any:
    """Shards every optimizer slot that has the shape of its parameter like that parameter; replicates the rest.

    Factored second moments and counters are small, so replicating them costs little.

    Args:
      mesh: the mesh.
      abstract_state: shapes of the optimizer state.
      params: shapes of the role's parameters.
      shardings: their shardings.
    """
    by_path = {
        tuple(_key(entry) for entry in path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
        )
    }
    longest = max((len(path) for path in by_path), default=0)

    def shard(path: Any, leaf: Any) -> NamedSharding:
        keys = tuple(_key(entry) for entry in path)
        for length in range(min(longest, len(keys)), 0, -1):
            match = by_path.get(keys[-length:])
            if match is not None and match[0] == leaf.shape:
                return match[1]
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(shard, abstract_state)


def _key(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Makes global arrays of this process's rows of a batch."""
    sharding = NamedSharding(mesh, BATCH_SPEC)
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(array))
        for name, array in batch.items()
    }
