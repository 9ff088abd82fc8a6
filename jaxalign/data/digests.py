"""A set of texts that keeps a bounded part of itself in memory and the rest in files without names.

A text is kept as 16 bytes of digest and 8 bytes of place. The newest texts are in a dictionary. When it is full, it becomes a sorted run
in a temporary file, and runs of similar size are merged, so that a file of any length has a few of them. Of a run only every 512th
digest stays in memory. The files have no names: nothing is left of them when the process ends.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from array import array
from bisect import bisect_left
from collections.abc import Iterator

import numpy as np

# Texts in memory: about 6 MB.
_IN_MEMORY = 1 << 15
_PAGE = 512
# Two neighbouring runs are merged if the older one is at most this many times as long, or short anyway.
_RATIO = 2
_SHORT = 8 * _IN_MEMORY
_CHUNK = 1 << 16
_FILE_BITS = 20  # for the number of the file; the other bits hold the line
_LAST_FILE = (1 << _FILE_BITS) - 1
_HALVES = struct.Struct("<QQ").unpack
_COLUMNS = 3


class Places:
    """A set of text digests, each with the file and line of its first occurrence.

    Args:
      folder: the folder of the temporary files; the machine's own by default.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._folder = folder
        self._files: dict[str, int] = {}
        self._recent: dict[bytes, int] = {}
        self._runs: list[_Run] = []

    def __len__(self) -> int:
        run = self._merged()
        return 0 if run is None else run.length

    def add(self, text: str, file: str, line: int) -> tuple[str, int] | None:
        """Adds a text unless it is present; returns the file and line of its earlier occurrence, or None."""
        digest = _digest(text)
        place = self._recent.get(digest)
        if place is None and self._runs:
            high, low = _HALVES(digest)
            for run in self._runs:
                place = run.find(high, low)
                if place is not None:
                    break
        if place is not None:
            return self._place(place)
        self._insert(digest, file, line)
        return None

    def note(self, text: str, file: str, line: int) -> None:
        """Adds a text unless it is present. Unlike `add` it reads no file: what is present twice is found when runs are merged."""
        digest = _digest(text)
        if digest not in self._recent:
            self._insert(digest, file, line)

    def shared(self, other: Places) -> Iterator[tuple[tuple[str, int], tuple[str, int]]]:
        """Yields the places of each text that is in both sets: its first occurrence here and its first occurrence in `other`."""
        ours, theirs = self._merged(), other._merged()
        if ours is None or theirs is None:
            return
        for a, b in _aligned(ours, theirs):
            _, in_a, in_b = np.intersect1d(
                _keys(a), _keys(b), assume_unique=True, return_indices=True
            )
            for i, j in zip(in_a.tolist(), in_b.tolist(), strict=True):
                yield self._place(int(a[2][i])), other._place(int(b[2][j]))

    def _insert(self, digest: bytes, file: str, line: int) -> None:
        number = self._files.setdefault(file, len(self._files))
        self._recent[digest] = ((line + 1) << _FILE_BITS) | (number & _LAST_FILE)
        if len(self._recent) == _IN_MEMORY:
            self._store_recent()

    def _store_recent(self) -> None:
        digests = np.frombuffer(b"".join(self._recent), "<u8").reshape(-1, 2)
        places = np.fromiter(self._recent.values(), "<u8", len(self._recent))
        order = np.lexsort((digests[:, 1], digests[:, 0]))
        run = _Run.of([[digests[order, 0], digests[order, 1], places[order]]], self._folder)
        self._recent.clear()
        while self._runs and self._runs[-1].length <= max(_RATIO * run.length, _SHORT):
            run = _merge(self._runs.pop(), run, self._folder)
        self._runs.append(run)

    def _merged(self) -> _Run | None:
        """Returns all texts as one run."""
        if self._recent:
            self._store_recent()
        while len(self._runs) > 1:
            newer = self._runs.pop()
            self._runs.append(_merge(self._runs.pop(), newer, self._folder))
        return self._runs[0] if self._runs else None

    def _place(self, place: int) -> tuple[str, int]:
        return list(self._files)[place & _LAST_FILE], (place >> _FILE_BITS) - 1


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


