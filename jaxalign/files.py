"""Writes files atomically, checks disk space, and explains the errors of full, read-only or failing disks."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
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
# The suffix of the temporary files of `replacing`. Their names start with a dot and the final name.
PARTIAL = ".partial"


def absolute_path(path: Path | str) -> Path:
    """Returns the absolute path, with ``~`` expanded and without ``..``, which TensorStore does not accept in a path."""
    expanded = Path(path).expanduser()
    return expanded.resolve() if ".." in expanded.parts else expanded.absolute()


def user_cache() -> Path:
    """Returns the folder in which jaxalign keeps what it can make again: JAXALIGN_CACHE, or ``jaxalign`` in the user's cache folder."""
    users = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return absolute_path(os.environ.get("JAXALIGN_CACHE") or os.path.join(users, "jaxalign"))


def gin_configs() -> Path | None:
    """Returns the folder of jaxalign's own gin files, in a checkout or in an installed package; None if it is in neither."""
    package = Path(__file__).resolve().parent
    folders = (parent / "gin_configs" for parent in (package.parent, package))
    return next((folder for folder in folders if (folder / "models").is_dir()), None)


@contextlib.contextmanager
def replacing(path: Path | str, mode: str = "wb") -> Iterator[IO[Any]]:
    """Yields a file that takes the name ``path`` when the block ends without an error.

    If the process is killed, the old file remains. The unfinished file has the name ``.<name>.<random>.partial``.
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
    """Replaces a text file atomically, see `replacing`."""
    with replacing(path, "w") as file:
        file.write(text)


def write_bytes(path: Path | str, content: bytes) -> None:
    """Replaces a file atomically, see `replacing`."""
    with replacing(path) as file:
        file.write(content)


def refuse_other_output(path: Path, side_file: Path, command: str) -> None:
    """Refuses to replace a file that a command did not write: one that lacks the description which it writes beside its output.

    Raises:
      UserError: there is such a file.
    """
    if path.exists() and not side_file.exists():
        raise UserError(
            f"{path} exists already and was not written by `jaxalign {command}`; delete it, or give another --output"
        )


def replace_folder(finished: Path | str, path: Path | str) -> None:
    """Gives a finished folder its name, in place of a folder that has it. Readers see the old one or the new one, never a mixture."""
    finished, path = Path(finished), Path(path)
    # A temporary folder is readable by its owner alone.
    finished.chmod(0o755)
    if not path.exists():
        finished.replace(path)
        return
    with tempfile.TemporaryDirectory(prefix=".old.", dir=path.parent) as aside:
        old = path.replace(Path(aside) / path.name)
        try:
            finished.replace(path)
        except OSError:
            old.replace(path)
            raise


def disk_problem(error: BaseException) -> str | None:
    """Returns the message of the disk if an error comes from a full, read-only or failing disk; otherwise None.

    Libraries wrap the system's error in their own errors, so the text of the error is searched too.
    """
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}"
    if isinstance(error, (OSError, ValueError, RuntimeError)) and not isinstance(error, UserError):
        found = _DISK_WORDS.search(str(error))
        return found.group().strip() if found else None
    return None


def make_writable_folder(folder: Path, name: str = "MODEL_DIR") -> None:
    """Creates a folder and checks that a file can be written there, before any expensive work.

    Args:
      folder: the folder.
      name: what the user calls it.

    Raises:
      UserError: the folder cannot be written; the message gives the system's reason.
    """
    probe = folder / f".writable-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(4096))
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{name} {folder} cannot be written: {error.strerror or error}; choose another, or make room or give permission there"
        ) from error


def check_space(folder: Path, checkpoint_bytes: int, more: int) -> None:
    """Refuses a run whose checkpoints will not fit on the disk.

    Args:
      folder: the folder of the checkpoints.
      checkpoint_bytes: the size of one checkpoint, with parameters and optimizer states.
      more: the number of checkpoints that will exist at one time in addition to the present ones.

    Raises:
      UserError: the checkpoints do not fit; the message gives the sizes.
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
