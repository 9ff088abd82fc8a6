"""Bradley-Terry: values and slopes at the start, what changes nothing, the optimum, extremes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxalign.losses.reward_modelling import bradley_terry_loss, won

EXTREME = st.floats(-1e6, 1e6, width=32)


def test_equal_rewards_cost_ln_2_with_slope_a_half():
    rewards = jnp.array([-3.0, 0.0, 1e4])
    losses = bradley_terry_loss(rewards, rewards)
    np.testing.assert_allclose(losses, math.log(2), rtol=1e-6)
    chosen, rejected = jax.grad(lambda *r: jnp.sum(bradley_terry_loss(*r)), argnums=(0, 1))(
        rewards, rewards
    )
    np.testing.assert_allclose(chosen, -0.5)
    np.testing.assert_allclose(rejected, 0.5)


def test_value_by_hand():
    losses = bradley_terry_loss(jnp.array([1.0]), jnp.array([-0.5]), jnp.array([0.3]))
    np.testing.assert_allclose(losses, math.log1p(math.exp(-1.2)), rtol=1e-6)


def test_swapping_responses_and_the_sign_of_the_reward_changes_nothing():
    first, second = jnp.array([0.3, -2.0]), jnp.array([1.1, 0.4])
    np.testing.assert_array_equal(
        bradley_terry_loss(first, second), bradley_terry_loss(-second, -first)
    )


@given(first=st.integers(-50, 50), second=st.integers(-50, 50), shift=st.integers(-500, 500))
def test_adding_a_constant_to_the_reward_changes_nothing(first, second, shift):
    first, second = jnp.float32(first), jnp.float32(second)
    shifted = bradley_terry_loss(first + shift, second + shift)
    np.testing.assert_array_equal(shifted, bradley_terry_loss(first, second))


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.8])
def test_the_best_difference_is_the_log_odds_of_winning_plus_the_margin(probability):
    def expected_loss(difference):
        wins = bradley_terry_loss(difference, 0.0 * difference, 0.7)
        loses = bradley_terry_loss(0.0 * difference, difference, -0.7)
        return probability * wins + (1 - probability) * loses

    best = jnp.float32(0.7 + math.log(probability / (1 - probability)))
    np.testing.assert_allclose(jax.grad(expected_loss)(best), 0, atol=1e-6)


def test_no_gradient_passes_the_margin():
    def loss(margins):
        return jnp.sum(bradley_terry_loss(jnp.ones(2), jnp.zeros(2), margins))

    assert not np.any(jax.grad(loss)(jnp.array([0.2, 1.0])))


@given(chosen=EXTREME, rejected=EXTREME)
def test_extremes_are_finite_and_the_loss_falls_with_the_difference(chosen, rejected):
    value, slope = jax.value_and_grad(bradley_terry_loss)(
        jnp.float32(chosen), jnp.float32(rejected)
    )
    assert np.isfinite(value) and value >= 0
    assert -1 <= slope <= 0


def test_gradients_equal_finite_differences():
    with jax.enable_x64(True):
        rewards = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5)))
        check_grads(
            lambda *pair: bradley_terry_loss(*map(jnp.asarray, pair), 0.4),
            tuple(rewards),
            order=1,
            modes=["rev"],
        )


def test_bfloat16_is_computed_in_float32():
    low = jnp.array([0.3], jnp.bfloat16)
    found = bradley_terry_loss(low, 2 * low, low)
    exact = low.astype(jnp.float32)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, bradley_terry_loss(exact, 2 * exact, exact))


def test_a_tie_is_half_a_win():
    points = won(jnp.array([2.0, 1.0, 0.0]), jnp.ones(3))
    np.testing.assert_array_equal(points, [1, 0.5, 0])
