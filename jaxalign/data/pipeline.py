"""Training input: a cached split read by Grain, shuffled, packed on request, and batched.

The iterator of `make_dataset` has Grain's `get_state()` and `set_state()`: a small JSON-able dictionary, after which the
batches continue bit for bit. Needs neither TensorFlow nor seqio.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import grain
import numpy as np
from jaxtyping import Int

from jaxalign.data import packing, reference
from jaxalign.data.batches import Batch, make_batch
from jaxalign.data.cached_split import _BLOCK, CachedSplit
from jaxalign.data.examples import (
    best_response,
    only_response,
)
from jaxalign.data.rejections import DataError
from jaxalign.data.teacher_tokens import open_teacher_tokens

if TYPE_CHECKING:
    from jaxalign.data.example_sampling import Sampling


def make_dataset(
    cache_dir: str,
    split: str,
    *,
    feature_lengths: Mapping[str, int],
    batch_size: int,
    pack: bool = False,
    max_examples_per_row: int = 8,
    row_lengths: Mapping[str, int] | None = None,
    shuffle: bool = True,
    seed: int = 0,
    num_epochs: int | None = None,
    local_rows: Sequence[int] | None = None,
    standardize: bool = True,
    reference_scores: str | None = None,
    stored: Mapping[str, str] | None = None,
    sampling: Sampling | None = None,
    best_only: bool = False,
    drop_remainder: bool = True,
    read_threads: int = 2,
) -> grain.IterDataset:
    """Batches of a cached split, in the layout of `batches.make_batch`.

    Args:
      cache_dir, split: the cache and its split.
      feature_lengths: {"inputs": S, "targets": T}; T is for one response, so an unpacked decoder row is K * T long.
        Longer examples are an error: make the cache with these limits.
      batch_size: rows of the global batch.
      pack: put several examples in a row, first fit.
      max_examples_per_row: P when packing (1 otherwise).
      row_lengths: when packing, encoder and decoder lengths of a row if they should not be S and K * T.
      shuffle, seed: a global order drawn anew every epoch.
      num_epochs: None repeats for ever.
      local_rows: which rows of every global batch this process reads and makes, in this order; all by default. What a row holds
        does not depend on it: every process orders and packs all indices (microseconds an example) and reads its own rows only.
        So the order of the data and the iterator's state are the same for any number of processes and any mesh.
      standardize: rewards = (feedback - mean) / std of the training split; otherwise rewards = feedback.
      reference_scores: name of stored reference log-probabilities to add.
      stored: {batch field: name of a stored array} to add, for fields of `reference.STORED_FIELDS`; the name for 'teacher_top' is that
        of stored teacher tokens (`data.teacher_tokens`).
      sampling: which examples are drawn how often (`sampling.open_sampling`); None for all alike. An epoch has as many draws as
        examples are kept.
      best_only: of every example keep the response that `examples.best_response` names, so that K = 1.
      drop_remainder: leave out a last incomplete batch; otherwise it is filled with empty rows.
      read_threads: threads that read and decode; 0 does everything in the caller's thread.

    Returns:
      A Grain IterDataset of numpy batches.
    """
    data = CachedSplit.open(cache_dir, split)
    metadata = data.metadata
    responses = 1 if best_only else metadata["responses_per_example"]
    lengths = _row_lengths(feature_lengths, row_lengths, responses, pack)
    _check_lengths(data, feature_lengths, lengths, responses)
    mine = range(batch_size) if local_rows is None else local_rows
    if not all(0 <= row < batch_size for row in mine):
        raise ValueError(f"local_rows={list(mine)} are not all rows of a batch of {batch_size}.")
    statistics = metadata["feedback"] if standardize else None
    if standardize and "feedback" in metadata["fields"] and statistics is None:
        raise DataError(
            f"The cache {cache_dir} has no training split, so no statistics to standardise rewards with; "
            "cache the split 'train' too, or pass standardize=False."
        )
    reference_log_probs = (
        reference.read_reference_scores(cache_dir, split, reference_scores)[0]
        if reference_scores
        else None
    )
    stored = stored or {}
    arrays = reference.read_stored_fields(cache_dir, split, stored)
    teacher = stored.get(reference.TEACHER_TOP)
    teacher_tokens = open_teacher_tokens(cache_dir, split, teacher) if teacher else None
    example_lengths = data.lengths()
    if best_only and (pack or arrays or reference_log_probs is not None):
        best, best_lengths = _best_responses(data)
        example_lengths = np.stack([example_lengths[:, 0], best_lengths], axis=1)
        every = np.arange(len(data))
        arrays = {field: array[every, best][:, None] for field, array in arrays.items()}
        if reference_log_probs is not None:
            reference_log_probs = reference_log_probs[every, best][:, None]
    collate = functools.partial(
        make_batch,
        num_rows=len(mine),
        input_length=lengths["inputs"],
        target_length=lengths["targets"],
        examples_per_row=max_examples_per_row if pack else 1,
        responses_per_example=responses,
        reward_mean=statistics["mean"] if statistics else 0.0,
        reward_std=statistics["std"] if statistics else 1.0,
        with_feedback="feedback" in metadata["fields"],
        num_scores=len(metadata["score_names"]) if "scores" in metadata["fields"] else 0,
        reference_samples=(
            metadata["reference_samples"] if "reference_feedback" in metadata["fields"] else 0
        ),
        reference_log_probs=reference_log_probs,
        stored=arrays,
        teacher_top=teacher_tokens.count if teacher_tokens else 0,
    )

    def read_and_collate(index_rows: Sequence[Sequence[int]]) -> Batch:
        own = [index_rows[row] if row < len(index_rows) else [] for row in mine]
        indices = [index for row in own for index in row]
        found = data.read(indices)
        if teacher_tokens is not None:
            found = [
                dataclasses.replace(example, teacher_ids=ids, teacher_log_probs=log_probs)
                for example, (ids, log_probs) in zip(
                    found, map(teacher_tokens.of, indices), strict=True
                )
            ]
        if best_only:
            kind = metadata["kind"]
            found = [only_response(example, best_response(example, kind)) for example in found]
        examples = iter(found)
        return collate([[(index, next(examples)) for index in row] for row in own])

    # Grain moves indices only; a batch's examples are read together at its end.
    if sampling is None:
        indices = grain.MapDataset.range(len(data))
    else:
        if sampling.examples != len(data):
            raise ValueError(
                f"sampling is of a split with {sampling.examples} examples, {split!r} has {len(data)}."
            )
        indices = sampling.indices(seed)
    number = len(indices)
    if shuffle:
        indices = indices.shuffle(seed=seed)
    if pack:
        return packing.pack_and_batch(
            indices.repeat(num_epochs),
            example_lengths=example_lengths,
            row_lengths=lengths,
            rows=batch_size,
            max_examples_per_row=max_examples_per_row,
            drop_remainder=drop_remainder,
            read_and_collate=read_and_collate,
            prefetch=read_threads,
        )
    batches = indices.repeat(num_epochs).batch(
        batch_size,
        drop_remainder=drop_remainder,
        batch_fn=lambda batch: [[index] for index in batch],
    )
    if len(batches) == 0:
        raise DataError(
            f"The split {split!r} of {cache_dir} has {number} examples, too few for one batch of "
            f"{batch_size} rows; use a smaller batch, or drop_remainder=False."
        )
    return batches.map(read_and_collate).to_iter_dataset(
        grain.ReadOptions(num_threads=read_threads, prefetch_buffer_size=2 * read_threads)
    )


def one_pass(
    cache_dir: str,
    split: str,
    *,
    feature_lengths: Mapping[str, int],
    batch_size: int,
    pack: bool = True,
    local_rows: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Every example of a split once, in order, with feedback as given: for numbers that are stored beside the cache.

    Arguments as in `make_dataset`; the last batch is filled with empty rows.
    """
    dataset = make_dataset(
        cache_dir,
        split,
        feature_lengths=feature_lengths,
        batch_size=batch_size,
        pack=pack,
        shuffle=False,
        num_epochs=1,
        drop_remainder=False,
        standardize=False,
        local_rows=local_rows,
    )
    return iter(dataset)


