"""Writes the files of a cache: examples by split, their lengths, the vocabulary, rejected records, and the description."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.data import sources, stored_fields, validation
from jaxalign.data.cache_metadata import (
    REJECTED_FILE,
    CacheMetadata,
    LengthStatistics,
    Range,
    RewardStatistics,
    SplitMetadata,
)
from jaxalign.data.cached_split import lengths_path, records_path
from jaxalign.data.examples import encode_example
from jaxalign.data.records import Record
from jaxalign.data.rejections import DataError, RejectionLog
from jaxalign.data.tokenization import Limits, SplitSummary, Tokenized, make_examples, tokenize
from jaxalign.data.vocabularies import Vocabulary

_MODEL_FILE = "vocabulary.model"


class CacheWriter:
    """Writes the files of a cache into a fresh folder.

    Args:
      source: the source of the records.
      folder: the folder to write into.
      vocabulary, limits: determine how records become examples.
      max_rejected_fraction: an error is raised if a larger share of the records of a split is rejected.
      side_file: the file that lists the rejected records in that case.
    """

    def __init__(
        self,
        source: sources.RecordSource,
        folder: str,
        vocabulary: Vocabulary,
        limits: Limits,
        max_rejected_fraction: float,
        *,
        side_file: str,
    ) -> None:
        self._source, self._folder, self._vocabulary = source, folder, vocabulary
        self._limits, self._max_rejected_fraction = limits, max_rejected_fraction
        self._side_file = side_file
        self._rejected = RejectionLog()
        self._content = hashlib.sha256()
        self._reference_samples = validation.ReferenceSamples()
        self._summaries: dict[str, SplitSummary] = {}

    def write(self, splits: Sequence[str], name: str, request: str | None) -> CacheMetadata:
        """Writes everything and returns the metadata."""
        described = {}
        for split in splits:
            found = self._write_split(split)
            if found is not None:
                described[split] = found
        self._rejected.write(os.path.join(self._folder, REJECTED_FILE))
        check_no_straddling(self._summaries, by_seqio=hasattr(self._source, "tokenized"), name=name)
        described_vocabulary = portable(self._vocabulary)
        if "path" in described_vocabulary:
            model = self._vocabulary.to_dict()["path"]
            shutil.copyfile(model, os.path.join(self._folder, _MODEL_FILE))
        everything = self._summaries.values()
        training = self._summaries.get("train")
        statistics = training.feedback_statistics() if training else None
        metadata = CacheMetadata(
            name=name,
            kind=self._source.kind,
            limits=self._limits,
            vocabulary=described_vocabulary,
            splits=described,
            responses_per_example=max(s.responses for s in everything),
            fields=tuple(sorted(set.intersection(*(s.fields for s in everything)))),
            reference_samples=max(s.reference_samples for s in everything),
            score_names=tuple(self._source.score_names),
            reward_statistics=RewardStatistics(**statistics) if statistics else None,
            request=request,
            fingerprint=self._content.hexdigest(),
        )
        metadata.write(self._folder)
        return metadata

    def _write_split(self, split: str) -> SplitMetadata | None:
        """Writes a split; returns None if the source divides its only file and has no record for this split."""
        log, summary = RejectionLog(), SplitSummary()
        tokenized = _tokenized_split(
            self._source, split, self._vocabulary, self._limits.duplicates, log
        )
        tokenized = self._reference_samples.same(
            tokenized, log, split, record_of=lambda item: item[0]
        )
        records_file = records_path(self._folder, split)
        content = hashlib.sha256(f"{split}\n".encode())
        with _array_record_writer(records_file) as writer:
            for example in make_examples(
                tokenized, self._vocabulary, self._limits, log, split, kind=self._source.kind
            ):
                data = encode_example(example)
                content.update(hashlib.sha256(data).digest())
                writer.write(data)
                summary.add(example)
        log.check(self._max_rejected_fraction, self._side_file)
        if not summary.prompt_lengths:
            if self._summaries and not log.seen:
                os.remove(records_file)
                return None
            raise DataError(
                f"The split {split!r} has no usable records ({log.seen} read, {len(log.entries)} rejected); give more records, "
                "or a file of its own for the split."
            )
        self._content.update(content.digest())
        lengths_file = lengths_path(self._folder, split)
        with open(lengths_file, "wb") as file:
            np.save(file, summary.example_lengths(), allow_pickle=False)
        self._summaries[split] = summary
        self._rejected.entries.extend(log.entries)
        return _describe(summary, log, stored_fields.sha256_of(lengths_file))


def _describe(summary: SplitSummary, log: RejectionLog, lengths_sha256: str) -> SplitMetadata:
    lengths, ranges = summary.lengths(), summary.feedback_ranges()
    return SplitMetadata(
        num_examples=len(summary.prompt_lengths),
        num_prompts=len(summary.prompts),
        num_responses=len(summary.response_lengths),
        num_read=log.seen,
        prompt_lengths=LengthStatistics(**lengths["prompt"]),
        response_lengths=LengthStatistics(**lengths["response"]),
        feedback_range=Range(**ranges["feedback"]) if ranges else None,
        chosen_feedback_range=Range(**ranges["chosen_feedback"]) if ranges else None,
        feedback_outliers=summary.feedback_outliers(),
        rejected=log.counts,
        notes=dict(log.notes),
        lengths_sha256=lengths_sha256,
    )


def _tokenized_split(
    source: sources.RecordSource,
    split: str,
    vocabulary: Vocabulary,
    duplicates: str,
    log: RejectionLog,
) -> Iterator[Tokenized]:
    """Yields the split from seqio's own pipeline if the task has one, else from ours (the ids are the same)."""
    if hasattr(source, "tokenized"):
        tokenized = source.tokenized(split, log)
        if duplicates == "reject":
            tokenized = validation.drop_duplicates(tokenized, log, split, record_of=lambda t: t[0])
        return tokenized
    records: Iterable[Record] = source.records(split, log)
    if duplicates == "reject":
        records = validation.drop_duplicates(records, log, split)
    return tokenize(records, vocabulary)


def check_no_straddling(
    summaries: Mapping[str, SplitSummary], *, by_seqio: bool, name: str
) -> None:
    """Raises DataError if a prompt is in two splits; the advice depends on where the task comes from."""
    advice = "split the data by prompt (give only train_file and it is done for you)"
    if by_seqio:
        advice = (
            f"register {name!r} with splits that share none (filter one of them by prompt), or do without evaluation: `jaxalign cache "
            f"--task={name} --output_dir=CACHE_DIR --splits=train`, then train from that CACHE_DIR with "
            "--gin.TaskData.eval_split=\"''\""
        )
    names = list(summaries)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            shared = list(summaries[first].prompts.shared(summaries[second].prompts))
            if shared:
                places = " and ".join(f"{file}:{line}" for file, line in min(shared))
                raise DataError(
                    f"{len(shared)} prompts are in both {first!r} and {second!r}, for example that of {places}; {advice}."
                )


def portable(vocabulary: Vocabulary) -> dict[str, Any]:
    """Returns the vocabulary's description with its path inside the cache."""
    spec = dict(vocabulary.to_dict())
    if "path" in spec:
        spec["path"] = _MODEL_FILE
    return spec


@contextlib.contextmanager
def _array_record_writer(path: str) -> Iterator[Any]:
    """Opens an ArrayRecord file with one record in each group, as random access requires."""
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
    try:
        yield writer
    finally:
        writer.close()
