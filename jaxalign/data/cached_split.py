"""One split of a cached task, read by position."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int

from jaxalign.data.cache import lengths_path, load_metadata, split_path
from jaxalign.data.examples import (
    CachedExample,
    decode_example,
)
from jaxalign.data.rejections import DataError

_BLOCK = 1024


class CachedSplit:
    """Random access to the examples of one split of a cache.

    Attributes:
      cache_dir, split: where it is.
      metadata: the cache's metadata (`cache.load_metadata`).
    """

    def __init__(self, cache_dir: str, split: str):
        from array_record.python import array_record_module

        self.cache_dir, self.split = cache_dir, split
        self.metadata = load_metadata(cache_dir)
        if split not in self.metadata["num_examples"]:
            known = ", ".join(self.metadata["num_examples"])
            raise DataError(f"The cache {cache_dir} has no split {split!r}; it has {known}.")
        self._path = split_path(cache_dir, split)
        if not os.path.exists(self._path):
            raise DataError(f"{self._path} is missing; run `jaxalign cache` again.")
        self._reader = array_record_module.ArrayRecordReader(
            self._path, "readahead_buffer_size:0,index_storage_option:in_memory"
        )
        if self._reader.num_records() != len(self):
            raise DataError(
                f"{self._path} holds {self._reader.num_records()} records, its metadata says {len(self)}; "
                "run `jaxalign cache` again."
            )

    @classmethod
    def open(cls, cache_dir: str, split: str) -> CachedSplit:
        """Opens a split; DataError if the folder is not a cache or lacks the split."""
        return cls(cache_dir, split)

    def __len__(self) -> int:
        return self.metadata["num_examples"][self.split]

    def __getitem__(self, index: int) -> CachedExample:
        """The example, with its text."""
        if not 0 <= index < len(self):
            raise IndexError(f"Example {index} of {len(self)} in {self._path}.")
        (data,) = self._reader.read([int(index)])
        return decode_example(data, where=self._path)

    def __iter__(self) -> Iterator[CachedExample]:
        return (self[index] for index in range(len(self)))

    def lengths(self) -> Int[np.ndarray, "examples 2"]:
        """Encoder and decoder tokens of every example (the decoder's: of all its responses)."""
        return np.load(lengths_path(self.cache_dir, self.split), allow_pickle=False)

    def read(self, indices: Sequence[int]) -> list[CachedExample]:
        """Several examples at once, without their text."""
        if len(indices) == 0:
            return []
        data = self._reader.read([int(index) for index in indices])
        return [decode_example(item, with_text=False, where=self._path) for item in data]
