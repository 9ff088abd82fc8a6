"""One pass of a network over the splits of a cached task, for numbers that are stored beside the cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from jaxalign.data import pipeline
from jaxalign.data.row_lengths import covering
from jaxalign.data.task_cache import TaskCache
from jaxalign.errors import require_range
from jaxalign.parallel import distributed, partitioning
from jaxalign.parallel.progress import progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class PassSettings:
    """The settings of a pass.

    Attributes:
      feature_lengths: the lengths of ``inputs`` and ``targets`` in tokens.
      batch_size: the number of global rows per forward pass; short examples share rows.
      mesh: the mesh to compute on.
      info: JSON that is stored beside the numbers.
      splits: the names of the splits; None for all.
      row_lengths: the lengths of packed rows, extended if an example needs it; None for ``feature_lengths``.
    """

    feature_lengths: Mapping[str, int]
    batch_size: int
    mesh: Mesh
    info: Mapping[str, Any]
    splits: Sequence[str] | None = None
    row_lengths: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        require_range("PassSettings", "[1, inf)", batch_size=self.batch_size)

    def splits_of(self, cache: TaskCache) -> list[str]:
        """Returns the names of the splits to read."""
        return list(self.splits or cache.metadata.splits)


class CachePass:
    """Applies a function to every batch of a split.

    Args:
      compute: maps parameters and a batch to arrays; it is compiled once, whatever the number of splits.
      params: the parameters.
      settings: the settings of the pass.
      pack: whether several short examples share a row.
    """

    def __init__(
        self,
        compute: Callable[[Any, Mapping[str, Any]], Any],
        params: Any,
        settings: PassSettings,
        *,
        pack: bool = True,
    ) -> None:
        self._params, self._settings, self._pack = params, settings, pack
        # Every process has the numbers of all rows; the first process writes them.
        everywhere = partitioning.replicated_sharding(settings.mesh)
        self._compiled = jax.jit(compute, out_shardings=everywhere)
        self._rows = distributed.process_local_rows(settings.mesh, settings.batch_size)

    def outputs(self, cache: TaskCache, split: str) -> Iterator[Any]:
        """Yields the arrays of every batch, on the host."""
        settings, mesh = self._settings, self._settings.mesh
        batches = pipeline.one_pass(
            cache,
            split,
            feature_lengths=settings.feature_lengths,
            batch_size=settings.batch_size,
            pack=self._pack,
            row_lengths=covering(cache.split(split), settings.row_lengths) if self._pack else None,
            local_rows=self._rows,
        )
        for batch in progress(
            ((1, batch) for batch in batches), None, f"computing {split}", "batch"
        ):
            with partitioning.set_mesh(mesh):
                found = self._compiled(self._params, partitioning.make_global_batch(mesh, batch))
            yield jax.device_get(found)
