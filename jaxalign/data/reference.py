"""Per-response numbers beside a cache: one float32 array a split and name, computed once and added to batches by name.

Reference log-probabilities (`jaxalign score`) are the usual ones; advantages (`jaxalign advantages`), margins from other models and
density ratios are stored in the same way and share the names.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxalign.data.cache import load_metadata
from jaxalign.data.rejections import DataError

# Batch fields that stored arrays may fill, besides `reference_log_probs`.
STORED_FIELDS = ("advantages", "margin_log_probs", "margin_rewards", "density_ratios")
# What stands for a teacher's likeliest tokens among them (`data.teacher_tokens`).
TEACHER_TOP = "teacher_top"

_FOLDER = "reference_scores"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_REFERENCE = ("reference scores", "Compute them with `jaxalign score`.")
_ANY = (
    "stored array",
    "Give the name of another, or make it (advantages: `jaxalign advantages`; log-probabilities: `jaxalign score`).",
)


def check_name(name: str) -> None:
    """DataError unless a name of a stored array can be part of a file's name."""
    if not _NAME.fullmatch(name):
        raise DataError(
            f"The name {name!r} of a stored array must consist of letters, digits, '_', '-' and '.'."
        )


def check_stored_fields(stored: Mapping[str, str]) -> None:
    """DataError unless {batch field: name of a stored array} has known fields for keys and names for values."""
    known = (*STORED_FIELDS, TEACHER_TOP)
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


def write_stored(
    cache_dir: str,
    split: str,
    name: str,
    values: Float[np.ndarray, "examples responses"],
    info: Mapping[str, Any],
) -> str:
    """Stores one number a response and returns the file's path; an array of that name is replaced.

    Args:
      values: float32, row i for example i of the split; any finite number where a response is absent.
      info: JSON-able facts: what the numbers are, in which unit, from which model.

    Raises:
      DataError: wrong shape, NaN or infinity.
    """
    return _write(cache_dir, split, name, values, info, "The array")


def read_stored(
    cache_dir: str, split: str, name: str
) -> tuple[Float[np.ndarray, "examples responses"], dict[str, Any]]:
    """A stored array (float32) and its info.

    Raises:
      DataError: no such array (the message lists the names there are), or it belongs to another version of the cache.
    """
    return _read(cache_dir, split, name, *_ANY)


def read_stored_fields(
    cache_dir: str, split: str, stored: Mapping[str, str]
) -> dict[str, Float[np.ndarray, "examples responses"]]:
    """The arrays of {batch field: name of a stored array}, by batch field; errors as `check_stored_fields` and `read_stored`.

    A teacher's tokens are not among them.
    """
    check_stored_fields(stored)
    return {
        field: read_stored(cache_dir, split, name)[0]
        for field, name in stored.items()
        if field != TEACHER_TOP
    }


def write_reference_scores(
    cache_dir: str,
    split: str,
    name: str,
    log_probs: Float[np.ndarray, "examples responses"],
    info: Mapping[str, Any],
) -> str:
    """Stores log pi_ref(response | prompt), in nats summed over tokens with EOS, and returns the file's path.

    Args:
      log_probs: float32, row i for example i of the split; any finite number where a response is absent.
      info: JSON-able facts about the policy that made them (its path, step, dtype ...), kept beside the array.

    Raises:
      DataError: wrong shape, NaN or infinity.
    """
    return _write(cache_dir, split, name, log_probs, info, "The reference score array")


def read_reference_scores(
    cache_dir: str, split: str, name: str
) -> tuple[Float[np.ndarray, "examples responses"], dict[str, Any]]:
    """The stored log-probabilities (float32) and their info; errors as `read_stored`."""
    return _read(cache_dir, split, name, *_REFERENCE)


def reference_score_names(cache_dir: str, split: str) -> list[str]:
    """Names of the stored arrays of a split."""
    folder = os.path.join(cache_dir, _FOLDER)
    if not os.path.isdir(folder):
        return []
    prefix, suffix = f"{split}.", ".npy"
    return sorted(
        entry[len(prefix) : -len(suffix)]
        for entry in os.listdir(folder)
        if entry.startswith(prefix) and entry.endswith(suffix)
    )


def _write(
    cache_dir: str,
    split: str,
    name: str,
    values: np.ndarray,
    info: Mapping[str, Any],
    what: str,
) -> str:
    metadata = load_metadata(cache_dir)
    array = np.asarray(values)
    _check(array, metadata, cache_dir, split, f"{what} {name!r}")
    array_path, info_path = _paths(cache_dir, split, name)
    os.makedirs(os.path.dirname(array_path), exist_ok=True)
    partial = f"{array_path}.partial"
    with open(partial, "wb") as file:
        np.save(file, array.astype(np.float32), allow_pickle=False)
    # The description goes last and the array is replaced at once: a reader never pairs new with old for long, and the
    # fingerprint is of the data, not of the numbers.
    os.replace(partial, array_path)
    partial = f"{info_path}.partial"
    with open(partial, "w", encoding="utf-8") as file:
        json.dump({"fingerprint": metadata["fingerprint"], "info": dict(info)}, file, indent=2)
        file.write("\n")
    os.replace(partial, info_path)
    return array_path


def _read(
    cache_dir: str, split: str, name: str, what: str, advice: str
) -> tuple[np.ndarray, dict[str, Any]]:
    metadata = load_metadata(cache_dir)
    array_path, info_path = _paths(cache_dir, split, name)
    if not (os.path.exists(array_path) and os.path.exists(info_path)):
        names = ", ".join(reference_score_names(cache_dir, split)) or "none"
        raise DataError(
            f"{cache_dir} has no {what} {name!r} for the split {split!r} (it has: {names}). {advice}"
        )
    with open(info_path, encoding="utf-8") as file:
        description = json.load(file)
    if description["fingerprint"] != metadata["fingerprint"]:
        raise DataError(
            f"{array_path} was computed on other data than {cache_dir} holds now; make it again."
        )
    array = np.load(array_path, allow_pickle=False)
    _check(array, metadata, cache_dir, split, array_path)
    return array.astype(np.float32, copy=False), description["info"]


def _paths(cache_dir: str, split: str, name: str) -> tuple[str, str]:
    check_name(name)
    stem = os.path.join(cache_dir, _FOLDER, f"{split}.{name}")
    return f"{stem}.npy", f"{stem}.json"


def _check(
    array: np.ndarray, metadata: Mapping[str, Any], cache_dir: str, split: str, what: str
) -> None:
    if split not in metadata["num_examples"]:
        raise DataError(f"The cache {cache_dir} has no split {split!r}.")
    shape = (metadata["num_examples"][split], metadata["responses_per_example"])
    if array.shape != shape:
        raise DataError(
            f"{what} has shape {array.shape}; the split {split!r} of {cache_dir} needs {shape} (examples, responses)."
        )
    bad = ~np.isfinite(array)
    if bad.any():
        row = int(np.argwhere(bad)[0][0])
        raise DataError(
            f"{what} has {int(bad.sum())} values that are NaN or infinite, first for example {row}."
        )
