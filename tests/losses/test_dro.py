"""DRO's losses: values and gradients by hand, the identities that the paper's equations imply, and robustness."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxalign.losses import dro
from jaxalign.losses.masking import masked_sum
from tests.fixtures import numbers

close = functools.partial(numbers.close, tolerance=1e-14)

TAUS = (0.3, 1.0, 5.0)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def arrays():
    """Log-probabilities, reference log-probabilities, rewards and values, `[4, 3]` in float64."""
    generator = np.random.default_rng(0)
    log_probs, reference, rewards, values = generator.normal(size=(4, 4, 3))
    return (
        jnp.asarray(log_probs - 9),
        jnp.asarray(reference - 9),
        jnp.asarray(rewards),
        jnp.asarray(values),
    )


def mean_policy_loss(log_probs, reference, rewards, values, tau, **options):
    losses = dro.policy_loss(
        log_probs, log_probs - reference, rewards, values, temperature=tau, **options
    )
    return jnp.mean(losses)


def mean_value_loss(values, log_ratios, rewards, tau):
    return jnp.mean(dro.value_loss(values, log_ratios, rewards, temperature=tau))


def residual(log_ratios, rewards, values, *, temperature):
    """``delta = r - V - tau l``, zero everywhere at the optimum (section 3 of the paper)."""
    return rewards - values - temperature * log_ratios


def joint_loss(log_ratios, rewards, values, *, temperature):
    """Equation 6: what the two halves of DRO-V minimise together."""
    return 0.5 * jnp.square(residual(log_ratios, rewards, values, temperature=temperature))


def test_values_by_hand():
    # r = 2, V = 0.5, l = 0.3, tau = 2: delta = 2 - 0.5 - 0.6 = 0.9; log pi = -4.
    one = jnp.ones((1, 1))
    numbers = {"log_ratios": 0.3 * one, "rewards": 2 * one, "values": 0.5 * one}
    close(dro.policy_loss(-4 * one, **numbers, temperature=2.0), 1.5 * 4 + 1.0 * 0.09)
    close(dro.policy_loss(-4 * one, **numbers, temperature=2.0, regularizer=0.5), 6 + 0.5 * 0.09)
    close(dro.value_loss(**numbers, temperature=2.0), 0.405)
    close(dro.value_target(0.3 * one, 2 * one, temperature=2.0), 1.4)
    close(dro.variance_loss(1.4 * one, 1.0), 0.08)
    literal = dro.literal_variance_policy_loss(-4 * one, 0.3 * one, 2 * one, 0.1, temperature=2.0)
    close(literal, 8 + 2 * 0.04)
    close(dro.batch_value_loss(0.5 * one, 1.4 * one, 0.7, 1.0), 0.5 * (0.09 + 0.16))
    pair = dro.two_sample_loss(jnp.array([[0.3, 0.1]]), jnp.array([[2.0, 1.0]]), temperature=2.0)
    close(pair, 0.25 * 0.6**2)


@pytest.mark.parametrize("tau", TAUS)
def test_gradients_equal_equations_7_and_8(arrays, tau):
    """Policy: ``-delta grad log pi`` (equation 7 over tau); value: ``-delta grad V`` (equation 8)."""
    log_probs, reference, rewards, values = arrays
    log_ratios = log_probs - reference
    delta = rewards - values - tau * log_ratios
    close(jax.grad(mean_policy_loss)(*arrays, tau), -delta / delta.size)
    close(jax.grad(mean_value_loss)(values, log_ratios, rewards, tau), -delta / delta.size)


@pytest.mark.parametrize("tau", TAUS)
def test_gradients_through_a_network_equal_equations_7_and_8(tau):
    """The same with shared parameters behind log pi and V: sums of ``delta grad log pi`` and ``delta grad V``, in float32."""
    generator = np.random.default_rng(1)
    features = jnp.asarray(generator.normal(size=(6, 2, 5)), jnp.float32)
    reference, rewards = jnp.asarray(generator.normal(size=(2, 6, 2)), jnp.float32)
    theta = jnp.asarray(generator.normal(size=5), jnp.float32)

    def log_prob(theta):
        return jax.nn.log_sigmoid(features @ theta)

    def value(theta):
        return jnp.tanh(features.sum(1) @ theta)[:, None] * jnp.ones((1, 2), jnp.float32)

    def loss(theta):
        log_probs, values = log_prob(theta), value(theta)
        log_ratios = log_probs - reference
        policy = dro.policy_loss(log_probs, log_ratios, rewards, values, temperature=tau)
        return jnp.sum(policy + dro.value_loss(values, log_ratios, rewards, temperature=tau))

    delta = rewards - value(theta) - tau * (log_prob(theta) - reference)
    seven = -jnp.einsum("er,erp->p", delta, jax.jacobian(log_prob)(theta))
    eight = -jnp.einsum("er,erp->p", delta, jax.jacobian(value)(theta))
    np.testing.assert_allclose(jax.grad(loss)(theta), seven + eight, rtol=2e-5)


@pytest.mark.parametrize("tau", TAUS)
def test_joint_loss_is_tau_policy_loss_and_value_loss(arrays, tau):
    log_probs, reference, rewards, values = arrays

    def joint(log_probs, values):
        return jnp.mean(joint_loss(log_probs - reference, rewards, values, temperature=tau))

    policy, value = jax.grad(joint, argnums=(0, 1))(log_probs, values)
    close(policy, tau * jax.grad(mean_policy_loss)(*arrays, tau))
    close(value, jax.grad(mean_value_loss)(values, log_probs - reference, rewards, tau))


@pytest.mark.parametrize("tau", TAUS)
def test_variance_loss_is_half_the_batch_variance(arrays, tau):
    """Value, gradient, the expression of the paper's DRO-P, and DRO-V with V the batch mean of z: all one."""
    log_probs, reference, rewards, _ = arrays

    def targets(log_probs):
        return dro.value_target(log_probs - reference, rewards, temperature=tau)

    def half_variance(log_probs):
        return 0.5 * jnp.var(targets(log_probs))

    def loss(log_probs):
        z = targets(log_probs)
        return jnp.mean(dro.variance_loss(z, jnp.mean(z)))

    close(loss(log_probs), 0.5 * np.var(targets(log_probs)))
    close(half_variance(log_probs), loss(log_probs))
    gradient = jax.grad(loss)(log_probs)
    close(gradient, jax.grad(half_variance)(log_probs))
    count = rewards.size
    of_variance = jax.grad(lambda log_probs: jnp.var(log_probs - reference))(log_probs)
    close(gradient / tau, -(rewards - rewards.mean()) / count + tau / 2 * of_variance)
    mean = jnp.full_like(rewards, targets(log_probs).mean())
    close(gradient / tau, jax.grad(mean_policy_loss)(log_probs, reference, rewards, mean, tau))


