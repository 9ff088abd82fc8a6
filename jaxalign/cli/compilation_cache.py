"""Keeps compiled programs in the user's cache folder, so that a second launch compiles nothing that the first one did."""

import contextlib
import hashlib
import os
import platform
import stat
from collections.abc import Iterator, MutableMapping
from pathlib import Path

from jaxalign import files

FOLDER = "JAX_COMPILATION_CACHE_DIR"
_LEAST_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
_LARGEST_BYTES = 4 << 30
_PROGRAM = "-cache"  # how JAX ends the name of a program


@contextlib.contextmanager
def kept(environment: MutableMapping[str, str] = os.environ) -> Iterator[None]:
    """Names the folder to JAX, which reads these variables when it is imported, and to processes that are started meanwhile.

    A folder that the user has given to JAX stays. Where nobody but the user may write, and nowhere else, programs are kept: JAX executes
    them as they are. Processes may share the folder: JAX names a program by everything that it depends on, and compiles again what it
    cannot read. The oldest programs beyond 4 GiB are removed first.
    """
    given = {name: environment.get(name) for name in (FOLDER, _LEAST_SECONDS)}
    folder = None if given[FOLDER] else _own_folder()
    if folder is None:
        yield
        return
    _remove_oldest(folder.parent)
    environment[FOLDER] = str(folder)
    environment.setdefault(_LEAST_SECONDS, "0.3")
    try:
        yield
    finally:
        for name, value in given.items():
            if value is None:
                environment.pop(name, None)


def _own_folder() -> Path | None:
    """Returns the folder for this kind of processor, which is made if it is missing; None where others could write programs into it."""
    users = files.user_cache()
    folders = (users / "compiled", users / "compiled" / _processor())
    try:
        users.mkdir(parents=True, exist_ok=True)
        for folder in folders:
            folder.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        return None
    private = all(_private(folder) for folder in folders)
    return folders[-1] if private and not _open_to_all(users) else None


def _private(folder: Path) -> bool:
    """Returns whether a path is a folder, not a link to one, that belongs to this user and that nobody else can write."""
    status = folder.lstat()
    mine = status.st_uid == os.getuid() and not status.st_mode & 0o022
    return stat.S_ISDIR(status.st_mode) and mine


def _open_to_all(folder: Path) -> bool:
    """Returns whether everybody can exchange what lies in a folder or in one above it."""
    real = folder.resolve()
    modes = (each.stat().st_mode for each in (real, *real.parents))
    return any(mode & stat.S_IWOTH and not mode & stat.S_ISVTX for mode in modes)


def _processor() -> str:
    """Returns a name of the kind of processor: a program for another kind may use instructions that this one lacks."""
    found = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
        found += [line for line in lines if line.startswith(("flags", "Features", "model name"))]
    return hashlib.sha256("\n".join(found).encode()).hexdigest()[:12]


def _remove_oldest(root: Path) -> None:
    """Removes programs, those that were made first, until the others of all kinds of processors have at most `_LARGEST_BYTES`."""
    found = []
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            # Another process may remove files meanwhile.
            with contextlib.suppress(OSError):
                status = os.lstat(path)
                if name.endswith(_PROGRAM) and stat.S_ISREG(status.st_mode):
                    found.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= _LARGEST_BYTES:
            break
        with contextlib.suppress(OSError):
            os.unlink(path)
            total -= size
