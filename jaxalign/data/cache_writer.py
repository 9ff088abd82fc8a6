"""Writes the files of a cache: examples by split, their lengths, the vocabulary, rejected records, and the description."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

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
from jaxalign.data.images import ImageFormat
from jaxalign.data.records import Record
from jaxalign.data.rejections import DataError, RejectionLog
from jaxalign.data.split_summary import SplitSummary
from jaxalign.data.tokenization import (
    BLOCK,
    Limits,
    Tokenized,
    make_examples,
    tokenize,
)
from jaxalign.data.vocabularies import Vocabulary
from jaxalign.parallel.progress import progress

# The names of the vocabulary's file in a cache, by kind.
_FILES = {"sentencepiece": "vocabulary.model", "tokenizer": "tokenizer.json"}
Tokens = tuple[list[int], list[list[int]]]


def _counted(records: Iterable[Any]) -> Iterator[Any]:
    return progress(((1, record) for record in records), None, "caching", "record")


class CacheWriter:
    """Writes the files of a cache into a fresh folder.

    Args:
      source: the source of the records.
      folder: the folder to write into.
      vocabulary, limits: determine how records become examples.
      max_rejected_fraction: an error is raised if a larger share of the records of all splits together is rejected.
      side_file: the file that lists the rejected records in that case.
      images: the format of the images of records, if they are read.
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
        images: ImageFormat | None = None,
    ) -> None:
        self._source, self._folder, self._vocabulary = source, folder, vocabulary
        self._limits, self._max_rejected_fraction = limits, max_rejected_fraction
        self._side_file, self._images = side_file, images

    def write(self, splits: Sequence[str], name: str, request: str | None) -> CacheMetadata:
        """Writes everything and returns the metadata."""
        writers = self._write_examples(splits)
        rejected = RejectionLog.joined(writer.log for writer in writers)
        rejected.check(self._max_rejected_fraction, self._side_file)
        rejected.write(os.path.join(self._folder, REJECTED_FILE))
        content = hashlib.sha256()
        described: dict[str, SplitMetadata] = {}
        summaries: dict[str, SplitSummary] = {}
        for writer in writers:
            if not self._has_examples(writer, first=not described):
                continue
            described[writer.split] = writer.describe()
            summaries[writer.split] = writer.summary
            content.update(writer.digest())
        check_no_straddling(summaries, by_seqio=hasattr(self._source, "tokenized"), name=name)
        described_vocabulary = portable(self._vocabulary)
        if "path" in described_vocabulary:
            model = self._vocabulary.to_dict()["path"]
            shutil.copyfile(model, os.path.join(self._folder, described_vocabulary["path"]))
        everything = summaries.values()
        training = summaries.get("train")
        statistics = training.feedback_statistics() if training else None
        template = getattr(self._source, "chat_template", None)
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
            fingerprint=content.hexdigest(),
            images=self._images,
            chat_template=template.describe() if template is not None else None,
        )
        metadata.write(self._folder)
        return metadata

    def _write_examples(self, splits: Sequence[str]) -> list[SplitWriter]:
        """Writes the examples of all splits in one pass over the source."""
        references = validation.ReferenceSamples()
        with contextlib.ExitStack() as stack:
            writers = {
                split: stack.enter_context(
                    SplitWriter(
                        self._folder,
                        split,
                        self._vocabulary,
                        self._limits,
                        references,
                        kind=self._source.kind,
                        images=self._images,
                    )
                )
                for split in splits
            }
            logs = {split: writer.log for split, writer in writers.items()}
            # A seqio task has its own pipeline; its tokens are those of ours.
            if hasattr(self._source, "tokenized"):
                for split, writer in writers.items():
                    for record, inputs, targets in _counted(
                        self._source.tokenized(split, writer.log)
                    ):
                        writer.add(record, (inputs, targets))
            else:
                for split, record in _counted(self._source.records_by_split(splits, logs)):
                    writers[split].add(record)
            for writer in writers.values():
                writer.flush()
        return list(writers.values())

    def _has_examples(self, writer: SplitWriter, *, first: bool) -> bool:
        """Returns False, and removes the file, if the source divides its only file and has no record for this split."""
        if writer.summary.examples:
            return True
        if not first and not writer.log.seen:
            os.remove(records_path(self._folder, writer.split))
            return False
        raise DataError(
            f"The split {writer.split!r} has no usable records ({writer.log.seen} read, {len(writer.log.entries)} rejected); give "
            "more records, or a file of its own for the split."
        )


class SplitWriter:
    """Writes the examples of one split, a block of records at a time.

    Args:
      folder: the folder of the cache.
      split: the name of the split.
      vocabulary, limits: determine how records become examples.
      references: compares the number of reference samples of all records of the task.
      kind: the kind of the records.
      images: the format of their images, if these are read.

    Attributes:
      log: the rejected records of the split.
      summary: the statistics of its examples.
    """

    def __init__(
        self,
        folder: str,
        split: str,
        vocabulary: Vocabulary,
        limits: Limits,
        references: validation.ReferenceSamples,
        *,
        kind: str,
        images: ImageFormat | None = None,
    ) -> None:
        self.split, self.log, self.summary = split, RejectionLog(), SplitSummary(folder)
        self._folder, self._vocabulary, self._limits, self._kind = folder, vocabulary, limits, kind
        self._references, self._images = references, images
        self._duplicates = validation.Duplicates(folder) if limits.duplicates == "reject" else None
        self._content = hashlib.sha256(f"{split}\n".encode())
        self._records: list[Record] = []
        self._tokens: list[Tokens] = []

    def __enter__(self) -> SplitWriter:
        from array_record.python import array_record_module

        # Random access requires one record in each group.
        path = records_path(self._folder, self.split)
        self._writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.close()

    def add(self, record: Record, tokens: Tokens | None = None) -> None:
        """Adds a record, with its tokens (without EOS) if they are known already; a bad record goes to the log."""
        if self._duplicates and not self._duplicates.is_new(record, self.log, self.split):
            return
        if not self._references.agrees(record, self.log, self.split):
            return
        self._records.append(record)
        if tokens is not None:
            self._tokens.append(tokens)
        if len(self._records) == BLOCK:
            self.flush()

    def flush(self) -> None:
        """Writes the examples of the records that were added."""
        tokenized: Iterable[Tokenized]
        if self._tokens:
            tokenized = (
                (record, *tokens)
                for record, tokens in zip(self._records, self._tokens, strict=True)
            )
        else:
            tokenized = tokenize(self._records, self._vocabulary)
        for example in make_examples(
            tokenized,
            self._vocabulary,
            self._limits,
            self.log,
            self.split,
            kind=self._kind,
            images=self._images,
        ):
            data = encode_example(example)
            self._content.update(hashlib.sha256(data).digest())
            self._writer.write(data)
            self.summary.add(example)
        self._records, self._tokens = [], []

    def digest(self) -> bytes:
        """Returns the digest of the examples."""
        return self._content.digest()

    def describe(self) -> SplitMetadata:
        """Writes the lengths of the examples and returns the metadata of the split."""
        path = lengths_path(self._folder, self.split)
        with open(path, "wb") as file:
            self.summary.write_lengths(file)
        return _describe(self.summary, self.log, stored_fields.sha256_of(path))


def _describe(summary: SplitSummary, log: RejectionLog, lengths_sha256: str) -> SplitMetadata:
    lengths, ranges = summary.lengths(), summary.feedback_ranges()
    return SplitMetadata(
        num_examples=summary.examples,
        num_prompts=len(summary.prompts),
        num_responses=summary.num_responses,
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
        spec["path"] = _FILES[spec["kind"]]
    return spec
