"""Reference log-probabilities beside a cache: one float32 array a split and name, computed once by `jaxalign score`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxalign.data.cache import load_metadata
from jaxalign.data.validation import DataError

_FOLDER = "reference_scores"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def _paths(cache_dir: str, split: str, name: str) -> tuple[str, str]:
    if not _NAME.fullmatch(name):
        raise DataError(
            f"The reference score name {name!r} must consist of letters, digits, '_', '-' and '.'."
        )
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
    metadata = load_metadata(cache_dir)
    array = np.asarray(log_probs)
    _check(array, metadata, cache_dir, split, f"The reference score array {name!r}")
    array_path, info_path = _paths(cache_dir, split, name)
    os.makedirs(os.path.dirname(array_path), exist_ok=True)
    partial = f"{array_path}.partial"
    with open(partial, "wb") as file:
        np.save(file, array.astype(np.float32), allow_pickle=False)
    # The description goes last and the array is replaced at once: a reader never pairs new with old for long, and the
    # fingerprint is of the data, not of the scores.
    os.replace(partial, array_path)
    partial = f"{info_path}.partial"
    with open(partial, "w", encoding="utf-8") as file:
        json.dump({"fingerprint": metadata["fingerprint"], "info": dict(info)}, file, indent=2)
        file.write("\n")
    os.replace(partial, info_path)
    return array_path


def read_reference_scores(
    cache_dir: str, split: str, name: str
) -> tuple[Float[np.ndarray, "examples responses"], dict[str, Any]]:
    """The stored array (float32) and its info.

    Raises:
      DataError: no such scores (the message lists the names there are), or they belong to another version of the cache.
    """
    metadata = load_metadata(cache_dir)
    array_path, info_path = _paths(cache_dir, split, name)
    if not (os.path.exists(array_path) and os.path.exists(info_path)):
        names = ", ".join(reference_score_names(cache_dir, split)) or "none"
        raise DataError(
            f"{cache_dir} has no reference scores {name!r} for the split {split!r} (it has: {names}). "
            "Compute them with `jaxalign score`."
        )
    with open(info_path, encoding="utf-8") as file:
        description = json.load(file)
    if description["fingerprint"] != metadata["fingerprint"]:
        raise DataError(
            f"The reference scores {array_path} were computed on other data than {cache_dir} holds now; "
            "run `jaxalign score` again."
        )
    array = np.load(array_path, allow_pickle=False)
    _check(array, metadata, cache_dir, split, array_path)
    return array.astype(np.float32, copy=False), description["info"]


def reference_score_names(cache_dir: str, split: str) -> list[str]:
    """Names of the stored reference scores of a split."""
    folder = os.path.join(cache_dir, _FOLDER)
    if not os.path.isdir(folder):
        return []
    prefix, suffix = f"{split}.", ".npy"
    return sorted(
        entry[len(prefix) : -len(suffix)]
        for entry in os.listdir(folder)
        if entry.startswith(prefix) and entry.endswith(suffix)
    )
