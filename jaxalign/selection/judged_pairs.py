"""Pairs with soft labels from a pairwise judge, after OSP (arXiv 2405.14103). This is a reconstruction; its details are our own."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxalign.losses.hyperparameters import require_nonnegative
from jaxalign.losses.masking import as_float32


class RankedPairs(NamedTuple):
    """All pairs of a prompt's responses, the higher-ranked first. All arrays are ``[prompts, pairs]`` with N (N - 1) / 2 pairs.

    Attributes:
      first: the index of the response that ranks higher.
      second: the index of the other response.
      probabilities: P(first preferred to second); below 1/2 where the judge is intransitive.
      weights: 0 for pairs that do not exist or lie in the band around 1/2, else 1.
    """

    first: Int[Array, "prompts pairs"]
    second: Int[Array, "prompts pairs"]
    probabilities: Float[Array, "prompts pairs"]
    weights: Float[Array, "prompts pairs"]


def ranked_pairs(
    preferences: Float[Array, "prompts responses responses"],
    mask: Bool[Array, "prompts responses"],
    *,
    band: float = 0.0,
) -> RankedPairs:
    """Sorts the responses of a prompt by their mean probability of winning, and pairs each response with all lower-ranked ones.

    Args:
      preferences: ``P_ij``, the probability that i is preferred to j; the diagonal is not read.
      mask: marks the responses that exist.
      band: pairs with ``|P_ij - 1/2| < band`` get weight 0.
    """
    require_nonnegative("ranked_pairs", band=band)
    (preferences,) = as_float32(preferences)
    count = preferences.shape[1]
    others = mask[:, None, :] & mask[:, :, None] & ~jnp.eye(count, dtype=bool)
    wins = jnp.sum(jnp.where(others, preferences, 0), axis=2)
    means = wins / jnp.maximum(jnp.sum(others, axis=2), 1)
    order = jnp.argsort(jnp.where(mask, -means, jnp.inf), axis=1, stable=True)
    higher, lower = np.triu_indices(count, 1)
    first, second = order[:, higher], order[:, lower]
    prompts = jnp.arange(preferences.shape[0])[:, None]
    probabilities = preferences[prompts, first, second]
    kept = others[prompts, first, second] & (jnp.abs(probabilities - 0.5) >= band)
    return RankedPairs(
        first,
        second,
        jnp.where(kept, probabilities, 0.5),
        kept.astype(probabilities.dtype),
    )
