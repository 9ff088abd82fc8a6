"""Lists of numbers in temporary files, and their statistics, computed exactly with a bounded part of the numbers in memory."""

from __future__ import annotations

import os
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

# An even number, so that a chunk of pairs holds whole pairs.
_CHUNK = 1 << 16


class SpilledNumbers:
    """A list of numbers of one type, of which only the newest are in memory.

    Args:
      dtype: the type.
      folder: the folder of the temporary file, which has no name there; the machine's own folder by default.
    """

    def __init__(self, dtype: str, folder: str | None = None) -> None:
        self._dtype, self._folder = np.dtype(dtype), folder
        self._recent: array[Any] = array(self._dtype.char)
        self._file: BinaryIO | None = None
        self._stored = 0

    def __len__(self) -> int:
        return self._stored + len(self._recent)

    def extend(self, numbers: Sequence[float]) -> None:
        """Appends numbers."""
        self._recent.extend(numbers)
        if len(self._recent) >= _CHUNK:
            self._store()

    def chunks(self) -> Iterator[np.ndarray]:
        """Yields the numbers in order, in arrays of bounded size."""
        for start in range(0, len(self), _CHUNK):
            yield self._read(start, min(start + _CHUNK, len(self)))

    def write_to(self, file: BinaryIO) -> None:
        """Writes the bytes of all numbers."""
        for chunk in self.chunks():
            file.write(chunk.tobytes())

    def mean(self) -> float:
        """Returns the mean in float64, equal to that of numpy to the last bit."""
        return float(self._sum(0, len(self), 0.0, squared=False) / len(self))

    def std(self) -> float:
        """Returns the population standard deviation in float64, equal to that of numpy to the last bit."""
        squares = self._sum(0, len(self), self.mean(), squared=True)
        return float(np.sqrt(squares / len(self)))

    def percentiles(self, percents: Sequence[float]) -> list[float]:
        """Returns the percentiles of float32 numbers as numpy interpolates them.

        Numbers are counted by the upper half of their bits, and the ones that decide by the lower half.
        """
        upper = np.zeros(1 << 16, np.int64)
        for chunk in self.chunks():
            upper += np.bincount(_order_of_bits(chunk) >> 16, minlength=1 << 16)
        ends = np.cumsum(upper)
        lower: dict[int, np.ndarray] = {}

        def at(rank: int) -> float:
            half = int(np.searchsorted(ends, rank, side="right"))
            if half not in lower:
                lower[half] = np.zeros(1 << 16, np.int64)
                for chunk in self.chunks():
                    bits = _order_of_bits(chunk)
                    found = bits[bits >> 16 == half] & 0xFFFF
                    lower[half] += np.bincount(found, minlength=1 << 16)
            before = int(ends[half] - upper[half])
            rest = int(np.searchsorted(np.cumsum(lower[half]), rank - before, side="right"))
            return _number_of_bits(half << 16 | rest)

        return [_interpolated(at, len(self), percent) for percent in percents]

    def _store(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (open as long as the object lives)
        self._file.write(np.array(self._recent, self._dtype).tobytes())
        self._stored += len(self._recent)
        del self._recent[:]

    def _read(self, start: int, stop: int) -> np.ndarray:
        if self._recent and self._file is not None:
            self._store()
        if self._file is None:
            return np.array(self._recent[start:stop], self._dtype)
        self._file.flush()
        size = self._dtype.itemsize
        data = os.pread(self._file.fileno(), size * (stop - start), size * start)
        return np.frombuffer(data, self._dtype)

    def _sum(self, start: int, stop: int, centre: float, *, squared: bool) -> float:
        """Returns a sum, by halves like numpy's, so that the rounding errors are the same."""
        length = stop - start
        if length <= _CHUNK:
            values = self._read(start, stop).astype(np.float64)
            if squared:
                values -= centre
                values *= values
            return float(np.add.reduce(values))
        half = length // 2
        half -= half % 8
        return self._sum(start, start + half, centre, squared=squared) + self._sum(
            start + half, stop, centre, squared=squared
        )


def counted(chunks: Iterable[np.ndarray]) -> Counter[int]:
    """Returns how often each whole number occurs."""
    counts: Counter[int] = Counter()
    for chunk in chunks:
        numbers, times = np.unique(chunk, return_counts=True)
        counts.update(dict(zip(numbers.tolist(), times.tolist(), strict=True)))
    return counts


def counted_percentiles(counts: Mapping[int, int], percents: Sequence[float]) -> list[float]:
    """Returns the percentiles, as numpy interpolates them, of whole numbers that are given with their counts."""
    numbers = sorted(counts)
    ends = np.cumsum([counts[number] for number in numbers])

    def at(rank: int) -> float:
        return numbers[int(np.searchsorted(ends, rank, side="right"))]

    return [_interpolated(at, int(ends[-1]), percent) for percent in percents]


def counted_mean(counts: Counter[int]) -> float:
    """Returns the mean of whole numbers that are given with their counts."""
    return sum(number * count for number, count in counts.items()) / counts.total()


def _interpolated(at: Callable[[int], float], length: int, percent: float) -> float:
    """Returns a percentile from the numbers by rank, rounded like numpy's."""
    position = (length - 1) * (percent / 100)
    below = int(position)
    share = position - below
    low, high = at(below), at(min(below + 1, length - 1))
    difference = high - low
    return low + difference * share if share < 0.5 else high - difference * (1 - share)


def _order_of_bits(values: np.ndarray) -> np.ndarray:
    """Returns the bits of float32 numbers as unsigned integers in the order of the numbers."""
    bits = values.view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def _number_of_bits(order: int) -> float:
    """Returns the number of which `_order_of_bits` made an integer."""
    bits = order & 0x7FFFFFFF if order >> 31 else ~order & 0xFFFFFFFF
    return float(np.uint32(bits).view(np.float32))
