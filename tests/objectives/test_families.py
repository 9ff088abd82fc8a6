"""Every objective trains on the networks of every family. Most steps are only traced, gradients included: compiling takes minutes."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.cli.gin_objectives import objective_from_gin
from jaxalign.data.task_data import TaskData
from jaxalign.networks.policy import Policy
from jaxalign.parallel.partitioning import MeshShape, make_mesh
from jaxalign.planning.compile_spec import batch_shapes
from jaxalign.training.build import abstract_frozen, abstract_params, abstract_state
from jaxalign.training.optimizers import sgd
from jaxalign.training.state import build_transformations, create_state
from jaxalign.training.step import make_train_step
from tests.fixtures.families import FAMILIES as FAMILY_CONFIGS
from tests.fixtures.families import one_layer

EOI = FAMILY_CONFIGS["t5gemma2"].eoi_token
OBJECTIVES = Path(__file__).resolve().parents[2] / "gin_configs" / "objectives"
MACROS = {"VALUE_TOKEN": 60, "NUM_FEATURES": 3}
DATA = TaskData(task="t", cache_dir="c", feature_lengths={"inputs": 8, "targets": 6})
FAMILIES = ("umt5", "t5gemma", "t5gemma2")  # all other tests are of T5


def configured(name, config):
    text = (OBJECTIVES / f"{name}.gin").read_text()
    macros = {key: value for key, value in MACROS.items() if key in text}
    policy = Policy(config, value_token=macros.get("VALUE_TOKEN"))
    return objective_from_gin([name], macros, policy=policy)


def step_of(objective):
    """The training step, its optimizers, and the shapes of its state, frozen roles and batch."""
    responses = objective.responses_per_prompt or 2
    batch = batch_shapes(objective, DATA, 2, responses_per_prompt=responses)
    transformations = build_transformations({role: sgd(0.1) for role in objective.trained()}, {})
    state = abstract_state(objective, transformations)
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    frozen, _ = abstract_frozen(objective, mesh, {})
    return make_train_step(objective, transformations), transformations, state, frozen, batch


@functools.cache
def one_file_of_each_kind():
    """The first gin file of every combination of an objective's class, its networks and its frozen roles."""
    found = {}
    for path in sorted(OBJECTIVES.glob("*.gin")):
        objective = configured(path.stem, one_layer("t5"))
        networks = tuple((role, type(network)) for role, network in objective.trained().items())
        found.setdefault((type(objective), networks, objective.frozen_roles()), path.stem)
    return tuple(found.values())


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_of_every_kind_of_objective_can_be_traced(family):
    for name in one_file_of_each_kind():
        step, _, state, frozen, batch = step_of(configured(name, one_layer(family)))
        after, metrics = jax.eval_shape(step, state, frozen, batch)
        assert jax.tree.map(np.shape, after.params) == jax.tree.map(np.shape, state.params), name
        assert metrics["loss"][0].shape == (), name


@pytest.mark.parametrize("name", ["sft", "dpo", "dro_v"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_moves_every_parameter_and_stays_finite(family, name):
    objective = configured(name, one_layer(family).replace(dropout_rate=0.1))
    step, transformations, _, frozen, shapes = step_of(objective)
    generator = np.random.default_rng(0)

    def drawn(leaf):
        return generator.normal(size=leaf.shape).astype(np.float32) / leaf.shape[0] ** 0.5

    params = jax.tree.map(drawn, abstract_params(objective))
    reference = jax.tree.map(drawn, frozen)
    batch = {key: generator.normal(size=leaf.shape) for key, leaf in shapes.items()}
    for side in ("encoder_input", "decoder_input", "decoder_target"):
        key = f"{side}_tokens"
        batch[key] = generator.integers(2, 60, shapes[key].shape).astype(np.int32)
    batch["encoder_input_tokens"][:, 0] = EOI  # it has an embedding of its own
    count = shapes["response_mask"].shape[2]
    length = shapes["decoder_input_tokens"].shape[1]
    batch["encoder_segment_ids"] = np.ones(shapes["encoder_segment_ids"].shape, np.int32)
    segments = np.arange(length) // (length // count) + 1
    batch["decoder_segment_ids"] = np.tile(segments, (2, 1)).astype(np.int32)
    for key in ("decoder_loss_weights", "response_mask"):
        batch[key] = np.ones(shapes[key].shape)
    batch = {
        key: jnp.asarray(value, shapes[key].dtype) if key in shapes else value
        for key, value in batch.items()
    }
    before = create_state(params, transformations)
    after, metrics = jax.jit(step)(before, reference, batch)
    assert np.isfinite(float(metrics["loss"][0]))
    for path, change in jax.tree.leaves_with_path(
        jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), after.params, params)
    ):
        assert 0 < change < np.inf, jax.tree_util.keystr(path)
