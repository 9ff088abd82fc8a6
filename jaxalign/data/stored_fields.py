"""Numbers about responses that are computed once and stored beside a cache: the registry of fields, and the files.

`STORED_FIELDS = {batch field: name}` of a run adds a stored array to its batches. An array has one number for each response
(log-probabilities, advantages ...) or one vector for each response (embeddings); `data.teacher_tokens` stores several numbers
for each token.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from jaxalign import files
from jaxalign.data.cache_metadata import CacheMetadata, read_json_object
from jaxalign.data.rejections import DataError

FOLDER = "stored"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_BLOCK = 1 << 20
_ADVICE = (
    "Give the name of another, or make it (log-probabilities and rewards: `jaxalign score`; advantages: `jaxalign advantages`; "
    "density ratios: `jaxalign density_ratios`)."
)


@dataclasses.dataclass(frozen=True)
class StoredField:
    """A field that a run can read from beside its cache.

    Attributes:
      name: the key in STORED_FIELDS.
      shape: the content of a stored array: a number or a vector for each response, or a teacher's most likely tokens at every position.
      command: the command that makes the array.
      batch_fields: the arrays that the field adds to a batch.
    """

    name: str
    shape: Literal["number", "vector", "tokens"]
    command: str
    batch_fields: tuple[str, ...]


def _field(
    name: str,
    command: str,
    shape: Literal["number", "vector", "tokens"] = "number",
    batch_fields: tuple[str, ...] = (),
) -> StoredField:
    return StoredField(name, shape, command, batch_fields or (name,))


TEACHER_TOP = "teacher_top"
REFERENCE_LOG_PROBS = "reference_log_probs"
FIELDS = {
    field.name: field
    for field in (
        _field(REFERENCE_LOG_PROBS, "jaxalign score"),
        _field("advantages", "jaxalign advantages"),
        _field("margin_log_probs", "jaxalign score"),
        _field("margin_rewards", "jaxalign score --role=reward"),
        _field("density_ratios", "jaxalign density_ratios"),
        _field("embeddings", "TaskCache.write_stored", "vector"),
        _field(
            TEACHER_TOP,
            "jaxalign score --top_tokens=K",
            "tokens",
            ("teacher_top_ids", "teacher_top_log_probs"),
        ),
    )
}
# The names of arrays in STORED_FIELDS; a run finds or computes the arrays of the reference policy itself.
ARRAY_FIELDS = tuple(
    name
    for name, field in FIELDS.items()
    if field.shape != "tokens" and name != REFERENCE_LOG_PROBS
)


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array stored beside a split.

    Attributes:
      values: float32, one row for each example; any finite number where a response is absent.
      info: what the numbers are, their unit, and the model they come from.
    """

    values: Float[np.ndarray, "examples responses *vector"]
    info: dict[str, Any]


def check_name(name: str) -> None:
    """Raises DataError unless a name of a stored array can be part of a file name."""
    if not _NAME.fullmatch(name):
        raise DataError(
            f"The name {name!r} of a stored array must consist of letters, digits, '_', '-' and '.'."
        )


def check_stored_fields(stored: Mapping[str, str]) -> None:
    """Raises DataError unless {field: name of a stored array} has known fields as keys and names as values."""
    known = (*ARRAY_FIELDS, TEACHER_TOP)
    unknown = [field for field in stored if field not in known]
    if unknown:
        raise DataError(
            f"Stored arrays cannot fill the batch field {unknown[0]!r}; known: {', '.join(known)}."
        )
    for field, name in stored.items():
        if not isinstance(name, str):
            raise DataError(
                f"STORED_FIELDS[{field!r}] must be the name of a stored array, text in quotes, not {name!r}."
            )


def check_shape(field: str, array: StoredArray, name: str) -> None:
    """Raises DataError unless an array has one number, or one vector, for each response, as its field requires."""
    wanted = FIELDS[field].shape
    found = "number" if array.values.ndim == 2 else "vector"
    if found != wanted:
        raise DataError(
            f"STORED_FIELDS[{field!r}] needs a {wanted} for every response, but the stored array {name!r} has a {found}."
        )


def write(
    path: str,
    metadata: CacheMetadata,
    split: str,
    name: str,
    values: np.ndarray,
    info: Mapping[str, Any],
) -> str:
    """Stores an array beside a split of the cache at `path`; see `TaskCache.write_stored`."""
    array = np.asarray(values)
    _check(array, metadata, path, split, f"The array {name!r}")
    array_path, info_path = _paths(path, split, name)
    try:
        os.makedirs(os.path.dirname(array_path), exist_ok=True)
        with files.replacing(array_path) as file:
            np.save(file, array.astype(np.float32), allow_pickle=False)
            # An array without its description does not exist for readers, so that no reader combines a new array with an old description.
            with contextlib.suppress(FileNotFoundError):
                os.remove(info_path)
        write_description(info_path, metadata, {"array": sha256_of(array_path)}, info)
    except OSError as error:
        raise DataError(f"{array_path} cannot be written: {error.strerror or error}.") from error
    return array_path


