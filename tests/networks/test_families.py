"""Laws that hold for the encoder-decoders of every family: packing, layouts of parameters and caches are storage."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxalign.networks import registry
from jaxalign.networks.policy import Policy
from jaxalign.networks.reward import DecoderRewardNetwork, RewardNetwork
from jaxalign.networks.stacking import stack_layers
from jaxalign.networks.token_value import TokenValueNetwork
from jaxalign.networks.value import SharedTrunkValue, ValueNetwork
from jaxalign.parallel import partitioning
from jaxalign.parallel.partitioning import MeshShape, make_mesh
from jaxalign.runs.description import check_network
from tests.fixtures.families import FAMILIES

PACKED = {
    "rows": 2,
    "num_examples": 2,
    "num_responses": 2,
    "source_length": 16,
    "target_length": 24,
}


# T5 has tests of its own.
@pytest.fixture(scope="module", params=sorted(FAMILIES.keys() - {"t5"}))
def policy(request):
    return Policy(FAMILIES[request.param], logits_chunk_size=16)


@pytest.fixture(scope="module")
def params(policy):
    """Random parameters, none of them 0 or 1 as after initialisation, which would hide errors."""
    generator = np.random.default_rng(0)

    def values(leaf):
        drawn = generator.normal(size=leaf.shape).astype(np.float32)
        return 1 + 0.2 * drawn if leaf.ndim == 1 else drawn / np.float32(leaf.shape[0]) ** 0.5

    return jax.tree.map(values, policy.abstract_params())


@pytest.fixture(scope="module")
def examples(random_examples):
    return random_examples(1, 4, 2)


def score_and_gradient(policy, params, batch):
    def loss(params):
        scores = policy.score(params, batch)
        return jnp.sum(jnp.sin(scores.log_probs)), scores.log_probs

    (_, scores), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return np.asarray(scores), jax.device_get(gradient)


def assert_trees_close(ours, theirs, tolerance):
    """Every leaf up to a part of its own greatest value."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for mine, reference in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        scale = np.abs(reference).max()
        np.testing.assert_allclose(mine, reference, rtol=tolerance, atol=tolerance * scale)


@pytest.fixture(scope="module")
def expected(policy, params, make_batch, examples):
    """Scores and gradient with every response in a row of its own, by the unrolled network."""
    alone = [(prompt, [response]) for prompt, responses in examples for response in responses]
    batch = make_batch(
        alone, rows=8, num_examples=1, num_responses=1, source_length=7, target_length=6
    )
    scores, gradient = score_and_gradient(policy, params, batch)
    return scores.reshape(4, 2), gradient


def test_packed_rows_under_scanned_layers_give_the_scores_and_gradients_of_each_response_alone(
    policy, params, make_batch, examples, expected
):
    config = policy.config.replace(scan_layers=True, remat_policy="full")
    scanned = Policy(config, logits_chunk_size=16)
    stacked = stack_layers(params, axis=config.param_scan_axis, cycle=config.LAYER_CYCLE)
    assert jax.tree.map(np.shape, stacked) == jax.tree.map(np.shape, scanned.abstract_params())
    batch = make_batch(examples, **PACKED)
    scores, gradient = score_and_gradient(scanned, stacked, batch)
    np.testing.assert_allclose(scores, expected[0], atol=1e-4)
    unpacked = stack_layers(expected[1], axis=config.param_scan_axis, cycle=config.LAYER_CYCLE)
    assert_trees_close(gradient, unpacked, 2e-4)


def test_recomputed_layers_give_the_scores_and_gradients_of_layers_that_are_kept(
    policy, params, make_batch, examples, expected
):
    assert policy.config.remat_policy == "none"
    recomputed = Policy(policy.config.replace(remat_policy="minimal"), logits_chunk_size=16)
    scores, gradient = score_and_gradient(recomputed, params, make_batch(examples, **PACKED))
    np.testing.assert_allclose(scores, expected[0], atol=1e-4)
    assert_trees_close(gradient, expected[1], 2e-4)


