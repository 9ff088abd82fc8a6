"""Reward models of the study `feature_reward` that are fitted in seconds: phi on features, and logistic regression on words."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.sparse
from jaxtyping import Array, Float

from jaxalign.losses.reward_modelling import bradley_terry_loss
from jaxalign.networks.feature_reward import FeatureReward
from studies.text_features import word_features

STEPS = 600
_NEWTON_STEPS = 12
_FOLDS = 5


def phi_loss(
    network: FeatureReward,
    params: Any,
    scores: Float[Array, "pairs two features"],
    weights: Float[Array, " pairs"],
    *,
    l2: float,
) -> Float[Array, ""]:
    """Returns the loss of the objective `feature_reward_model` on the pairs whose weight is 1; the preferred response comes first."""
    rewards = network.phi(params, scores)
    losses = bradley_terry_loss(rewards[:, 0], rewards[:, 1])
    return weights @ losses / jnp.sum(weights) + l2 * network.penalty(params)


@functools.partial(jax.jit, static_argnames=("network", "l2", "rate"))
def fit_phi(
    network: FeatureReward,
    scores: Float[Array, "pairs two features"],
    weights: Float[Array, "subsets pairs"],
    seed: Any,
    *,
    l2: float,
    rate: float,
) -> Any:
    """Returns parameters with a leading axis: phi fitted to each subset of the pairs, by Adam on all of its pairs at once."""
    optimizer = optax.adam(rate)

    def fit(subset: Array, key: Array) -> Any:
        params = network.init(key)

        def step(state: Any, _: Any) -> Any:
            params, slots = state
            gradient = jax.grad(lambda p: phi_loss(network, p, scores, subset, l2=l2))(params)
            updates, slots = optimizer.update(gradient, slots, params)
            return (optax.apply_updates(params, updates), slots), None

        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), None, STEPS)
        return params

    return jax.vmap(fit)(weights, jax.random.split(jax.random.PRNGKey(seed), len(weights)))


def phi_margins(
    network: FeatureReward, params: Any, scores: Float[np.ndarray, "pairs two features"]
) -> Float[np.ndarray, "subsets pairs"]:
    """Returns the reward of the first response minus that of the second, for each of the stacked parameters."""
    rewards = np.asarray(jax.vmap(lambda p: network.phi(p, scores))(params))
    return rewards[..., 0] - rewards[..., 1]


@dataclasses.dataclass(frozen=True)
class WordVectors:
    """Words and word pairs of texts, (1 + log count) * idf, with the vocabulary and idf of the texts that it was made from.

    Attributes:
      columns: feature -> column.
      idf: of every column.
      normalize: whether a text's vector has length 1. Otherwise longer texts have longer vectors, so a model can read length.
    """

    columns: dict[str, int]
    idf: Float[np.ndarray, " features"]
    normalize: bool

    @classmethod
    def of(cls, texts: Sequence[str], *, normalize: bool, min_count: int = 2) -> WordVectors:
        """Returns the vectors of the features that occur in at least ``min_count`` texts."""
        frequency = Counter(f for text in texts for f in set(word_features(text)))
        kept = sorted(f for f, count in frequency.items() if count >= min_count)
        counts = np.array([frequency[f] for f in kept], float)
        idf = np.log((1 + len(texts)) / (1 + counts)) + 1
        return cls({f: i for i, f in enumerate(kept)}, idf, normalize)

    def matrix(self, texts: Sequence[str]) -> scipy.sparse.csr_matrix:
        """Returns one row per text."""
        rows, columns, values = [], [], []
        for row, text in enumerate(texts):
            for feature, count in Counter(word_features(text)).items():
                column = self.columns.get(feature)
                if column is not None:
                    rows.append(row)
                    columns.append(column)
                    values.append((1 + np.log(count)) * self.idf[column])
        found = scipy.sparse.csr_matrix(
            (values, (rows, columns)), shape=(len(texts), len(self.columns))
        )
        if not self.normalize:
            return found
        norms = np.sqrt(np.asarray(found.multiply(found).sum(axis=1)).ravel())
        return scipy.sparse.diags(1 / np.maximum(norms, 1e-12)) @ found


def word_margins(
    pairs: Sequence[tuple[str, str]],
    others: Sequence[tuple[str, str]],
    *,
    normalize: bool,
    penalties: Sequence[float],
    seed: int = 0,
) -> Float[np.ndarray, " others"]:
    """Fits logistic regression to pairs, the preferred text first, and returns the margins of other pairs.

    The penalty is the one with the best likelihood in a cross-validation over the pairs, so that no other label is read.
    """
    vectors = WordVectors.of([text for pair in pairs for text in pair], normalize=normalize)

    def differences(found: Sequence[tuple[str, str]]) -> scipy.sparse.csr_matrix:
        return vectors.matrix([p[0] for p in found]) - vectors.matrix([p[1] for p in found])

    known = differences(pairs)
    kernel = np.asarray((known @ known.T).todense())
    fold = np.random.default_rng(seed).permutation(len(pairs)) % _FOLDS
    losses = []
    for penalty in penalties:
        total = 0.0
        for held_out in range(_FOLDS):
            fitted, rest = np.flatnonzero(fold != held_out), np.flatnonzero(fold == held_out)
            duals = fit_dual(kernel[np.ix_(fitted, fitted)], penalty)
            total += np.logaddexp(0, -kernel[np.ix_(rest, fitted)] @ duals).sum()
        losses.append(total)
    duals = fit_dual(kernel, penalties[int(np.argmin(losses))])
    return np.asarray((differences(others) @ known.T) @ duals)


def fit_dual(
    kernel: Float[np.ndarray, "pairs pairs"], penalty: float
) -> Float[np.ndarray, " pairs"]:
    """Minimises ``sum log(1 + exp(-D w)) + penalty/2 |w|^2`` over ``w = D^T a``; returns ``a``, given ``D D^T``.

    There are fewer pairs than words, and at the minimum ``penalty a = sigmoid(-D w)``.
    """
    duals = np.zeros(len(kernel))
    for _ in range(_NEWTON_STEPS):
        losing = np.exp(-np.logaddexp(0, kernel @ duals))
        slope = losing * (1 - losing)
        jacobian = penalty * np.eye(len(kernel)) + slope[:, None] * kernel
        step = np.linalg.solve(jacobian, penalty * duals - losing)
        duals -= step
        if np.abs(step).max() < 1e-6 * np.abs(duals).max():
            break
    return duals


def accuracy(margins: Float[np.ndarray, "*subsets pairs"]) -> Float[np.ndarray, "*subsets pairs"]:
    """Returns 1 where the preferred response has the larger reward, 1/2 for ties, else 0."""
    return 0.5 * (1 + np.sign(margins))
