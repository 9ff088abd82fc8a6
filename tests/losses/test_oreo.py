"""OREO: residuals vanish at the soft optimum, one token is DRO-V, gradients stop where they must, responses stay apart."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxalign.errors import UserError
from jaxalign.losses import dro
from jaxalign.losses.oreo import (
    consistency_residuals,
    oreo_policy_loss,
    oreo_value_loss,
)

BETA = 0.3
SEGMENTS = jnp.array([[1, 1, 1, 2, 2, 0], [3, 3, 3, 3, 3, 0]])
EXISTS = np.asarray(SEGMENTS) > 0
VALUES, RATIOS = (
    jnp.asarray(np.random.default_rng(seed).normal(size=SEGMENTS.shape), jnp.float32)
    for seed in (0, 1)
)
REWARDS = jnp.where(SEGMENTS == 1, 1.0, jnp.where(SEGMENTS == 2, -0.5, 2.0))


def soft_optimum(vocabulary, length, beta):
    """All sequences with V before every token, the optimal policy's log-ratios and the rewards, in float64, by backward induction."""
    generator = np.random.default_rng(5)
    rewards = generator.normal(size=[vocabulary] * length)
    values, ratios = [rewards], []
    for t in reversed(range(length)):
        logits = generator.normal(size=[vocabulary] * (t + 1))
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        value = beta * np.log(np.sum(np.exp(log_probs + values[0] / beta), axis=-1))
        ratios.insert(0, (values[0] - value[..., None]) / beta)
        values.insert(0, value)
    sequences = list(itertools.product(range(vocabulary), repeat=length))
    return (
        np.array([[values[t][y[:t]] for t in range(length)] for y in sequences]),
        np.array([[ratios[t][y[: t + 1]] for t in range(length)] for y in sequences]),
        np.array([[rewards[y]] * length for y in sequences]),
    )


def test_at_the_soft_optimum_every_residual_of_every_sequence_is_zero():
    """V_t = beta log E_ref[exp(R / beta) | s_t] and beta l_t = V_{t+1} - V_t: 27 sequences, each token."""
    with jax.enable_x64(True):
        arrays = [jnp.asarray(array) for array in soft_optimum(3, 3, BETA)]
        values, ratios, rewards = arrays
        segments = jnp.ones(values.shape, jnp.int32)
        residuals = consistency_residuals(values, ratios, rewards, segments, beta=BETA)
        assert residuals.shape == (27, 3)
        np.testing.assert_allclose(residuals, 0, atol=1e-14)
        # The whole response: V(x) + beta l(y) = R, which is DRO's consistency.
        whole = (
            dro.value_target(ratios.sum(1, keepdims=True), rewards[:, :1], temperature=BETA)
            - values[:, :1]
        )
        np.testing.assert_allclose(whole, 0, atol=1e-14)
        # And no gradient is left for either network.
        policy = jax.grad(
            lambda x: jnp.sum(oreo_policy_loss(x, values, rewards, segments, beta=BETA))
        )(ratios)
        value = jax.grad(
            lambda x: jnp.sum(oreo_value_loss(x, ratios, rewards, segments, beta=BETA))
        )(values)
        np.testing.assert_allclose(policy, 0, atol=1e-13)
        np.testing.assert_allclose(value, 0, atol=1e-13)
        # Another temperature has another optimum.
        other = consistency_residuals(values, ratios, rewards, segments, beta=2 * BETA)
        assert np.abs(other).max() > 0.1


def test_residuals_of_neighbours_differ_by_one_steps_consistency():
    """At any policy and value: residual_t - residual_{t+1} = V_t - V_{t+1} + beta l_t; the first is DRO's with its sign changed."""
    residuals = consistency_residuals(VALUES, RATIOS, REWARDS, SEGMENTS, beta=BETA)
    for row, t in np.argwhere(EXISTS[:, :-1] & (SEGMENTS[:, 1:] == SEGMENTS[:, :-1])):
        found = residuals[row, t] - residuals[row, t + 1]
        step = VALUES[row, t] - VALUES[row, t + 1] + BETA * RATIOS[row, t]
        np.testing.assert_allclose(found, step, atol=1e-5)
    whole = (
        dro.value_target(RATIOS[:1, :3].sum(1, keepdims=True), REWARDS[:1, :1], temperature=BETA)
        - VALUES[:1, :1]
    )
    np.testing.assert_allclose(residuals[0, 0], -whole[0, 0], rtol=1e-5)


