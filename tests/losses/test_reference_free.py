"""ORPO and SimPO: values by hand, the start, gradients and extremes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.losses.reference_free import orpo_loss, simpo_loss

LN2 = math.log(2)
METHODS = {
    "orpo": functools.partial(orpo_loss, weight=0.5),
    "simpo": functools.partial(simpo_loss, beta=2.0, gamma=0.0),
}


def _arrays(seed=0, pairs=6):
    generator = np.random.default_rng(seed)
    lengths = [generator.integers(1, 9, pairs).astype(np.float32) for _ in range(2)]
    log_probs = [-generator.uniform(0.1, 3.0, pairs).astype(np.float32) * n for n in lengths]
    return [*map(jnp.asarray, log_probs), *map(jnp.asarray, lengths)]


def test_orpo_is_the_formula_of_public_code():
    """TRL's: differences of log p and of log(1 - p), on means over tokens, in float64 here."""
    chosen, rejected, n, m = (np.asarray(array, np.float64) for array in _arrays())
    p, q = chosen / n, rejected / m
    log_odds = (p - q) - (np.log1p(-np.exp(p)) - np.log1p(-np.exp(q)))
    wanted = -p + 0.5 * np.log1p(np.exp(-log_odds))
    np.testing.assert_allclose(METHODS["orpo"](*_arrays()), wanted, rtol=1e-5)


def test_simpo_is_the_formula_of_the_paper():
    chosen, rejected, n, m = (np.asarray(array, np.float64) for array in _arrays(1))
    wanted = np.log1p(np.exp(-(2.5 * chosen / n - 2.5 * rejected / m - 1.2)))
    np.testing.assert_allclose(simpo_loss(*_arrays(1), beta=2.5, gamma=1.2), wanted, rtol=1e-5)


def test_two_equal_responses():
    log_probs, lengths = jnp.array([-6.0, -1.0]), jnp.array([3.0, 2.0])
    orpo = METHODS["orpo"](log_probs, log_probs, lengths, lengths)
    np.testing.assert_allclose(orpo, [2.0 + 0.5 * LN2, 0.5 + 0.5 * LN2], rtol=1e-6)
    simpo = METHODS["simpo"](log_probs, log_probs, lengths, lengths)
    np.testing.assert_allclose(simpo, [LN2, LN2], rtol=1e-6)


def test_simpo_does_not_reward_length():
    """A response of twice the length with the same log-probability of a token has the same reward."""
    chosen, rejected, n, m = _arrays()
    once = METHODS["simpo"](chosen, rejected, n, m)
    np.testing.assert_allclose(METHODS["simpo"](2 * chosen, rejected, 2 * n, m), once, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_preferred_response_rises_and_the_other_falls(method):
    def total(chosen, rejected, n, m):
        return METHODS[method](chosen, rejected, n, m).sum()

    up, down = jax.grad(total, argnums=(0, 1))(*_arrays())
    assert (up < 0).all() and (down > 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_extremes_are_finite(method):
    chosen, rejected = jnp.array([0.0, -900.0, 0.0, -900.0]), jnp.array([0.0, 0.0, -900.0, -900.0])
    ones = jnp.ones(4)

    def total(chosen, rejected):
        return METHODS[method](chosen, rejected, ones, ones).sum()

    value, slopes = jax.value_and_grad(total, argnums=(0, 1))(chosen, rejected)
    assert np.isfinite(value) and all(np.isfinite(slope).all() for slope in slopes)


@pytest.mark.parametrize(
    ("function", "changes", "message"),
    [
        (orpo_loss, {"weight": -0.1}, "orpo.weight must be at least 0"),
        (simpo_loss, {"beta": 0.0, "gamma": 1.0}, "simpo.beta must be positive"),
        (simpo_loss, {"beta": 1.0, "gamma": -1.0}, "simpo.gamma must be at least 0"),
    ],
)
def test_impossible_hyperparameters_are_refused_by_name(function, changes, message):
    with pytest.raises(UserError, match=message):
        function(*_arrays(), **changes)
