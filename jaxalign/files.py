"""Files and folders on a real disk: writing that leaves the old file or the new one, room, and the words for a full disk."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from jaxalign.errors import UserError

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
_DISK_WORDS = re.compile(
    r"no space left on device|disk quota exceeded|read-only file system|permission denied|file too large|"
    r"input/output error",
    re.IGNORECASE,
)
# The end of the name under which `replacing` writes; the name begins with a dot and the final name.
PARTIAL = ".partial"


@contextlib.contextmanager
def replacing(path: Path | str, mode: str = "wb") -> Iterator[IO[Any]]:
    """Yields a file that takes the name ``path`` when the block ends without an error.

    A process that is killed leaves the old file. What it wrote has the name ``.<name>.<random>.partial``.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
    encoding = None if "b" in mode else "utf-8"
    try:
        with partial.open(mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def write_text(path: Path | str, text: str) -> None:
    """Replaces a text file at once, see `replacing`."""
    with replacing(path, "w") as file:
        file.write(text)


def write_bytes(path: Path | str, content: bytes) -> None:
    """Replaces a file at once, see `replacing`."""
    with replacing(path) as file:
        file.write(content)


def disk_problem(error: BaseException) -> str | None:
    """What the disk says, if an error comes from a full, read-only or failing disk; None if it does not.

    Libraries wrap the system's error in errors of their own, so the words are looked for too.
    """
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}"
    if isinstance(error, (OSError, ValueError, RuntimeError)) and not isinstance(error, UserError):
        found = _DISK_WORDS.search(str(error))
        return found.group().strip() if found else None
    return None


def make_writable_folder(folder: Path) -> None:
    """Makes a run folder and writes a file there, before anything expensive.

    Raises:
      UserError: with the system's reason.
    """
    probe = folder / f".writable-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(4096))
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"MODEL_DIR {folder} cannot be written: {error.strerror or error}; choose another, or make room or give permission there"
        ) from error


def check_space(folder: Path, checkpoint_bytes: int, more: int) -> None:
    """Refuses a run whose checkpoints will not fit on the disk.

    Args:
      folder: where they go.
      checkpoint_bytes: of one, parameters and optimizer states.
      more: how many will be there at a time that are not there yet.

    Raises:
      UserError: naming sizes.
    """
    free = shutil.disk_usage(folder).free
    if free < checkpoint_bytes * more:
        raise UserError(
            f"{folder} has {_size(free)} free, but {more} checkpoint{'s' if more > 1 else ''} of {_size(checkpoint_bytes)} "
            "(parameters and optimizer) will have to fit there, the one being written included; make room, keep fewer "
            "(KEEP_CHECKPOINTS), or choose another MODEL_DIR"
        )


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
