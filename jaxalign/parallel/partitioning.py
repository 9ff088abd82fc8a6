"""Meshes and shardings: rules map the logical axis names of arrays to mesh axes.

Parameters carry T5X's logical names (vocab, embed, mlp, heads, joined_kv, relpos_buckets, layers). Activations carry batch, length and so
on. `LOGICAL_AXIS_RULES` maps these names to the mesh axes ``slice`` and ``data`` (batch only), ``fsdp`` (batch and parameters) and
``tensor`` (model parallel).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jaxalign.errors import UserError
from jaxalign.parallel.accelerators import Accelerator, find_accelerator

MESH_AXES = ("slice", "data", "fsdp", "tensor")
BATCH_AXES = ("slice", "data", "fsdp")

AxisRules = Sequence[tuple[str, str | tuple[str, ...] | None]]

# In order of priority: the first rule whose mesh axis is still free in an array applies, as in T5X. The batch axis of an activation
# therefore takes data and fsdp before its embed axis can, while the embed axis of a parameter takes fsdp.
LOGICAL_AXIS_RULES: AxisRules = (
    ("batch", BATCH_AXES),
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

BATCH_SPEC = PartitionSpec(BATCH_AXES)


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """The number of devices on each mesh axis.

    If no axis is given, the accelerator's default applies. One axis may be -1 and then takes all remaining devices.

    Attributes:
      slice: copies of the parameters on separate slices, which the data-centre network connects; by default the number of slices.
      data: copies of the parameters within a slice; by default all devices that the other axes leave.
      fsdp: devices over which parameters and batch are sharded; by default 1 if another axis is given.
      tensor: model parallelism within a layer; by default 1.
    """

    slice: int | None = None
    data: int | None = None
    fsdp: int | None = None
    tensor: int | None = None

    def __post_init__(self) -> None:
        for name, size in dataclasses.asdict(self).items():
            if size is not None and (size == 0 or size < -1):
                raise UserError(
                    f"mesh axes must be positive, or one of them -1 for the rest: MESH_{name.upper()} is {size}"
                )

    def __str__(self) -> str:
        sizes = dataclasses.asdict(self).items()
        given = [f"MESH_{name.upper()}={size}" for name, size in sizes if size is not None]
        return ", ".join(given) or "the default mesh"

    def resolve(
        self, num_devices: int, *, num_slices: int = 1, max_fsdp: int = 1
    ) -> tuple[int, int, int, int]:
        """Returns the sizes of slice, data, fsdp and tensor for a number of devices.

        Args:
          num_devices: devices of all slices together.
          num_slices: slices that hold these devices.
          max_fsdp: the largest number of devices of a slice over which the default mesh shards parameters.

        Raises:
          UserError: if the product of the axes is not the number of devices.
        """
        given = (self.slice, self.data, self.fsdp, self.tensor)
        slices = num_slices if self.slice is None else self.slice
        tensor = 1 if self.tensor is None else self.tensor
        if given == (None,) * 4:
            fsdp: int = math.gcd(num_devices // slices, max_fsdp)
        else:
            fsdp = 1 if self.fsdp is None else self.fsdp
        # If another axis is -1, it takes the remaining devices, and data takes none.
        rest = 1 if -1 in (slices, fsdp, tensor) else -1
        sizes = [slices, rest if self.data is None else self.data, fsdp, tensor]
        if sizes.count(-1) > 1:
            raise UserError(f"at most one mesh axis may be -1: {self}")
        if -1 in sizes:
            known = math.prod(size for size in sizes if size != -1)
            if num_devices % known:
                raise UserError(
                    f"{num_devices} devices cannot be split into {self}: {known} does not divide them"
                )
            sizes[sizes.index(-1)] = num_devices // known
        if math.prod(sizes) != num_devices:
            where = f" on {num_slices} slices (MESH_SLICE)" if num_slices > 1 else ""
            raise UserError(
                f"{self} needs {math.prod(sizes)} devices, but there are {num_devices}{where}"
            )
        return sizes[0], sizes[1], sizes[2], sizes[3]


def default_mesh_shape(
    accelerator: Accelerator, num_devices: int, num_slices: int = 1
) -> MeshShape:
    """Returns the default mesh of a run: parameters sharded over a slice (up to ``max_fsdp`` chips), and copies on the remaining chips.

    Args:
      accelerator: the kind of chip.
      num_devices: devices of all slices together.
      num_slices: slices that hold these devices.
    """
    sizes = MeshShape().resolve(num_devices, num_slices=num_slices, max_fsdp=accelerator.max_fsdp)
    return MeshShape(*sizes)


def make_mesh(shape: MeshShape = MeshShape(), devices: list[Any] | None = None) -> Mesh:
    """Arranges the devices (by default all) as a mesh with the axes slice, data, fsdp and tensor.

    Neighbours on the interconnect become neighbours on the mesh. Only the axis ``slice`` connects different TPU slices.

    Raises:
      UserError: if the product of the axes is not the number of devices, or if ``slice`` is not a multiple of the number of slices.
    """
    everything = devices is None
    devices = list(jax.devices()) if devices is None else list(devices)
    num_slices = len({getattr(device, "slice_index", 0) for device in devices})
    accelerator = find_accelerator(devices[0])
    sizes = shape.resolve(
        len(devices),
        num_slices=num_slices,
        max_fsdp=1 if accelerator is None else accelerator.max_fsdp,
    )
    if sizes[0] % num_slices:
        raise UserError(
            f"mesh axis slice of size {sizes[0]} does not fit devices on {num_slices} slices; leave it out or make it {num_slices}"
        )
    if everything or accelerator is not None:
        arranged = _arrange(sizes, num_slices, devices)
    else:
        arranged = np.asarray(devices).reshape(sizes)
    return Mesh(arranged, MESH_AXES)


def _arrange(sizes: tuple[int, ...], num_slices: int, devices: list[Any]) -> np.ndarray:
    """Arranges devices by their position on the interconnect; a mesh axis may take a part of one axis of the topology."""
    inner = (sizes[0] // num_slices, *sizes[1:])

    def arrange(split: bool) -> np.ndarray:
        if num_slices > 1:
            return mesh_utils.create_hybrid_device_mesh(
                inner, (num_slices, 1, 1, 1), devices, allow_split_physical_axes=split
            )
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=split)

    try:
        try:
            return arrange(False)
        except NotImplementedError:
            return arrange(True)
    except (NotImplementedError, ValueError) as error:
        named = ", ".join(f"{name} {size}" for name, size in zip(MESH_AXES, sizes, strict=True))
        raise UserError(
            f"{len(devices)} x {devices[0].device_kind} cannot be arranged as {named}: {error}; choose other mesh axes"
        ) from error


@contextlib.contextmanager
def set_mesh(mesh: Mesh) -> Iterator[None]:
    """Sets the mesh to which logical sharding constraints inside networks refer while a function is traced."""
    # Flax's constraints have no effect under a plain `with mesh`.
    with jax.set_mesh(mesh), nn.logical_axis_rules(LOGICAL_AXIS_RULES):
        yield


def parameter_shardings(mesh: Mesh | AbstractMesh, logical_axes: Any, rules: AxisRules = ()) -> Any:
    """Maps a tree of logical `PartitionSpec` to `NamedSharding`; ``rules`` take precedence over `LOGICAL_AXIS_RULES`."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, mesh_axes(spec, rules)),
        logical_axes,
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )


