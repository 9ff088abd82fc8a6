"""Goal-conditioned representations of a reward model (Nath et al. 2024, arXiv 2407.13887).

A second loss beside Bradley-Terry makes the cosine between the state of a prefix and a "goal" state behave like a Q-value, which predicts
the quality of the finished response. Prefix t of a response is its first t tokens; its state is the decoder's at position t, which has
read those tokens and not the next. `sample_positions` and `sample_source_and_goal` choose the prefixes that are compared; the losses read
cosines only.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxalign.errors import UserError
from jaxalign.losses.masking import as_float32, masked_mean

Positions = Int[Array, "pairs samples"]
Cosines = Float[Array, "pairs samples"]
CosineTable = Float[Array, "pairs sources goals"]
PerPair = Float[Array, " pairs"]

# A state with no entry above this counts as zero: its cosine with anything is 0, and so is the gradient.
_SMALLEST = 1e-20


def sample_positions(
    keys: Key[Array, " pairs"],
    lengths: Int[Array, " pairs"],
    *,
    num_samples: int,
    low: float = 0.0,
    high: float = 1.0,
) -> Positions:
    """Uniform positions ``[pairs, samples]`` within responses: ``floor(u n)`` with u in [low, high).

    Args:
      keys: one per response, so that the positions in a response do not depend on the rest of the batch.
      lengths: ``n``, tokens of each response with EOS. All positions are below n; 0 where there is no response.
      num_samples: K.
      low: fraction of the response, counted from its start, at which sampling begins.
      high: fraction at which it ends.

    Raises:
      UserError: if the fractions are not ``0 <= low < high <= 1``.
    """
    return _positions(_uniforms(keys, (num_samples,), low, high), lengths)


def sample_source_and_goal(
    keys: Key[Array, " pairs"],
    lengths: Int[Array, " pairs"],
    *,
    num_samples: int,
    low: float = 0.0,
    high: float = 1.0,
) -> tuple[Positions, Positions]:
    """Two positions within the same response, the source never after the goal; arguments as in `sample_positions`."""
    drawn = jnp.sort(_uniforms(keys, (2, num_samples), low, high), axis=1)
    return _positions(drawn[:, 0], lengths), _positions(drawn[:, 1], lengths)


def cosine(
    first: Float[Array, "*#batch emb"], second: Float[Array, "*#batch emb"]
) -> Float[Array, ...]:
    """``a.b / (|a| |b|)`` over the last axis, in float32; 0 for a zero vector. The other axes broadcast.

    Vectors are scaled by their largest entry first, so no norm overflows and no constant is needed in the denominator.
    """
    return jnp.sum(_unit(first) * _unit(second), axis=-1)


def matched_contrastive_loss(positive: Cosines, negative: Cosines) -> PerPair:
    """``mean_k -log sigmoid(cos+_k) + mean_k -log sigmoid(-cos-_k)``: K matched pairs, mean outside the logarithm (our form).

    It lies between 2 log(1 + 1/e) = 0.627 (positives align, negatives oppose) and 2 log(1 + e) = 2.627.

    Args:
      positive: cosines of an earlier and a later prefix of the preferred response.
      negative: cosines of a prefix of the preferred and a prefix of the other response.
    """
    positive, negative = as_float32(positive, negative)
    return jnp.mean(jax.nn.softplus(-positive), axis=-1) + jnp.mean(
        jax.nn.softplus(negative), axis=-1
    )


class ContrastMeans(NamedTuple):
    """Means over a whole batch of ``sigmoid(cos+)`` and of ``sigmoid(-cos-)``; what `released_contrastive_loss` divides by."""

    positive: Float[Array, ""]
    negative: Float[Array, ""]


def contrast_means(
    positive: CosineTable, negative: CosineTable, where: Bool[Array, " pairs"]
) -> ContrastMeans:
    """The `ContrastMeans` of the pairs where the mask holds, without gradient; 1/2 if it holds nowhere."""
    means = (masked_mean(values, where) for values in _agreements(positive, negative))
    return ContrastMeans(
        *(jax.lax.stop_gradient(jnp.where(jnp.any(where), mean, 0.5)) for mean in means)
    )


def released_contrastive_loss(
    positive: CosineTable, negative: CosineTable, means: ContrastMeans
) -> PerPair:
    """``-log(mean sigmoid(cos+)) - log(1 - mean sigmoid(cos-))`` as the public code has it: the mean inside the logarithm.

    It runs over all sources x goals of all pairs of the batch, so many positives have the goal before the source. One number for the
    whole batch, written as equal losses of its pairs: their mean has the loss's value and, because the derivative of ``-log m`` is
    ``-1/m`` times that of m, its gradient, also when ``means`` come from a larger batch than the pairs.

    Args:
      positive: cosines of every source with every goal, both of the preferred response.
      negative: the same with goals of the other response.
      means: of the whole step's batch, from `contrast_means`.
    """
    losses = jnp.zeros(positive.shape[0], as_float32(positive)[0].dtype)
    for agreement, mean in zip(_agreements(positive, negative), means, strict=True):
        # x - sg(x) is 0 with the gradient of x.
        change = agreement - jax.lax.stop_gradient(agreement)
        losses = losses - jnp.log(mean) - change / mean
    return losses


def goal_vector(
    last_states: Float[Array, "responses emb"], where: Bool[Array, " responses"]
) -> Float[Array, " emb"]:
    """The mean of the preferred responses' last states, over the training data; to be made again after any training."""
    (last_states,) = as_float32(last_states)
    total = jnp.sum(jnp.where(where[:, None], last_states, 0), axis=0)
    return total / jnp.maximum(jnp.sum(where), 1)


