"""A set of texts that keeps 16 bytes of each text, so that files of millions of lines fit into memory."""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections.abc import Iterator

_START = 1 << 10
_FILE_BITS = 20  # for the number of the file; the other bits hold the line
_LAST_FILE = (1 << _FILE_BITS) - 1
_EMPTY = 0
_HALVES = struct.Struct("<QQ").unpack


class Places:
    """A hash table of text digests, each with the file and line of its first occurrence; at most two thirds of it are filled."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._count = 0
        self._resize(_START)

    def __len__(self) -> int:
        return self._count

    def add(self, text: str, file: str, line: int) -> tuple[str, int] | None:
        """Adds a text unless it is present; returns the file and line of its earlier occurrence, or None."""
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        high, low = _HALVES(digest)
        slot = self._find(high, low)
        if self._places[slot] != _EMPTY:
            return self._place(slot)
        if file not in self._files:
            self._files[file] = len(self._files)
        self._high[slot], self._low[slot] = high, low
        self._places[slot] = ((line + 1) << _FILE_BITS) | (self._files[file] & _LAST_FILE)
        self._count += 1
        if 3 * self._count > 2 * len(self._places):
            self._grow()
        return None

    def shared(self, other: Places) -> Iterator[tuple[tuple[str, int], tuple[str, int]]]:
        """Yields the places of each text that is in both sets: its first occurrence here and its first occurrence in `other`."""
        for slot, place in enumerate(self._places):
            if place != _EMPTY:
                theirs = other._find(self._high[slot], self._low[slot])
                if other._places[theirs] != _EMPTY:
                    yield self._place(slot), other._place(theirs)

    def _place(self, slot: int) -> tuple[str, int]:
        place = self._places[slot]
        files = list(self._files)
        return files[place & _LAST_FILE], (place >> _FILE_BITS) - 1

    def _find(self, high: int, low: int) -> int:
        """Returns the slot of a digest, or the empty slot where the digest belongs."""
        places, highs, lows = self._places, self._high, self._low
        mask = len(places) - 1
        slot = high & mask
        while places[slot] != _EMPTY and (highs[slot] != high or lows[slot] != low):
            slot = (slot + 1) & mask
        return slot

    def _grow(self) -> None:
        high, low, places = self._high, self._low, self._places
        self._resize(2 * len(places))
        for slot, place in enumerate(places):
            if place != _EMPTY:
                new = self._find(high[slot], low[slot])
                self._high[new], self._low[new], self._places[new] = high[slot], low[slot], place

    def _resize(self, size: int) -> None:
        self._high, self._low, self._places = (array("Q", [_EMPTY]) * size for _ in range(3))
