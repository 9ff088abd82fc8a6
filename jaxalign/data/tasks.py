"""seqio Tasks and Mixtures over the record sources. The functions import seqio (and so TensorFlow) when called.

An element of a Task has `inputs` (prompt with EOS), `targets` (the responses' tokens one after another, each with EOS),
`target_lengths` [responses], `feedback` [responses] (kinds with feedback), `scores` [responses, scores] (kind multi), and
the text and place of the record (`prompt`, `responses`, `group`, `source`, `file`, `line`). Bad records are left out and
counted in the source's log. From gin: `tasks.register_jsonl_task.name = ...`, with the function listed where the run
registers its tasks.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxalign.data import sources
from jaxalign.data.records import Record
from jaxalign.data.ultrafeedback import ASPECTS, CONTAMINATED_SOURCES, UltraFeedbackParser
from jaxalign.data.validation import DataError, RejectionLog
from jaxalign.data.vocabularies import (
    ByteVocabulary,
    SentencePieceVocabulary,
    Vocabulary,
    vocabulary_from_spec,
)

if TYPE_CHECKING:
    import seqio

_TEXT_FEATURES = ("prompt", "responses", "group", "source", "file", "line")


def register_jsonl_task(
    name: str,
    kind: str,
    files: Mapping[str, str | Sequence[str]],
    *,
    vocabulary: str | Vocabulary = "bytes",
    extra_ids: int = 0,
    fields: Mapping[str, str] | None = None,
    score_names: Sequence[str] = (),
    responses_per_example: int = 1,
    duplicates: str = "reject",
    validation_fraction: float = 0.1,
    split_seed: int = 0,
) -> seqio.Task:
    """Registers JSON Lines files as a seqio Task.

    Args:
      name: the task's name.
      kind: triplet, pair, ranked, seq2seq or multi.
      files: split -> path, paths or glob pattern; with only "train", `validation_fraction` of its prompts is "validation".
      vocabulary: "bytes" or the path of a SentencePiece model; extra_ids: sentinels after it.
      fields: the files' names for prompt, response, feedback ... where they differ.
      score_names: for multi, which scores in which order.
      responses_per_example: above 1, joins the records of one prompt.
      duplicates: "reject" or "keep", among the records that are joined.
      validation_fraction, split_seed: how one file is divided.
    """
    source = sources.JsonlSource(
        files,
        kind,
        fields=dict(fields or {}),
        score_names=tuple(score_names),
        responses_per_example=responses_per_example,
        duplicates=duplicates,
        split_fractions=_fractions(validation_fraction),
        split_seed=split_seed,
    )
    return register_source_task(name, source, vocabulary=vocabulary, extra_ids=extra_ids)


def register_ultrafeedback_task(
    name: str,
    files: Mapping[str, str | Sequence[str]] | str,
    *,
    vocabulary: str | Vocabulary = "bytes",
    extra_ids: int = 0,
    kind: str = "triplet",
    reward_field: str = "mean_aspects",
    drop_sources: Sequence[str] = CONTAMINATED_SOURCES,
    responses_per_example: int = 1,
    validation_fraction: float = 0.1,
    split_seed: int = 0,
) -> seqio.Task:
    """Registers UltraFeedback, exported as JSON Lines in its own layout; see `ultrafeedback` for the options.

    One file (or only "train") is divided by prompt.
    """
    source = sources.JsonlSource(
        {"train": files} if isinstance(files, str) else files,
        kind,
        score_names=ASPECTS if kind == "multi" else (),
        responses_per_example=responses_per_example,
        split_fractions=_fractions(validation_fraction),
        split_seed=split_seed,
        parser=UltraFeedbackParser(kind, reward_field, tuple(drop_sources)),
    )
    return register_source_task(name, source, vocabulary=vocabulary, extra_ids=extra_ids)


def register_tfds_task(
    name: str,
    tfds_name: str,
    kind: str,
    *,
    splits: Mapping[str, str] | None = None,
    data_dir: str | None = None,
    layout: str = "records",
    vocabulary: str | Vocabulary = "bytes",
    extra_ids: int = 0,
    fields: Mapping[str, str] | None = None,
    score_names: Sequence[str] = (),
    reward_field: str = "mean_aspects",
    responses_per_example: int = 1,
    validation_fraction: float = 0.1,
    split_seed: int = 0,
) -> seqio.Task:
    """Registers a TFDS data set as a seqio Task.

    Args:
      tfds_name: name with version, as for `tfds.load`.
      splits: our split -> TFDS split, such as {"train": "train", "validation": "test"}; with only "train" (the default) it is
        divided by prompt.
      data_dir: where TFDS keeps its data.
      layout: "records" (the columns are the fields of the kind) or "ultrafeedback".
      reward_field: for the layout "ultrafeedback".
      Others: see `register_jsonl_task`.
    """
    source = TfdsSource(
        tfds_name,
        kind,
        splits=dict(splits or {"train": "train"}),
        data_dir=data_dir,
        parser=UltraFeedbackParser(kind, reward_field) if layout == "ultrafeedback" else None,
        fields=dict(fields or {}),
        score_names=ASPECTS
        if layout == "ultrafeedback" and kind == "multi"
        else tuple(score_names),
        responses_per_example=responses_per_example,
        split_fractions=_fractions(validation_fraction),
        split_seed=split_seed,
    )
    return register_source_task(name, source, vocabulary=vocabulary, extra_ids=extra_ids)


def register_bundled_tasks(vocabulary: str | Vocabulary = "bytes") -> list[str]:
    """Registers the bundled tasks with seqio (for mixtures; `jaxalign cache` needs no registration), and returns their names."""
    import seqio

    for name, make in sources.BUNDLED.items():
        if name not in seqio.TaskRegistry.names():
            register_source_task(name, make(), vocabulary=vocabulary)
    return list(sources.BUNDLED)


def register_mixture(
    name: str,
    tasks: Sequence[str | tuple[str, float]],
    *,
    default_rate: float = 1.0,
    stop_on_empty: bool = False,
) -> seqio.Mixture:
    """Registers a seqio Mixture of registered tasks.

    Args:
      tasks: names, or (name, rate) pairs.
      default_rate: rate of tasks named without one.
      stop_on_empty: one epoch ends when the first task is used up, which keeps the rates exact (seqio's own default);
        otherwise it holds every example of every task once.
    """
    import seqio
    import tensorflow as tf

    sample = functools.partial(
        tf.data.Dataset.sample_from_datasets, stop_on_empty_dataset=stop_on_empty
    )
    return seqio.MixtureRegistry.add(name, list(tasks), default_rate=default_rate, sample_fn=sample)


def register_source_task(
    name: str,
    source: sources.RecordSource,
    *,
    vocabulary: str | Vocabulary = "bytes",
    extra_ids: int = 0,
) -> seqio.Task:
    """Registers any record source as a seqio Task."""
    import seqio
    import tensorflow as tf

    ours = vocabulary_from_spec(vocabulary, extra_ids)
    theirs = ours.to_seqio()
    plain = seqio.PassThroughVocabulary(size=1)
    features = {
        "inputs": seqio.Feature(theirs, add_eos=True),
        "targets": seqio.Feature(theirs, add_eos=True),
        "target_lengths": seqio.Feature(plain, add_eos=False),
    }
    if source.kind != "seq2seq":
        features["feedback"] = seqio.Feature(plain, add_eos=False, dtype=tf.float32)
    if source.kind == "multi":
        features["scores"] = seqio.Feature(plain, add_eos=False, dtype=tf.float32, rank=2)
    task = seqio.TaskRegistry.add(
        name,
        source=_seqio_source(source),
        preprocessors=[tokenize_responses],
        output_features=features,
    )
    _OUR_VOCABULARIES[name] = ours
    return task


def tokenize_responses(dataset: Any, output_features: Mapping[str, Any]) -> Any:
    """seqio preprocessor: `prompt` and `responses` become `inputs`, `targets` and `target_lengths`, each text with EOS."""
    import tensorflow as tf

    def encode(text: Any, vocabulary: Any) -> Any:
        return tf.concat([vocabulary.encode_tf(text), [vocabulary.eos_id]], axis=0)

    def tokenize(example: dict[str, Any]) -> dict[str, Any]:
        targets = tf.map_fn(
            lambda text: encode(text, output_features["targets"].vocabulary),
            example["responses"],
            fn_output_signature=tf.RaggedTensorSpec([None], tf.int32, ragged_rank=0),
        )
        return example | {
            "inputs": encode(example["prompt"], output_features["inputs"].vocabulary),
            "targets": targets.flat_values,
            "target_lengths": tf.cast(targets.row_lengths(), tf.int32),
        }

    return dataset.map(tokenize, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


_OUR_VOCABULARIES: dict[str, Vocabulary] = {}


def _seqio_source(source: sources.RecordSource) -> Any:
    """A seqio DataSource that yields a record source's records; its `log` attribute collects the bad ones."""
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
    if source.kind == "multi":
        signature["scores"] = tf.TensorSpec([None, len(source.score_names)], tf.float32)

    class RecordDataSource(seqio.FunctionDataSource):
        """Records of one of our sources."""

        def __init__(self) -> None:
            self.record_source = source
            self.log: RejectionLog | None = None
            super().__init__(dataset_fn=self._dataset, splits=source.splits)

        def _dataset(self, split: str, shuffle_files: bool = False, seed: int | None = None) -> Any:
            def elements() -> Iterator[dict[str, Any]]:
                log = RejectionLog() if self.log is None else self.log
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
                    if "scores" in signature:
                        element["scores"] = record.scores
                    yield element

            return tf.data.Dataset.from_generator(elements, output_signature=signature)

    return RecordDataSource()


@dataclasses.dataclass
class TfdsSource(sources.JsonlSource):
    """A TFDS data set as records: rows play the part of lines."""

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
        """The TFDS split; nothing to expand."""
        given = self.files["train" if self._divided else split]
        return [given] if isinstance(given, str) else list(given)

    def objects(
        self, path: str, log: RejectionLog | None, split: str
    ) -> Iterator[tuple[int, Any, str]]:
        """(row, example as plain Python values, its text) of a TFDS split, in the stored order."""
        import tensorflow_datasets as tfds

        data = tfds.load(self.tfds_name, split=path, data_dir=self.data_dir, shuffle_files=False)
        for row, example in enumerate(tfds.as_numpy(data), start=1):
            if log is not None:
                log.seen += 1
            obj = _plain(example)
            yield row, obj, str(obj)

    def describe(self, path: str) -> str:
        """What stands for the file name in reports."""
        return f"{self.tfds_name}[{path}]"

    def fingerprint(self) -> str | None:
        """None: what TFDS holds is compared by content."""
        return None


def _plain(value: Any) -> Any:
    """numpy values and bytes as the Python values that JSON would have given."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


@dataclasses.dataclass
class SeqioSource:
    """A registered seqio task or mixture as a source of tokenised records, for the cache."""

    provider: Any
    kind: str
    score_names: tuple[str, ...]
    vocabulary: Vocabulary

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits of the task."""
        return tuple(self.provider.splits)

    def tokenized(
        self, split: str, log: RejectionLog
    ) -> Iterator[tuple[Record, list[int], list[list[int]]]]:
        """(record, prompt tokens, response tokens) without EOS, as seqio's pipeline made them."""
        import seqio

        is_mixture = isinstance(self.provider, seqio.Mixture)
        tasks = self.provider.tasks if is_mixture else [self.provider]
        if all(split not in task.splits for task in tasks):
            raise DataError(f"{self.provider.name!r} has no split {split!r}; it has {self.splits}.")
        ours = [task.source for task in tasks if hasattr(task.source, "record_source")]
        options: dict[str, Any] = {"passthrough_features": _TEXT_FEATURES} if is_mixture else {}
        for data_source in ours:
            data_source.log = log
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
                if len(ours) < len(tasks):
                    log.seen += 1
                item = self._item(_plain(example), row, log, split)
                if item is not None:
                    yield item
        finally:
            for data_source in ours:
                data_source.log = None

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
        record = Record(
            prompt=example.get("prompt") or self.vocabulary.decode(inputs),
            responses=tuple(texts),
            feedback=None if feedback is None else tuple(feedback),
            scores=None if scores is None else tuple(map(tuple, scores)),
            group=example.get("group") or None,
            source=example.get("source") or self.provider.name,
            file=example.get("file") or self.provider.name,
            line=example.get("line") or row,
        )
        problem = _problem(record)
        if problem is not None:
            log.reject_record(record, *problem, split=split)
            return None
        return record, inputs, targets

    def records(self, split: str, log: RejectionLog | None = None) -> Iterator[Record]:
        """The records alone."""
        for record, _, _ in self.tokenized(split, RejectionLog() if log is None else log):
            yield record

    def fingerprint(self) -> str | None:
        """None: compared by content."""
        return None


def _problem(record: Record) -> tuple[str, str] | None:
    """What is wrong with a record that another library's preprocessing made."""
    if not record.prompt.strip():
        return "empty_prompt", "the prompt is empty"
    for k, response in enumerate(record.responses):
        if not response.strip():
            return "empty_response", f"response {k} is empty"
    numbers = [*(record.feedback or ()), *(x for row in record.scores or () for x in row)]
    if not all(map(math.isfinite, numbers)):
        return "nonfinite_feedback", "feedback or a score is NaN or infinite"
    if record.feedback is not None and len(record.feedback) != len(record.responses):
        return "wrong_type", (
            f"{len(record.feedback)} feedback numbers for {len(record.responses)} responses"
        )
    return None


def _without_eos(tokens: Sequence[int], eos: int) -> list[int]:
    return list(tokens[:-1] if tokens and tokens[-1] == eos else tokens)


def source_of_task(name: str) -> SeqioSource:
    """The registered seqio task or mixture of that name, ready for the cache.

    Raises:
      DataError: naming the registered tasks, if there is none.
    """
    import seqio

    if name in seqio.TaskRegistry.names():
        provider = seqio.TaskRegistry.get(name)
        tasks = [provider]
    elif name in seqio.MixtureRegistry.names():
        provider = seqio.MixtureRegistry.get(name)
        tasks = provider.tasks
    else:
        known = [*sources.BUNDLED, *seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
        raise DataError(
            f"Unknown task {name!r}; known: {', '.join(dict.fromkeys(known))}. For your own JSON Lines file pass "
            "train_file and kind."
        )
    ours = [getattr(task.source, "record_source", None) for task in tasks]
    kinds = {source.kind if source else _foreign_kind(provider) for source in ours}
    names = {source.score_names for source in ours if source}
    if len(names) > 1:
        raise DataError(f"The tasks of {name!r} have different scores: {sorted(names)}.")
    return SeqioSource(
        provider,
        kind=kinds.pop() if len(kinds) == 1 else _foreign_kind(provider),
        score_names=names.pop() if names else (),
        vocabulary=_vocabulary_of(tasks[0]),
    )


def _foreign_kind(provider: Any) -> str:
    features = provider.output_features
    if "scores" in features:
        return "multi"
    return "triplet" if "feedback" in features else "seq2seq"


def _vocabulary_of(task: Any) -> Vocabulary:
    """Our vocabulary with the ids of a seqio task's targets."""
    import seqio

    if task.name in _OUR_VOCABULARIES:
        return _OUR_VOCABULARIES[task.name]
    theirs = task.output_features["targets"].vocabulary
    if isinstance(theirs, seqio.SentencePieceVocabulary):
        return SentencePieceVocabulary(theirs.sentencepiece_model_file, theirs.extra_ids)
    if isinstance(theirs, seqio.ByteVocabulary):
        return ByteVocabulary(theirs.extra_ids)
    raise DataError(
        f"The task {task.name!r} uses {type(theirs).__name__}; only SentencePiece and byte vocabularies can be cached."
    )


def _fractions(validation_fraction: float) -> dict[str, float]:
    if not 0 < validation_fraction < 1:
        raise DataError(f"validation_fraction={validation_fraction:g} must be between 0 and 1.")
    return {"train": 1 - validation_fraction, "validation": validation_fraction}