def prefix_values(
    states: Float[Array, "*batch length emb"], goal: Float[Array, " emb"]
) -> Float[Array, "*batch length"]:
    """``Q`` of every prefix: the cosine of its state with the goal, in [-1, 1]."""
    return cosine(states, goal)


class FilteredPrefixes(NamedTuple):
    """What `prefix_filter` decides of each sample.

    Attributes:
      kept: whether its Q-values stay at or above the threshold.
      tokens_read: tokens until it was dropped, or all of them; the others are saved.
    """

    kept: Bool[Array, " samples"]
    tokens_read: Int[Array, " samples"]


def prefix_filter(
    values: Float[Array, "samples length"],
    mask: Bool[Array, "samples length"],
    *,
    threshold: float = 0.0,
    ignored_tokens: int = 5,
) -> FilteredPrefixes:
    """Drops a sample at the first token whose Q-value is below the threshold.

    Args:
      values: Q of every prefix, or another score of prefixes, such as the reward head's; entry t is of the first t tokens.
      mask: where tokens are; a prefix of ones in each row.
      threshold: as the public code, 0.
      ignored_tokens: the first so many tokens drop nothing (public code: 5).
    """
    low = mask & (values < threshold) & (jnp.arange(values.shape[1]) > ignored_tokens)
    dropped = jnp.any(low, axis=1)
    lengths = jnp.sum(mask, axis=1)
    return FilteredPrefixes(~dropped, jnp.where(dropped, jnp.argmax(low, axis=1), lengths))


def _uniforms(keys: Array, shape: tuple[int, ...], low: float, high: float) -> Array:
    if not 0.0 <= low < high <= 1.0:
        raise UserError(
            f"positions are sampled between the fractions low and high, 0 <= low < high <= 1; not {low} and {high}"
        )
    return low + (high - low) * jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)


def _positions(uniforms: Array, lengths: Array) -> Array:
    lengths = lengths[:, None]
    # float32 may round u n up to n.
    return jnp.clip(jnp.floor(uniforms * lengths).astype(jnp.int32), 0, jnp.maximum(lengths - 1, 0))


def _unit(states: Array) -> Array:
    (states,) = as_float32(states)
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(states), axis=-1, keepdims=True))
    present = scale > _SMALLEST
    # `where` on the inputs: the norm of a zero vector has no gradient.
    scaled = jnp.where(present, states, 1.0) / jnp.where(present, scale, 1.0)
    norm = jnp.sqrt(jnp.sum(jnp.square(scaled), axis=-1, keepdims=True))
    return jnp.where(present, scaled / norm, 0.0)


def _agreements(positive: CosineTable, negative: CosineTable) -> tuple[PerPair, PerPair]:
    """Per pair, the means of ``sigmoid(cos+)`` and ``sigmoid(-cos-)`` over sources and goals."""
    positive, negative = as_float32(positive, negative)
    return (
        jnp.mean(jax.nn.sigmoid(positive), axis=(1, 2)),
        jnp.mean(jax.nn.sigmoid(-negative), axis=(1, 2)),
    )
