"""Keeps compiled programs in the user's cache folder, so that a second launch compiles nothing that the first one did."""

import hashlib
import os
import platform
from collections.abc import MutableMapping
from pathlib import Path

from jaxalign import files

FOLDER = "JAX_COMPILATION_CACHE_DIR"
_LEAST_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
_LARGEST_BYTES = 4 << 30


def use(environment: MutableMapping[str, str] = os.environ) -> None:
    """Names the folder to JAX, which reads these variables when it is imported, and removes the oldest programs beyond 4 GiB.

    A folder that the user has given to JAX stays, and so does ``JAX_ENABLE_COMPILATION_CACHE=false``. Where the user's cache cannot be
    written, nothing is kept. Processes may share the folder: JAX names a program by everything that it depends on, and compiles again what
    it cannot read.
    """
    if FOLDER in environment:
        return
    folder = files.user_cache() / "compiled" / _processor()
    try:
        # Programs are executed as they are, so that nobody else may write them.
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            return
        _remove_oldest(folder)
    except OSError:
        return
    environment[FOLDER] = str(folder)
    environment.setdefault(_LEAST_SECONDS, "0.3")


def _processor() -> str:
    """Returns a name of the kind of processor: a program for another kind may use instructions that this one lacks."""
    found = [platform.machine(), platform.processor()]
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
        found += [line for line in lines if line.startswith(("flags", "Features", "model name"))]
    except OSError:
        pass
    return hashlib.sha256("\n".join(found).encode()).hexdigest()[:12]


def _remove_oldest(folder: Path) -> None:
    """Removes the programs that were made first until the others have at most `_LARGEST_BYTES`."""
    found = sorted(
        (status.st_mtime, status.st_size, file)
        for file in folder.iterdir()
        if (status := file.stat())
    )
    total = sum(size for _, size, _ in found)
    for _, size, file in found:
        if total <= _LARGEST_BYTES:
            break
        file.unlink(missing_ok=True)
        total -= size
