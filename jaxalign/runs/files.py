"""A run folder on a real disk: can it be written, has it room, and files that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

from jaxalign.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Writes a file at once: a process that is killed leaves the old one."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


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
