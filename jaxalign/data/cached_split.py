"""One split of a cached task, read by position."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int

from jaxalign.data import stored_fields
from jaxalign.data.cache_metadata import CacheMetadata, SplitMetadata
from jaxalign.data.examples import CachedExample, decode_example
from jaxalign.data.rejections import DataError
from jaxalign.errors import first_line

_BLOCK = 1024


class CachedSplit:
    """Random access to the examples of one split of a cache; opened by `TaskCache.split`.

    Attributes:
      path: the path of the cache.
      split: the name of the split.
      metadata: the metadata of the whole cache.
    """

    def __init__(self, path: str, split: str, metadata: CacheMetadata):
        from array_record.python import array_record_module

        stored_fields.check_split(metadata, path, split)
        self.path, self.split, self.metadata = path, split, metadata
        self._file = records_path(path, split)
        if not os.path.exists(self._file):
            raise DataError(f"{self._file} is missing; run `jaxalign cache` again.")
        try:
            self._reader = array_record_module.ArrayRecordReader(
                self._file, "readahead_buffer_size:0,index_storage_option:in_memory"
            )
            found = self._reader.num_records()
        except (RuntimeError, ValueError) as error:
            raise self._damaged(error) from None
        if found != len(self):
            raise DataError(
                f"{self._file} holds {found} records, its metadata says {len(self)}; run `jaxalign cache` again."
            )

    @property
    def facts(self) -> SplitMetadata:
        """The cache's metadata of this split."""
        return self.metadata.splits[self.split]

    def __len__(self) -> int:
        return self.facts.num_examples

    def __getitem__(self, index: int) -> CachedExample:
        """Returns the example with its text."""
        if not 0 <= index < len(self):
            raise IndexError(f"Example {index} of {len(self)} in {self._file}.")
        (example,) = self._decode([index], with_text=True)
        return example

    def __iter__(self) -> Iterator[CachedExample]:
        """Iterates over all examples in order, with their text."""
        return self._all(with_text=True)

    def without_text(self) -> Iterator[CachedExample]:
        """Iterates over all examples in order, without their text."""
        return self._all(with_text=False)

    def read(self, indices: Sequence[int]) -> list[CachedExample]:
        """Returns several examples at once, without their text."""
        return self._decode(indices, with_text=False)

    def lengths(self) -> Int[np.ndarray, "examples 2"]:
        """Returns the number of encoder and decoder tokens of every example (decoder: of all its responses)."""
        path = lengths_path(self.path, self.split)
        found = stored_fields.load_array(path, self.facts.lengths_sha256)
        if found.shape != (len(self), 2):
            raise DataError(
                f"{path} has shape {found.shape}, not ({len(self)}, 2); run `jaxalign cache` again."
            )
        return found

    def _all(self, *, with_text: bool) -> Iterator[CachedExample]:
        for start in range(0, len(self), _BLOCK):
            yield from self._decode(
                range(start, min(start + _BLOCK, len(self))), with_text=with_text
            )

    def _decode(self, indices: Sequence[int], *, with_text: bool) -> list[CachedExample]:
        if len(indices) == 0:
            return []
        try:
            found = self._reader.read([int(index) for index in indices])
        except (RuntimeError, ValueError, IndexError) as error:
            raise self._damaged(error) from None
        return [decode_example(item, with_text=with_text, where=self._file) for item in found]

    def _damaged(self, error: Exception) -> DataError:
        reason = first_line(error)
        return DataError(
            f"{self._file} is damaged ({reason}); delete the folder and run `jaxalign cache` again."
        )


def records_path(path: str, split: str) -> str:
    """Returns the path of the ArrayRecord file of a split."""
    return os.path.join(path, f"{split}.array_record")


def lengths_path(path: str, split: str) -> str:
    """Returns the path of a split's lengths: int32 [examples, 2], the tokens of the prompt and of all responses."""
    return os.path.join(path, f"{split}.lengths.npy")
