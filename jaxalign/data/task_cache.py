"""A cache folder as an object: what it holds, its splits, its vocabulary, and what is stored beside it.

A cache folder holds `<split>.array_record` (one `CachedExample` a record), `<split>.lengths.npy`, `metadata.json`,
`rejected.jsonl`, the SentencePiece model if there is one, `stored/` (arrays of one number or vector a response) and
`teacher_tokens/`. It can be moved to another machine as it is. Nobody else reads these files.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxalign.data import stored_fields, teacher_tokens
from jaxalign.data.cache_metadata import METADATA_FILE, CacheMetadata
from jaxalign.data.cached_split import CachedSplit
from jaxalign.data.rejections import DataError
from jaxalign.data.stored_fields import StoredArray
from jaxalign.data.teacher_tokens import TeacherTokens, TeacherTokensWriter
from jaxalign.data.vocabularies import Vocabulary, vocabulary_from_dict


class TaskCache:
    """A cached task.

    Args:
      path: of the folder.

    Attributes:
      path: as given.
      metadata: what the cache says of itself.

    Raises:
      DataError: the folder is no cache, or its description is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.expanduser(os.fspath(path))
        self.metadata = CacheMetadata.read(self.path)

    @staticmethod
    def exists(path: str | os.PathLike[str]) -> bool:
        """Whether there is a cache in a folder."""
        return os.path.exists(os.path.join(os.path.expanduser(path), METADATA_FILE))

    def split(self, name: str) -> CachedSplit:
        """A split, to be read by position; DataError if there is none of that name or its file is damaged."""
        return CachedSplit(self.path, name, self.metadata)

    def vocabulary(self) -> Vocabulary:
        """The vocabulary the cache was made with; DataError if its file is missing or another one."""
        try:
            return vocabulary_from_dict(self.metadata.vocabulary, self.path)
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise DataError(
                f"{self.path}: the vocabulary of the cache cannot be read ({error})."
            ) from None

    def stored(self, split: str, name: str) -> StoredArray:
        """An array stored beside a split.

        Raises:
          DataError: there is none (the message lists the names there are), it is damaged, or it belongs to other data than the cache
            holds now.
        """
        return stored_fields.read(self.path, self.metadata, split, name)

    def write_stored(
        self,
        split: str,
        name: str,
        values: Float[np.ndarray, "examples responses *vector"],
        info: Mapping[str, Any],
    ) -> str:
        """Stores one number or one vector a response and returns the file's path; an array of that name is replaced.

        Args:
          split: of the cache.
          name: by which runs find the array.
          values: float32, row i for example i of the split; any finite number where a response is absent.
          info: JSON-able facts: what the numbers are, in which unit, from which model.

        Raises:
          DataError: wrong shape, NaN or infinity, or the disk is full.
        """
        return stored_fields.write(self.path, self.metadata, split, name, values, info)

    def stored_names(self, split: str) -> list[str]:
        """Names of the arrays stored beside a split."""
        return stored_fields.names(self.path, split)

    def stored_by_field(
        self, split: str, stored: Mapping[str, str]
    ) -> dict[str, Float[np.ndarray, "examples responses *vector"]]:
        """The arrays of {field: name of a stored array}, by field; a teacher's tokens are not among them.

        Raises:
          DataError: as `stored`, or a field is unknown or of another shape than the array.
        """
        stored_fields.check_stored_fields(stored)
        found = {}
        for field, name in stored.items():
            if stored_fields.FIELDS[field].shape != "tokens":
                array = self.stored(split, name)
                stored_fields.check_shape(field, array, name)
                found[field] = array.values
        return found

    def teacher_tokens(self, split: str, name: str) -> TeacherTokens:
        """A teacher's likeliest tokens at every position of a split; DataError as `stored`."""
        return teacher_tokens.open_teacher_tokens(self.split(split), name)

    def teacher_tokens_writer(self, split: str, name: str, count: int) -> TeacherTokensWriter:
        """Writes a teacher's `count` likeliest tokens at every position of a split."""
        return TeacherTokensWriter(self.split(split), name, count)
