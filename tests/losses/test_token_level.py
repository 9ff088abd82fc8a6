"""Cross entropy from token statistics equals T5X's formula on explicit logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxalign.losses.token_level import cross_entropy

VOCABULARY = 11


def t5x_cross_entropy(logits, targets, z_loss, smoothing):
    """T5X's definition, written out: soft targets, their entropy subtracted, z-loss added. Float64."""
    logits = np.asarray(logits, np.float64)
    log_normalizers = np.log(np.exp(logits).sum(-1))
    log_probs = logits - log_normalizers[..., None]
    low = smoothing / (VOCABULARY - 1)
    soft = np.full(logits.shape, low)
    np.put_along_axis(soft, targets[..., None], 1 - smoothing, axis=-1)
    entropy = -np.sum(soft * np.log(np.maximum(soft, 1e-20)), axis=-1)
    return -np.sum(soft * log_probs, axis=-1) - entropy + z_loss * log_normalizers**2


def statistics(logits, targets):
    log_probs = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
    return chosen, jax.nn.logsumexp(logits, axis=-1), log_probs.mean(-1)


@pytest.mark.parametrize("z_loss", [0.0, 1e-4, 0.1])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equals_t5x(z_loss, smoothing):
    generator = np.random.default_rng(0)
    logits = 3 * generator.normal(size=(4, 6, VOCABULARY))
    targets = generator.integers(0, VOCABULARY, (4, 6))
    found = cross_entropy(
        *statistics(jnp.asarray(logits, jnp.float32), targets),
        vocab_size=VOCABULARY,
        z_loss=z_loss,
        label_smoothing=smoothing,
    )
    expected = t5x_cross_entropy(logits, targets, z_loss, smoothing)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)


def test_smoothing_has_its_minimum_of_zero_at_the_soft_target():
    low = 0.1 / (VOCABULARY - 1)
    logits = jnp.log(jnp.full((1, 1, VOCABULARY), low).at[0, 0, 3].set(0.9))
    loss = lambda logits: jnp.sum(  # noqa: E731
        cross_entropy(
            *statistics(logits, np.array([[3]])), vocab_size=VOCABULARY, label_smoothing=0.1
        )
    )
    np.testing.assert_allclose(loss(logits), 0, atol=1e-6)
    np.testing.assert_allclose(jax.grad(loss)(logits), 0, atol=1e-6)


def test_smoothing_without_its_statistic_is_refused():
    with pytest.raises(ValueError, match="mean_log_probs"):
        cross_entropy(jnp.zeros((1, 1)), jnp.zeros((1, 1)), vocab_size=5, label_smoothing=0.1)


def test_gradients_equal_finite_differences():
    with jax.enable_x64(True):
        generator = np.random.default_rng(0)
        inputs = tuple(jnp.asarray(generator.normal(size=(3, 2, 4))))
        check_grads(
            lambda *inputs: cross_entropy(
                *map(jnp.asarray, inputs), vocab_size=9, z_loss=0.3, label_smoothing=0.2
            ),
            inputs,
            order=1,
            modes=["rev"],
        )


@given(st.floats(-1e4, 1e4, width=32), st.floats(-1e4, 1e4, width=32))
def test_extreme_inputs_give_finite_losses_and_gradients(log_prob, normalizer):
    def loss(log_probs, normalizers):
        return jnp.sum(
            cross_entropy(
                log_probs, normalizers, log_probs, vocab_size=9, z_loss=1e-4, label_smoothing=0.1
            )
        )

    arguments = jnp.full((1, 1), log_prob), jnp.full((1, 1), normalizer)
    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(*arguments)
    assert np.isfinite(value) and all(np.isfinite(gradient).all() for gradient in gradients)


def test_bfloat16_is_computed_in_float32():
    low = jnp.full((1, 1), -0.3, jnp.bfloat16)
    assert cross_entropy(low, low, vocab_size=9, z_loss=1e-4).dtype == jnp.float32