def test_content_of_padding_is_irrelevant(policy, params, make_batch, examples):
    batch = make_batch(examples, **PACKED)
    score = jax.jit(policy.score)
    expected = score(params, batch).log_probs
    for side in ("encoder_input", "decoder_input", "decoder_target"):
        padding = batch[f"{side.split('_')[0]}_segment_ids"] == 0
        batch[f"{side}_tokens"] = np.where(padding, 7, batch[f"{side}_tokens"])
    np.testing.assert_array_equal(score(params, batch).log_probs, expected)


def forced_logits(policy, params, prompts, targets):
    inputs = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)))
    return policy.module.apply({"params": params}, prompts, inputs, targets)


def test_one_position_at_a_time_gives_the_logits_of_teacher_forcing(policy, params):
    length = 6
    generator = np.random.default_rng(0)
    prompts = np.array([[3, 9, 4, 1, 0, 0], [5, 6, 7, 8, 9, 1]], np.int32)
    targets = generator.integers(2, 60, (2, length)).astype(np.int32)
    expected = jax.jit(forced_logits, static_argnums=0)(policy, params, prompts, targets)
    prompt = policy.read_prompts(params, prompts, length)
    step, step_in_ring = jax.jit(policy.next_logits), jax.jit(policy.next_logits_in_ring)
    inputs = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
    alone, ring = policy.empty_cache(2, length), policy.empty_cache(2, length)
    pair = policy.empty_cache(2, 2 * length, 2)
    own = np.broadcast_to(np.tile(np.eye(2, dtype=bool), length), (2, 2, 2 * length))
    for position in range(length):
        tokens = inputs[:, position, None]
        two = np.concatenate([np.full_like(tokens, 11), tokens], axis=1)
        one, alone = step(prompt, alone, tokens, jnp.int32(position))
        # As the second sequence of a group that shares slots.
        second, pair = step(prompt, pair, two, jnp.int32(position), own)
        # In a ring of just enough slots, whose writing position wraps around.
        third, ring = step_in_ring(
            prompt, ring, tokens, jnp.int32(position + 4), jnp.full(2, position)
        )
        for logits in (one[:, 0], second[:, 1], third[:, 0]):
            np.testing.assert_allclose(logits, expected[:, position], rtol=1e-4, atol=1e-4)


NETWORKS = {
    "policy": Policy,
    "value": ValueNetwork,
    "token_value": TokenValueNetwork,
    "encoder_reward": RewardNetwork,
    "decoder_reward": DecoderRewardNetwork,
    "shared_trunk_value": lambda config: SharedTrunkValue(Policy(config)),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_run_folder_describes_every_network_and_every_parameter_can_be_sharded(policy, kind):
    network = NETWORKS[kind](policy.config.replace(scan_layers=True))
    described = json.loads(json.dumps(network.description()))
    check_network(described, "networks.json")
    assert registry.build(described) == network
    shapes, axes = network.abstract_params(), network.logical_axes()
    mesh = make_mesh(MeshShape(fsdp=4, tensor=2), jax.devices())
    shardings = partitioning.parameter_shardings(mesh, axes)
    partitioning.check_divisible(shapes, shardings)
    for leaf, spec in zip(
        jax.tree.leaves(shapes),
        jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, PartitionSpec)),
        strict=True,
    ):
        assert leaf.ndim == len(spec)


@pytest.mark.parametrize("kind", ["value", "token_value", "encoder_reward", "decoder_reward"])
def test_a_network_with_a_head_starts_from_a_policy_and_its_output_has_no_neighbours(
    policy, params, make_batch, examples, kind
):
    network = NETWORKS[kind](policy.config)
    started = network.from_policy(jax.random.key(1), params)
    for name, branch in started.items():
        if name != "head":
            jax.tree.map(np.testing.assert_array_equal, branch, _part(params[name], branch))

    read = jax.jit(network.values if "value" in kind else network.rewards)
    packed = read(started, make_batch(examples, **PACKED))
    alone = {**PACKED, "rows": 4, "num_examples": 1}
    unpacked = read(started, make_batch(examples, **alone))
    np.testing.assert_allclose(packed, unpacked, rtol=1e-4, atol=1e-5)
    assert np.ptp(packed) > 1e-4


def _part(tree, like):
    if not isinstance(like, dict):
        return tree
    return {name: _part(tree[name], branch) for name, branch in like.items()}
