"""Sums and shifts stay within a response, whatever else is in its row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.losses.segments import (
    first_tokens,
    segment_lengths,
    segment_positions,
    segment_totals,
    shifted,
    spread,
    suffix_sums,
)

# Responses of 3, 2, 1 and 5 tokens; segment 3 of the first row and 1 and 2 of the second are absent.
SEGMENTS = jnp.array([[1, 1, 1, 2, 2, 4, 0, 0], [3, 3, 3, 3, 3, 0, 0, 0]])
VALUES = jnp.asarray(np.random.default_rng(0).normal(size=SEGMENTS.shape), jnp.float32)


def by_response(function):
    """`function` of each response's values alone, put back in its place."""
    found = np.zeros(SEGMENTS.shape, np.float64)
    for row in range(SEGMENTS.shape[0]):
        for segment in range(1, 5):
            places = np.flatnonzero(np.asarray(SEGMENTS[row]) == segment)
            if places.size:
                found[row, places] = function(np.asarray(VALUES, np.float64)[row, places])
    return found


@pytest.mark.parametrize("discount", [0.0, 0.5, 0.95, 1.0])
def test_suffix_sums_by_their_definition(discount):
    def alone(values):
        size = len(values)
        return [sum(discount ** (j - t) * values[j] for j in range(t, size)) for t in range(size)]

    found = jax.jit(functools.partial(suffix_sums, discount=discount))(VALUES, SEGMENTS)
    np.testing.assert_allclose(found, by_response(alone), rtol=1e-5, atol=1e-6)


def test_the_gradient_of_a_suffix_sum_is_a_prefix_sum():
    cotangents = jnp.asarray(np.random.default_rng(1).normal(size=SEGMENTS.shape), jnp.float32)

    def loss(values):
        return jnp.sum(cotangents * suffix_sums(values, SEGMENTS, discount=0.7))

    found = jax.jit(jax.grad(loss))(VALUES)
    expected = np.zeros(SEGMENTS.shape)
    for row, t in np.argwhere(np.asarray(SEGMENTS) > 0):
        for i in range(t + 1):
            if SEGMENTS[row, i] == SEGMENTS[row, t]:
                expected[row, t] += 0.7 ** (t - i) * cotangents[row, i]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_totals_lengths_and_positions():
    total = by_response(lambda values: np.full(len(values), values.sum()))
    np.testing.assert_allclose(segment_totals(VALUES, SEGMENTS), total, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(
        segment_lengths(SEGMENTS), by_response(lambda values: np.full(len(values), len(values)))
    )
    np.testing.assert_array_equal(
        segment_positions(SEGMENTS), by_response(lambda values: np.arange(len(values)))
    )
    np.testing.assert_array_equal(
        first_tokens(SEGMENTS), [[1, 0, 0, 1, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]
    )


@pytest.mark.parametrize("steps", [-6, -1, 0, 2])
def test_shifted_looks_no_further_than_the_response(steps):
    def alone(values):
        places = np.arange(len(values)) + steps
        inside = (places >= 0) & (places < len(values))
        return np.where(inside, values[np.clip(places, 0, len(values) - 1)], 9.0)

    expected = np.where(np.asarray(SEGMENTS) > 0, by_response(alone), 9.0)
    np.testing.assert_allclose(shifted(VALUES, SEGMENTS, steps, 9.0), expected, rtol=1e-6)


def test_shifted_integers_stay_integers():
    assert shifted(SEGMENTS, SEGMENTS, -1, 0).dtype == SEGMENTS.dtype


def test_spread_puts_a_number_on_every_token_of_its_response():
    values = jnp.array([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    np.testing.assert_array_equal(
        spread(values, SEGMENTS), [[1, 1, 1, 2, 2, 4, 0, 0], [7, 7, 7, 7, 7, 0, 0, 0]]
    )


def test_what_stands_on_padding_reaches_nothing():
    garbage = jnp.where(SEGMENTS > 0, VALUES, jnp.nan)
    for function in (suffix_sums, segment_totals):
        np.testing.assert_array_equal(function(garbage, SEGMENTS), function(VALUES, SEGMENTS))
        gradient = jax.jit(jax.grad(lambda x, f=function: jnp.sum(f(x, SEGMENTS))))(garbage)
        assert np.all(np.isfinite(gradient)) and not np.any(gradient[SEGMENTS == 0])
