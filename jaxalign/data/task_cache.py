"""A cache folder as an object: its content, its splits, its vocabulary, and the arrays stored beside it.

A cache folder holds `<split>.array_record` (one `CachedExample` in each record), `<split>.lengths.npy`, `metadata.json`,
`rejected.jsonl`, the SentencePiece model if there is one, `stored/` (arrays of one number or vector for each response) and
`teacher_tokens/`. It can be moved to another machine unchanged. No other module reads these files.
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
      path: the path of the folder.

    Attributes:
      path: as given.
      metadata: the metadata of the cache.

    Raises:
      DataError: the folder is not a cache, or its description is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.expanduser(os.fspath(path))
        self.metadata = CacheMetadata.read(self.path)

    @staticmethod
    def exists(path: str | os.PathLike[str]) -> bool:
        """Returns whether a folder holds a cache."""
        return os.path.exists(os.path.join(os.path.expanduser(path), METADATA_FILE))

    def split(self, name: str) -> CachedSplit:
        """Opens a split for reading by position; raises DataError if it does not exist or its file is damaged."""
        return CachedSplit(self.path, name, self.metadata)

    def vocabulary(self) -> Vocabulary:
        """Returns the vocabulary of the cache; raises DataError if its file is missing or has changed."""
        try:
            return vocabulary_from_dict(self.metadata.vocabulary, self.path)
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise DataError(
                f"{self.path}: the vocabulary of the cache cannot be read ({error})."
            ) from None

    def stored(self, split: str, name: str) -> StoredArray:
        """Returns an array stored beside a split.

        Raises:
          DataError: the array does not exist (the message lists the existing names), is damaged, or belongs to data other than the
            current content of the cache.
        """
        return stored_fields.read(self.path, self.metadata, split, name)

    def write_stored(
        self,
        split: str,
        name: str,
        values: Float[np.ndarray, "examples responses *vector"],
        info: Mapping[str, Any],
    ) -> str:
        """Stores one number or one vector for each response and returns the file's path; replaces an array of that name.

        Args:
          split: a split of the cache.
          name: the name by which runs find the array.
          values: float32, row i for example i of the split; any finite number where a response is absent.
          info: JSON-able facts: what the numbers are, their unit, and the model they come from.

        Raises:
          DataError: the shape is wrong, a value is NaN or infinite, or the disk is full.
        """
        return stored_fields.write(self.path, self.metadata, split, name, values, info)

    def stored_names(self, split: str) -> list[str]:
        """Returns the names of the arrays stored beside a split."""
        return stored_fields.names(self.path, split)

    def stored_by_field(
        self, split: str, stored: Mapping[str, str]
    ) -> dict[str, Float[np.ndarray, "examples responses *vector"]]:
        """Returns the arrays of {field: name of a stored array}, by field, without the tokens of a teacher.

        Raises:
          DataError: as in `stored`, or a field is unknown or its shape differs from that of the array.
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
        """Returns a teacher's most likely tokens at every position of a split; raises DataError as `stored` does."""
        return teacher_tokens.open_teacher_tokens(self.split(split), name)

    def teacher_tokens_writer(self, split: str, name: str, count: int) -> TeacherTokensWriter:
        """Returns a writer for a teacher's `count` most likely tokens at every position of a split."""
        return TeacherTokensWriter(self.split(split), name, count)
