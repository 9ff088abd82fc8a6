"""Whole checkpoints and damaged ones: each lists its files with size and CRC-32, written before Orbax gives it its final name.

Zarr and OCDBT check their indices only: a changed byte of an array would be read as a changed parameter.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

from jaxalign.errors import UserError

MANIFEST = "jaxalign_manifest.json"
ITEMS = ("params", "optimizer", "data", "metadata")
# Orbax writes the time of the last renaming into it.
_ORBAX = "_CHECKPOINT_METADATA"
_BLOCK = 1 << 22


def write_manifest(folder: Path, *, by_orbax: bool = True) -> None:
    """Lists every file below a checkpoint's folder, for `find_damage`.

    Args:
      folder: of the checkpoint.
      by_orbax: whether Orbax gives it its final name, and then describes it in a file of its own; `jaxalign convert` writes items alone.
    """
    files = {
        path.relative_to(folder).as_posix(): [path.stat().st_size, _crc(path)]
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST and path != folder / _ORBAX
    }
    content = {"by_orbax": by_orbax, "files": files}
    (folder / MANIFEST).write_text(json.dumps(content, indent=0), encoding="utf-8")


def find_damage(folder: Path, item: str = "", *, content: bool = True) -> str | None:
    """What is wrong with a checkpoint, or with one of its items; None if nothing is, or if it is older than manifests.

    Args:
      folder: ``<run>/checkpoints/<step>``.
      item: a subfolder, for example ``params``; everything by default.
      content: compare contents too, not only sizes.
    """
    path = folder / MANIFEST
    if not path.exists():
        missing = [name for name in ([item] if item else ITEMS) if not (folder / name).is_dir()]
        return f"{missing[0]} is missing" if missing else None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files = manifest["files"]
        by_orbax = manifest.get("by_orbax", True)
        listed = {name: (int(size), int(crc)) for name, (size, crc) in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__})"
    for name, (size, crc) in listed.items():
        if item and not name.startswith(f"{item}/"):
            continue
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
    if by_orbax is False:
        return None
    try:
        json.loads((folder / _ORBAX).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"{_ORBAX} is missing"
    except OSError as error:
        raise _unreadable(folder / _ORBAX, error) from error
    except ValueError as error:
        return f"{_ORBAX} cannot be read ({type(error).__name__})"
    return None


def _unreadable(file: Path, error: OSError) -> UserError:
    """What a file system says for a while, or to one user, is no damage."""
    return UserError(f"{file} cannot be read ({error.strerror}); nothing was changed, try again")


def set_damaged_aside(checkpoints: Path, steps: list[int]) -> list[str]:
    """Renames damaged checkpoints to ``<step>.damaged`` and says so; of those before the newest whole one only sizes are compared.

    Args:
      checkpoints: the folder of a run's checkpoints.
      steps: those that are there, ascending.

    Returns:
      One line for each damaged one.

    Raises:
      UserError: if none is whole; then none is renamed.
    """
    damaged: dict[int, str] = {}
    whole: int | None = None
    for step in reversed(steps):
        damage = find_damage(checkpoints / str(step), content=whole is None)
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
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value
