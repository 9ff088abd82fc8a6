"""IFT: three losses by their definitions, the gradient of the released one, its special case and its limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxalign.errors import UserError
from jaxalign.losses.token_level import (
    ift_algorithm_1_loss,
    ift_code_loss,
    ift_equation_21_loss,
)

LENGTH = 6
SEGMENTS = jnp.array([[1, 1, 1, 1, 2, 2, 2, 0], [1, 3, 3, 3, 3, 3, 3, 0]])
EXISTS = np.asarray(SEGMENTS) > 0
LOSSES = jnp.asarray(np.random.default_rng(0).uniform(0.1, 4, SEGMENTS.shape), jnp.float32)
ONE = jnp.ones((1, LENGTH), jnp.int32)
SINGLE = LOSSES[1:, 1:7]


def by_discount(function):
    """Compiled once for every value of the arguments that are not arrays."""
    return functools.partial(jax.jit, static_argnums=(1, 2))(function)


@by_discount
def mean_code_loss(losses, discount, detach=False):
    """The loss of a single response, as the paper's code has it."""
    return jnp.mean(ift_code_loss(losses, ONE, discount=discount, detach=detach))


mean_code_gradient = by_discount(jax.grad(mean_code_loss))


def discounted(values, discount, *, ahead):
    """c_t (ahead) or b_t of one response, in float64."""
    values, size = np.asarray(values, np.float64).reshape(-1), np.size(values)
    offsets = np.subtract.outer(np.arange(size), np.arange(size))
    powers = np.where(offsets >= 0, np.float64(discount) ** np.maximum(offsets, 0), 0)
    return (powers.T if ahead else powers) @ values


@pytest.mark.parametrize("discount", [0.3, 0.95])
def test_the_released_loss_is_the_mean_weighted_by_the_loss_that_follows(discount):
    weights = discounted(SINGLE, discount, ahead=True)
    expected = weights @ np.asarray(SINGLE[0], np.float64) / weights.sum()
    np.testing.assert_allclose(mean_code_loss(SINGLE, discount), expected, rtol=1e-6)


def test_without_discount_it_is_cross_entropy_and_not_the_formula():
    np.testing.assert_array_equal(
        ift_code_loss(LOSSES, SEGMENTS, discount=0.0), np.where(EXISTS, LOSSES, 0)
    )
    formula = np.sum(SINGLE**2) / np.sum(SINGLE)
    np.testing.assert_allclose(mean_code_loss(SINGLE, 1e-6), formula, rtol=1e-4)
    assert abs(formula - SINGLE.mean()) > 0.1


@pytest.mark.parametrize("discount", [0.3, 0.95])
def test_its_gradient(discount):
    """(c_t + b_t - L s_t) / sum c, and c_t / sum c for constant weights; both are exact derivatives along the losses (Euler)."""
    following, before = (discounted(SINGLE, discount, ahead=ahead) for ahead in (True, False))
    powers = discounted(np.ones(LENGTH), discount, ahead=False)
    value, gradient = mean_code_loss(SINGLE, discount), mean_code_gradient(SINGLE, discount)
    expected = (following + before - float(value) * powers) / following.sum()
    np.testing.assert_allclose(gradient[0], expected, rtol=1e-4, atol=1e-6)
    detached = mean_code_gradient(SINGLE, discount, True)
    np.testing.assert_allclose(detached[0], following / following.sum(), rtol=1e-5)
    for slope in (gradient, detached):
        np.testing.assert_allclose(jnp.sum(slope * SINGLE), value, rtol=1e-5)


def test_only_constant_weights_never_push_a_target_down():
    easy_then_hard = jnp.array([[3.0, 3.0, 0.01, 3.0, 3.0, 0.01]])
    assert np.min(mean_code_gradient(easy_then_hard, 0.95)) < -1e-3
    assert np.min(mean_code_gradient(easy_then_hard, 0.95, True)) > 0