def test_variance_over_microbatches_uses_the_mean_of_the_whole_batch(arrays):
    z, _, _, _ = arrays
    mean = jnp.mean(z)
    whole = jax.grad(lambda z: jnp.sum(dro.variance_loss(z, jnp.mean(z))))(z)
    parts = [
        jax.grad(lambda z: jnp.sum(dro.variance_loss(z, mean)))(part) for part in (z[:1], z[1:])
    ]
    close(jnp.concatenate(parts), whole)


def test_literal_variance_gradient_is_the_printed_one(arrays):
    """Uncentred rewards, and tau in place of tau/2 before the gradient of the variance."""
    log_probs, reference, rewards, _ = arrays
    tau = 2.0

    def loss(log_probs):
        ratios = log_probs - reference
        losses = dro.literal_variance_policy_loss(
            log_probs, ratios, rewards, ratios.mean(), temperature=tau
        )
        return jnp.mean(losses)

    of_variance = jax.grad(lambda log_probs: jnp.var(log_probs - reference))(log_probs)
    close(jax.grad(loss)(log_probs), -rewards / rewards.size + tau * of_variance)


def test_literal_regularizer_differs_from_tau_half_unless_tau_is_one(arrays):
    literal = [jax.grad(mean_policy_loss)(*arrays, tau, regularizer=0.5) for tau in (1.0, 2.0)]
    ours = [jax.grad(mean_policy_loss)(*arrays, tau) for tau in (1.0, 2.0)]
    close(literal[0], ours[0])
    close(literal[1], literal[0])
    assert np.abs(literal[1] - ours[1]).max() > 1e-3


def test_two_sample_loss_is_half_the_variance_of_a_pair(arrays):
    """Over all ordered pairs, i = j included, the mean of ``1/4 (z_i - z_j)^2`` is half the (biased) variance."""
    log_ratios, _, rewards, _ = (array.reshape(-1) for array in arrays)
    first, second = (index.reshape(-1) for index in np.indices((log_ratios.size,) * 2))
    pairs = [jnp.stack([array[first], array[second]], axis=1) for array in (log_ratios, rewards)]
    found = jnp.mean(dro.two_sample_loss(*pairs, temperature=0.7))
    close(found, 0.5 * np.var(rewards - 0.7 * log_ratios))


def test_single_value_loss_is_the_regression_of_the_batch_mean(arrays):
    values, targets, _, _ = arrays

    def ours(values):
        return jnp.mean(dro.batch_value_loss(values, targets, values.mean(), targets.mean()))

    def direct(values):
        return 0.5 * jnp.mean(jnp.square(values.mean() - targets))

    close(ours(values), direct(values))
    close(jax.grad(ours)(values), jax.grad(direct)(values))


@given(scale=st.floats(0.1, 10), tau=st.floats(0.1, 5), seed=st.integers(0, 100))
def test_only_reward_over_temperature_matters(scale, tau, seed):
    """Scaling rewards, values and temperature by c scales the joint loss by c^2."""
    log_ratios, rewards, values = jnp.asarray(np.random.default_rng(seed).normal(size=(3, 4, 2)))
    scaled = joint_loss(log_ratios, scale * rewards, scale * values, temperature=scale * tau)
    close(
        scaled,
        scale**2 * joint_loss(log_ratios, rewards, values, temperature=tau),
        tolerance=1e-11,
    )


