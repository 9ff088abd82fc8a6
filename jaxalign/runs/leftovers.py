"""Removes the leftover files of killed processes from a run folder. It recognises them by names that only jaxalign uses.

Only the process that holds the lock of the folder may call this.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path

from jaxalign import files

DELETED = ".deleted"
_DELETED = re.compile(rf"[0-9]+{re.escape(DELETED)}")
_DAMAGED = re.compile(r"([0-9]+)\.damaged(?:\.([0-9]+))?")
_PARTIAL = re.compile(rf"\..+\.[0-9a-f]{{8}}{re.escape(files.PARTIAL)}")


def remove_from_run(run: Path) -> list[str]:
    """Removes incompletely written files, and checkpoints whose deletion was interrupted.

    Returns:
      One line for each removed file or folder.
    """
    found = [entry for entry in _entries(run) if _PARTIAL.fullmatch(entry.name) and entry.is_file()]
    found += [
        entry
        for entry in _entries(run / "checkpoints")
        if _DELETED.fullmatch(entry.name) and entry.is_dir()
    ]
    return _remove(found, "which a killed process left")


def remove_older_damaged(checkpoints: Path) -> list[str]:
    """Removes damaged checkpoints except the newest, which is kept for inspection.

    Returns:
      One line for each removed checkpoint.
    """
    named = [(_DAMAGED.fullmatch(entry.name), entry) for entry in _entries(checkpoints)]
    ordered = sorted(
        ((int(match[1]), int(match[2] or 0), entry) for match, entry in named if match),
        key=lambda each: each[:2],
    )
    return _remove([entry for _, _, entry in ordered[:-1]], "an older damaged checkpoint")


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _remove(found: list[Path], what: str) -> list[str]:
    lines = []
    for path in found:
        with contextlib.suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
            lines.append(f"removed {path}, {what}")
    return lines
