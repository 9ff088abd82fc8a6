"""V(x) is a function of the prompt's tokens and of nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.networks.policy import Policy
from jaxalign.networks.value import SharedTrunkValue, ValueHead, ValueNetwork, pool_segments
from jaxalign.networks.value_variants import SentinelValue

PACKED = {
    "rows": 2,
    "num_examples": 2,
    "num_responses": 2,
    "source_length": 16,
    "target_length": 24,
}


@pytest.fixture(scope="module", params=["separate", "shared"])
def values(request, tiny_config, tiny_params):
    """A compiled `values(batch)` of each kind of value network."""
    rng = jax.random.key(3)
    if request.param == "separate":
        network = ValueNetwork(tiny_config)
        params = network.from_policy(rng, tiny_params)
        return jax.jit(lambda batch: network.values(params, batch))
    policy = Policy(tiny_config)
    network = SharedTrunkValue(policy)
    roles = {"policy": tiny_params, "value": network.init(rng)}
    return jax.jit(lambda batch: network.scores_and_values(policy, roles, batch)[1])


def test_values_cannot_see_the_response(values, make_batch, random_examples):
    examples = random_examples(0, 4, 2)
    others = [
        (prompt, responses)
        for (prompt, _), (_, responses) in zip(examples, random_examples(9, 4, 2), strict=True)
    ]
    first = values(make_batch(examples, **PACKED))
    assert first.shape == (4,) and first.dtype == jnp.float32
    assert np.unique(first).size == 4
    np.testing.assert_array_equal(first, values(make_batch(others, **PACKED)))


def test_values_depend_on_neither_padding_nor_packing(values, make_batch, random_examples):
    examples = random_examples(0, 4, 2)
    packed = make_batch(examples, **PACKED)
    alone = make_batch(
        examples, rows=4, num_examples=1, num_responses=2, source_length=40, target_length=12
    )
    np.testing.assert_allclose(values(packed), values(alone), rtol=1e-4, atol=1e-7)
    padding = packed["encoder_segment_ids"] == 0
    tokens = np.where(padding, 5, packed["encoder_input_tokens"])
    other = values(packed | {"encoder_input_tokens": tokens})
    np.testing.assert_array_equal(values(packed), other)


def test_values_start_small_but_not_at_zero(values, make_batch, random_examples):
    found = np.abs(values(make_batch(random_examples(0, 4, 2), **PACKED)))
    assert np.all(found > 0) and np.all(found < 0.1)


def test_starting_from_a_policy_copies_its_encoder(tiny_config, tiny_params):
    network = ValueNetwork(tiny_config)
    params = network.from_policy(jax.random.key(0), tiny_params)
    assert jax.tree.structure(params) == jax.tree.structure(network.abstract_params())
    assert params.keys() == {"token_embedder", "encoder", "head"}
    jax.tree.map(np.testing.assert_array_equal, params["encoder"], tiny_params["encoder"])
    assert np.any(params["head"]["kernel"]) and not np.any(params["head"]["bias"])


def test_a_policy_of_another_shape_is_refused(tiny_config, tiny_params):
    network = ValueNetwork(tiny_config.replace(num_encoder_layers=3))
    with pytest.raises(ValueError, match="layers_2"):
        network.from_policy(jax.random.key(0), tiny_params)


@pytest.mark.parametrize("kind", [ValueNetwork, lambda config: SharedTrunkValue(Policy(config))])
def test_every_parameter_has_logical_axes(tiny_config, kind):
    network = kind(tiny_config)
    axes = jax.tree.leaves(network.logical_axes(), is_leaf=lambda x: not isinstance(x, dict))
    shapes = jax.tree.leaves(network.abstract_params())
    assert [len(names) for names in axes] == [len(leaf.shape) for leaf in shapes]


def test_random_parameters_differ_by_key(tiny_config):
    network = ValueNetwork(tiny_config)
    first, second = (network.init(jax.random.key(seed)) for seed in (0, 1))
    assert not np.array_equal(first["head"]["kernel"], second["head"]["kernel"])
    assert jax.tree.map(np.shape, first) == jax.tree.map(np.shape, network.abstract_params())


@pytest.mark.parametrize("kind", ["encoder", "sentinel"])
@pytest.mark.parametrize("dropout", [False, True], ids=["deterministic", "dropout"])
def test_one_pass_gives_scores_and_values_and_their_gradients(
    kind, dropout, tiny_config, tiny_params, make_batch, random_examples
):
    config = tiny_config.replace(dropout_rate=0.2 if dropout else 0.0)
    if kind == "encoder":
        policy = Policy(config)
        value = SharedTrunkValue(policy)
    else:
        policy = Policy(config, value_token=config.vocab_size - 1)
        value = SentinelValue(policy)
    batch = make_batch(random_examples(0, 4, 2), **PACKED)
    started = jax.tree.map(lambda leaf: leaf * 0.9, tiny_params)
    head = value.init(jax.random.key(3))
    rng = jax.random.key(5) if dropout else None

    def total(one_pass, params):
        roles = {"policy": params, "value": head, "reference": started}
        if one_pass:
            scores, values = value.scores_and_values(policy, roles, batch, rng=rng)
        else:
            # The policy's half of the dropout, and of it the encoder's half.
            own = jax.random.split(rng)[0] if dropout else None
            scores = policy.score(params, batch, rng=own)
            if kind == "encoder":
                half = jax.random.split(own)[0] if dropout else None
                states = policy.encode(params, batch, rng=half)
                pooled = pool_segments(states, batch["encoder_segment_ids"], 2)
                values = ValueHead().apply({"params": head["head"]}, pooled).reshape(-1)
            else:
                start = jax.lax.stop_gradient(policy.value_logits(started, batch))
                values = policy.value_logits(params, batch, rng=own) - start
        # One number that depends on each of them in another way.
        weights = jnp.arange(1.0, 5.0)
        return jnp.sum(scores.log_probs @ jnp.ones(2) * weights) / 100 + jnp.sum(values * weights)

    both = [
        jax.jit(jax.value_and_grad(functools.partial(total, one)))(tiny_params)
        for one in (True, False)
    ]
    np.testing.assert_allclose(both[0][0], both[1][0], rtol=1e-5)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5),
        both[0][1],
        both[1][1],
    )