# Columns of texts: the two halves of the digests, and the places.
_Columns = list[np.ndarray]


class _Run:
    """Texts in the order of their digests, in three temporary files: the two halves of the digests, and the places."""

    def __init__(self, folder: str | None) -> None:
        self._files = [tempfile.TemporaryFile(dir=folder) for _ in range(_COLUMNS)]  # noqa: SIM115 (open as long as the object lives)
        self.length = 0
        self._pages = array("Q")

    @classmethod
    def of(cls, blocks: Iterator[_Columns] | list[_Columns], folder: str | None) -> _Run:
        """Writes blocks of columns, whose digests increase."""
        run = cls(folder)
        for columns in blocks:
            first = -run.length % _PAGE
            run._pages.extend(columns[0][first::_PAGE].tolist())
            for file, column in zip(run._files, columns, strict=True):
                file.write(column.tobytes())
            run.length += len(columns[0])
        for file in run._files:
            file.flush()
        return run

    def find(self, high: int, low: int) -> int | None:
        """Returns the place of a digest, or None."""
        page = max(bisect_left(self._pages, high) - 1, 0)
        data = os.pread(self._files[0].fileno(), 8 * _PAGE, 8 * _PAGE * page)
        view = memoryview(data).cast("Q")
        index = bisect_left(view, high)
        if index < len(view) and view[index] != high:
            return None
        position = page * _PAGE + index
        # Digests with equal halves are next to each other, perhaps on the next page.
        while position < self.length and self._number(0, position) == high:
            if self._number(1, position) == low:
                return self._number(2, position)
            position += 1
        return None

    def _number(self, column: int, position: int) -> int:
        data = os.pread(self._files[column].fileno(), 8, 8 * position)
        return int.from_bytes(data, "little")

    def rows(self, start: int, stop: int) -> _Columns:
        """Returns the columns from one position to another."""
        return [
            np.frombuffer(os.pread(file.fileno(), 8 * (stop - start), 8 * start), "<u8")
            for file in self._files
        ]

    def first_at_least(self, high: int) -> int:
        """Returns the first position whose digest's first half is at least `high`."""
        page = max(bisect_left(self._pages, high) - 1, 0)
        start = page * _PAGE
        stop = min(start + _PAGE, self.length)
        return start + int(np.searchsorted(self.rows(start, stop)[0], np.uint64(high)))


def _aligned(first: _Run, second: _Run) -> Iterator[tuple[_Columns, _Columns]]:
    """Yields the two runs in blocks of bounded size that end at the same digests."""
    parts = -(-(first.length + second.length) // _CHUNK)
    bounds = [(part << 64) // parts for part in range(1, parts)]
    begins = (0, 0)
    for bound in [*bounds, None]:
        if bound is None:
            ends = (first.length, second.length)
        else:
            ends = (first.first_at_least(bound), second.first_at_least(bound))
        yield first.rows(begins[0], ends[0]), second.rows(begins[1], ends[1])
        begins = ends


def _merge(older: _Run, newer: _Run, folder: str | None) -> _Run:
    """Merges two runs; of a text in both the older run's place is kept."""

    def blocks() -> Iterator[_Columns]:
        for a, b in _aligned(older, newer):
            columns = [np.concatenate(pair) for pair in zip(a, b, strict=True)]
            # A stable order: the older run comes first.
            order = np.lexsort((columns[1], columns[0]))
            columns = [column[order] for column in columns]
            new = np.ones(len(order), bool)
            new[1:] = (columns[0][1:] != columns[0][:-1]) | (columns[1][1:] != columns[1][:-1])
            yield [column[new] for column in columns]

    return _Run.of(blocks(), folder)


def _keys(columns: _Columns) -> np.ndarray:
    """Returns the digests as values that compare as a whole."""
    keys = np.empty(len(columns[0]), [("high", "<u8"), ("low", "<u8")])
    keys["high"], keys["low"] = columns[0], columns[1]
    return keys
