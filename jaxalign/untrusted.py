"""Reads untrusted files safely: only regular files of a bounded size inside the folder that is read.

A run folder or checkpoint may come from an untrusted source. Nothing in it is executed. These helpers ensure that it cannot make a
command read a device or a pipe, follow a link to another folder, or exhaust the memory.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import IO, Any

from jaxalign.errors import UserError

JSON_BYTES = 8 << 20
_MAX_FILES = 1_000_000
_MAX_DEPTH = 8
_MAX_DIGITS = 40


def open_regular(path: Path | str, *, inside: Path | str | None = None) -> IO[bytes]:
    """Opens a regular file for reading.

    Args:
      path: the file. Opening a pipe or a device does not block.
      inside: the folder that the file must lie in after all links are resolved; None to follow links anywhere.

    Raises:
      UserError: the path is a device, a pipe or a folder, or lies elsewhere.
      FileNotFoundError: the file does not exist.
      OSError: the system cannot read the file.
    """
    path = Path(path)
    if inside is not None:
        _require_inside(path, Path(inside))
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path} is not a regular file; it is not read")
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path | str, limit: int, *, inside: Path | str | None = None) -> bytes:
    """Returns the content of a regular file of at most ``limit`` bytes. Arguments and errors are those of `open_regular`.

    Raises:
      UserError: the file is longer, is not a regular file, or lies elsewhere.
    """
    with open_regular(path, inside=inside) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(limit + 1) if size <= limit else b""
    if size > limit or len(content) > limit:
        raise UserError(f"{path} has {size} bytes; at most {limit} are expected there")
    return content


def read_json_object(
    path: Path | str, *, inside: Path | str | None = None, limit: int = JSON_BYTES
) -> dict[str, Any]:
    """Reads a JSON object of a run folder. Repeated keys and integers of more than 40 digits are refused.

    Raises:
      UserError: the file is missing, cannot be read, is too large, is not a regular file, or is malformed.
    """
    path = Path(path)
    try:
        content = read_bytes(path, limit, inside=inside)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: is {path.parent} a run folder?") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    return parse_json_object(content, str(path))


def parse_json_object(content: bytes, where: str) -> dict[str, Any]:
    """Parses a JSON object. Repeated keys and integers of more than 40 digits are refused.

    Args:
      content: the text in UTF-8.
      where: the file, for messages.

    Raises:
      UserError: the text is malformed.
    """
    try:
        value = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=without_repeated_keys,
            parse_int=_parse_int,
        )
    except RecursionError as error:
        raise UserError(f"{where} is not valid JSON: it is nested too deeply") from error
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{where} must hold a JSON object")
    return value


def check_tree(folder: Path | str, *, inside: Path | str | None = None) -> int:
    """Checks all files and links below a folder before a library reads it; returns the total size of the files in bytes.

    Args:
      folder: the folder that will be read.
      inside: the folder that links must not leave; ``folder`` by default.

    Raises:
      UserError: the folder contains a link that leads outside, a device, a pipe, or far too many or too deeply nested entries.
    """
    folder = Path(folder)
    root = Path(os.path.realpath(folder if inside is None else inside))
    _require_inside(folder, root)
    waiting = [(str(folder), 0)]
    total = count = 0
    while waiting:
        path, depth = waiting.pop()
        with os.scandir(path) as entries:
            for entry in entries:
                count += 1
                if count > _MAX_FILES or depth > _MAX_DEPTH:
                    raise UserError(f"{folder} holds more files or folders than a checkpoint has")
                if entry.is_symlink():
                    _require_inside(Path(entry.path), root)
                status = entry.stat()
                if stat.S_ISDIR(status.st_mode) and not entry.is_symlink():
                    waiting.append((entry.path, depth + 1))
                elif stat.S_ISREG(status.st_mode):
                    total += status.st_size
                else:
                    raise UserError(
                        f"{entry.path} is neither a regular file nor a folder; it is not read"
                    )
    return total


def file_name(value: Any) -> str | None:
    """Returns the value if it names a file directly inside a folder; None otherwise, for example for an absolute path or '..'."""
    plain = isinstance(value, str) and value not in ("", ".", "..") and len(value) <= 255
    return value if plain and not set(value) & {"/", "\\", "\0", "\n"} else None


def _require_inside(path: Path, root: Path) -> None:
    try:
        real = os.path.realpath(path, strict=True)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be followed: {error.strerror}") from error
    if not Path(real).is_relative_to(os.path.realpath(root)):
        raise UserError(
            f"{path} is a link to {real}, outside of {root}; it is not followed (copy the folder with its files if you trust it)"
        )


def without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the object of a JSON text, for `json.loads(..., object_pairs_hook=...)`.

    Raises:
      ValueError: a field occurs twice; the message names it. By default, Python's JSON parser keeps the last value.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {repeated[:60]!r} occurs twice in one object")
    return found


def _parse_int(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)
