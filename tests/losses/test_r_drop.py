"""The divergence of R-Drop between two passes: its definition, symmetry, sign, zeros and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxalign.losses.distillation import forward_kl, reverse_kl
from jaxalign.losses.r_drop import bidirectional_kl

VOCABULARY = 7
LOGITS = [2 * jax.random.normal(jax.random.key(seed), (4, VOCABULARY)) for seed in (0, 1)]
FIRST, SECOND = map(jax.nn.log_softmax, LOGITS)


def test_it_is_the_mean_of_both_divergences():
    expected = (forward_kl(FIRST, SECOND) + reverse_kl(FIRST, SECOND)) / 2
    assert np.min(expected) > 0.01
    np.testing.assert_allclose(bidirectional_kl(FIRST, SECOND), expected, rtol=1e-5)


@given(seed=st.integers(0, 2**31 - 1), scale=st.sampled_from([1e-3, 1.0, 30.0]))
def test_it_is_symmetric_to_the_last_bit_and_not_negative(seed, scale):
    generator = np.random.default_rng(seed)
    first, second = (
        jax.nn.log_softmax(jnp.asarray(scale * generator.normal(size=VOCABULARY), jnp.float32))
        for _ in range(2)
    )
    found = bidirectional_kl(first, second)
    assert found >= 0 and found == bidirectional_kl(second, first)
    assert bidirectional_kl(first, first) == 0


def test_equal_passes_have_no_gradient():
    gradients = jax.grad(lambda pair: jnp.sum(bidirectional_kl(*pair)))((FIRST, FIRST))
    assert not any(np.any(leaf) for leaf in gradients)


def test_the_gradient_reaches_both_passes():
    def loss(pair):
        return jnp.sum(bidirectional_kl(*map(jax.nn.log_softmax, pair)))

    for found, own, other in zip(
        jax.grad(loss)(LOGITS), (FIRST, SECOND), (SECOND, FIRST), strict=True
    ):
        p, d = jnp.exp(own), own - other
        expected = (p * (d - jnp.sum(p * d, -1, keepdims=True)) + p - jnp.exp(other)) / 2
        np.testing.assert_allclose(found, expected, atol=1e-6)
    with jax.enable_x64(True):
        check_grads(loss, ([np.asarray(each, np.float64) for each in LOGITS],), 1, modes=["rev"])


def test_a_token_that_neither_pass_can_give_contributes_nothing():
    for impossible in (-jnp.inf, -1e10):
        first, second = (
            jnp.concatenate([each, jnp.full((4, 1), impossible)], axis=-1)
            for each in (FIRST, SECOND)
        )
        divergence, gradient = jax.value_and_grad(
            lambda x, other=second: jnp.sum(bidirectional_kl(x, other))
        )(first)
        np.testing.assert_allclose(divergence, jnp.sum(bidirectional_kl(FIRST, SECOND)), rtol=1e-6)
        assert np.all(np.isfinite(gradient)) and not np.any(gradient[:, -1])
