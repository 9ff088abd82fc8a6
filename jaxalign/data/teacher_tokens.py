"""A teacher's most likely tokens beside a cache: two arrays for each split and name, one row for each target token of the split.

``STORED_FIELDS = {'teacher_top': NAME}`` adds them to batches as ``teacher_top_ids`` and ``teacher_top_log_probs``. The arrays are as
long as all responses together, so they are written in parts and mapped into memory, never read as a whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxalign import files
from jaxalign.data import stored_fields
from jaxalign.data.cached_split import CachedSplit
from jaxalign.data.rejections import DataError

_FOLDER = "teacher_tokens"
_ARRAYS = {"ids": np.int32, "log_probs": np.float32}


@dataclasses.dataclass(frozen=True)
class TeacherTokens:
    """The stored teacher tokens of a split.

    Attributes:
      ids: int32 [target tokens of the split, k].
      log_probs: float32 [target tokens of the split, k], nats, most likely token first.
      offsets: the position at which each example's tokens begin, and the total number of tokens as the last entry.
      info: facts about the teacher.
    """

    ids: Int[np.ndarray, "tokens k"]
    log_probs: Float[np.ndarray, "tokens k"]
    offsets: Int[np.ndarray, " examples_and_end"]
    info: dict[str, Any]

    @property
    def count(self) -> int:
        """The number k of tokens at each position."""
        return self.ids.shape[1]

    def of(self, example: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ids and log-probabilities of one example's targets, response after response."""
        rows = slice(self.offsets[example], self.offsets[example + 1])
        return np.asarray(self.ids[rows]), np.asarray(self.log_probs[rows])


class _DiscardedError(Exception):
    """Ends the writing of files that are not wanted."""


class TeacherTokensWriter:
    """A context that writes the tokens of a split example by example, in any order; it leaves no files unless `close` was called.

    Args:
      split: a split of a cached task.
      name: the name of the arrays; existing arrays of that name are replaced when `close` is called.
      count: k, the number of tokens kept at each position.

    Raises:
      DataError: the disk has no room for the arrays.
    """

    def __init__(self, split: CachedSplit, name: str, count: int) -> None:
        self._paths = _paths(split, name)
        self._metadata = split.metadata
        self._offsets = _offsets(split)
        os.makedirs(os.path.dirname(self._paths["info"]), exist_ok=True)
        shape = (int(self._offsets[-1]), count)
        self._arrays: dict[str, np.ndarray] = {}
        self._written = np.zeros(len(self._offsets) - 1, bool)
        self._files = contextlib.ExitStack()
        try:
            for array, dtype in _ARRAYS.items():
                partial = self._files.enter_context(files.replacing(self._paths[array])).name
                self._arrays[array] = np.lib.format.open_memmap(
                    partial, mode="w+", dtype=dtype, shape=shape
                )
                # If the disk had no room for a mapped file, writing to the file would end the process.
                _reserve(partial)
        except OSError as error:
            self._discard()
            size = 8 * shape[0] * count / 2**20
            raise DataError(
                f"{os.path.dirname(self._paths['info'])} has no room for {size:,.0f} MiB of teacher tokens: {error.strerror}."
            ) from error

    def __enter__(self) -> TeacherTokensWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._discard()

    def _discard(self) -> None:
        """Removes the files that do not have their final names."""
        with contextlib.suppress(_DiscardedError), self._files:
            raise _DiscardedError

    def write(self, examples: Sequence[int], ids: np.ndarray, log_probs: np.ndarray) -> None:
        """Stores the target tokens ``[tokens, k]`` of these examples, one example after another.

        Raises:
          DataError: the number of tokens differs from that of the examples, or log-probabilities are NaN, infinite or above 0.
        """
        ranges = [np.arange(self._offsets[i], self._offsets[i + 1]) for i in examples]
        rows = np.concatenate([np.zeros(0, np.int64), *ranges])
        if len(rows) != len(ids) or ids.shape != log_probs.shape:
            raise DataError(
                f"Examples {list(examples)} have {len(rows)} target tokens; ids have the shape {ids.shape}, log-probabilities "
                f"{log_probs.shape}."
            )
        if not (np.isfinite(log_probs).all() and (log_probs <= 1e-5).all()):
            raise DataError(
                f"The teacher's log-probabilities for examples {list(examples)} are not all finite and at most 0."
            )
        self._arrays["ids"][rows], self._arrays["log_probs"][rows] = ids, log_probs
        self._written[list(examples)] = True

    def close(self, info: Mapping[str, Any]) -> None:
        """Gives the arrays their final names.

        Raises:
          DataError: examples are missing.
        """
        if not self._written.all():
            missing = int((~self._written).sum())
            raise DataError(f"{missing} of {len(self._written)} examples have no teacher tokens.")
        # Arrays without their description do not exist for readers, so that no reader finds an incomplete set.
        with contextlib.suppress(FileNotFoundError):
            os.remove(self._paths["info"])
        for values in self._arrays.values():
            values.flush()  # type: ignore[attr-defined]  # np.memmap
        self._files.close()
        digests = {array: stored_fields.sha256_of(self._paths[array]) for array in _ARRAYS}
        stored_fields.write_description(self._paths["info"], self._metadata, digests, info)


def open_teacher_tokens(split: CachedSplit, name: str) -> TeacherTokens:
    """Opens the arrays that `TeacherTokensWriter` wrote.

    Raises:
      DataError: the arrays do not exist (the message lists the existing names), are damaged, or belong to data other than the
        current content of the cache.
    """
    paths = _paths(split, name)
    if not os.path.exists(paths["info"]):
        found = stored_fields.names(split.path, split.split, folder=_FOLDER, suffix=".json")
        raise DataError(
            f"{split.path} has no teacher tokens {name!r} for the split {split.split!r} (it has: {', '.join(found) or 'none'}). "
            "Make them with `jaxalign score --top_tokens=K`."
        )
    digests, info = stored_fields.read_description(paths["info"], split.metadata, split.path)
    offsets = _offsets(split)
    ids, log_probs = (
        stored_fields.load_array(paths[array], digests.get(array), mapped=True) for array in _ARRAYS
    )
    for array, values in (("ids", ids), ("log_probs", log_probs)):
        if values.ndim != 2 or values.shape != ids.shape or len(values) != offsets[-1]:
            raise DataError(
                f"{paths[array]} has shape {values.shape}; the split {split.split!r} of {split.path} has {offsets[-1]} target tokens."
            )
        if values.dtype != _ARRAYS[array]:
            raise DataError(f"{paths[array]} holds {values.dtype}, not {_ARRAYS[array].__name__}.")
    return TeacherTokens(ids, log_probs, offsets, info)


def _reserve(path: str) -> None:
    """Raises OSError unless the disk has room for all of a sparse file."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))


def _offsets(split: CachedSplit) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(split.lengths()[:, 1], dtype=np.int64)])


def _paths(split: CachedSplit, name: str) -> dict[str, str]:
    stored_fields.check_name(name)
    stem = os.path.join(split.path, _FOLDER, f"{split.split}.{name}")
    return {"info": f"{stem}.json", **{array: f"{stem}.{array}.npy" for array in _ARRAYS}}
