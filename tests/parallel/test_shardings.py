"""Shardings: snapshot files, default meshes, rules of a role, and the dimension that a factored slot keeps."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxalign.errors import UserError
from jaxalign.parallel import partitioning
from jaxalign.parallel.accelerators import ACCELERATORS, find_accelerator
from jaxalign.parallel.optimizer_shardings import optimizer_state_shardings
from jaxalign.parallel.partitioning import MeshShape, default_mesh_shape, make_mesh
from jaxalign.training.optimizers import adafactor
from jaxalign.training.state import state_shardings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location(
        "sharding_snapshots", ROOT / "scripts" / "sharding_snapshots.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("size", ["large", "xl", "xxl"])
def test_shardings_equal_the_snapshot(script, size):
    written = (script.FOLDER / f"t5_1_1_{size}.txt").read_text(encoding="utf-8")
    assert script.snapshot(size) == written, (
        "if the change is intended: python scripts/sharding_snapshots.py"
    )


class Device:
    def __init__(self, kind):
        self.device_kind = kind


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("cpu", None),
    ],
)
def test_an_accelerator_is_identified_by_its_device_kind(kind, name):
    found = find_accelerator(Device(kind))
    assert (found and found.name) == name


@pytest.mark.parametrize("name", ACCELERATORS)
@pytest.mark.parametrize(
    ("devices", "slices"), [(1, 1), (4, 1), (16, 1), (32, 1), (256, 1), (64, 2), (48, 3)]
)
def test_default_meshes_use_every_chip_and_divide_the_models(name, devices, slices):
    shape = default_mesh_shape(ACCELERATORS[name], devices, slices)
    sizes = shape.resolve(devices)
    assert np.prod(sizes) == devices and sizes[0] == slices and sizes[3] == 1
    # The widths of T5 1.1 from Small to XXL.
    assert all(width % sizes[2] == 0 for width in (512, 768, 1024, 2048, 4096))


def test_axes_that_are_not_given_get_their_defaults():
    assert MeshShape().resolve(8) == (1, 8, 1, 1)
    assert MeshShape().resolve(8, num_slices=2) == (2, 4, 1, 1)
    assert MeshShape().resolve(8, num_slices=2, max_fsdp=64) == (2, 1, 4, 1)
    assert MeshShape(fsdp=-1).resolve(8) == (1, 1, 8, 1)
    assert MeshShape(fsdp=-1, tensor=2).resolve(8, num_slices=2) == (2, 1, 2, 2)
    assert MeshShape(data=2, fsdp=-1).resolve(8) == (1, 2, 4, 1)
    with pytest.raises(UserError, match="needs 4 devices, but there are 8"):
        MeshShape(data=4).resolve(8)


def test_the_batch_is_spread_over_slices_too():
    mesh = make_mesh(MeshShape(slice=2, data=2, fsdp=2))
    batch = partitioning.make_global_batch(mesh, {"x": np.arange(8.0)})
    shards = sorted((each.device.id, float(each.data[0])) for each in batch["x"].addressable_shards)
    assert shards == [(index, float(index)) for index in range(8)]


@pytest.mark.parametrize("shape", [(256, 128), (128, 256), (128, 128)])
@pytest.mark.parametrize("stacked", [False, True])
def test_factored_slots_are_sharded_like_the_dimension_they_keep(shape, stacked):
    """A gradient that varies along one dimension only shows which dimension a slot keeps, for square parameters too."""
    names = ("embed", "mlp")
    steps = np.arange(1.0, max(shape) + 1)
    gradient = jnp.asarray(steps[: shape[0], None] * np.ones(shape), jnp.float32)
    axes = PartitionSpec(*names)
    if stacked:
        gradient = jnp.stack([gradient] * 3, axis=1)
        axes = PartitionSpec("embed", "layers", "mlp")
    tree = {"encoder": {"layers": {"kernel": gradient}}} if stacked else {"kernel": gradient}
    spec = {"encoder": {"layers": {"kernel": axes}}} if stacked else {"kernel": axes}
    rule = adafactor(1e-2).build(1.0)
    _, state = rule.update(tree, rule.init(tree), tree)
    mesh = make_mesh(MeshShape(data=1, fsdp=4, tensor=2))
    shardings = optimizer_state_shardings(mesh, state, tree, spec)
    checked = 0
    for (path, slot), sharding in zip(
        jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(shardings), strict=True
    ):
        if (slot.size <= 128 and slot.shape != (128,)) or "v_" not in jax.tree_util.keystr(path):
            continue
        differs = not np.allclose(slot[..., :1], slot)
        expected = "fsdp" if differs else "tensor"
        assert tuple(sharding.spec) == (*[None] * (slot.ndim - 1), expected), path
        checked += 1
    assert checked == 2


def test_rules_of_a_role_change_that_role_only(world):
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
    networks = {"policy": world.policy, "value": world.value}
    abstract = jax.eval_shape(
        lambda: partitioning_state({role: net.abstract_params() for role, net in networks.items()})
    )
    axes = {role: net.logical_axes() for role, net in networks.items()}
    rules = partitioning.check_axis_rules(
        {"value": [["mlp", None], ["embed", ["data", "fsdp"]]]}, networks
    )
    shardings = state_shardings(mesh, abstract, axes, rules)

    def wi(role):
        return shardings.params[role]["encoder"]["layers_0"]["mlp"]["wi_0"]["kernel"].spec

    assert wi("policy") == PartitionSpec("fsdp", "tensor")
    assert wi("value") == PartitionSpec(("data", "fsdp"), None)


def partitioning_state(params):
    from jaxalign.training.state import create_state

    return create_state(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), params), {})


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"critic": [("mlp", None)]}, "name role 'critic'; this method trains policy"),
        ({"policy": [("width", None)]}, "logical axes are batch, embed"),
        ({"policy": [("mlp", "model")]}, "mesh axes are slice, data, fsdp, tensor"),
    ],
)
def test_rules_with_unknown_names_are_refused(rules, message):
    with pytest.raises(UserError, match=message):
        partitioning.check_axis_rules(rules, {"policy": None})


class Chip:
    """A chip of a simulated TPU slice, with the attributes that JAX reads to arrange it."""

    platform, device_kind, slice_index, core_on_chip = "tpu", "TPU v5 lite", 0, 0

    def __init__(self, number, coords):
        self.id, self.coords, self.process_index = number, coords, number // 8


@pytest.mark.parametrize(
    ("topology", "sizes"),
    [
        ((4, 4), (1, 1, 16, 1)),
        ((4, 4), (1, 2, 8, 1)),
        ((4, 4), (1, 1, 8, 2)),
        ((4, 8), (1, 2, 16, 1)),
        ((16, 16), (1, 4, 64, 1)),
    ],
)
def test_an_axis_may_take_part_of_a_topologys_axis(topology, sizes):
    wide, high = topology
    chips = [Chip(x + wide * y, (x, y, 0)) for y in range(high) for x in range(wide)]
    arranged = partitioning._arrange(sizes, 1, chips)
    assert arranged.shape == sizes
    assert sorted(chip.id for chip in arranged.flat) == list(range(wide * high))


def test_a_mesh_that_does_not_fit_a_topology_is_refused_by_name():
    chips = [Chip(x + 4 * y, (x, y, 0)) for y in range(4) for x in range(4)]
    with pytest.raises(UserError, match="16 x TPU v5 lite cannot be arranged as slice 1, data 1"):
        partitioning._arrange((1, 1, 5, 3), 1, chips)
