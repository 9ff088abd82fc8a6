"""Relative Preference Optimization: every preferred response of a batch against every other one (Yin et al. 2024, arXiv 2402.10958).

``h_ij = l_i - l_j`` is the margin of preferred response i over rejected response j, which may answer another prompt; the difference of
the two prompts' log-normalisers is ignored. These losses mix the examples of a batch: `objectives.whole_batch.WholeBatch` feeds them, so
that the contrast matrix is that of the whole step's batch on all devices.

The weight of a cell is *inside* the sigmoid: each cell has its own inverse temperature ``beta w_ij``. With N rejected responses the
gradient at the start is therefore 1/N of DPO's, which ``scale='row_sum'`` undoes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxalign.losses.hyperparameters import require_one_of, require_positive, require_probability
from jaxalign.losses.masking import as_float32
from jaxalign.losses.requirements import requires

PerExample = Float[Array, " examples"]
PerResponse = Float[Array, "examples responses"]
Embeddings = Float[Array, "examples emb"]
Pairs = Float[Array, "examples 2"]
PairMask = Bool[Array, "examples 2"]

SCALES = ("paper", "row_sum")


@requires(distinct_prompts=True)
def rpo_loss(
    log_ratios: Pairs,
    prompt_embeddings: Embeddings,
    mask: PairMask,
    *,
    beta: float,
    tau: float,
    scale: str = "paper",
) -> tuple[PerExample, PerExample]:
    """RPO on pairs, the preferred response first, weighted by the similarity of prompts (arXiv 2402.10958, embedding reweighting).

    ``L_i = -(1/N) sum_j log sigmoid(beta w_ij (l_i - l_j))`` over the N rejected responses, with w from `contrast_weights`.

    Args:
      log_ratios: log pi(y|x) - log pi_ref(y|x), summed over tokens, in nats.
      prompt_embeddings: any vectors, one per prompt; this function centres them on the batch, normalises them and holds them constant.
      mask: which responses exist.
      beta: inverse temperature, per nat.
      tau: temperature of the weights, in units of cosine distance.
      scale: 'paper' as above, or 'row_sum' without the 1/N, which gives DPO's gradient on the preferred responses at the start.

    Returns:
      Losses of the preferred responses, and 1 for the pairs that exist.
    """
    log_ratios, pairs = _of_pairs(log_ratios, mask)
    directions = unit_directions(prompt_embeddings, pairs)
    weights = contrast_weights(directions, directions, pairs, tau=tau)
    cells = _cells(log_ratios[:, 0], log_ratios[:, 1], weights, beta)
    losses = _row_means(cells, pairs) * _scale(pairs, scale)
    return _kept(losses, pairs)


@requires(distinct_prompts=True)
def rpo_uniform_loss(
    log_ratios: Pairs, mask: PairMask, *, beta: float
) -> tuple[PerExample, PerExample]:
    """RPO on pairs with ``w = 1`` (not 1/N) for every cell: ``L_i = -(1/N) sum_j log sigmoid(beta h_ij)``. Arguments as in `rpo_loss`."""
    log_ratios, pairs = _of_pairs(log_ratios, mask)
    cells = _cells(log_ratios[:, 0], log_ratios[:, 1], 1.0, beta)
    return _kept(_row_means(cells, pairs), pairs)


@requires(distinct_prompts=True)
def rpo_diagonal_loss(
    log_ratios: Pairs, mask: PairMask, *, beta: float, diagonal_weight: float
) -> tuple[PerExample, PerExample]:
    """RPO on pairs with one weight for the pair itself and the rest for all others, outside the logarithm (arXiv 2402.10958, diagonal).

    ``L_i = -w log sigmoid(beta h_ii) - (1 - w) mean_{j != i} log sigmoid(beta h_ij)``; a pair without others gets ``w = 1``, which is DPO.

    Args:
      log_ratios: as in `rpo_loss`.
      mask: which responses exist.
      beta: inverse temperature, per nat.
      diagonal_weight: ``w`` in [0, 1].

    Returns:
      Losses and weights as `rpo_loss`.
    """
    require_probability("rpo_diagonal", diagonal_weight=diagonal_weight)
    log_ratios, pairs = _of_pairs(log_ratios, mask)
    cells = _cells(log_ratios[:, 0], log_ratios[:, 1], 1.0, beta)
    off_diagonal = pairs & ~jnp.eye(pairs.size, dtype=bool)
    others = _row_means(cells, off_diagonal)
    own_weight = jnp.where(off_diagonal.any(axis=1), diagonal_weight, 1.0)
    return _kept(own_weight * jnp.diagonal(cells) + (1 - own_weight) * others, pairs)


@requires(distinct_prompts=True, threshold=("threshold", "feedback"))
def rpo_unpaired_loss(
    log_ratios: PerResponse,
    feedback: PerResponse,
    prompt_embeddings: Embeddings,
    mask: Bool[Array, "examples responses"],
    *,
    beta: float,
    tau: float,
    threshold: float,
    scale: str = "paper",
) -> tuple[PerResponse, PerResponse]:
    """RPO on single responses: every good one against every bad one, weighted by the similarity of prompts (arXiv 2402.10958, unpaired).

    Args:
      log_ratios: as in `rpo_loss`.
      feedback: in its raw unit.
      prompt_embeddings: as in `rpo_loss`.
      mask: which responses exist.
      beta: inverse temperature, per nat.
      tau: temperature of the weights.
      threshold: a response is good if its feedback exceeds it, else bad.
      scale: as in `rpo_loss`.

    Returns:
      Losses of the good responses, and 1 where there is one. Both are 0 everywhere if the batch lacks good or bad responses.
    """
    good, bad = good_and_bad(feedback, mask, threshold)
    directions = unit_directions(prompt_embeddings, mask.any(axis=1))
    directions = jnp.repeat(directions, mask.shape[1], axis=0)
    weights = contrast_weights(directions, directions, bad, tau=tau)
    flat = _flat(log_ratios, mask)
    losses = _row_means(_cells(flat, flat, weights, beta), bad) * _scale(bad, scale)
    losses, counts = _kept(losses, good & bad.any())
    return losses.reshape(mask.shape), counts.reshape(mask.shape)


@requires(distinct_prompts=True, threshold=("threshold", "feedback"))
def rpo_unpaired_uniform_loss(
    log_ratios: PerResponse,
    feedback: PerResponse,
    mask: Bool[Array, "examples responses"],
    *,
    beta: float,
    threshold: float,
) -> tuple[PerResponse, PerResponse]:
    """`rpo_unpaired_loss` with ``w = 1`` for every cell, which needs no embeddings."""
    good, bad = good_and_bad(feedback, mask, threshold)
    flat = _flat(log_ratios, mask)
    losses = _row_means(_cells(flat, flat, 1.0, beta), bad)
    losses, counts = _kept(losses, good & bad.any())
    return losses.reshape(mask.shape), counts.reshape(mask.shape)


def contrast_weights(
    chosen_directions: Float[Array, "chosen emb"],
    rejected_directions: Float[Array, "rejected emb"],
    rejected_mask: Bool[Array, " rejected"],
    *,
    tau: float,
) -> Float[Array, "chosen rejected"]:
    """``w_ij = softmax_j(-(1 - e_i . e_j) / tau)`` over the rejected responses that exist, without gradient (arXiv 2402.10958).

    Args:
      chosen_directions: unit vectors of the preferred responses' prompts.
      rejected_directions: of the rejected ones'.
      rejected_mask: which rejected responses exist; the others get weight 0.
      tau: temperature, in units of cosine distance.
    """
    require_positive("rpo", tau=tau)
    distances = 1 - jnp.dot(chosen_directions, rejected_directions.T, precision="highest")
    logits = jnp.where(rejected_mask, -distances / tau, jnp.finfo(distances.dtype).min)
    weights = jnp.where(rejected_mask, jax.nn.softmax(logits, axis=-1), 0)
    return jax.lax.stop_gradient(weights)


def unit_directions(embeddings: Embeddings, where: Bool[Array, " examples"]) -> Embeddings:
    """Embeddings minus their mean over the batch, normalised, without gradient; 0 for absent examples and for zero vectors.

    Pooled encoder states have nearly the same direction, so their cosines carry little information before centring. The batch's mean
    approximates that of the data: with N prompts, cosines of different prompts average -1 / (N - 1), which matters in small batches.
    """
    (embeddings,) = as_float32(jax.lax.stop_gradient(embeddings))
    kept = jnp.where(where[:, None], embeddings, 0)
    mean = jnp.sum(kept, axis=0) / jnp.maximum(jnp.sum(where), 1)
    centred = jnp.where(where[:, None], embeddings - mean, 0)
    norms = jnp.linalg.norm(centred, axis=1, keepdims=True)
    return centred / jnp.maximum(norms, jnp.finfo(norms.dtype).tiny)


def good_and_bad(
    feedback: PerResponse, mask: Bool[Array, "examples responses"], threshold: float
) -> tuple[Bool[Array, " all_responses"], Bool[Array, " all_responses"]]:
    """Masks of the existing responses of the batch that exceed the threshold, and of those that do not."""
    good = jnp.asarray(feedback) > threshold
    return (mask & good).reshape(-1), (mask & ~good).reshape(-1)


def _of_pairs(log_ratios: Pairs, mask: PairMask) -> tuple[Pairs, Bool[Array, " examples"]]:
    (log_ratios,) = as_float32(log_ratios)
    pairs = mask[:, 0] & mask[:, 1]
    return jnp.where(pairs[:, None], log_ratios, 0), pairs


def _flat(log_ratios: PerResponse, mask: Array) -> Float[Array, " all_responses"]:
    (log_ratios,) = as_float32(log_ratios)
    return jnp.where(mask, log_ratios, 0).reshape(-1)


def _cells(
    chosen: Float[Array, " chosen"],
    rejected: Float[Array, " rejected"],
    weights: Float[Array, "chosen rejected"] | float,
    beta: float,
) -> Float[Array, "chosen rejected"]:
    """``-log sigmoid(beta w_ij h_ij)``."""
    require_positive("rpo", beta=beta)
    return jax.nn.softplus(-beta * weights * (chosen[:, None] - rejected[None, :]))


def _row_means(cells: Float[Array, "rows columns"], where: Array) -> Float[Array, " rows"]:
    """Means over the columns that exist; 0 if there is none."""
    where = jnp.broadcast_to(where, cells.shape)
    return jnp.sum(jnp.where(where, cells, 0), axis=1) / jnp.maximum(jnp.sum(where, axis=1), 1)


def _scale(rejected_mask: Bool[Array, " rejected"], scale: str) -> Array | float:
    require_one_of("rpo", "scale", scale, SCALES)
    return jnp.sum(rejected_mask) if scale == "row_sum" else 1.0


def _kept(losses: Float[Array, " rows"], where: Bool[Array, " rows"]) -> tuple[Array, Array]:
    return jnp.where(where, losses, 0), where.astype(losses.dtype)
