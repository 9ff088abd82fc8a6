"""Residual k-means: its identities, and vectors that cannot be quantised."""

import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.retrieval.residual_quantization import (
    check_vectors,
    fit_residual_kmeans,
    kmeans,
    nearest,
    quantize,
)


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def codebooks(vectors):
    return fit_residual_kmeans(vectors, 4, 16, seed=0)


def test_codes_and_the_last_residual_sum_to_the_vector(vectors, codebooks):
    found = quantize(vectors, codebooks)
    sums = sum(codebooks[m][found.codes[:, m]] for m in range(4))
    np.testing.assert_allclose(sums + found.residuals[:, -1], vectors, atol=1e-5)
    np.testing.assert_allclose(found.sums, sums, atol=1e-5)
    np.testing.assert_array_equal(found.residuals[:, 0], vectors)


def test_the_total_of_the_squared_residuals_never_increases(vectors, codebooks):
    totals = np.square(quantize(vectors, codebooks).residuals).sum(axis=(0, 2))
    assert (np.diff(totals) < 0).all()
    # Of 500 normal points in eight dimensions with 16 codes, by an implementation of its own.
    np.testing.assert_allclose(totals, [3996, 2140, 1149, 627, 339], rtol=0.06)


def test_codes_are_nearest_codes(vectors, codebooks):
    distances = np.square(vectors[:, None] - codebooks[0]).sum(axis=-1)
    np.testing.assert_array_equal(quantize(vectors, codebooks).codes[:, 0], distances.argmin(1))


def test_centroids_are_means_of_their_vectors(vectors):
    centroids = kmeans(vectors, 5, seed=0)
    chosen = nearest(vectors, centroids)
    means = np.stack([vectors[chosen == k].mean(axis=0) for k in range(5)])
    np.testing.assert_allclose(means, centroids, atol=1e-4)


def test_more_codes_than_distinct_vectors_leave_the_rest_unused():
    few = np.array([[0.0], [1.0], [1.0], [5.0]], np.float32)
    codebooks = fit_residual_kmeans(few, 2, 8, seed=0)
    found = quantize(few, codebooks)
    assert found.codes.max() < 3
    np.testing.assert_allclose(found.residuals[:, -1], 0, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros(3), r"shape \[3\]"),
        (np.array([["a"]]), "dtype <U1"),
        (np.array([[1.0], [np.nan]]), r"item 1 \(from 0\) holds NaN"),
        (np.array([[1e300], [1.0]]), r"item 0 \(from 0\) holds NaN, infinity"),
        (
            np.ones((4, 2)),
            "1 distinct vectors in float32, which is fewer than the 3 coarse clusters",
        ),
    ],
)
def test_vectors_that_cannot_be_quantised_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        check_vectors(wrong, "v.npy", 3)
