"""A network whose trunk is frozen: optimizer, step and checkpoint follow what it says it trains."""

import jax
import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.networks.leaves import merge_roles
from jaxalign.objectives.value_regression import ValueRegression
from jaxalign.parallel import partitioning
from jaxalign.parallel.partitioning import MeshShape
from jaxalign.runs.checkpoints import restore_frozen_leaves, restore_params
from jaxalign.training import build
from jaxalign.training.checkpointing import Checkpointer
from jaxalign.training.optimizers import adamw
from jaxalign.training.state import create_state


@pytest.fixture(scope="module")
def mesh():
    return partitioning.make_mesh(MeshShape(data=2, fsdp=4), jax.devices())


@pytest.fixture(scope="module")
def objective(world):
    return ValueRegression(policy=world.policy, value=world.value, freeze_trunk=True)


@pytest.fixture(scope="module")
def start(objective):
    return {"value": objective.value.init(jax.random.key(0))}


@pytest.fixture(scope="module")
def trained(objective, mesh, start, random_batch):
    """The state after two steps, and the frozen leaves that the step read."""
    params, leaves = build.split_params(objective, start)
    # Weight decay would change every parameter that the optimizer sees.
    optimizer = adamw(0.1, weight_decay=0.5)
    transformations = build.make_transformations(objective, {"policy": optimizer})
    _, places = build.frozen_leaves(objective, mesh, {})
    built = build.build_step(
        objective,
        transformations=transformations,
        abstract=build.abstract_state(objective, transformations),
        mesh=mesh,
        rules={},
        frozen_shardings=places,
        batch=random_batch(0),
    )
    state = jax.device_put(create_state(params, transformations), built.shardings)
    frozen = jax.device_put(leaves, places)
    for seed in range(2):
        state, metrics = built.step(
            state, frozen, partitioning.make_global_batch(mesh, random_batch(seed))
        )
    assert metrics["finite"].total == 1
    return state, frozen


def test_frozen_leaves_do_not_change_and_the_head_does(start, trained):
    before = start["value"]
    after = merge_roles(trained[1], trained[0].params)["value"]
    assert jax.tree.structure(after) == jax.tree.structure(before)
    for name in ("encoder", "token_embedder"):
        jax.tree.map(np.testing.assert_array_equal, after[name], before[name])
    assert not np.array_equal(after["head"]["kernel"], before["head"]["kernel"])


def test_the_state_holds_parameters_and_optimizer_slots_of_the_head_only(trained, world):
    assert trained[0].params["value"].keys() == {"head"}
    head = {(world.value.config.emb_dim, 1), (1,), ()}
    assert {leaf.shape for leaf in jax.tree.leaves(trained[0].opt_state)} <= head


def test_checkpoints_hold_the_head_and_the_run_holds_the_rest_once(
    objective, trained, tmp_path, mesh
):
    state, frozen = trained
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save_frozen_leaves(frozen)
    checkpointer.save(state, None, {})
    checkpointer.close()
    whole = restore_params(tmp_path, "value", abstract=objective.value.abstract_params())
    expected = merge_roles(frozen, state.params)["value"]
    jax.tree.map(np.testing.assert_array_equal, whole, expected)
    leaves = restore_frozen_leaves(tmp_path, *build.frozen_leaves(objective, mesh, {}))
    jax.tree.map(np.testing.assert_array_equal, leaves, dict(frozen))


def test_missing_or_damaged_frozen_leaves_are_refused(objective, trained, tmp_path, mesh):
    expected = build.frozen_leaves(objective, mesh, {})
    with pytest.raises(UserError, match="frozen_leaves is missing"):
        restore_frozen_leaves(tmp_path, *expected)
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save_frozen_leaves(trained[1])
    checkpointer.close()
    files = [path for path in (tmp_path / "frozen_leaves").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(b"\0" * largest.stat().st_size)
    with pytest.raises(UserError, match="frozen_leaves is damaged: the content of"):
        restore_frozen_leaves(tmp_path, *expected)
