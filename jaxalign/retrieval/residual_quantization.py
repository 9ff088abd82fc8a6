"""Coarse clusters and residual quantisation of vectors: k-means, then k-means of what is left, level by level.

With x a vector, mu the coarse centroids and c the codebooks: k = argmin_j |x - mu_j|, r_0 = x - mu_k, and for m = 1..M
v_m = argmin_j |r_{m-1} - c_m^j|, r_m = r_{m-1} - c_m^{v_m}. So r_0 = sum_m c_m^{v_m} + r_M.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxalign.errors import UserError

Vectors = Float[np.ndarray, "items size"]
Codebooks = Float[np.ndarray, "levels codes size"]
Codes = Int[np.ndarray, "items levels"]

_STARTS = 4  # k-means is run from several starts, and the best is kept
# K-means squares numbers of float32: those of larger ones overflow, and those of smaller differences vanish.
_LARGEST, _LEAST_SPREAD = 1e15, 1e-15
_BLOCK = 4096  # vectors whose distances to all codes are in memory together


class Quantized(NamedTuple):
    """Vectors as sums of codes.

    Attributes:
      codes: the code of every level.
      sums: the sum of the codes' vectors.
      residuals: what is left before the first level and after every level, [items, levels + 1, size].
    """

    codes: Codes
    sums: Vectors
    residuals: Float[np.ndarray, "items levels_plus_one size"]


def kmeans(vectors: Vectors, clusters: int, *, seed: int) -> Float[np.ndarray, "clusters size"]:
    """Returns the centroids of k-means, each the mean of its vectors.

    Where there are fewer distinct vectors than clusters, the last centroids repeat the first one and are never chosen.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    distinct = len(np.unique(vectors, axis=0))
    fitted = KMeans(min(clusters, distinct), n_init=_STARTS, random_state=seed, algorithm="lloyd")
    with warnings.catch_warnings():
        # Vectors that differ by rounding may share a centroid; the statistics of the index say how many codes are used.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted.fit(vectors)
    centroids = fitted.cluster_centers_.astype(np.float32)
    filling = np.repeat(centroids[:1], clusters - len(centroids), axis=0)
    return np.concatenate([centroids, filling])


def nearest(
    vectors: Vectors, centroids: Float[np.ndarray, "clusters size"]
) -> Int[np.ndarray, " items"]:
    """Returns the index of the nearest centroid of every vector; the first of several that are equally near."""
    norms = np.sum(np.square(centroids, dtype=np.float64), axis=1)
    parts = [
        np.argmin(norms - 2 * vectors[start : start + _BLOCK].astype(np.float64) @ centroids.T, 1)
        for start in range(0, len(vectors), _BLOCK)
    ]
    return np.concatenate(parts).astype(np.int32) if parts else np.zeros(0, np.int32)


def fit_residual_kmeans(vectors: Vectors, levels: int, codes: int, *, seed: int) -> Codebooks:
    """Returns the codebooks of residual k-means: each level is k-means of what the levels before it leave.

    The total of the squared residuals never increases from level to level; that of one vector may.
    """
    residual = np.asarray(vectors, np.float32)
    codebooks = np.zeros((levels, codes, residual.shape[1]), np.float32)
    for level in range(levels):
        codebooks[level] = kmeans(residual, codes, seed=seed + level)
        residual = residual - codebooks[level][nearest(residual, codebooks[level])]
    return codebooks


def quantize(vectors: Vectors, codebooks: Codebooks) -> Quantized:
    """Encodes vectors by given codebooks."""
    residuals = [np.asarray(vectors, np.float32)]
    chosen = []
    for codebook in codebooks:
        found = nearest(residuals[-1], codebook)
        chosen.append(found)
        residuals.append(residuals[-1] - codebook[found])
    codes = np.stack(chosen, 1) if chosen else np.zeros((len(vectors), 0), np.int32)
    return Quantized(codes, residuals[0] - residuals[-1], np.stack(residuals, 1))


def check_vectors(vectors: np.ndarray, where: str, least: int) -> Vectors:
    """Returns vectors of items as float32.

    Args:
      vectors: one vector per item.
      where: their origin, for messages.
      least: the number of distinct vectors that is needed.

    Raises:
      UserError: they are not numbers in two dimensions, one is not finite, they are too large or too close together for float32, or too
        few are distinct.
    """
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu" or vectors.shape[1] < 1:
        raise UserError(
            f"{where} has shape {list(vectors.shape)} and dtype {vectors.dtype}; it must hold one vector of numbers per item"
        )
    with np.errstate(over="ignore"):
        found = vectors.astype(np.float32)
    bad = np.flatnonzero(~(np.abs(found) <= _LARGEST).all(axis=1))
    if len(bad):
        raise UserError(
            f"{where}: the vector of item {bad[0]} (from 0) holds NaN, infinity or a number above {_LARGEST:g}; scale the vectors"
        )
    spread = (
        float(np.max(found.max(axis=0) - found.min(axis=0), initial=0.0)) if len(found) else 0.0
    )
    if 0 < spread < _LEAST_SPREAD:
        raise UserError(
            f"{where}: the vectors differ by {spread:.1g} at most, which float32 cannot square; scale the vectors"
        )
    distinct = len(np.unique(found, axis=0))
    if distinct < least:
        raise UserError(
            f"{where} has {distinct} distinct vectors in float32, which is fewer than the {least} coarse clusters; lower --coarse"
        )
    return found
