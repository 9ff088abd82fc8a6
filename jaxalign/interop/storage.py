"""Accesses folders with checkpoints on this machine or on Google Cloud Storage (``gs://``), through TensorStore.

This module does not interpret checkpoints. It reads whole files and parts of files, lists folders, and makes new folders.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorstore as ts
from etils import epath

from jaxalign import untrusted
from jaxalign.errors import UserError, first_line
from jaxalign.files import absolute_path

# The largest file that is read whole: an index, a tokenizer, a configuration. Arrays are read in parts.
FILE_BYTES = 1 << 30
_UNFINISHED = ".converting"
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)


def is_remote(path: str) -> bool:
    """Returns whether a path names a bucket.

    Raises:
      UserError: the path has a scheme other than ``gs://``.
    """
    scheme = re.match(r"([a-z][a-z0-9+.-]*)://", path)
    if scheme and scheme[1] != "gs":
        raise UserError(f"{path}: only local paths and gs:// are read and written, not {scheme[0]}")
    return scheme is not None


def absolute(path: str | os.PathLike[str]) -> str:
    """Returns the path without a slash at its end. A local path is made absolute."""
    text = os.fspath(path)
    if is_remote(text):
        return text.rstrip("/")
    return str(absolute_path(text))


def join(folder: str, name: str) -> str:
    """Returns a path inside a folder."""
    return f"{folder.rstrip('/')}/{name}"


def kvstore(folder: str) -> dict[str, Any]:
    """Returns TensorStore's description of a folder as a store of files."""
    if not is_remote(folder):
        return {"driver": "file", "path": f"{folder.rstrip('/')}/"}
    bucket, _, path = folder.removeprefix("gs://").partition("/")
    if not bucket:
        raise UserError(f"{folder}: a gs:// path names a bucket: gs://BUCKET/FOLDER")
    return {"driver": "gcs", "bucket": bucket, "path": f"{path.rstrip('/')}/" if path else ""}


def read(folder: str, name: str, start: int = 0, stop: int | None = None) -> bytes | None:
    """Returns the content of a file, or its bytes from `start` to `stop`; None if there is no such file.

    Raises:
      UserError: the file cannot be read or is not a regular file, has more than `FILE_BYTES` bytes and is read whole, or ends before
        `stop`.
    """
    if not is_remote(folder):
        return _read_local(Path(join(folder, name)), start, stop)
    part = slice(start, stop) if start or stop is not None else None
    try:
        found = _open(folder).read(name, byte_range=part).result()
    except ValueError as error:
        raise UserError(f"{join(folder, name)} cannot be read: {first_line(error)}") from error
    return None if found.state == "missing" else found.value


def _read_local(path: Path, start: int, stop: int | None) -> bytes | None:
    try:
        # Links are followed, because the cache of the Hugging Face hub consists of links.
        if stop is None and not start:
            return untrusted.read_bytes(path, FILE_BYTES)
        with untrusted.open_regular(path) as file:
            file.seek(start)
            content = file.read() if stop is None else file.read(stop - start)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if stop is not None and len(content) < stop - start:
        raise UserError(f"{path} cannot be read: it ends before byte {stop}")
    return content


def read_json(folder: str, name: str) -> dict[str, Any] | None:
    """Returns the JSON object in a file; None if there is no such file.

    Raises:
      UserError: the file cannot be read, or holds no valid JSON object.
    """
    content = read(folder, name)
    return None if content is None else untrusted.parse_json_object(content, join(folder, name))


def children(folder: str) -> set[str]:
    """Returns the names of the files and folders directly inside a folder; an empty set if the folder does not exist.

    Raises:
      UserError: the bucket cannot be listed.
    """
    if not is_remote(folder):
        return set(os.listdir(folder)) if os.path.isdir(folder) else set()
    return {key.partition("/")[0] for key in files(folder)}


def files(folder: str) -> list[str]:
    """Returns all files below a folder, as paths relative to it."""
    return _keys(_open(folder), folder)


def ocdbt_keys(folder: str) -> list[str]:
    """Returns the keys of the OCDBT database in a folder."""
    try:
        return _keys(ts.KvStore.open(ocdbt(folder)).result(), folder)
    except ValueError as error:
        raise UserError(
            f"{folder} is not a readable OCDBT database: {first_line(error)}"
        ) from error


def ocdbt(folder: str) -> dict[str, Any]:
    """Returns TensorStore's description of the OCDBT database in a folder."""
    return {"driver": "ocdbt", "base": kvstore(folder)}


@contextlib.contextmanager
def new_folder(path: str, marker: str = "") -> Iterator[str]:
    """Yields the folder to write a new checkpoint into. The folder gets its final name when it is complete.

    It is written as ``.<name>.converting`` beside its final path, and is locked during this time. Leftover files of killed processes under
    such a name are removed. A bucket does not support renaming, so there the folder is written in place. Therefore write the file that
    makes it a checkpoint last.

    Args:
      path: the folder; at most an empty folder may exist there.
      marker: the name of a file that every finished folder has. It identifies a finished folder in a bucket.

    Raises:
      UserError: the path is occupied, another process is writing the folder, or the disk reports an error.
    """
    if is_remote(path):
        if marker and read(path, marker) is not None:
            raise UserError(f"{path} exists already; choose another output")
        yield path
        return
    target = Path(path)
    if occupied(path):
        raise UserError(f"{path} exists already; choose another output")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        clear_unfinished(target.parent)
        partial = target.parent / f".{target.name}{_UNFINISHED}"
        with _locked(partial):
            try:
                yield str(partial)
                if occupied(path):
                    raise UserError(f"{path} came into being meanwhile; choose another output")
                partial.rename(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


def occupied(path: str) -> bool:
    """Returns whether something other than an empty folder is at a local path."""
    return os.path.lexists(path) and not (os.path.isdir(path) and not os.listdir(path))


def clear_unfinished(folder: Path) -> None:
    """Removes unfinished folders of killed processes. Folders that a process is still writing are locked and are kept."""
    for entry in folder.glob(f".*{_UNFINISHED}"):
        with contextlib.suppress(UserError, OSError), _locked(entry):
            shutil.rmtree(entry)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Makes a folder, or takes over an unlocked one, and locks it. The system releases the lock when the process ends."""
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        free = True
        # If a file system has no locks, the user must run only one conversion at a time.
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                free = False
        # The previous owner may have just finished and renamed the folder.
        if (
            not free
            or not folder.exists()
            or not os.path.samestat(os.fstat(descriptor), folder.stat())
        ):
            raise UserError(
                f"another process is writing {folder} now; wait for it, or choose another output"
            )
        for left in list(folder.iterdir()):
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        yield
    finally:
        os.close(descriptor)


def write(folder: str, name: str, content: bytes) -> None:
    """Writes a small file in a folder.

    Raises:
      UserError: the bucket cannot be written to.
    """
    if not is_remote(folder):
        Path(join(folder, name)).write_bytes(content)
        return
    try:
        _open(folder).write(name, content).result()
    except ValueError as error:
        raise UserError(f"{join(folder, name)} cannot be written: {first_line(error)}") from error


def open_for_writing(folder: str, name: str) -> Any:
    """Opens a new binary file in a folder, for data too large for memory. In a bucket, this needs TensorFlow or gcsfs."""
    return epath.Path(join(folder, name)).open("wb")


def _open(folder: str) -> Any:
    return ts.KvStore.open(kvstore(folder)).result()


def _keys(store: Any, folder: str) -> list[str]:
    try:
        return sorted(key.decode() for key in store.list().result())
    except ValueError as error:
        raise UserError(f"{folder} cannot be listed: {first_line(error)}") from error
