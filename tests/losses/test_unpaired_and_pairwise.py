"""KTO and DPO: values and slopes at the start, the reference point, finite differences, robustness."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxalign.losses.pairwise import dpo_loss
from jaxalign.losses.unpaired import kto_loss, kto_reference_point

EXTREME = st.floats(-1e4, 1e4, width=32)
LABELS = jnp.array([[True, False]])


def test_dpo_starts_at_ln_2_with_slope_minus_half_beta():
    zero = jnp.zeros(3)
    assert np.all(dpo_loss(zero, zero, beta=0.3) == jnp.float32(math.log(2)))
    chosen, rejected = jax.grad(lambda *pair: jnp.sum(dpo_loss(*pair, beta=0.3)), argnums=(0, 1))(
        zero, zero
    )
    np.testing.assert_allclose(chosen, -0.15)
    np.testing.assert_allclose(rejected, 0.15)


def test_dpo_value_by_hand():
    loss = dpo_loss(jnp.array([1.0]), jnp.array([-1.0]), beta=0.5)
    np.testing.assert_allclose(loss, math.log1p(math.exp(-1.0)), rtol=1e-6)


@given(chosen=EXTREME, rejected=EXTREME, beta=st.sampled_from([0.01, 1.0, 10.0]))
def test_dpo_is_finite_and_falls_with_the_margin(chosen, rejected, beta):
    value, slope = jax.value_and_grad(
        lambda w: jnp.sum(dpo_loss(w, jnp.array([rejected]), beta=beta))
    )(jnp.array([chosen]))
    assert np.isfinite(value) and value >= 0
    assert -beta * (1 + 1e-6) <= slope[0] <= 0


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.5, 0.5)])
def test_kto_starts_at_half_its_weight_with_slope_a_quarter(weights):
    def loss(log_ratios):
        return kto_loss(
            log_ratios,
            LABELS,
            0.0,
            beta=0.4,
            desirable_weight=weights[0],
            undesirable_weight=weights[1],
        )

    zero = jnp.zeros((1, 2))
    np.testing.assert_allclose(loss(zero), [[weights[0] / 2, weights[1] / 2]])
    slope = jax.grad(lambda ratios: jnp.sum(loss(ratios)))(zero)
    np.testing.assert_allclose(slope, [[-weights[0] * 0.1, weights[1] * 0.1]], rtol=1e-6)


def test_kto_value_by_hand():
    """lambda_D (1 - sigmoid(beta (l - z0))) and lambda_U (1 - sigmoid(beta (z0 - l)))."""
    found = kto_loss(
        jnp.array([[2.0, 2.0]]), LABELS, 0.5, beta=0.4, desirable_weight=1.2, undesirable_weight=0.9
    )
    value = 1 / (1 + math.exp(-0.6))
    np.testing.assert_allclose(found, [[1.2 * (1 - value), 0.9 * value]], rtol=1e-6)


@given(log_ratio=EXTREME, point=st.floats(0, 1e4), desirable=st.booleans())
def test_kto_is_bounded_with_finite_gradients(log_ratio, point, desirable):
    def loss(log_ratios):
        return jnp.sum(kto_loss(log_ratios, jnp.array([[desirable]]), point, beta=1.0))

    value, slope = jax.value_and_grad(loss)(jnp.array([[log_ratio]]))
    assert 0 <= value <= 1 and np.isfinite(slope).all()
    assert slope <= 0 if desirable else slope >= 0


def test_kto_keeps_its_tail():
    """1 - sigmoid(30) is 0 in float32; sigmoid(-30) is not."""
    assert kto_loss(jnp.array([[30.0]]), jnp.array([[True]]), 0.0, beta=1.0) > 0


@given(st.lists(EXTREME, min_size=1, max_size=8))
def test_kto_reference_point_is_the_clamped_mean(log_ratios):
    array = jnp.array([log_ratios])
    point = kto_reference_point(array, jnp.ones(array.shape, bool))
    assert point >= 0
    mean = np.mean(np.asarray(log_ratios, np.float64))
    np.testing.assert_allclose(point, max(0.0, mean), rtol=1e-5, atol=1e-2)


def test_kto_reference_point_is_clamped_after_the_mean_and_ignores_what_is_masked():
    log_ratios = jnp.array([[-1.0, 3.0, jnp.nan]])
    assert kto_reference_point(log_ratios, jnp.array([[True, True, False]])) == 1.0
    assert kto_reference_point(log_ratios, jnp.zeros((1, 3), bool)) == 0.0


def test_no_gradient_passes_the_kto_reference_point():
    def loss(log_ratios):
        point = kto_reference_point(log_ratios, jnp.ones((1, 2), bool))
        return point + jnp.sum(kto_loss(jnp.zeros((1, 2)), LABELS, point, beta=1.0))

    assert not np.any(jax.grad(loss)(jnp.array([[1.0, 2.0]])))


def test_gradients_equal_finite_differences():
    with jax.enable_x64(True):
        generator = np.random.default_rng(0)
        chosen, rejected = jnp.asarray(generator.normal(size=(2, 5)))

        def dpo(*log_ratios):
            return dpo_loss(*map(jnp.asarray, log_ratios), beta=0.7)

        check_grads(dpo, (chosen, rejected), 1, modes=["rev"])
        log_ratios = jnp.asarray(generator.normal(size=(3, 2)))
        labels = jnp.asarray(generator.normal(size=(3, 2)) > 0)

        def kto(log_ratios):
            return kto_loss(jnp.asarray(log_ratios), labels, 0.2, beta=0.7)

        check_grads(kto, (log_ratios,), 1, modes=["rev"])


def test_bfloat16_is_computed_in_float32():
    low = jnp.array([[0.3, 0.1]], jnp.bfloat16)
    for found in (
        kto_loss(low, LABELS, 0.0, beta=1.0),
        dpo_loss(low[:, 0], low[:, 1], beta=1.0),
        kto_reference_point(low, LABELS),
    ):
        assert found.dtype == jnp.float32
    exact = kto_loss(low.astype(jnp.float32), LABELS, 0.0, beta=1.0)
    np.testing.assert_array_equal(kto_loss(low, LABELS, 0.0, beta=1.0), exact)
