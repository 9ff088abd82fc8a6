"""Which examples training draws and how often: all equally, those with a positive advantage, or in proportion to a weight.

A weighted epoch uses systematic sampling: with n draws and weights that sum to W, an example with weight w is drawn floor(n w / W)
times or one time more, n w / W on average over epochs. This is the distribution of independent draws, with less noise. A draw
depends only on the seed and its number, so that resuming and sharing among processes are exact.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import grain
import numpy as np
from jaxtyping import Float, Int

from jaxalign.data.cached_split import CachedSplit
from jaxalign.data.rejections import DataError
from jaxalign.data.task_cache import TaskCache

MODES = ("uniform", "positive", "priority", "reward")


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The examples of a split that are drawn, and their weights.

    Attributes:
      mode: one of `MODES`, except 'uniform'.
      kept: the indices of the examples with a positive weight, ascending.
      weights: draws are in proportion to these; None draws every kept example once in an epoch.
      examples: the number of examples of the split, kept or not.
    """

    mode: str
    kept: Int[np.ndarray, " kept"]
    weights: Float[np.ndarray, " kept"] | None
    examples: int

    def indices(self, seed: int) -> grain.MapDataset:
        """Returns a dataset of example indices, not yet shuffled; an epoch has as many draws as there are kept examples."""
        if self.weights is None:
            return grain.MapDataset.source(self.kept)
        return WeightedIndices(self.kept, self.weights, seed)

    def describe(self) -> dict[str, Any]:
        """Returns JSON for a run's summary. A-LoL multiplies its number of steps by ``kept_fraction`` (arXiv 2305.14718)."""
        return {
            "mode": self.mode,
            "kept_examples": len(self.kept),
            "kept_fraction": len(self.kept) / self.examples,
        }


class WeightedIndices(grain.MapDataset):
    """Indices drawn by weight: draw i of an epoch is the example at (i + u) / n of the cumulated weights, with one u in [0, 1) an epoch."""

    def __init__(
        self, kept: Int[np.ndarray, " kept"], weights: Float[np.ndarray, " kept"], seed: int
    ):
        super().__init__()
        self._kept, self._seed = kept, seed
        self._cumulated = np.cumsum(weights, dtype=np.float64)

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        epoch, draw = divmod(index, len(self))
        position = (draw + _offset(self._seed, epoch)) / len(self) * self._cumulated[-1]
        # Rounding can move the last position up to the sum.
        found = min(int(np.searchsorted(self._cumulated, position, side="right")), len(self) - 1)
        return int(self._kept[found])


@functools.lru_cache(maxsize=64)
def _offset(seed: int, epoch: int) -> float:
    return float(np.random.default_rng((seed, epoch)).random())


def check_mode(mode: str) -> None:
    """Raises DataError if the mode is unknown."""
    if mode not in MODES:
        raise DataError(f"Unknown sampling {mode!r}; known: {', '.join(map(repr, MODES))}.")


def open_sampling(
    cache: TaskCache,
    split: str,
    mode: str,
    *,
    stored: Mapping[str, str] | None = None,
    field: str = "advantages",
) -> Sampling | None:
    """Returns which examples of a split are drawn and how often; None if all are drawn equally.

    The weight of an example with several responses is the sum of the weights of its responses.

    Args:
      mode: 'uniform'; 'positive': examples whose stored field is positive (for any response), drawn equally; 'priority': in
        proportion to max(field, 0), so that a loss that multiplies by the advantage, such as that of A-LoL, weights by its
        square; 'reward': in proportion to the raw feedback.
      stored: {batch field: name of a stored array}.
      field: the batch field for 'positive' and 'priority'.

    Raises:
      DataError: the mode is unknown, a field is not stored, feedback is negative, or no example has a positive weight.
    """
    check_mode(mode)
    if mode == "uniform":
        return None
    data = cache.split(split)
    if mode == "reward":
        what, weights = "feedback", _feedback(data)
    else:
        name = (stored or {}).get(field)
        if name is None:
            raise DataError(
                f"sampling {mode!r} draws by the stored field {field!r}, which is not among the stored fields "
                f"({', '.join(stored or {}) or 'none'}); store it under a name and set STORED_FIELDS = {{{field!r}: NAME}}."
            )
        what, weights = f"value of {name!r}", _positive_part(cache, data, name)
    kept = np.flatnonzero(weights > 0)
    if not len(kept):
        raise DataError(
            f"sampling {mode!r} has nothing to draw: no {what} in the split {split!r} of {cache.path} is positive."
        )
    return Sampling(mode, kept, None if mode == "positive" else weights[kept], len(data))


def _positive_part(
    cache: TaskCache, data: CachedSplit, name: str
) -> Float[np.ndarray, " examples"]:
    """Returns the sum over responses of max(value, 0)."""
    values = cache.stored(data.split, name).values.astype(np.float64)
    if values.ndim != 2:
        raise DataError(f"sampling needs a number for every response, but {name!r} has a vector.")
    positive = np.maximum(values, 0)
    responses = values.shape[1]
    if responses > 1:
        # The array may hold any value where a response is absent.
        counts = [len(example.target_lengths) for example in data.without_text()]
        positive[np.arange(responses) >= np.asarray(counts)[:, None]] = 0
    return positive.sum(axis=1)


def _feedback(data: CachedSplit) -> Float[np.ndarray, " examples"]:
    """Returns the sum over responses of the raw feedback."""
    if "feedback" not in data.metadata.fields:
        raise DataError(
            f"sampling 'reward' needs feedback, and {data.path} has none (it has: "
            f"{', '.join(data.metadata.fields) or 'no fields'})."
        )
    sums: list[float] = []
    for index, example in enumerate(data.without_text()):
        assert example.feedback is not None
        if example.feedback.min() < 0:
            named = data[index]
            raise DataError(
                f"sampling 'reward' needs feedback >= 0, but {named.file}:{named.line} (example {index} of {data.split!r}) has "
                f"{float(example.feedback.min()):g}; shift the feedback, or draw by advantages ('priority')."
            )
        sums.append(float(example.feedback.sum(dtype=np.float64)))
    return np.asarray(sums)