def read(path: str, metadata: CacheMetadata, split: str, name: str) -> StoredArray:
    """Reads an array stored beside a split of the cache at `path`; see `TaskCache.stored`."""
    array_path, info_path = _paths(path, split, name)
    if not (os.path.exists(array_path) and os.path.exists(info_path)):
        found = ", ".join(names(path, split)) or "none"
        raise DataError(
            f"{path} has no stored array {name!r} for the split {split!r} (it has: {found}). {_ADVICE}"
        )
    digests, info = read_description(info_path, metadata, path)
    array = load_array(array_path, digests.get("array"))
    _check(array, metadata, path, split, array_path)
    return StoredArray(array.astype(np.float32, copy=False), info)


def names(path: str, split: str, *, folder: str = FOLDER, suffix: str = ".npy") -> list[str]:
    """Returns the names of the arrays stored beside a split of the cache at `path`."""
    where = os.path.join(path, folder)
    prefix = f"{split}."
    entries = os.listdir(where) if os.path.isdir(where) else []
    return sorted(
        entry[len(prefix) : -len(suffix)]
        for entry in entries
        if entry.startswith(prefix) and entry.endswith(suffix)
    )


def write_description(
    path: str, metadata: CacheMetadata, digests: Mapping[str, str], info: Mapping[str, Any]
) -> None:
    """Writes the JSON file beside stored arrays: the data they belong to, the sha256 of every file, and what the arrays are."""
    description = {
        "fingerprint": metadata.fingerprint,
        "sha256": dict(digests),
        "info": dict(info),
    }
    files.write_text(path, json.dumps(description, indent=2) + "\n")


def read_description(
    path: str, metadata: CacheMetadata, cache_path: str
) -> tuple[dict[str, str], dict[str, Any]]:
    """Returns the sha256 of the arrays' files and the description of the arrays.

    Raises:
      DataError: the file is damaged, or the arrays belong to data other than the current content of the cache.
    """
    found = read_json_object(
        path, missing=f"{path} is missing; make it again.", advice="make it again"
    )
    digests, info = found.get("sha256"), found.get("info")
    if not isinstance(digests, dict) or not isinstance(info, dict):
        raise DataError(f"{path} is damaged: it lacks 'sha256' or 'info'; make it again.")
    if found.get("fingerprint") != metadata.fingerprint:
        raise DataError(
            f"{path.removesuffix('.json')} was computed on other data than {cache_path} holds now; make it again."
        )
    return digests, info


def load_array(path: str, digest: object, *, mapped: bool = False) -> np.ndarray:
    """Loads a .npy file whose content has the given sha256.

    Args:
      mapped: whether to map the file into memory instead of reading it.

    Raises:
      DataError: the file is missing, damaged, or has other content.
    """
    try:
        found = os.stat(path)
        if _verified(path, found.st_size, found.st_mtime_ns) != digest:
            raise DataError(
                f"{path} is damaged: its content is not what was written (sha256); make it again."
            )
        return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read ({error}); make it again.") from None


@functools.lru_cache(maxsize=256)
def _verified(path: str, size: int, changed: int) -> str:
    """Returns the digest of a file; it is computed again only if the file has changed."""
    del size, changed
    return sha256_of(path)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Returns the sha256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(_BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


def _paths(path: str, split: str, name: str) -> tuple[str, str]:
    check_name(name)
    stem = os.path.join(path, FOLDER, f"{split}.{name}")
    return f"{stem}.npy", f"{stem}.json"


def check_split(metadata: CacheMetadata, path: str, split: str) -> None:
    """Raises DataError if a cache has no such split."""
    if split not in metadata.splits:
        raise DataError(
            f"The cache {path} has no split {split!r}; it has {', '.join(metadata.splits)}."
        )


def _check(array: np.ndarray, metadata: CacheMetadata, path: str, split: str, what: str) -> None:
    check_split(metadata, path, split)
    shape = (metadata.splits[split].num_examples, metadata.responses_per_example)
    if array.ndim not in (2, 3) or array.shape[:2] != shape:
        raise DataError(
            f"{what} has shape {array.shape}; the split {split!r} of {path} needs {shape} (examples, responses), or that "
            "and the length of a vector."
        )
    if not np.issubdtype(array.dtype, np.number):
        raise DataError(f"{what} holds {array.dtype}, not numbers.")
    bad = ~np.isfinite(array)
    if bad.any():
        row = int(np.argwhere(bad)[0][0])
        raise DataError(
            f"{what} has {int(bad.sum())} values that are NaN or infinite, first for example {row}."
        )
