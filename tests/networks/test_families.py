"""Laws that hold for the encoder-decoders of every family: packing, layouts of parameters and caches are storage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.networks.policy import Policy
from jaxalign.networks.stacking import stack_layers
from tests.fixtures.families import FAMILIES

PACKED = {
    "rows": 2,
    "num_examples": 2,
    "num_responses": 2,
    "source_length": 16,
    "target_length": 24,
}


@pytest.fixture(scope="module", params=sorted(FAMILIES))
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
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for mine, reference in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, reference, rtol=tolerance, atol=tolerance)


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
    stacked = stack_layers(params, axis=config.param_scan_axis)
    assert jax.tree.map(np.shape, stacked) == jax.tree.map(np.shape, scanned.abstract_params())
    batch = make_batch(examples, **PACKED)
    scores, gradient = score_and_gradient(scanned, stacked, batch)
    np.testing.assert_allclose(scores, expected[0], atol=1e-4)
    unpacked = stack_layers(expected[1], axis=config.param_scan_axis)
    assert_trees_close(gradient, unpacked, 2e-4)


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
    generator = np.random.default_rng(0)
    prompts = np.array([[3, 9, 4, 1, 0, 0], [5, 6, 7, 8, 9, 1]], np.int32)
    targets = generator.integers(2, 60, (2, 9)).astype(np.int32)
    expected = jax.jit(forced_logits, static_argnums=0)(policy, params, prompts, targets)

    @jax.jit
    def decoded(params, ring_start):
        """Row by row: alone, as the second sequence of a group that shares slots, and in a ring of just enough slots."""
        prompt = policy.read_prompts(params, prompts, 9)
        alone, group = policy.empty_cache(2, 9), policy.empty_cache(2, 18, 2)
        ring = policy.empty_cache(2, 9)
        found = []
        inputs = jnp.pad(jnp.asarray(targets[:, :-1]), ((0, 0), (1, 0)))
        for position in range(9):
            tokens = inputs[:, position, None]
            one, alone = policy.next_logits(prompt, alone, tokens, jnp.int32(position))
            pair = jnp.concatenate([tokens * 0 + 11, tokens], axis=1)
            own = jnp.tile(jnp.eye(2, dtype=bool), 9)
            visible = jnp.broadcast_to(own, (2, 2, 18))
            two, group = policy.next_logits(prompt, group, pair, jnp.int32(position), visible)
            positions = jnp.full(2, position)
            three, ring = policy.next_logits_in_ring(
                prompt, ring, tokens, ring_start + position, positions
            )
            found.append(jnp.stack([one[:, 0], two[:, 1], three[:, 0]]))
        return jnp.stack(found, axis=2)

    for logits in decoded(params, 5):
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
