"""Checkpoints: another mesh, one role, shapes that do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxalign.errors import UserError
from jaxalign.parallel.partitioning import MeshShape, make_mesh
from jaxalign.runs.checkpoints import find_checkpoint, restore_params
from jaxalign.training.checkpointing import Checkpointer, CheckpointPolicy
from jaxalign.training.optimizers import adamw, sgd
from jaxalign.training.state import build_transformations, create_state


def make_state(rows=8, optimizer=None, **roles):
    params = {
        "policy": {"kernel": jnp.arange(rows * 4.0).reshape(rows, 4)},
        "value": {"head": {"bias": jnp.ones(2)}},
        # A value without parameters of its own.
        "empty": {},
        **roles,
    }
    optimizers = dict.fromkeys(params, optimizer or adamw())
    return create_state(params, build_transformations(optimizers, {}))


def placed(state, mesh, spec):
    """Matrices split, the rest replicated."""
    return jax.tree.map(
        lambda leaf: NamedSharding(mesh, spec if leaf.ndim == 2 else PartitionSpec()), state
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with checkpoint 0, written from a mesh of eight."""
    folder = tmp_path_factory.mktemp("run")
    state = make_state()
    mesh = make_mesh(MeshShape(data=2, fsdp=4))
    state = jax.device_put(state, placed(state, mesh, PartitionSpec("fsdp")))
    checkpointer = Checkpointer(folder, CheckpointPolicy())
    checkpointer.save(state, {"position": 7}, {"note": "hello"})
    checkpointer.close()
    return folder


@pytest.mark.parametrize(("shape", "devices"), [(MeshShape(), 1), (MeshShape(fsdp=2, tensor=4), 8)])
def test_a_checkpoint_moves_to_another_mesh(run, shape, devices):
    expected = make_state()
    mesh = make_mesh(shape, jax.devices()[:devices])
    places = placed(expected, mesh, PartitionSpec("fsdp", "tensor"))
    checkpointer = Checkpointer(run)
    state, data = checkpointer.restore(jax.eval_shape(lambda: expected), places)
    checkpointer.close()
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert data == {"position": 7}
    assert state.params["policy"]["kernel"].sharding == places.params["policy"]["kernel"]
    assert jax.tree.structure(state) == jax.tree.structure(expected)


def test_one_role_is_read_alone(run):
    params = restore_params(run, "value")
    np.testing.assert_array_equal(params["head"]["bias"], [1, 1])
    assert params.keys() == {"head"}
    by_folder = restore_params(run / "checkpoints" / "0", "policy")
    np.testing.assert_array_equal(by_folder["kernel"], make_state().params["policy"]["kernel"])


def test_a_role_that_is_not_there_is_reported(run):
    with pytest.raises(UserError, match=r"has no role 'reward'; it has .*policy, value"):
        restore_params(run, "reward")


def test_shapes_that_do_not_fit_are_reported(run):
    wrong = {"kernel": jax.ShapeDtypeStruct((8, 5), jnp.float32)}
    with pytest.raises(
        UserError, match=r"\['kernel'\] has shape \(8, 4\), the model expects \(8, 5\)"
    ):
        restore_params(run, "policy", abstract=wrong)


OTHER_STATES = {
    "params policy.kernel has shape \\(8, 4\\), and \\(16, 4\\) in this run;": make_state(rows=16),
    "it has optimizer opt_state.empty.0.count of shape \\(\\), which this run does not have;": make_state(
        optimizer=sgd(1e-2)
    ),
    "it lacks params reward.bias of shape \\(3,\\), which this run needs;": make_state(
        reward={"bias": jnp.ones(3)}
    ),
}


@pytest.mark.parametrize("message", OTHER_STATES)
def test_the_array_that_does_not_fit_is_named(run, message):
    other = OTHER_STATES[message]
    checkpointer = Checkpointer(run)
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    with pytest.raises(UserError, match=rf"0 does not fit this model or optimizer: {message}"):
        checkpointer.restore(jax.eval_shape(lambda: other), placed(other, mesh, PartitionSpec()))
    checkpointer.close()


def test_a_folder_without_checkpoints_is_reported(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint under .*finished or running training run"):
        find_checkpoint(tmp_path)
    with pytest.raises(UserError, match="best_mode is 'mean'; it must be one of 'min', 'max'"):
        Checkpointer(tmp_path, CheckpointPolicy(best_mode="mean"))
