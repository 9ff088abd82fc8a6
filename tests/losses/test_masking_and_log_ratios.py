"""Masked reductions, and the log-ratio that is exactly 0 at rounding."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.losses.log_ratios import RESOLUTION, log_ratio
from jaxalign.losses.masking import as_float32, masked_mean, masked_sum


def test_masked_reductions_by_hand():
    values, where = jnp.array([1.0, 2.0, jnp.nan]), jnp.array([True, True, False])
    assert masked_sum(values, where) == 3 and masked_mean(values, where) == 1.5
    np.testing.assert_array_equal(jax.grad(masked_mean)(values, where), [0.5, 0.5, 0])


def test_nothing_to_reduce_gives_zero_and_no_gradient():
    values, where = jnp.array([jnp.nan, jnp.inf]), jnp.zeros(2, bool)
    assert masked_sum(values, where) == 0 and masked_mean(values, where) == 0
    np.testing.assert_array_equal(jax.grad(masked_mean)(values, where), [0, 0])


def test_low_precision_is_widened_and_float64_kept():
    with jax.enable_x64(True):
        low, high = as_float32(jnp.zeros(1, jnp.bfloat16), jnp.zeros(1, jnp.float64))
        assert low.dtype == jnp.float32 and high.dtype == jnp.float64


@given(
    log_prob=st.floats(-500, 0, width=32),
    length=st.integers(1, 500),
    roundings=st.floats(-1, 1, width=32),
)
def test_a_log_ratio_within_rounding_is_exactly_zero(log_prob, length, roundings):
    size = RESOLUTION * (abs(log_prob) + length)
    policy, reference = (
        jnp.float32([[log_prob + 0.5 * roundings * size]]),
        jnp.float32([[log_prob]]),
    )
    assert log_ratio(policy, reference, jnp.float32([[length]])) == 0


@given(difference=st.floats(2**-10, 1e4, width=32), sign=st.sampled_from([-1, 1]))
def test_a_real_log_ratio_is_the_difference(difference, sign):
    policy, reference = jnp.float32([[-20.0 + sign * difference]]), jnp.float32([[-20.0]])
    assert log_ratio(policy, reference, jnp.float32([[7.0]])) == policy - reference


def test_the_gradient_is_that_of_the_policy_and_nan_stays():
    policy, reference = jnp.array([[-3.0, -3.0]]), jnp.array([[-3.0, -5.0]])
    lengths = jnp.ones((1, 2))
    by_policy, by_reference = jax.grad(
        lambda p, r: jnp.sum(log_ratio(p, r, lengths)), argnums=(0, 1)
    )(policy, reference)
    np.testing.assert_array_equal(by_policy, [[1, 1]])
    np.testing.assert_array_equal(by_reference, [[0, 0]])
    assert np.isnan(log_ratio(jnp.array([[jnp.nan]]), jnp.zeros((1, 1)), jnp.ones((1, 1))))
