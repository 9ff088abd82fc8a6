"""A set of texts on disk: 16 bytes of digest for each text, and the place where it was first seen, in a temporary SQLite database.

SQLite keeps its newest pages in memory and the rest in a file without a name, of which nothing is left when the process ends.
"""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator

_MEMORY_KIB = 16 * 1024
# The database is private and temporary: it needs no journal, and nobody else reads it.
_SETTINGS = (
    "journal_mode=OFF",
    "synchronous=OFF",
    "locking_mode=EXCLUSIVE",
    f"cache_size=-{_MEMORY_KIB}",
)
_INSERT = "INSERT OR IGNORE INTO places VALUES (?, ?, ?)"
_TOGETHER = 1024  # texts that are added by one command


class Places:
    """A set of text digests, each with the file and line of its first occurrence.

    Args:
      folder: the folder of the temporary file; the machine's own by default.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._files: dict[str, int] = {}
        self._noted: list[tuple[bytes, int, int]] = []
        descriptor, path = tempfile.mkstemp(dir=folder)
        os.close(descriptor)
        # The thread that closes a cache need not be the one that began it.
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        for setting in _SETTINGS:
            self._execute(f"PRAGMA {setting}").fetchall()
        self._execute(
            "CREATE TABLE places (digest BLOB PRIMARY KEY, file INTEGER, line INTEGER) WITHOUT ROWID"
        )
        os.unlink(path)
        self._execute("BEGIN")

    def __len__(self) -> int:
        self._store_noted()
        (count,) = self._execute("SELECT COUNT(*) FROM places").fetchone()
        return int(count)

    def add(self, text: str, file: str, line: int) -> tuple[str, int] | None:
        """Adds a text unless it is present; returns the file and line of its earlier occurrence, or None."""
        self._store_noted()
        row = self._row(text, file, line)
        return None if self._execute(_INSERT, row).rowcount else self._find(row[0])

    def note(self, text: str, file: str, line: int) -> None:
        """Adds a text unless it is present; many texts are added together, which is faster."""
        self._noted.append(self._row(text, file, line))
        if len(self._noted) == _TOGETHER:
            self._store_noted()

    def shared(self, other: Places) -> Iterator[tuple[tuple[str, int], tuple[str, int]]]:
        """Yields the places of each text that is in both sets: its first occurrence here and its first occurrence in `other`."""
        swapped = len(other) < len(self)
        fewer, more = (other, self) if swapped else (self, other)
        files = list(fewer._files)
        for digest, number, line in fewer._execute("SELECT digest, file, line FROM places"):
            found = more._find(digest)
            if found is not None:
                place = (files[number], line)
                yield (found, place) if swapped else (place, found)

    def _row(self, text: str, file: str, line: int) -> tuple[bytes, int, int]:
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        return digest, self._files.setdefault(file, len(self._files)), line

    def _store_noted(self) -> None:
        if self._noted:
            _called(self._database.executemany, _INSERT, self._noted)
            self._noted.clear()

    def _find(self, digest: bytes) -> tuple[str, int] | None:
        found = self._execute("SELECT file, line FROM places WHERE digest = ?", (digest,))
        row = found.fetchone()
        return None if row is None else (list(self._files)[row[0]], int(row[1]))

    def _execute(self, command: str, values: tuple[object, ...] = ()) -> sqlite3.Cursor:
        return _called(self._database.execute, command, values)


def _called(function: Callable[..., sqlite3.Cursor], *arguments: object) -> sqlite3.Cursor:
    """Calls SQLite. A failure is one of the disk, and is reported as such."""
    try:
        return function(*arguments)
    except sqlite3.Error as error:
        full = "full" in str(error)
        raise OSError(
            errno.ENOSPC if full else errno.EIO, f"the temporary database of digests: {error}"
        ) from error
