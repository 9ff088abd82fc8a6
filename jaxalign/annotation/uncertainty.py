"""Uncertainty of a policy about responses: mean and deviation of the loss per token over passes with dropout (SA2, arXiv 2205.09661)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxalign.annotation.annotators import register_annotator
from jaxalign.annotation.flat import lengths_of, run_identity
from jaxalign.annotation.policy_scores import TextPolicy
from jaxalign.data.candidates import Candidates
from jaxalign.errors import UserError, require_range
from jaxalign.inference.rows import by_batch


@functools.partial(jax.jit, static_argnums=0)
def mc_dropout_nll(policy: Any, params: Any, batch: Any, keys: Any) -> Any:
    """Returns the mean over tokens, EOS included, of -log p in every pass with dropout, [passes, examples, responses], in nats.

    The sequence log-probabilities elsewhere are sums; this is a mean, so that long responses do not count as uncertain. The passes run
    one after another, so that they need no more memory than one pass.

    Args:
      policy: a network with `score(params, batch, rng=key)`.
      params: its parameters.
      batch: in the layout of training.
      keys: one distinct key for each pass.
    """

    def one_pass(key: Any) -> Any:
        scores = policy.score(params, batch, rng=key)
        return -scores.log_probs / jnp.maximum(scores.lengths, 1.0)

    return jax.lax.map(one_pass, keys)


def mean_and_deviation(
    nll: Float[np.ndarray, "passes ..."],
) -> tuple[Float[np.ndarray, ...], Float[np.ndarray, ...]]:
    """Returns E and V of SA2: the mean and the population standard deviation over passes."""
    values = np.asarray(nll, np.float64)
    return values.mean(axis=0), values.std(axis=0)


@register_annotator("uncertainty")
@dataclasses.dataclass(frozen=True)
class Uncertainty:
    """Vectors with the columns `loss`, the mean E, and `deviation`, the standard deviation V, of the loss per token over passes.

    The columns are annotations of their own: `NAME.loss` and `NAME.deviation`.

    Attributes:
      policy: the run folder or checkpoint.
      passes: T, the number of passes with dropout.
      dropout_rate: the rate of dropout; 0 takes that of the run's training.
      seed: the seed of the passes' keys.
      step: a step number, `best` or `latest`.
      batch_size: the number of prompts of one forward pass.
    """

    policy: str
    passes: int = 10
    dropout_rate: float = 0.0
    seed: int = 0
    step: str = ""
    batch_size: int = 32

    kind: ClassVar[str] = "vectors"
    whole_file: ClassVar[bool] = False
    names: ClassVar[tuple[str, ...]] = ("loss", "deviation")

    def __post_init__(self) -> None:
        require_range("uncertainty", "[2, inf)", passes=self.passes)
        require_range("uncertainty", "[0, 1)", dropout_rate=self.dropout_rate)
        require_range("uncertainty", "[0, inf)", seed=self.seed)

    @functools.cached_property
    def _policy(self) -> TextPolicy:
        return TextPolicy(self.policy, self.step, self.batch_size)

    @property
    def _rate(self) -> float:
        return self.dropout_rate or self._policy.run.config("policy").dropout_rate

    @functools.cached_property
    def _network(self) -> Any:
        network = self._policy.trained.network
        config = dataclasses.replace(network.config, dropout_rate=self._rate)
        return dataclasses.replace(network, config=config)

    def identity(self) -> Mapping[str, Any]:
        return {
            "policy": run_identity(self._policy.run),
            "passes": self.passes,
            "dropout_rate": self._rate,
            "seed": self.seed,
            "batch_size": self.batch_size,
        }

    def check(self, candidates: Candidates) -> None:
        """Raises `UserError` if there is no dropout, because every deviation would be 0."""
        del candidates
        if not self._rate:
            raise UserError(
                f"annotator 'uncertainty': {self.policy} was trained without dropout, so that all passes agree; give dropout_rate=0.1"
            )

    def counts(self) -> dict[str, int]:
        """Returns the number of texts that were cut."""
        return dict(self._policy.counts)

    def annotate(self, candidates: Candidates) -> Sequence[np.ndarray]:
        prompts, groups = self._policy.encode(candidates)
        values = [np.zeros((len(group), 2)) for group in groups]
        params = self._policy.trained.params
        # With keys of this kind, dropout compiles several times faster.
        root = jax.random.key(self.seed, impl="rbg")
        number = 0
        for indices in lengths_of(groups).values():
            chosen, texts = [prompts[i] for i in indices], [groups[i] for i in indices]
            for rows, batch in by_batch(chosen, texts, self.batch_size):
                keys = jax.random.split(jax.random.fold_in(root, number), self.passes)
                nll = np.asarray(mc_dropout_nll(self._network, params, batch, keys))
                mean, deviation = mean_and_deviation(nll[:, : len(rows)])
                for row, place in enumerate(rows):
                    values[indices[place]] = np.stack([mean[row], deviation[row]], axis=-1)
                number += 1
        self._policy.require_finite(values, "losses")
        return values