@given(tau=st.sampled_from(TAUS), seed=st.integers(0, 100))
def test_the_optimum_has_no_residual_and_is_stationary_for_any_behaviour(tau, seed):
    generator = np.random.default_rng(seed)
    reference = jax.nn.log_softmax(jnp.asarray(generator.normal(size=(3, 5))))
    rewards = jnp.asarray(generator.normal(size=(3, 5)))
    behaviour = jax.nn.softmax(jnp.asarray(generator.normal(size=(3, 5))))
    optimum, values = dro.optimal_policy_log_probs(reference, rewards, temperature=tau)
    close(jnp.exp(optimum).sum(-1), 1.0)
    columns = jnp.broadcast_to(values[:, None], rewards.shape)
    close(residual(optimum - reference, rewards, columns, temperature=tau), 0.0, tolerance=1e-12)

    def loss(logits):
        log_probs = jax.nn.log_softmax(logits)
        losses = joint_loss(log_probs - reference, rewards, columns, temperature=tau)
        return jnp.sum(behaviour * losses)

    close(jax.grad(loss)(optimum), 0.0, tolerance=1e-12)
    assert loss(optimum) < loss(reference)


def test_gradients_equal_finite_differences(arrays):
    log_probs, reference, rewards, values = arrays
    cases = [
        (lambda p: dro.policy_loss(p, p - reference, rewards, values, temperature=0.7), log_probs),
        (lambda v: dro.value_loss(v, log_probs - reference, rewards, temperature=0.7), values),
        (lambda p: joint_loss(p - reference, rewards, values, temperature=0.7), log_probs),
        (lambda p: dro.two_sample_loss(p[:, :2], rewards[:, :2], temperature=0.7), log_probs),
        (lambda z: dro.variance_loss(z, 0.3), log_probs),
    ]
    for function, argument in cases:
        # The finite differences are taken on numpy arrays.
        total = lambda x, f=function: jnp.sum(f(jnp.asarray(x)))  # noqa: E731
        check_grads(total, (argument,), order=1, modes=["rev"])


def test_what_is_held_constant_has_no_gradient(arrays):
    log_probs, reference, rewards, values = arrays
    by_values = jax.grad(mean_policy_loss, argnums=3)(*arrays, 1.0)
    by_ratio = jax.grad(mean_value_loss, argnums=1)(values, log_probs - reference, rewards, 1.0)
    assert not np.any(by_values) and not np.any(by_ratio)
    by_mean = jax.grad(lambda m: jnp.sum(dro.variance_loss(values, m)))(jnp.asarray(0.5))
    assert by_mean == 0


EXTREME = st.sampled_from([-1e4, -1.0, 0.0, 1.0, 1e4])


@given(numbers=st.lists(EXTREME, min_size=4, max_size=4), tau=st.sampled_from([0.01, 1.0, 100.0]))
def test_extreme_inputs_give_finite_losses_and_gradients(numbers, tau):
    log_probs, reference, rewards, values = (jnp.full((1, 1), x, jnp.float32) for x in numbers)

    def total(log_probs, values):
        ratios = log_probs - reference
        z = dro.value_target(ratios, rewards, temperature=tau)
        losses = (
            dro.policy_loss(log_probs, ratios, rewards, values, temperature=tau),
            dro.value_loss(values, ratios, rewards, temperature=tau),
            joint_loss(ratios, rewards, values, temperature=tau),
            dro.variance_loss(z, z.mean()),
            dro.batch_value_loss(values, z, values.mean(), z.mean()),
        )
        return sum(jnp.sum(loss) for loss in losses)

    value, gradients = jax.value_and_grad(total, argnums=(0, 1))(log_probs, values)
    assert np.isfinite(value) and all(np.isfinite(gradient).all() for gradient in gradients)


def test_what_is_masked_reaches_neither_sum_nor_gradient():
    rewards = jnp.array([[1.0, 1e30]], jnp.float32)
    mask = jnp.array([[True, False]])

    def loss(log_probs):
        losses = dro.policy_loss(log_probs, log_probs, rewards, 0 * rewards, temperature=1.0)
        return masked_sum(losses, mask)

    value, gradient = jax.value_and_grad(loss)(jnp.array([[-1.0, -2.0]], jnp.float32))
    assert value == 1.5 and gradient.tolist() == [[-2.0, 0.0]]


def test_bfloat16_is_computed_in_float32():
    log_probs = jnp.array([[-300.0]], jnp.bfloat16)
    reward = jnp.array([[0.1]], jnp.bfloat16)
    loss = dro.policy_loss(log_probs, log_probs * 0, reward, reward * 0, temperature=1.0)
    assert loss.dtype == jnp.float32
    assert loss == jnp.float32(reward[0, 0]) * 300
    assert dro.value_target(log_probs, reward, temperature=1.0).dtype == jnp.float32
