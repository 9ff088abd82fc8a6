"""Training gives the same result on every mesh."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxalign.errors import UserError
from jaxalign.losses.pairwise import dpo_loss
from jaxalign.networks.policy import Policy
from jaxalign.networks.value import ValueNetwork
from jaxalign.objectives.dro import DROV
from jaxalign.objectives.kto import KTO
from jaxalign.objectives.responses import Pairwise
from jaxalign.parallel import partitioning
from jaxalign.parallel.partitioning import MeshShape, check_batch_size, make_mesh
from jaxalign.training.optimizers import adafactor, adamw
from jaxalign.training.state import build_transformations, create_state, state_shardings
from jaxalign.training.step import jit_train_step, make_train_step

DPO = functools.partial(dpo_loss, beta=0.1)

MESHES = {
    "data2": (MeshShape(data=2), 2),
    "data8": (MeshShape(data=8), 8),
    "all": (MeshShape(data=2, fsdp=2, tensor=2), 8),
}
SLOW_MESHES = {"fsdp8": (MeshShape(data=1, fsdp=8), 8), "tensor2": (MeshShape(tensor=2), 8)}


@pytest.fixture(scope="module")
def drov(world):
    return DROV(policy=world.policy, value=world.value, temperature=0.5)


@pytest.fixture(scope="module")
def alone(world, drov):
    return world.train(drov, MeshShape(), 1)


def assert_same(found, expected):
    for one, other in zip(found[0], expected[0], strict=True):
        for name, value in other.items():
            np.testing.assert_allclose(one[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    for one, other in zip(
        jax.tree.leaves(found[1].params), jax.tree.leaves(expected[1].params), strict=True
    ):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name", [*MESHES, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW_MESHES)]
)
def test_one_two_and_eight_devices_give_the_same_trajectory(world, drov, alone, name):
    shape, devices = (MESHES | SLOW_MESHES)[name]
    found = world.train(drov, shape, devices)
    assert_same(found, alone)
    spread = {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(found[1].params)}
    assert spread == {devices}


def test_attention_in_blocks_on_a_mesh_gives_the_trajectory_of_whole_rows_on_one_device(
    world, alone
):
    config = world.policy.config.replace(blockwise_attention_length=8)  # that of the prompts
    policy, value = Policy(config), ValueNetwork(config)
    blocks = dataclasses.replace(world, policy=policy, value=value)
    objective = DROV(policy=policy, value=value, temperature=0.5)
    assert_same(blocks.train(objective, *MESHES["all"]), alone)


def test_microbatches_on_a_mesh(world, drov, alone):
    assert_same(world.train(drov, MeshShape(data=2), 2, microbatches=2), alone)


def test_kto_reference_point_is_that_of_the_global_batch(world):
    """This holds on one device, on eight devices, and with microbatches."""
    objective = KTO(policy=world.policy, reference="live")
    expected = world.train(objective, MeshShape(), 1, steps=1)[0][0]["reference_point"]
    for shape, devices, count in ((MeshShape(data=8), 8, 1), (MeshShape(data=2), 2, 4)):
        history, _ = world.train(objective, shape, devices, steps=1, microbatches=count)
        np.testing.assert_allclose(history[0]["reference_point"], expected, rtol=1e-5, atol=1e-6)


def test_log_ratios_are_zero_at_the_start_on_a_sharded_mesh(world):
    """The reference has the policy's parameters; the mesh splits every reduction."""
    objective = Pairwise(loss_function=DPO, policy=world.policy, reference="live")

    class Twins(type(world)):
        def params(self):
            params = super().params()
            return params | {"reference": params["policy"]}

    twins = Twins(world.policy, world.value)
    history, _ = twins.train(objective, MeshShape(data=2, fsdp=2, tensor=2), 8, steps=1)
    assert history[0]["log_ratio_squared"] == 0 and history[0]["loss"] == np.float32(np.log(2))


def test_a_mesh_that_does_not_divide_a_parameter_is_refused(world, drov):
    with pytest.raises(
        UserError,
        match=r"mesh axis tensor of size 4 does not divide dimension 0 \(size 2\) of parameter .*rel_embedding",
    ):
        world.train(drov, MeshShape(data=2, tensor=4), 8)


def test_a_mesh_that_does_not_fit_the_devices_or_the_batch_is_refused():
    with pytest.raises(UserError, match="needs 6 devices, but there are 8"):
        MeshShape(data=3, fsdp=2).resolve(8)
    with pytest.raises(UserError, match="3 does not divide"):
        MeshShape(fsdp=3).resolve(8)
    with pytest.raises(UserError, match="at most one mesh axis may be -1"):
        MeshShape(data=-1, fsdp=-1).resolve(8)
    with pytest.raises(
        UserError, match="batch size 12 is not a multiple of slice x data x fsdp = 8"
    ):
        check_batch_size(make_mesh(MeshShape()), 12, 1)
    with pytest.raises(UserError, match="times 4 microbatches"):
        check_batch_size(make_mesh(MeshShape()), 16, 4)
    assert MeshShape(tensor=2).resolve(8) == (1, 4, 1, 2)


@pytest.mark.parametrize("make", [adafactor, adamw])
def test_optimizer_slots_are_sharded_like_their_parameters(world, make):
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
    transformations = build_transformations({"policy": make(1e-3)}, {})
    params = {"policy": world.policy.abstract_params()}
    abstract = jax.eval_shape(lambda tree: create_state(tree, transformations), params)
    shardings = state_shardings(mesh, abstract, {"policy": world.policy.logical_axes()})
    kernel = shardings.params["policy"]["decoder"]["logits_dense"]["kernel"]
    assert kernel.spec == PartitionSpec("fsdp", "tensor")
    places = {
        "/".join(map(str, path)): (leaf.shape, sharding.spec)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(abstract.opt_state),
            jax.tree.leaves(shardings.opt_state),
            strict=True,
        )
    }
    slots = [
        spec
        for path, (shape, spec) in places.items()
        if "logits_dense" in path and shape == (16, 64)
    ]
    assert slots and all(spec == PartitionSpec("fsdp", "tensor") for spec in slots)
    assert all(spec == PartitionSpec() for shape, spec in places.values() if shape == ())


def test_activations_are_sharded_as_their_axis_names_say():
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))

    def constrain(x):
        return nn.with_logical_constraint(2 * x, ("batch", "length", "mlp"))

    with partitioning.set_mesh(mesh):
        found = jax.jit(constrain)(jnp.ones((8, 4, 16)))
    assert found.sharding.spec == PartitionSpec(("data", "fsdp"), None, "tensor")


def test_the_step_donates_its_state(world, drov, random_batch):
    """Two copies of parameters and optimizer state would not fit into memory."""
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    roles = drov.trained()
    transformations = build_transformations(dict.fromkeys(roles, adafactor()), {})
    params = world.params()
    state = create_state({role: params[role] for role in roles}, transformations)
    shardings = jax.tree.map(lambda _: partitioning.replicated_sharding(mesh), state)
    batch = random_batch(0)
    step = jit_train_step(make_train_step(drov, transformations), mesh, shardings, {}, batch)
    shapes = jax.eval_shape(lambda: (state, {}, batch))
    text = step.lower(*shapes).as_text()
    donated = text.count("tf.aliasing_output") + text.count("jax.buffer_donor")
    # Adafactor's placeholders have one element and are not counted.
    assert donated >= sum(leaf.size > 1 for leaf in jax.tree.leaves(state))
