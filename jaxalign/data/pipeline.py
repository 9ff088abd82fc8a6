"""The training input: a cached split that Grain reads, shuffles, optionally packs, and batches.

The iterator of `make_dataset` has Grain's `get_state()` and `set_state()`. The state is a small JSON-able dictionary; after
`set_state()` the batches continue bit for bit. This module needs neither TensorFlow nor seqio.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Int

from jaxalign.data import packing, paired_lines
from jaxalign.data.batches import Batch, make_batch
from jaxalign.data.cache_metadata import RewardStatistics
from jaxalign.data.cached_split import CachedSplit
from jaxalign.data.example_sampling import Sampling
from jaxalign.data.examples import CachedExample, best_response, only_response
from jaxalign.data.preferences import is_tie
from jaxalign.data.rejections import DataError
from jaxalign.data.row_lengths import check_lengths, row_lengths_of
from jaxalign.data.stored_fields import REFERENCE_LOG_PROBS, TEACHER_TOP
from jaxalign.data.task_cache import TaskCache


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetSettings:
    """The content of a batch, the placement of examples in rows, and their order.

    Attributes:
      feature_lengths: {"inputs": S, "targets": T}; T is for one response, so an unpacked decoder row has length K * T.
        Longer examples are an error: make the cache with these limits.
      batch_size: the number of rows of the global batch.
      pack: whether to put several examples in a row, first fit.
      max_examples_per_row: P when packing (1 otherwise).
      row_lengths: when packing, the encoder and decoder lengths of a row, if they differ from S and K * T.
      shuffle, seed: a global order that is drawn again in every epoch.
      num_epochs: the number of epochs; None repeats without end.
      standardize: rewards = (feedback - mean) / std of the training split; otherwise rewards = feedback.
      reference_scores: the name of stored reference log-probabilities to add.
      stored: {field: name of a stored array} to add, for fields of `stored_fields.FIELDS`.
      sampling: which examples are drawn and how often (`example_sampling.open_sampling`); None draws all equally. An epoch has as many
        draws as there are kept examples.
      best_only: whether to keep only the response of every example that `examples.best_response` selects, so that K = 1.
      paired_lines: whether two consecutive lines of the file are one comparison: their examples come one after the other into one batch.
      skip_ties: whether to leave out examples whose responses all have the same feedback (`preferences.is_tie`).
      drop_remainder: whether to leave out an incomplete last batch; otherwise it is filled with empty rows.
      read_threads: the number of threads that read and decode; with 0 the caller's thread does everything.
    """

    feature_lengths: Mapping[str, int]
    batch_size: int
    pack: bool = False
    max_examples_per_row: int = 8
    row_lengths: Mapping[str, int] | None = None
    shuffle: bool = True
    seed: int = 0
    num_epochs: int | None = None
    standardize: bool = True
    reference_scores: str | None = None
    stored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sampling: Sampling | None = None
    best_only: bool = False
    skip_ties: bool = False
    paired_lines: bool = False
    drop_remainder: bool = True
    read_threads: int = 2


def make_dataset(
    cache: TaskCache,
    split: str,
    settings: DatasetSettings,
    *,
    local_rows: Sequence[int] | None = None,
) -> grain.IterDataset:
    """Returns the batches of a cached split, in the layout of `batches.make_batch`.

    Args:
      cache, split: the cache and its split.
      settings: the content of batches and their order.
      local_rows: the rows of every global batch that this process reads and makes, in this order; all by default. The content of a row
        does not depend on it: every process orders and packs all indices (microseconds for each example) and reads only its own rows.
        So the order of the data and the iterator's state are the same for any number of processes and any mesh.

    Returns:
      A Grain IterDataset of numpy batches.
    """
    data = cache.split(split)
    responses = 1 if settings.best_only else cache.metadata.responses_per_example
    lengths = row_lengths_of(
        settings.feature_lengths, settings.row_lengths, responses, pack=settings.pack
    )
    best = _best_responses(data) if settings.best_only else None
    example_lengths = data.lengths()
    if best is not None:
        example_lengths = np.stack([example_lengths[:, 0], best[1]], axis=1)
    check_lengths(data, settings.feature_lengths, lengths, example_lengths)
    reader = _BatchReader(cache, data, settings, lengths, local_rows, best)
    # Grain moves only indices; the examples of a batch are read together at the end.
    indices = _ordered_indices(data, settings)
    if settings.pack:
        return packing.pack_and_batch(
            indices.repeat(settings.num_epochs),
            example_lengths=example_lengths,
            row_lengths=lengths,
            rows=settings.batch_size,
            max_examples_per_row=settings.max_examples_per_row,
            drop_remainder=settings.drop_remainder,
            read_and_collate=reader,
            prefetch=settings.read_threads,
        )
    return _unpacked(indices, data, settings, reader)


def one_pass(
    cache: TaskCache,
    split: str,
    *,
    feature_lengths: Mapping[str, int],
    batch_size: int,
    pack: bool = True,
    row_lengths: Mapping[str, int] | None = None,
    local_rows: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Yields every example of a split once, in order, with feedback as given, to compute numbers that are stored beside the cache.

    The arguments are those of `DatasetSettings`; the last batch is filled with empty rows.
    """
    settings = DatasetSettings(
        feature_lengths=feature_lengths,
        batch_size=batch_size,
        pack=pack,
        row_lengths=row_lengths,
        shuffle=False,
        num_epochs=1,
        drop_remainder=False,
        standardize=False,
    )
    return iter(make_dataset(cache, split, settings, local_rows=local_rows))


