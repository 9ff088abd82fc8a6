"""NCA and InfoNCA: start values, two responses, optima, masks, robustness."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxalign.errors import UserError
from jaxalign.losses import listwise
from jaxalign.losses.pairwise import dpo_loss
from jaxalign.losses.requirements import requirements_of
from tests.fixtures.numbers import close

ALPHA, BETA = 0.5, 0.3
EXTREME = st.floats(-1e4, 1e4, width=32)
LOSSES = {
    "infonca": functools.partial(listwise.infonca_loss, alpha=ALPHA, beta=BETA),
    "nca": functools.partial(listwise.nca_loss, alpha=ALPHA, beta=BETA),
}
SHARP = {
    "infonca": functools.partial(listwise.infonca_loss, alpha=1e-6, beta=BETA),
    "nca": functools.partial(listwise.nca_loss, alpha=1e-6, beta=BETA),
}
both = pytest.mark.parametrize("method", LOSSES)


def lists(responses=4, seed=0, dtype=jnp.float32):
    """Log-ratios and rewards ``[3, responses]``, and a mask that holds everywhere."""
    ratios, rewards = np.random.default_rng(seed).normal(size=(2, 3, responses))
    return jnp.asarray(ratios, dtype), jnp.asarray(rewards, dtype), jnp.ones((3, responses), bool)


@pytest.mark.parametrize("responses", [2, 5])
def test_the_start(responses):
    """Policy equal to reference: InfoNCA log K, NCA 2 log 2 with slope beta (1/K - q) / 2."""
    ratios, rewards, mask = lists(responses)
    close(LOSSES["infonca"](0 * ratios, rewards, mask)[0], math.log(responses))
    close(LOSSES["nca"](0 * ratios, rewards, mask)[0], 2 * math.log(2))
    close(listwise.nca_pair_loss(jnp.zeros(3), jnp.zeros(3), beta=BETA), 2 * math.log(2))
    targets = jax.nn.softmax(rewards / ALPHA, axis=1)
    for method, slope in (
        ("infonca", BETA * (1 / responses - targets)),
        ("nca", BETA * (1 / responses - targets) / 2),
    ):
        found = jax.grad(lambda x, m=method: jnp.sum(LOSSES[m](x, rewards, mask)[0]))(0 * ratios)
        close(found, slope)


def test_values_by_hand():
    """q = (3/4, 1/4), beta l = (1, -1)."""
    ratios = jnp.array([[1 / BETA, -1 / BETA]])
    rewards, mask = jnp.array([[ALPHA * math.log(3), 0.0]]), jnp.ones((1, 2), bool)
    nats = [math.log1p(math.exp(-z)) for z in (1, -1, 2, -2)]  # -log sigmoid
    close(LOSSES["infonca"](ratios, rewards, mask)[0], 0.75 * nats[2] + 0.25 * nats[3])
    expected = 0.75 * nats[0] + 0.25 * nats[1] + 0.5 * nats[1] + 0.5 * nats[0]
    close(LOSSES["nca"](ratios, rewards, mask)[0], expected)


def test_infonca_of_two_responses_and_a_sharp_target_is_dpo():
    ratios, _, mask = lists(2)
    rewards = jnp.tile(jnp.array([1.0, 0.0]), (3, 1))

    def ours(ratios):
        return jnp.sum(SHARP["infonca"](ratios, rewards, mask)[0])

    def dpo(ratios):
        return jnp.sum(dpo_loss(ratios[:, 0], ratios[:, 1], beta=BETA))

    close(ours(ratios), dpo(ratios))
    close(jax.grad(ours)(ratios), jax.grad(dpo)(ratios))


def test_nca_of_two_responses_and_a_sharp_target_is_nca_on_pairs():
    ratios, _, mask = lists(2)
    rewards = jnp.tile(jnp.array([1.0, 0.0]), (3, 1))

    def ours(ratios):
        return jnp.sum(SHARP["nca"](ratios, rewards, mask)[0])

    def pairs(ratios):
        return jnp.sum(listwise.nca_pair_loss(ratios[:, 0], ratios[:, 1], beta=BETA))

    close(ours(ratios), pairs(ratios))
    close(jax.grad(ours)(ratios), jax.grad(pairs)(ratios))


def test_infonca_sees_differences_only_and_nca_the_level():
    ratios, rewards, mask = lists()
    close(*(LOSSES["infonca"](ratios + c, rewards, mask)[0] for c in (0.0, 5.0)), 1e-5)
    moved, kept = (LOSSES["nca"](ratios + c, rewards, mask)[0] for c in (5.0, 0.0))
    assert np.abs(moved - kept).min() > 0.1


def test_the_best_free_log_ratios():
    """InfoNCA: ``beta l = r / alpha`` up to a constant; NCA: ``beta l = log(K q)``."""
    with jax.enable_x64(True):
        _, rewards, mask = lists(dtype=jnp.float64)
        targets = jax.nn.softmax(rewards / ALPHA, axis=1)
        best = {"infonca": rewards / ALPHA + 7, "nca": jnp.log(4 * targets)}
        for method, logits in best.items():
            slope = jax.grad(lambda x, m=method: jnp.sum(LOSSES[m](x, rewards, mask)[0]))
            close(slope(logits / BETA), 0, 1e-14)
            assert np.abs(slope(0 * logits)).max() > 1e-2


def test_infonca_over_all_responses_reaches_the_tilted_reference():
    """pi_ref exp(r / (alpha beta)): the loss is convex in the logits, and its gradient vanishes there."""
    with jax.enable_x64(True):
        generator = np.random.default_rng(3)
        reference = jax.nn.log_softmax(jnp.asarray(generator.normal(size=(2, 6))))
        rewards = jnp.asarray(generator.normal(size=(2, 6)))
        mask = jnp.ones((2, 6), bool)

        def loss(logits):
            ratios = jax.nn.log_softmax(logits) - reference
            return jnp.sum(LOSSES["infonca"](ratios, rewards, mask)[0])

        optimum = reference + rewards / (ALPHA * BETA)
        close(jax.grad(loss)(optimum), 0, 1e-14)
        assert np.abs(jax.grad(loss)(reference)).max() > 1e-2


@both
def test_targets_of_equal_rewards_are_uniform_and_carry_no_gradient(method):
    ratios, rewards, mask = lists()
    close(listwise.reward_targets(0 * rewards + 3, mask, alpha=ALPHA), 0.25)

    def total(rewards):
        return jnp.sum(LOSSES[method](ratios, rewards, mask)[0])

    assert not jax.grad(total)(rewards).any()


@both
def test_a_response_that_does_not_exist_changes_nothing(method):
    ratios, rewards, mask = lists(4)
    short = LOSSES[method](ratios, rewards, mask)

    wide = [jnp.pad(x, ((0, 0), (0, 2)), constant_values=jnp.nan) for x in (ratios, rewards)]
    wide_mask = jnp.pad(mask, ((0, 0), (0, 2)))
    jax.tree.map(close, LOSSES[method](*wide, wide_mask), short)
    slope = jax.grad(lambda x: jnp.sum(LOSSES[method](x, wide[1], wide_mask)[0]))(wide[0])
    expected = jax.grad(lambda x: jnp.sum(LOSSES[method](x, rewards, mask)[0]))(ratios)
    close(slope, np.pad(expected, ((0, 0), (0, 2))))


@both
def test_order_does_not_matter(method):
    ratios, rewards, mask = lists()
    turned = LOSSES[method](ratios[:, ::-1], rewards[:, ::-1], mask)[0]
    close(turned, LOSSES[method](ratios, rewards, mask)[0])


@both
def test_a_prompt_with_fewer_than_two_responses_has_no_weight(method):
    ratios, rewards, _ = lists(3)
    mask = jnp.array([[True, True, False], [False, True, False], [False, False, False]])
    losses, weights = LOSSES[method](ratios, rewards, mask)
    np.testing.assert_array_equal(weights, [1, 0, 0])
    np.testing.assert_array_equal(losses[1:], 0)


@both
def test_one_response_is_refused(method):
    ratios, rewards, mask = lists(1)
    with pytest.raises(
        UserError, match=f"{method} compares .* at least 2, but there is room for 1"
    ):
        LOSSES[method](ratios, rewards, mask)
    assert requirements_of(LOSSES[method]).min_responses == 2


@both
@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_impossible_temperatures_are_refused(method, name):
    with pytest.raises(UserError, match=rf"{method}.{name} must be positive"):
        functools.partial(LOSSES[method], **{name: 0.0})(*lists())


@functools.cache
def slope_and_losses(method, alpha):
    def total(*arrays):
        result = LOSSES[method](*arrays, alpha=alpha)
        return jnp.sum(result[0]), result

    return jax.jit(jax.grad(total, has_aux=True))


@both
@pytest.mark.parametrize("alpha", [1e-3, 1e3])
@settings(max_examples=30)
@given(
    numbers=st.lists(EXTREME, min_size=12, max_size=12),
    mask=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_extreme_and_masked_inputs_give_finite_losses_and_gradients(method, alpha, numbers, mask):
    ratios, rewards = jnp.float32(numbers).reshape(2, 2, 3)
    mask = jnp.array(mask).reshape(2, 3)
    slope, (losses, weights) = slope_and_losses(method, alpha)(ratios, rewards, mask)
    assert np.isfinite(losses).all() and np.isfinite(slope).all()
    assert not np.asarray(slope)[~np.asarray(mask)].any()
    np.testing.assert_array_equal(weights, mask.sum(axis=1) > 1)


@settings(max_examples=20)
@given(chosen=EXTREME, rejected=EXTREME)
def test_nca_on_extreme_pairs_is_finite(chosen, rejected):
    total = jax.value_and_grad(
        lambda w, r: jnp.sum(listwise.nca_pair_loss(w, r, beta=10.0)), (0, 1)
    )
    value, slopes = total(jnp.float32([chosen]), jnp.float32([rejected]))
    assert np.isfinite(value) and np.isfinite(slopes).all()


@both
def test_gradients_equal_finite_differences(method):
    with jax.enable_x64(True):
        ratios, rewards, _ = lists(dtype=jnp.float64)
        mask = jnp.asarray(np.random.default_rng(5).uniform(size=(3, 4)) > 0.3)

        def loss(ratios):
            return LOSSES[method](jnp.asarray(ratios), rewards, mask)[0]

        assert loss(ratios).dtype == jnp.float64
        check_grads(loss, (ratios,), 1, modes=["rev"])
        pair = (ratios[:, 0], ratios[:, 1])
        check_grads(
            lambda *pair: listwise.nca_pair_loss(*map(jnp.asarray, pair), beta=BETA),
            pair,
            1,
            modes=["rev"],
        )


@both
def test_bfloat16_is_computed_in_float32(method):
    ratios, rewards, mask = lists(dtype=jnp.bfloat16)
    found = LOSSES[method](ratios, rewards, mask)[0]
    assert found.dtype == jnp.float32
    exact = LOSSES[method](ratios.astype(jnp.float32), rewards.astype(jnp.float32), mask)[0]
    np.testing.assert_array_equal(found, exact)
