"""Conversion between our record sources and seqio in both directions, and TFDS as a record source.

seqio, TensorFlow and TFDS are imported only inside the functions that need them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxalign.data import sources
from jaxalign.data.records import Record
from jaxalign.data.rejections import DataError, RejectionLog
from jaxalign.data.vocabularies import Vocabulary

_TEXT_FEATURES = ("prompt", "responses", "group", "source", "file", "line")
# Untokenised features that a mixture would otherwise drop.
_KEPT_FEATURES = (*_TEXT_FEATURES, "reference_feedback")


class TfdsSource(sources.JsonlSource):
    """A TFDS data set as records; its rows are counted as lines."""

    def __init__(
        self,
        tfds_name: str,
        kind: str,
        *,
        splits: Mapping[str, str],
        data_dir: str | None = None,
        **options: Any,
    ):
        self.data_dir = data_dir
        self.tfds_name = tfds_name
        super().__init__(files=splits, kind=kind, **options)

    def paths(self, split: str) -> list[str]:
        """Returns the TFDS split that holds our split."""
        given = self.files["train" if self._divided else split]
        return [given] if isinstance(given, str) else list(given)

    def objects(
        self, path: str, log: RejectionLog | None, split: str
    ) -> Iterator[tuple[int, Any, str]]:
        """Yields (row, example as plain Python values, its text) of a TFDS split, in the stored order."""
        import tensorflow_datasets as tfds

        data = tfds.load(self.tfds_name, split=path, data_dir=self.data_dir, shuffle_files=False)
        for row, example in enumerate(tfds.as_numpy(data), start=1):
            if log is not None:
                log.seen += 1
            obj = _plain(example)
            yield row, obj, str(obj)

    def describe(self, path: str) -> str:
        """Returns the name of the split in reports."""
        return f"{self.tfds_name}[{path}]"

    def fingerprint(self) -> str | None:
        """Returns None, because the content of TFDS data is compared directly."""
        return None


def as_seqio_source(source: sources.RecordSource) -> Any:
    """Returns a seqio DataSource that yields a record source's records.

    Its `log` attribute collects the bad records. With a log, data that cannot be read end the split, and the error is kept in `failure`,
    because tf.data would turn it into a very long message.
    """
    import seqio
    import tensorflow as tf

    signature = {
        "prompt": tf.TensorSpec([], tf.string),
        "responses": tf.TensorSpec([None], tf.string),
        "group": tf.TensorSpec([], tf.string),
        "source": tf.TensorSpec([], tf.string),
        "file": tf.TensorSpec([], tf.string),
        "line": tf.TensorSpec([], tf.int32),
    }
    if source.kind != "seq2seq":
        signature["feedback"] = tf.TensorSpec([None], tf.float32)
        signature["reference_feedback"] = tf.TensorSpec([None], tf.float32)
    if source.kind == "multi":
        signature["scores"] = tf.TensorSpec([None, len(source.score_names)], tf.float32)

    class RecordDataSource(seqio.FunctionDataSource):
        """The records of one of our sources."""

        def __init__(self) -> None:
            self.record_source = source
            self.log: RejectionLog | None = None
            self.failure: DataError | None = None
            super().__init__(dataset_fn=self._dataset, splits=source.splits)

        def _dataset(self, split: str, shuffle_files: bool = False, seed: int | None = None) -> Any:
            def elements() -> Iterator[dict[str, Any]]:
                try:
                    yield from read(RejectionLog() if self.log is None else self.log)
                except DataError as error:
                    if self.log is None:
                        raise
                    self.failure = error

            def read(log: RejectionLog) -> Iterator[dict[str, Any]]:
                for record in source.records(split, log):
                    element: dict[str, Any] = {
                        "prompt": record.prompt,
                        "responses": list(record.responses),
                        "group": record.group or "",
                        "source": record.source,
                        "file": record.file,
                        "line": record.line,
                    }
                    if "feedback" in signature:
                        element["feedback"] = record.feedback
                        element["reference_feedback"] = record.reference_feedback or ()
                    if "scores" in signature:
                        element["scores"] = record.scores
                    yield element

            return tf.data.Dataset.from_generator(elements, output_signature=signature)

    return RecordDataSource()


@dataclasses.dataclass
class SeqioSource(sources.RecordSource):
    """A registered seqio task or mixture as a source of tokenised records, for the cache."""

    provider: Any
    kind: str
    score_names: tuple[str, ...]
    vocabulary: Vocabulary

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of the task."""
        return tuple(self.provider.splits)

    def tokenized(
        self, split: str, log: RejectionLog
    ) -> Iterator[tuple[Record, list[int], list[list[int]]]]:
        """Yields (record, prompt tokens, response tokens) without EOS, as made by seqio's pipeline."""
        import seqio

        is_mixture = isinstance(self.provider, seqio.Mixture)
        tasks = self.provider.tasks if is_mixture else [self.provider]
        if all(split not in task.splits for task in tasks):
            raise DataError(f"{self.provider.name!r} has no split {split!r}; it has {self.splits}.")
        ours = [task.source for task in tasks if hasattr(task.source, "record_source")]
        options: dict[str, Any] = {"passthrough_features": _KEPT_FEATURES} if is_mixture else {}
        for data_source in ours:
            data_source.log, data_source.failure = log, None
        try:
            yield from self._read(split, log, options, foreign=len(ours) < len(tasks))
            for data_source in ours:
                if data_source.failure is not None:
                    raise data_source.failure
        finally:
            for data_source in ours:
                data_source.log = data_source.failure = None

    def _read(
        self, split: str, log: RejectionLog, options: Mapping[str, Any], *, foreign: bool
    ) -> Iterator[tuple[Record, list[int], list[list[int]]]]:
        """Yields the content of seqio's dataset; data that TensorFlow cannot read raise a DataError."""
        import tensorflow as tf

        try:
            dataset = self.provider.get_dataset(
                sequence_length=None,
                split=split,
                shuffle=False,
                num_epochs=1,
                try_in_mem_cache=False,
                **options,
            )
            for row, example in enumerate(dataset.as_numpy_iterator(), start=1):
                if foreign:
                    log.seen += 1
                item = self._item(_plain(example), row, log, split)
                if item is not None:
                    yield item
        except (tf.errors.OpError, OSError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise DataError(
                f"The split {split!r} of {self.provider.name!r} cannot be read: {reason}"
            ) from error

    def _item(
        self, example: Mapping[str, Any], row: int, log: RejectionLog, split: str
    ) -> tuple[Record, list[int], list[list[int]]] | None:
        eos = self.vocabulary.eos_id
        inputs = _without_eos(example["inputs"], eos)
        flat = example["targets"]
        lengths = example.get("target_lengths") or [len(flat)]
        ends = [sum(lengths[: k + 1]) for k in range(len(lengths))]
        targets = [
            _without_eos(flat[end - length : end], eos)
            for end, length in zip(ends, lengths, strict=True)
        ]
        texts = example.get("responses") or [self.vocabulary.decode(target) for target in targets]
        feedback = example.get("feedback")
        scores = example.get("scores")
        reference_feedback = example.get("reference_feedback")
        record = Record(
            prompt=example.get("prompt")
            or self.vocabulary.decode(_without_prefix(inputs, self.vocabulary)),
            responses=tuple(texts),
            feedback=None if feedback is None else tuple(feedback),
            scores=None if scores is None else tuple(map(tuple, scores)),
            group=example.get("group") or None,
            source=example.get("source") or self.provider.name,
            file=example.get("file") or self.provider.name,
            line=example.get("line") or row,
            reference_feedback=tuple(reference_feedback) if reference_feedback else None,
        )
        problem = _problem(record)
        if problem is not None:
            log.reject_record(record, *problem, split=split)
            return None
        return record, inputs, targets

    def records(self, split: str, log: RejectionLog | None = None) -> Iterator[Record]:
        """Yields only the records."""
        for record, _, _ in self.tokenized(split, RejectionLog() if log is None else log):
            yield record

    def fingerprint(self) -> str | None:
        """Returns None, because the content is compared directly."""
        return None


def _problem(record: Record) -> tuple[str, str] | None:
    """Returns (reason, message) for an error in a record that another library's preprocessing made, or None."""
    if not record.prompt.strip():
        return "empty_prompt", "the prompt is empty"
    for k, response in enumerate(record.responses):
        if not response.strip():
            return "empty_response", f"response {k} is empty"
    numbers = [
        *(record.feedback or ()),
        *(record.reference_feedback or ()),
        *(x for row in record.scores or () for x in row),
    ]
    if not all(map(math.isfinite, numbers)):
        return "nonfinite_feedback", "feedback or a score is NaN or infinite"
    if record.feedback is not None and len(record.feedback) != len(record.responses):
        return "wrong_type", (
            f"{len(record.feedback)} feedback numbers for {len(record.responses)} responses"
        )
    return None


def _without_prefix(tokens: Sequence[int], vocabulary: Vocabulary) -> Sequence[int]:
    """Returns the tokens of a prompt without those with which every prompt begins."""
    prefix = vocabulary.prompt_prefix
    return tokens[len(prefix) :] if tuple(tokens[: len(prefix)]) == prefix else tokens


def _without_eos(tokens: Sequence[int], eos: int) -> list[int]:
    return list(tokens[:-1] if tokens and tokens[-1] == eos else tokens)


def _plain(value: Any) -> Any:
    """Converts numpy values and bytes to the Python values that JSON would have given."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