def _ordered_indices(data: CachedSplit, settings: DatasetSettings) -> grain.MapDataset:
    """Returns the indices of the examples in the order of one epoch."""
    sampling = settings.sampling
    if settings.paired_lines:
        paired_lines.check(settings.batch_size, packed=settings.pack, sampled=sampling is not None)
        pairs = grain.MapDataset.source(paired_lines.pairs_of(data))
        return paired_lines.Flattened(
            pairs.shuffle(seed=settings.seed) if settings.shuffle else pairs
        )
    if settings.skip_ties:
        if sampling is not None:
            raise DataError(
                "Examples that are ties can only be left out where all examples are drawn alike: set SAMPLING = 'uniform', or keep the "
                "ties with TaskData.ties = 'keep'."
            )
        indices = grain.MapDataset.source(_without_ties(data))
    elif sampling is None:
        indices = grain.MapDataset.range(len(data))
    elif sampling.examples == len(data):
        indices = sampling.indices(settings.seed)
    else:
        raise ValueError(
            f"sampling is of a split with {sampling.examples} examples, {data.split!r} has {len(data)}."
        )
    return indices.shuffle(seed=settings.seed) if settings.shuffle else indices


def _unpacked(
    indices: grain.MapDataset, data: CachedSplit, settings: DatasetSettings, reader: _BatchReader
) -> grain.IterDataset:
    """Returns batches with one example in each row."""
    number = len(indices)
    batches = indices.repeat(settings.num_epochs).batch(
        settings.batch_size,
        drop_remainder=settings.drop_remainder,
        batch_fn=lambda batch: [[index] for index in batch],
    )
    if len(batches) == 0:
        raise DataError(
            f"The split {data.split!r} of {data.path} has {number} examples, too few for one batch of "
            f"{settings.batch_size} rows; use a smaller batch, or drop_remainder=False."
        )
    threads = settings.read_threads
    return batches.map(reader).to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    )


