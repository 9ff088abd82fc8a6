"""Trains the two-tower baseline on the training queries of an index, and ranks items with it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxalign.data.batches import prompt_rows
from jaxalign.errors import UserError, require_range
from jaxalign.inference.rows import EOS, Tokens, bucket_length, chunks
from jaxalign.losses.in_batch_contrast import in_batch_contrast_loss
from jaxalign.networks.policy import Policy
from jaxalign.networks.two_tower import TwoTower
from jaxalign.retrieval.recall import Ranked, best_first
from jaxalign.retrieval.residual_quantization import Vectors


@dataclasses.dataclass(frozen=True)
class TwoTowerSettings:
    """The training of two towers.

    Attributes:
      steps: updates.
      batch_size: queries of an update, each against the items of the others.
      learning_rate: of AdamW, after a tenth of the steps as warm-up and with cosine decay.
    """

    steps: int = 500
    batch_size: int = 64
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        require_range("two_tower", "[1, inf)", steps=self.steps)
        require_range("two_tower", "[2, inf)", batch_size=self.batch_size)
        require_range("two_tower", "(0, inf)", learning_rate=self.learning_rate)


@dataclasses.dataclass(frozen=True)
class TrainedTowers:
    """Two towers with their parameters, and the mean and deviation by which they standardise vectors of items."""

    network: TwoTower
    params: Any
    mean: np.ndarray
    deviation: np.ndarray

    def ranked(
        self, queries: Sequence[Tokens], vectors: Vectors, listed: int, *, batch_size: int = 64
    ) -> Ranked:
        """Returns the most similar items of every query, by their vectors; they need not be those of the training."""
        items = np.asarray(_items(self.network, self.params, self._standardised(vectors)))
        parts = []
        for part in chunks(len(queries), batch_size):
            tokens = _padded(queries[part], batch_size)
            rows = np.asarray(_queries(self.network, self.params, tokens))
            parts.append(best_first(rows[: part.stop - part.start] @ items.T, listed))
        return np.concatenate(parts)

    def _standardised(self, vectors: Vectors) -> Vectors:
        return (vectors - self.mean) / self.deviation


def fit_towers(
    policy: Policy,
    queries: Sequence[Tokens],
    items: Sequence[int],
    vectors: Vectors,
    settings: TwoTowerSettings,
    *,
    seed: int,
    start: Any = None,
) -> TrainedTowers:
    """Trains two towers.

    Args:
      policy: its encoder is the query tower.
      queries: token ids that end with EOS.
      items: the item of each query.
      vectors: of all items.
      settings: of the training.
      seed: of the initialisation, the batches and dropout.
      start: parameters of a policy whose encoder the query tower starts from; random ones by default.

    Raises:
      UserError: the loss is not finite.
    """
    # The query tower is a plain encoder, whatever the decoder of the policy reads of it.
    plain = dataclasses.replace(policy, config=policy.config.stock())
    network = TwoTower(plain, vectors.shape[1])
    key = jax.random.key(seed)
    params = network.init(key) if start is None else network.from_policy(key, start)
    warmup = max(settings.steps // 10, 1)
    rate = optax.warmup_cosine_decay_schedule(
        0.0, settings.learning_rate, warmup, max(settings.steps, warmup + 1)
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate))
    towers = TrainedTowers(
        network, None, vectors.mean(axis=0), np.maximum(vectors.std(axis=0), 1e-6)
    )
    standardised, state = towers._standardised(vectors), optimizer.init(params)
    own = np.asarray(items)
    longest = max(map(len, queries))
    rng = np.random.default_rng(seed)
    loss = np.float32(0.0)
    for step in range(settings.steps):
        chosen = rng.integers(len(queries), size=settings.batch_size)
        tokens = _padded([queries[i] for i in chosen], settings.batch_size, longest)
        params, state, loss = _update(
            network,
            optimizer,
            params,
            state,
            tokens,
            standardised[own[chosen]],
            own[chosen],
            jax.random.fold_in(key, step),
        )
    if not np.isfinite(loss):
        raise UserError(
            f"the loss of the two towers is {float(loss)} after {settings.steps} steps; lower their learning rate"
        )
    return dataclasses.replace(towers, params=params)


def _padded(queries: Sequence[Tokens], rows: int, longest: int = 0) -> np.ndarray:
    longest = longest or max(map(len, queries))
    filled = [*queries, *[[EOS]] * (rows - len(queries))]
    return prompt_rows(filled, bucket_length(longest, 2 * longest))


@functools.partial(jax.jit, static_argnums=0)
def _queries(network: TwoTower, params: Any, tokens: Any) -> Any:
    return network.query_vectors(params, tokens)


@functools.partial(jax.jit, static_argnums=0)
def _items(network: TwoTower, params: Any, vectors: Any) -> Any:
    return network.item_vectors(params, vectors)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _update(
    network: TwoTower,
    optimizer: Any,
    params: Any,
    state: Any,
    tokens: Any,
    vectors: Any,
    items: Any,
    rng: Any,
) -> Any:
    def loss(params: Any) -> Any:
        queries = network.query_vectors(params, tokens, rng=rng if network.dropout_rate else None)
        found = in_batch_contrast_loss(
            queries, network.item_vectors(params, vectors), items, network.scale(params)
        )
        return jnp.mean(found)

    value, gradients = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, value