def role_shardings(
    mesh: Mesh | AbstractMesh, shapes: Any, logical_axes: Any | None, rules: AxisRules = ()
) -> Any:
    """Returns the shardings of one role's parameters, replicated if the role has no logical axes."""
    if logical_axes is None:
        return jax.tree.map(lambda _: replicated_sharding(mesh), shapes)
    shardings = parameter_shardings(mesh, logical_axes, rules)
    check_divisible(shapes, shardings)
    return shardings


def mesh_axes(logical: Sequence[str | None], rules: AxisRules = ()) -> PartitionSpec:
    """Returns the mesh axes of an array's logical axes; ``rules`` take precedence over `LOGICAL_AXIS_RULES`."""
    found = nn.logical_to_mesh_axes(tuple(logical), (*rules, *LOGICAL_AXIS_RULES))
    return PartitionSpec() if found is None else found


def check_axis_rules(
    rules: Mapping[str, Any], roles: Collection[str]
) -> dict[str, tuple[tuple[str, str | tuple[str, ...] | None], ...]]:
    """Checks rules by role as gin gives them, and converts their lists to tuples.

    Raises:
      UserError: for a role that is not trained, or an unknown logical or mesh axis.
    """
    logical = {name for name, _ in LOGICAL_AXIS_RULES}
    checked: dict[str, Any] = {}
    for role, given in rules.items():
        if role not in roles:
            raise UserError(
                f"axis_rules name role {role!r}; this method trains {', '.join(sorted(roles))}"
            )
        checked[role] = ()
        for rule in given:
            if len(rule) != 2 or rule[0] not in logical:
                raise UserError(
                    f"axis_rules of role {role!r} hold {rule!r}, not (logical axis, mesh axes); logical axes are "
                    f"{', '.join(sorted(logical))}"
                )
            axes = tuple(rule[1]) if isinstance(rule[1], list) else rule[1]
            unknown = {axes} if isinstance(axes, str) else set(axes or ())
            if unknown - set(MESH_AXES):
                raise UserError(
                    f"axis_rules of role {role!r} map {rule[0]!r} to {rule[1]!r}; mesh axes are {', '.join(MESH_AXES)}"
                )
            checked[role] += ((rule[0], axes),)
    return checked


def replicated_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding of scalars and metrics."""
    return NamedSharding(mesh, PartitionSpec())


def batch_shardings(mesh: Mesh, batch: Mapping[str, Any]) -> dict[str, NamedSharding]:
    """Returns the shardings of a batch: its rows are split over slice, data and fsdp."""
    return {name: NamedSharding(mesh, BATCH_SPEC) for name in batch}


def check_divisible(shapes: Any, shardings: Any) -> None:
    """Checks that the mesh divides every parameter.

    Raises:
      UserError: if it does not; the message names the parameter, its dimension and the mesh axis.
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
    """Checks that the rows of a batch can be split over the mesh and the microbatches.

    Raises:
      UserError: if they cannot; the message names the sizes.
    """
    parts = math.prod(mesh.shape[name] for name in BATCH_AXES)
    if microbatches < 1 or batch_size % (parts * microbatches):
        raise UserError(
            f"batch size {batch_size} is not a multiple of slice x data x fsdp = {parts} devices times {microbatches} microbatches"
        )


def make_global_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Builds global arrays from this process's rows of a batch."""
    sharding = NamedSharding(mesh, BATCH_SPEC)
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(array))
        for name, array in batch.items()
    }