def test_for_one_token_it_is_twice_dro_v():
    segments = jnp.arange(1, 5)[None]
    values, ratios, rewards = VALUES[:1, :4], RATIOS[:1, :4], jnp.array([[1.0, -1.0, 0.3, 2.0]])

    def oreo(ratios, values):
        return jnp.sum(
            oreo_policy_loss(ratios, values, rewards, segments, beta=BETA)
            + oreo_value_loss(values, ratios, rewards, segments, beta=BETA)
        )

    def joint(ratios, values):
        return jnp.sum(0.5 * jnp.square(rewards - values - BETA * ratios))

    # Both halves of OREO have the value of 2 x the joint loss, and each its gradient for one network.
    np.testing.assert_allclose(oreo(ratios, values), 4 * joint(ratios, values), rtol=1e-6)
    for found, expected in zip(
        jax.grad(oreo, (0, 1))(ratios, values), jax.grad(joint, (0, 1))(ratios, values), strict=True
    ):
        np.testing.assert_allclose(found, 2 * expected, rtol=1e-5)


def test_gradients_reach_a_tokens_own_log_ratio_and_its_own_value_only():
    residuals = np.asarray(consistency_residuals(VALUES, RATIOS, REWARDS, SEGMENTS, beta=BETA))

    def policy(ratios, values):
        return jnp.sum(oreo_policy_loss(ratios, values, REWARDS, SEGMENTS, beta=BETA))

    def value(ratios, values):
        return jnp.sum(oreo_value_loss(values, ratios, REWARDS, SEGMENTS, beta=BETA))

    to_ratios, to_values = jax.grad(policy, (0, 1))(RATIOS, VALUES)
    np.testing.assert_allclose(to_ratios, 2 * BETA * residuals, rtol=1e-4, atol=1e-6)
    assert not np.any(to_values)
    to_ratios, to_values = jax.grad(value, (0, 1))(RATIOS, VALUES)
    np.testing.assert_allclose(to_values, 2 * residuals, rtol=1e-4, atol=1e-6)
    assert not np.any(to_ratios)
    # The two losses have one value.
    np.testing.assert_allclose(policy(RATIOS, VALUES), value(RATIOS, VALUES), rtol=1e-5)
    np.testing.assert_allclose(value(RATIOS, VALUES), np.sum(residuals**2), rtol=1e-5)


@jax.jit
def both_losses(values, ratios, rewards, segments):
    return (
        oreo_policy_loss(ratios, values, rewards, segments, beta=BETA),
        oreo_value_loss(values, ratios, rewards, segments, beta=BETA),
    )


def test_neither_packing_nor_padding_changes_anything():
    garbage = [jnp.where(EXISTS, array, jnp.nan) for array in (VALUES, RATIOS, REWARDS)]
    packed = both_losses(*garbage, SEGMENTS)
    alone = both_losses(VALUES[:1, 3:5], RATIOS[:1, 3:5], REWARDS[:1, 3:5], jnp.ones((1, 2), int))
    for together, single in zip(packed, alone, strict=True):
        np.testing.assert_allclose(together[:1, 3:5], single, rtol=1e-5)
        assert not np.any(together[:, 5])


def test_gradients_equal_finite_differences():
    """Of the value's loss; the policy's has constants inside, and its gradient is checked in closed form above."""
    with jax.enable_x64(True):
        segments = jnp.asarray(np.asarray(SEGMENTS))
        values, ratios, rewards = (
            jnp.asarray(np.asarray(array, np.float64)) for array in (VALUES, RATIOS, REWARDS)
        )
        loss = jax.jit(functools.partial(oreo_value_loss, beta=BETA))
        check_grads(
            lambda x: loss(jnp.asarray(x), ratios, rewards, segments), (values,), 1, modes=["rev"]
        )


EXTREME = st.floats(-1e4, 1e4, width=32)


@jax.jit
@functools.partial(jax.value_and_grad, argnums=(0, 1))
def sum_of_both(values, ratios, rewards):
    return sum(
        jnp.sum(loss) for loss in both_losses(values, ratios, rewards, jnp.array([[1, 1, 0]]))
    )


@given(EXTREME, EXTREME, EXTREME)
def test_extreme_inputs_give_finite_losses_and_gradients(value, ratio, reward):
    total, gradients = sum_of_both(*(jnp.full((1, 3), x) for x in (value, ratio, reward)))
    assert np.isfinite(total) and all(np.all(np.isfinite(leaf)) for leaf in gradients)
    assert all(leaf[0, 2] == 0 for leaf in gradients)


@pytest.mark.parametrize("beta", [0.0, -1.0, float("inf")])
def test_a_temperature_that_is_not_positive_is_refused(beta):
    for function in (consistency_residuals, oreo_policy_loss, oreo_value_loss):
        with pytest.raises(UserError, match=r"oreo\.beta must be positive"):
            function(VALUES, RATIOS, REWARDS, SEGMENTS, beta=beta)


def test_bfloat16_is_computed_in_float32():
    low = [array.astype(jnp.bfloat16) for array in (VALUES, RATIOS, REWARDS)]
    high = [array.astype(jnp.float32) for array in low]
    for found, exact in zip(both_losses(*low, SEGMENTS), both_losses(*high, SEGMENTS), strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, exact)
