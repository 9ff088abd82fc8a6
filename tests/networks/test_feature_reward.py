"""phi: linear by default, the public code's quirk apart, and the slopes of its Bradley-Terry loss."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.losses.reward_modelling import bradley_terry_loss
from jaxalign.networks.feature_reward import FeatureReward

CHOSEN, REJECTED = (
    jnp.asarray(np.random.default_rng(seed).uniform(size=(6, 7)), jnp.float32) for seed in (0, 1)
)


def loss(network, params, chosen=CHOSEN, rejected=REJECTED):
    return jnp.mean(bradley_terry_loss(network.phi(params, chosen), network.phi(params, rejected)))


def random_params(network, seed=0):
    """Parameters of which none is zero."""
    leaves, structure = jax.tree.flatten(network.init(jax.random.key(seed)))
    generator = np.random.default_rng(seed)
    return structure.unflatten(
        [jnp.asarray(generator.normal(size=leaf.shape), jnp.float32) for leaf in leaves]
    )


def test_a_linear_phi_starts_at_zero_and_so_at_ln_2():
    network = FeatureReward(7)
    params = network.init(jax.random.key(0))
    assert not np.any(network.phi(params, CHOSEN))
    np.testing.assert_allclose(loss(network, params), math.log(2), rtol=1e-6)


def test_the_slope_of_a_linear_phi_is_its_closed_form():
    """``-mean(sigmoid(-w.D) D)``, D the difference of the features."""
    network = FeatureReward(7)
    params = random_params(network)
    difference = CHOSEN - REJECTED
    weights = params["head"]["layer_0"]["kernel"][:, 0]
    expected = -jnp.mean(jax.nn.sigmoid(-difference @ weights)[:, None] * difference, axis=0)
    found = jax.grad(lambda p: loss(network, p))(params)["head"]["layer_0"]["kernel"][:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("hidden", [(), (5,), (5, 3)])
def test_swapping_the_responses_and_the_sign_of_phi_changes_nothing(hidden):
    network = FeatureReward(7, hidden=hidden)
    params = random_params(network)
    last = f"layer_{len(hidden)}"
    negated = {"head": params["head"] | {last: jax.tree.map(jnp.negative, params["head"][last])}}
    np.testing.assert_allclose(
        loss(network, params), loss(network, negated, REJECTED, CHOSEN), rtol=1e-5
    )
    shifted = jax.tree.map(jnp.copy, params)
    if hidden:
        shifted["head"][last]["bias"] += 3.0
        np.testing.assert_allclose(loss(network, params), loss(network, shifted), rtol=1e-5)


@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid"])
def test_with_one_hidden_layer_the_released_form_differs_in_the_output_only(activation):
    clean = FeatureReward(7, hidden=(4,), activation=activation)
    released = FeatureReward(7, hidden=(4,), activation=activation, form="released")
    params = random_params(clean)
    activate = {"tanh": jnp.tanh, "relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid}[activation]
    expected = activate(clean.phi(params, CHOSEN))
    np.testing.assert_allclose(released.phi(params, CHOSEN), expected, rtol=1e-6)


def test_the_released_form_leaves_middle_layers_linear():
    network = FeatureReward(7, hidden=(6, 4, 2), activation="relu", form="released")
    params = random_params(network)
    x = CHOSEN
    for index in range(4):
        layer = params["head"][f"layer_{index}"]
        x = x @ layer["kernel"] + layer["bias"]
        x = jax.nn.relu(x) if index in (0, 3) else x
    np.testing.assert_allclose(network.phi(params, CHOSEN), x[:, 0], rtol=1e-4, atol=1e-5)


def test_the_clean_form_activates_every_hidden_layer_and_not_the_output():
    network = FeatureReward(7, hidden=(3, 2))
    params = random_params(network)
    first, second, last = (params["head"][f"layer_{index}"] for index in range(3))
    x = jnp.tanh(CHOSEN @ first["kernel"] + first["bias"])
    x = jnp.tanh(x @ second["kernel"] + second["bias"])
    expected = (x @ last["kernel"] + last["bias"])[:, 0]
    np.testing.assert_allclose(network.phi(params, CHOSEN), expected, rtol=1e-5)


def test_a_fresh_mlp_has_slopes_everywhere():
    network = FeatureReward(7, hidden=(4, 3))
    gradients = jax.grad(lambda p: loss(network, p))(network.init(jax.random.key(0)))
    kernels = [layer["kernel"] for layer in gradients["head"].values()]
    assert all(np.abs(kernel).max() > 1e-5 for kernel in kernels)


def test_rewards_read_the_scores_of_the_batch_in_their_scale():
    network = FeatureReward(7, scale=5.0)
    params = random_params(network)
    scores = np.asarray(CHOSEN).reshape(3, 1, 2, 7) * 5
    found = network.rewards(params, {"scores": scores})
    np.testing.assert_allclose(
        found, network.phi(params, scores.reshape(3, 2, 7)), rtol=1e-5, atol=1e-6
    )
    assert found.shape == (3, 2)
    unit = FeatureReward(7).phi(params, CHOSEN).reshape(3, 2)
    np.testing.assert_allclose(found, unit, rtol=1e-4, atol=1e-6)


def test_the_penalty_sums_squared_weights_without_biases():
    network = FeatureReward(2, hidden=(1,))
    params = jax.tree.map(jnp.ones_like, network.init(jax.random.key(0)))
    assert network.penalty(params) == 3


def test_every_parameter_has_axes_and_sits_under_head():
    network = FeatureReward(7, hidden=(4,))
    assert network.init(jax.random.key(0)).keys() == {"head"}
    axes = jax.tree.leaves(network.logical_axes(), is_leaf=lambda x: not isinstance(x, dict))
    assert [len(spec) for spec in axes] == [
        leaf.ndim for leaf in jax.tree.leaves(network.abstract_params())
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_features": 0}, "positive sizes"),
        ({"hidden": (3, 0)}, "positive sizes"),
        ({"activation": "gelu"}, "activation is 'gelu'"),
        ({"form": "paper"}, "form is 'paper'"),
        ({"scale": 0.0}, "scale is 0.0"),
    ],
)
def test_what_makes_no_network_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        FeatureReward(**({"num_features": 7} | change))
