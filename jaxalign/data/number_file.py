"""A list of numbers in a temporary file."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterable
from typing import Any

import numpy as np

_IN_MEMORY = 1 << 16


class NumberFile:
    """A list of numbers of one type, of which only the newest are in memory.

    Args:
      dtype: the type.
      folder: the folder of the temporary file, which has no name there; the machine's own folder by default.
    """

    def __init__(self, dtype: str, folder: str | None = None) -> None:
        self._dtype = np.dtype(dtype)
        self._recent: array[Any] = array(self._dtype.char)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (open as long as the object lives)
        self._stored = 0

    def __len__(self) -> int:
        return self._stored + len(self._recent)

    def extend(self, numbers: Iterable[float]) -> None:
        """Appends numbers."""
        self._recent.extend(numbers)
        if len(self._recent) >= _IN_MEMORY:
            self._store()

    def read(self) -> np.ndarray:
        """Returns all numbers."""
        self._store()
        self._file.seek(0)
        return np.fromfile(self._file, self._dtype)

    def _store(self) -> None:
        self._file.seek(0, 2)
        self._file.write(self._recent.tobytes())
        self._file.flush()
        self._stored += len(self._recent)
        del self._recent[:]
