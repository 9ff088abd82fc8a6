"""Reads arrays from .npy and .npz files of strangers: nothing is unpickled, and no more memory is used than a limit allows."""

from __future__ import annotations

import io
import lzma
import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxalign import untrusted
from jaxalign.errors import UserError, first_line

LIMIT = 4 << 30
# What zipfile and its decompressors raise for a damaged or unusual archive, and numpy for a damaged header.
BROKEN_ARCHIVE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, EOFError)
BROKEN_HEADER = (ValueError, EOFError, OverflowError, SyntaxError, tokenize.TokenError)


def read_array(
    path: Path | str, name: str = "", *, inside: Path | str | None = None, limit: int = LIMIT
) -> np.ndarray:
    """Returns an array of numbers.

    Args:
      path: a .npy file, or a .npz file.
      name: the array of a .npz file; by default its only one.
      inside: the folder that the file must lie in after all links are resolved; None for any.
      limit: the largest array, in bytes.

    Raises:
      UserError: the file is missing or damaged, is neither of these, holds objects or too large an array, or lies elsewhere.
    """
    path = Path(path).expanduser()
    try:
        with untrusted.open_regular(path, inside=inside) as file:
            if file.read(2) == b"PK":
                return _from_archive(file, name, str(path), limit)
            file.seek(0)
            if name:
                raise UserError(f"{path} is no .npz file, so it has no array named {name!r}")
            return _read(file, str(path), limit)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give a .npy or .npz file") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; give a .npy or .npz file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _from_archive(file: IO[bytes], name: str, where: str, limit: int) -> np.ndarray:
    try:
        with zipfile.ZipFile(file) as archive:
            found = {
                info.filename.removesuffix(".npy"): info
                for info in archive.infolist()
                if info.filename.endswith(".npy")
            }
            if name not in found and (name or len(found) != 1):
                known = ", ".join(list(found)[:20]) or "none"
                wanted = (
                    f"no array {name!r}" if name else f"{len(found)} arrays, so one must be named"
                )
                raise UserError(f"{where} has {wanted}; its arrays: {known}")
            info = found[name or next(iter(found))]
            if info.file_size > limit:
                raise UserError(_too_large(where, info.file_size, limit))
            # A reader of the archive never returns more than the size that its directory declares.
            with archive.open(info) as member:
                content = io.BytesIO(member.read())
    except BROKEN_ARCHIVE as error:
        raise UserError(f"{where} is no readable .npz file: {first_line(error)}") from error
    return _read(content, f"{where}, array {name or next(iter(found))}", limit)


def _read(file: Any, where: str, limit: int) -> np.ndarray:
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"it has the version {version}")
        header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = header(file)
        if dtype.hasobject or dtype.kind not in "biuf":
            raise UserError(f"{where} holds {dtype}, not numbers; objects are never unpickled")
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=1) < 0 or size > limit:
            raise UserError(_too_large(where, size, limit))
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)
    except UserError:
        raise
    except BROKEN_HEADER as error:
        raise UserError(f"{where} is no readable .npy array: {first_line(error)}") from error


def _too_large(where: str, size: int, limit: int) -> str:
    return f"{where} declares {size} bytes; at most {limit} are read"