@pytest.mark.parametrize("discount", [0.0, 0.5, 0.99])
def test_equal_losses_give_that_loss(discount):
    np.testing.assert_allclose(mean_code_loss(jnp.full_like(SINGLE, 0.7), discount), 0.7, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_it_is_homogeneous_of_degree_one(scale):
    expected = scale * mean_code_loss(SINGLE, 0.9)
    np.testing.assert_allclose(mean_code_loss(scale * SINGLE, 0.9), expected, rtol=1e-5)


def test_early_tokens_count_most_in_the_released_loss_and_late_ones_in_the_equation():
    constant = jnp.ones_like(SINGLE)
    early = mean_code_gradient(constant, 0.95, True)[0]
    late = jax.grad(lambda losses: jnp.sum(ift_equation_21_loss(losses, ONE)))(constant)[0]
    assert np.all(np.diff(early) < 0) and np.all(np.diff(late) > 0)


def test_equation_21_is_its_double_sum():
    single = np.asarray(SINGLE[0], np.float64)
    expected = sum(single[n:].sum() for n in range(LENGTH))
    np.testing.assert_allclose(jnp.sum(ift_equation_21_loss(SINGLE, ONE)), expected, rtol=1e-6)


@pytest.mark.parametrize("discount", [0.0, 0.6])
def test_algorithm_1_is_its_double_sum(discount):
    single = np.asarray(SINGLE[0], np.float64)
    weights = [discount ** (LENGTH - 1 - t) * single[t:].sum() for t in range(LENGTH)]
    found = ift_algorithm_1_loss(SINGLE, ONE, discount=discount)
    np.testing.assert_allclose(found[0], weights * single, rtol=1e-5)
    slope = jax.grad(
        lambda x: jnp.sum(ift_algorithm_1_loss(x, ONE, discount=discount, detach=True))
    )(SINGLE)
    np.testing.assert_allclose(slope[0], weights, rtol=1e-5)


FORMS = {
    "code": lambda losses, segments: ift_code_loss(losses, segments, discount=0.9),
    "detached": lambda losses, segments: ift_code_loss(losses, segments, discount=0.9, detach=True),
    "algorithm_1": lambda losses, segments: ift_algorithm_1_loss(losses, segments, discount=0.9),
    "equation_21": ift_equation_21_loss,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_neither_packing_nor_padding_changes_anything(form):
    form = jax.jit(form)
    packed = form(jnp.where(EXISTS, LOSSES, jnp.nan), SEGMENTS)
    assert not np.any(packed[:, 7:])
    np.testing.assert_allclose(packed[1:, 1:7], form(SINGLE, ONE), rtol=1e-6)
    np.testing.assert_allclose(
        packed[:1, 4:7], form(LOSSES[:1, 4:7], jnp.ones((1, 3), jnp.int32)), rtol=1e-6
    )


@pytest.mark.parametrize("name", ["code", "algorithm_1", "equation_21"])
def test_gradients_equal_finite_differences(name):
    with jax.enable_x64(True):
        losses = jnp.asarray(np.asarray(LOSSES, np.float64))
        segments = jnp.asarray(np.asarray(SEGMENTS))
        form = jax.jit(lambda x: FORMS[name](x, segments))
        check_grads(lambda x: form(jnp.asarray(x)), (losses,), 1, modes=["rev"])


@jax.jit
@jax.value_and_grad
def sum_of_all(losses):
    return sum(jnp.sum(form(losses, jnp.array([[1, 1, 1, 0]]))) for form in FORMS.values())


@given(st.lists(st.sampled_from([0.0, 1e-30, 1e-8, 1.0, 1e4]), min_size=3, max_size=3))
def test_extreme_losses_give_finite_values_and_gradients(numbers):
    value, slope = sum_of_all(jnp.array([[*numbers, 1e4]]))
    assert np.isfinite(value) and np.all(np.isfinite(slope)) and slope[0, 3] == 0


def test_a_fully_fitted_response_has_no_loss_and_no_gradient():
    zeros = jnp.zeros_like(SINGLE)
    assert mean_code_loss(zeros, 0.95) == 0 and not np.any(mean_code_gradient(zeros, 0.95))


def test_a_discount_of_one_is_refused():
    for function in (ift_code_loss, ift_algorithm_1_loss):
        with pytest.raises(UserError, match="discount must be below 1"):
            function(LOSSES, SEGMENTS, discount=1.0)
        with pytest.raises(UserError, match=r"discount is a probability in \[0, 1\]"):
            function(LOSSES, SEGMENTS, discount=-0.1)


def test_bfloat16_is_computed_in_float32():
    low = LOSSES.astype(jnp.bfloat16)
    for form in FORMS.values():
        np.testing.assert_array_equal(form(low, SEGMENTS), form(low.astype(jnp.float32), SEGMENTS))