class _BatchReader:
    """Converts the indices of a global batch to the arrays of this process's rows."""

    def __init__(
        self,
        cache: TaskCache,
        data: CachedSplit,
        settings: DatasetSettings,
        lengths: Mapping[str, int],
        local_rows: Sequence[int] | None,
        best: tuple[np.ndarray, np.ndarray] | None,
    ) -> None:
        size = settings.batch_size
        self._rows = range(size) if local_rows is None else local_rows
        if not all(0 <= row < size for row in self._rows):
            raise ValueError(
                f"local_rows={list(self._rows)} are not all rows of a batch of {size}."
            )
        self._data, self._best_only = data, settings.best_only
        teacher = settings.stored.get(TEACHER_TOP)
        self._teacher = cache.teacher_tokens(data.split, teacher) if teacher else None
        metadata, statistics = cache.metadata, _reward_scale(cache, settings)
        self._collate = functools.partial(
            make_batch,
            num_rows=len(self._rows),
            input_length=lengths["inputs"],
            target_length=lengths["targets"],
            examples_per_row=settings.max_examples_per_row if settings.pack else 1,
            responses_per_example=1 if settings.best_only else metadata.responses_per_example,
            with_feedback="feedback" in metadata.fields,
            num_scores=len(metadata.score_names) if "scores" in metadata.fields else 0,
            reference_samples=(
                metadata.reference_samples if "reference_feedback" in metadata.fields else 0
            ),
            stored=_stored_arrays(cache, data.split, settings, best),
            teacher_top=self._teacher.count if self._teacher else 0,
            reward_mean=statistics.mean,
            reward_std=statistics.std,
            images=metadata.images,
        )

    def __call__(self, index_rows: Sequence[Sequence[int]]) -> Batch:
        own = [index_rows[row] if row < len(index_rows) else [] for row in self._rows]
        examples = iter(self._read([index for row in own for index in row]))
        return self._collate([[(index, next(examples)) for index in row] for row in own])

    def _read(self, indices: Sequence[int]) -> list[CachedExample]:
        found = self._data.read(indices)
        if self._teacher is not None:
            found = [
                dataclasses.replace(example, teacher_ids=ids, teacher_log_probs=log_probs)
                for example, (ids, log_probs) in zip(
                    found, map(self._teacher.of, indices), strict=True
                )
            ]
        if self._best_only:
            kind = self._data.metadata.kind
            found = [only_response(example, best_response(example, kind)) for example in found]
        return found


def _reward_scale(cache: TaskCache, settings: DatasetSettings) -> RewardStatistics:
    """Returns the mean and deviation that convert feedback to rewards."""
    if not settings.standardize or "feedback" not in cache.metadata.fields:
        return RewardStatistics(0.0, 1.0)
    statistics = cache.metadata.reward_statistics
    if statistics is None:
        raise DataError(
            f"The cache {cache.path} has no training split, so no statistics to standardise rewards with; "
            "cache the split 'train' too, or pass standardize=False."
        )
    return statistics


def _stored_arrays(
    cache: TaskCache,
    split: str,
    settings: DatasetSettings,
    best: tuple[np.ndarray, np.ndarray] | None,
) -> dict[str, Any]:
    """Returns the arrays that are looked up by the index of an example, by batch field."""
    arrays = cache.stored_by_field(split, settings.stored)
    if settings.reference_scores:
        arrays[REFERENCE_LOG_PROBS] = cache.stored(split, settings.reference_scores).values
    if best is None:
        return arrays
    every = np.arange(len(best[0]))
    return {field: array[every, best[0]][:, None] for field, array in arrays.items()}


def _without_ties(data: CachedSplit) -> list[int]:
    """Returns the indices of the examples whose responses differ in their feedback."""
    kept = [i for i, example in enumerate(data.without_text()) if not is_tie(example.feedback)]
    if not kept:
        raise DataError(
            f"All examples of {data.split!r} in {data.path} are ties: the responses to each prompt have the same feedback, so "
            "nothing says which is better."
        )
    return kept


def _best_responses(
    data: CachedSplit,
) -> tuple[Int[np.ndarray, " examples"], Int[np.ndarray, " examples"]]:
    """Returns `examples.best_response` of every example, and the number of its tokens."""
    kind, found = data.metadata.kind, []
    for example in data.without_text():
        index = best_response(example, kind)
        found.append((index, int(example.target_lengths[index])))
    best, lengths = np.asarray(found, np.int64).T
    return best, lengths
