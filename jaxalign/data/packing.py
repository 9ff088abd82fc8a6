"""First-fit packing of examples into rows, using only their lengths.

Grain's own packing copies tokens and needs every example to be read first. Here only indices move, the chosen examples of a whole
batch are read together, and the state is the parent's state with a short list of deferred examples.
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import grain
import numpy as np
from jaxtyping import Int

Rows = list[list[int]]


class PackIndices(grain.IterDataset):
    """Turns a stream of example indices into batches of rows of indices.

    Every example goes to the first row with room. An example that fits in no row is deferred to the next batch. When more
    than `lookahead` examples are deferred, the batch is finished. So no example waits for long, and within that window the
    order is that of the parent.
    """

    def __init__(
        self,
        parent: grain.IterDataset,
        *,
        example_lengths: Int[np.ndarray, "examples 2"],
        row_lengths: tuple[int, int],
        rows: int,
        max_examples_per_row: int,
        lookahead: int,
        drop_remainder: bool,
    ):
        """Packs the indices that `parent` yields.

        Args:
          parent: yields example indices.
          example_lengths: the encoder and decoder tokens of every example; each example must fit in `row_lengths`.
          row_lengths: the encoder and decoder tokens of a row.
          rows: the number of rows of a batch.
          max_examples_per_row: P.
          lookahead: the number of examples that may be deferred.
          drop_remainder: whether to leave out last batches that have an empty row.
        """
        super().__init__(parent)
        self._options: dict[str, Any] = {
            "example_lengths": example_lengths,
            "row_lengths": row_lengths,
            "rows": rows,
            "max_examples_per_row": max_examples_per_row,
            "lookahead": lookahead,
            "drop_remainder": drop_remainder,
        }

    def __iter__(self) -> grain.DatasetIterator:
        return _PackIterator(self._parent.__iter__(), **self._options)


class _PackIterator(grain.DatasetIterator):
    """The iterator of `PackIndices`; its only state between batches is `_aside`."""

    def __init__(
        self,
        parent: grain.DatasetIterator,
        *,
        example_lengths: np.ndarray,
        row_lengths: tuple[int, int],
        rows: int,
        max_examples_per_row: int,
        lookahead: int,
        drop_remainder: bool,
    ):
        super().__init__(parent)
        self._lengths = example_lengths
        self._row_lengths = np.asarray(row_lengths)
        self._rows = rows
        self._per_row = max_examples_per_row
        self._lookahead = lookahead
        self._drop_remainder = drop_remainder
        self._aside: list[int] = []

    def __next__(self) -> Rows:
        free = np.tile(self._row_lengths, (self._rows, 1))
        places = np.full(self._rows, self._per_row)
        batch: Rows = [[] for _ in range(self._rows)]

        def place(index: int) -> bool:
            fits = (free >= self._lengths[index]).all(axis=1) & (places > 0)
            row = int(fits.argmax())
            if not fits[row]:
                return False
            free[row] -= self._lengths[index]
            places[row] -= 1
            batch[row].append(index)
            return True

        self._aside = [index for index in self._aside if not place(index)]
        while len(self._aside) <= self._lookahead and places.any():
            try:
                index = int(next(self._parent))
            except StopIteration:
                break
            if not place(index):
                self._aside.append(index)
        if not batch[0] or (self._drop_remainder and not batch[-1]):
            raise StopIteration
        return batch

    def get_state(self) -> dict[str, Any]:
        return {"parent": self._parent.get_state(), "aside": list(self._aside)}

    def set_state(self, state: dict[str, Any]) -> None:
        self._parent.set_state(state["parent"])
        self._aside = [int(index) for index in state["aside"]]


_open_iterators: weakref.WeakSet[grain.DatasetIterator] = weakref.WeakSet()


@atexit.register
def _close_iterators() -> None:
    """Closes all iterators: a prefetch thread that reads while the interpreter exits would abort the process."""
    for iterator in list(_open_iterators):
        iterator.close()
        # Its destructor would close it again after Grain's modules are unloaded.
        iterator.close = lambda: None  # type: ignore[method-assign]


class _Prefetch(grain.experimental.ThreadPrefetchIterDataset):
    """Grain's prefetch, with iterators that are closed before the interpreter exits."""

    def __iter__(self) -> grain.DatasetIterator:
        iterator = super().__iter__()
        _open_iterators.add(iterator)
        return iterator


def pack_and_batch(
    indices: grain.MapDataset,
    *,
    example_lengths: Int[np.ndarray, "examples 2"],
    row_lengths: Mapping[str, int],
    rows: int,
    max_examples_per_row: int,
    drop_remainder: bool,
    read_and_collate: Callable[[Rows], Any],
    prefetch: int,
) -> grain.IterDataset:
    """Returns batches of packed rows from a MapDataset of indices; one thread makes `prefetch` batches in advance."""
    packed: grain.IterDataset = PackIndices(
        indices.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)),
        example_lengths=example_lengths,
        row_lengths=(row_lengths["inputs"], row_lengths["targets"]),
        rows=rows,
        max_examples_per_row=max_examples_per_row,
        lookahead=2 * rows,
        drop_remainder=drop_remainder,
    ).map(read_and_collate)
    if prefetch:
        packed = _Prefetch(packed, prefetch_buffer_size=prefetch)
    return packed
