"""Soft labels from a pairwise judge: one baseline, ranking."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.selection.judged_pairs import ranked_pairs


def close(found, expected, tolerance=1e-6):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def bradley_terry(rewards):
    return jax.nn.sigmoid(rewards[:, :, None] - rewards[:, None, :])


@pytest.fixture
def rewards():
    return jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)


def test_pairs_are_ordered_by_rank(rewards):
    preferences = bradley_terry(rewards)
    pairs = ranked_pairs(preferences, jnp.ones((3, 4), bool))
    assert pairs.first.shape == (3, 6) and np.all(pairs.weights == 1)
    for prompt in range(3):
        order = np.argsort(-np.asarray(rewards[prompt]))
        expected = [(order[i], order[j]) for i in range(4) for j in range(i + 1, 4)]
        first, second = np.asarray(pairs.first[prompt]), np.asarray(pairs.second[prompt])
        assert list(zip(first, second, strict=True)) == expected
        close(pairs.probabilities[prompt], preferences[prompt][first, second])
    assert np.all(pairs.probabilities >= 0.5)


def test_responses_that_do_not_exist_and_pairs_in_the_band_have_no_weight(rewards):
    mask = jnp.array([[True, True, True, False], [True, False, False, False], [True] * 4])
    garbage = jnp.where(mask[:, None, :] & mask[:, :, None], bradley_terry(rewards), jnp.nan)
    pairs = ranked_pairs(garbage, mask)
    np.testing.assert_array_equal(pairs.weights.sum(1), [3, 0, 6])
    assert np.isfinite(pairs.probabilities).all()
    banded = ranked_pairs(garbage, mask, band=0.2)
    kept = np.abs(np.asarray(pairs.probabilities) - 0.5) >= 0.2
    np.testing.assert_array_equal(banded.weights, pairs.weights * kept)
    assert 0 < banded.weights.sum() < pairs.weights.sum()


def test_a_judge_that_contradicts_itself_may_give_less_than_one_half():
    """0 beats 1 and 2 by a little, but 3 beats 0, and loses to the others by much."""
    preferences = jnp.full((1, 4, 4), 0.5)
    for winner, loser, probability in ((0, 1, 0.9), (0, 2, 0.9), (3, 0, 0.6), (1, 3, 0.9)):
        preferences = preferences.at[0, winner, loser].set(probability)
        preferences = preferences.at[0, loser, winner].set(1 - probability)
    pairs = ranked_pairs(preferences, jnp.ones((1, 4), bool))
    assert pairs.probabilities.min() == np.float32(0.4)


def test_a_negative_band_is_refused(rewards):
    with pytest.raises(UserError, match=r"ranked_pairs\.band"):
        ranked_pairs(bradley_terry(rewards), jnp.ones((3, 4), bool), band=-0.1)
