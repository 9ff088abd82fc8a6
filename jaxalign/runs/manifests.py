"""Finds damaged checkpoints with a list of files, sizes and CRC-32 values, written before a checkpoint gets its final name.

Zarr and OCDBT check only their indices. Without the list, a changed byte of an array would be read as a changed parameter.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from pathlib import Path
from typing import Any

from jaxalign import files, untrusted
from jaxalign.errors import UserError

MANIFEST = "jaxalign_manifest.json"
ITEMS = ("params", "optimizer", "data", "metadata")
# Orbax writes the time of the last renaming into this file.
_ORBAX = "_CHECKPOINT_METADATA"
_BLOCK = 1 << 22
_MANIFEST_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a run folder records about its checkpoints.

    Attributes:
      run_id: the id of the run; None if it is not recorded.
      manifests: whether every checkpoint of the run has a manifest.
    """

    run_id: str | None = None
    manifests: bool = False


def write_manifest(folder: Path, *, step: int | None = None, run_id: str | None = None) -> None:
    """Writes a list of every file below a checkpoint's folder, with their step and run, for `find_damage`."""
    listed = {
        path.relative_to(folder).as_posix(): [path.stat().st_size, _crc(path)]
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST and path != folder / _ORBAX
    }
    content = {"step": step, "run_id": run_id, "files": listed}
    files.write_text(folder / MANIFEST, json.dumps(content, indent=0))


def find_damage(
    folder: Path, item: str = "", *, content: bool = True, origin: Origin = Origin()
) -> str | None:
    """Describes the damage of a checkpoint or of one of its items; returns None if there is no damage.

    Args:
      folder: ``<run>/checkpoints/<step>``.
      item: a subfolder, for example ``params``; the whole checkpoint by default.
      content: whether to compare contents in addition to sizes.
      origin: what the run folder records about its checkpoints.

    Raises:
      UserError: a file cannot be read for a reason other than damage, or is not a plain file of this folder.
    """
    path = folder / MANIFEST
    if not path.exists():
        if origin.manifests:
            return f"{MANIFEST} is missing, which lists its files"
        missing = [name for name in ([item] if item else ITEMS) if not (folder / name).is_dir()]
        return f"{missing[0]} is missing" if missing else None
    try:
        manifest = untrusted.read_json_object(path, inside=folder, limit=_MANIFEST_BYTES)
        listed = {name: (int(size), int(crc)) for name, (size, crc) in manifest["files"].items()}
    except UserError as error:
        if isinstance(error.__cause__, OSError):
            raise _unreadable(path, error.__cause__) from error
        return f"{MANIFEST} cannot be read ({error})"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__})"
    other = _other_origin(manifest, folder, origin)
    if other is not None:
        return other
    for name, (size, crc) in listed.items():
        if item and not name.startswith(f"{item}/"):
            continue
        if name.startswith("/") or ".." in name.split("/"):
            return f"{MANIFEST} lists {name[:80]!r}, which is not in the folder"
        file = folder / name
        try:
            found = file.stat().st_size
            if found != size:
                return f"{name} has {found} bytes instead of {size}"
            if content and _crc(file) != crc:
                return f"the content of {name} has changed"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            raise _unreadable(file, error) from error
    if not (folder / _ORBAX).exists():
        # Converted checkpoints have only parameters, and no file of Orbax beside them.
        return None if item else f"{_ORBAX} is missing"
    try:
        untrusted.read_json_object(folder / _ORBAX, inside=folder)
    except UserError as error:
        if isinstance(error.__cause__, OSError):
            raise _unreadable(folder / _ORBAX, error.__cause__) from error
        return f"{_ORBAX} cannot be read ({error})"
    return None


def _other_origin(manifest: dict[str, Any], folder: Path, origin: Origin) -> str | None:
    """Describes the mismatch if a manifest belongs to another step or run than its folder; otherwise returns None."""
    step, run_id = manifest.get("step"), manifest.get("run_id")
    if step is not None and str(step) != folder.name and folder.name.isdigit():
        return f"it is the checkpoint of step {step}"
    if None not in (run_id, origin.run_id) and run_id != origin.run_id:
        return (
            f"it is a checkpoint of the run {run_id}, and this folder is of the run {origin.run_id}"
        )
    return None


def _unreadable(file: Path, error: OSError) -> UserError:
    """Returns the error for a file that cannot be read at present or by this user. Such a file is not damaged."""
    return UserError(f"{file} cannot be read ({error.strerror}); nothing was changed, try again")


def set_damaged_aside(checkpoints: Path, steps: list[int], origin: Origin = Origin()) -> list[str]:
    """Renames damaged checkpoints to ``<step>.damaged``.

    Contents are compared from the newest checkpoint down to the newest intact one. For older checkpoints, only sizes are compared.

    Args:
      checkpoints: the folder of a run's checkpoints.
      steps: the steps of the existing checkpoints, ascending.
      origin: what the run folder records about its checkpoints.

    Returns:
      One line for each damaged checkpoint.

    Raises:
      UserError: if no checkpoint is intact; in this case none is renamed.
    """
    damaged: dict[int, str] = {}
    whole: int | None = None
    for step in reversed(steps):
        damage = find_damage(checkpoints / str(step), content=whole is None, origin=origin)
        if damage is not None:
            damaged[step] = damage
        elif whole is None:
            whole = step
    if steps and whole is None:
        raise UserError(
            f"every checkpoint under {checkpoints} is damaged ({steps[-1]}: {damaged[steps[-1]]}); "
            "put a copy back, or choose another MODEL_DIR to begin anew"
        )
    lines = []
    for step, damage in damaged.items():
        aside = _free_name(checkpoints / f"{step}.damaged")
        (checkpoints / str(step)).rename(aside)
        lines.append(
            f"checkpoint {checkpoints / str(step)} is damaged: {damage}; it is now {aside.name}, and the run goes on from {whole}"
        )
    return lines


def _free_name(path: Path) -> Path:
    number = 1
    free = path
    while free.exists():
        free, number = path.with_name(f"{path.name}.{number}"), number + 1
    return free


def _crc(path: Path) -> int:
    value = 0
    with untrusted.open_regular(path) as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value
