"""The loss of a two-tower retriever: every query of a batch against the items of the others (CLIP, arXiv 2103.00020)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

PerExample = Float[Array, " examples"]
Vectors = Float[Array, "examples size"]


def in_batch_contrast_loss(
    queries: Vectors, items: Vectors, item_ids: Int[Array, " examples"], scale: Float[Array, ""]
) -> PerExample:
    """The mean of the two cross entropies, of the item given the query and of the query given the item.

    ``L_i = -1/2 (log softmax_j(s q_i . x_j)_i + log softmax_j(s q_j . x_i)_i)``, where j runs over i itself and the examples with another
    item: a second query for the same item is not a wrong one.

    Args:
      queries: vectors of length 1.
      items: vectors of length 1; row i belongs to query i.
      item_ids: equal for examples with the same item.
      scale: inverse temperature s.
    """
    logits = scale * (queries @ items.T)
    same = item_ids[:, None] == item_ids
    logits = jnp.where(same & ~jnp.eye(len(item_ids), dtype=bool), -jnp.inf, logits)
    of_items = jnp.diagonal(jax.nn.log_softmax(logits, axis=1))
    of_queries = jnp.diagonal(jax.nn.log_softmax(logits, axis=0))
    return -(of_items + of_queries) / 2