def _best_responses(
    data: CachedSplit,
) -> tuple[Int[np.ndarray, " examples"], Int[np.ndarray, " examples"]]:
    """`examples.best_response` of every example, and its tokens."""
    kind, found = data.metadata["kind"], []
    for start in range(0, len(data), _BLOCK):
        for example in data.read(range(start, min(start + _BLOCK, len(data)))):
            index = best_response(example, kind)
            found.append((index, int(example.target_lengths[index])))
    best, lengths = np.asarray(found, np.int64).T
    return best, lengths


def _row_lengths(
    feature_lengths: Mapping[str, int],
    row_lengths: Mapping[str, int] | None,
    responses: int,
    pack: bool,
) -> dict[str, int]:
    for name in ("inputs", "targets"):
        if name not in feature_lengths:
            raise ValueError(
                f"feature_lengths needs 'inputs' and 'targets', got {dict(feature_lengths)}."
            )
    lengths = {
        "inputs": feature_lengths["inputs"],
        "targets": responses * feature_lengths["targets"],
    }
    if row_lengths is not None:
        if not pack:
            raise ValueError(
                "row_lengths is for pack=True; unpacked rows are as long as feature_lengths."
            )
        lengths.update(row_lengths)
    return lengths


def _check_lengths(
    data: CachedSplit,
    feature_lengths: Mapping[str, int],
    row_lengths: Mapping[str, int],
    responses: int,
) -> None:
    """The longest example must fit, or training would stop at it hours later."""
    found = data.metadata["lengths"][data.split]
    for feature, key, per_row in (("inputs", "prompt", 1), ("targets", "response", responses)):
        longest = int(found[key]["max"])
        limit = min(feature_lengths[feature], row_lengths[feature] // per_row)
        if longest > limit:
            raise DataError(
                f"The longest {key} of {data.split!r} in {data.cache_dir} has {longest} tokens with EOS, but "
                f"feature_lengths[{feature!r}] allows {limit}. Raise it, or make the cache with "
                f"max_{'input' if key == 'prompt' else 'target'}_length={limit}."
            )
