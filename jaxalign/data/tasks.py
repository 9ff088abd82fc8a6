"""seqio Tasks and Mixtures over the record sources. The functions import seqio (and so TensorFlow) when called.

An element of a Task has `inputs` (prompt with EOS), `targets` (the responses' tokens one after another, each with EOS),
`target_lengths` [responses], `feedback` [responses] (kinds with feedback), `scores` [responses, scores] (kind multi), and
the text and location of the record (`prompt`, `responses`, `group`, `source`, `file`, `line`). Bad records are left out and
counted in the source's log. In gin, set `tasks.register_jsonl_task.name = ...` and list the function where the run
registers its tasks.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxalign.data import bundled_sources, sources
from jaxalign.data.chat_templates import read_chat_template
from jaxalign.data.rejections import DataError
from jaxalign.data.seqio_sources import SeqioSource, TfdsSource, as_seqio_source
from jaxalign.data.tokenizer_vocabulary import TokenizerVocabulary
from jaxalign.data.ultrafeedback import ASPECTS, CONTAMINATED_SOURCES, UltraFeedbackParser
from jaxalign.data.vocabularies import (
    ByteVocabulary,
    SentencePieceVocabulary,
    Vocabulary,
    vocabulary_from_spec,
)

if TYPE_CHECKING:
    import seqio


def register_jsonl_task(
    name: str,
    kind: str,
    files: Mapping[str, str | Sequence[str]],
    *,
    vocabulary: str | Vocabulary = "bytes",
    extra_ids: int = 0,
    layout: str = "records",
    chat_template: str | None = None,
    fields: str | Mapping[str, str] | None = None,
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
      vocabulary: "bytes" or the path of a SentencePiece model; extra_ids: the number of sentinels after it.
      layout: see `layouts`.
      chat_template: a Jinja file or the folder of a tokenizer, which turns chat messages into text.
      fields: the files' names for prompt, response, feedback ... if they differ, as a mapping or "response=completion,feedback=label".
      score_names: for multi, the scores and their order.
      responses_per_example: if above 1, the records of one prompt are joined.
      duplicates: "reject" or "keep", among the records that are joined.
      validation_fraction, split_seed: determine how one file is divided.
    """
    source = sources.JsonlSource(
        files,
        kind,
        layout=layout,
        chat_template=read_chat_template(chat_template) if chat_template else None,
        fields=fields or {},
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

    A single file (or only "train") is divided by prompt.
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
      tfds_name: the name with version, as for `tfds.load`.
      splits: our split -> TFDS split, such as {"train": "train", "validation": "test"}; with only "train" (the default) the split is
        divided by prompt.
      data_dir: the folder in which TFDS keeps its data.
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
    """Registers the bundled tasks with seqio (for mixtures; `jaxalign cache` needs no registration) and returns their names."""
    import seqio

    for name, make in bundled_sources.BUNDLED.items():
        if name not in seqio.TaskRegistry.names():
            register_source_task(name, make(), vocabulary=vocabulary)
    return list(bundled_sources.BUNDLED)


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
      default_rate: the rate of tasks given without a rate.
      stop_on_empty: whether one epoch ends when the first task is used up, which keeps the rates exact (seqio's own default);
        otherwise an epoch holds every example of every task once.
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
        source=as_seqio_source(source),
        preprocessors=[tokenize_responses],
        output_features=features,
    )
    _OUR_VOCABULARIES[name] = ours
    return task


def tokenize_responses(dataset: Any, output_features: Mapping[str, Any]) -> Any:
    """A seqio preprocessor: `prompt` and `responses` become `inputs`, `targets` and `target_lengths`, each text with EOS."""
    import tensorflow as tf

    inputs = output_features["inputs"].vocabulary
    # Gemma's prompts begin with BOS; seqio's own vocabularies have no such tokens.
    tokenizer = getattr(inputs, "tokenizer", None)
    prefix = tf.constant(getattr(tokenizer, "prompt_prefix", ()), tf.int32)

    def encode(text: Any, vocabulary: Any) -> Any:
        return tf.concat([vocabulary.encode_tf(text), [vocabulary.eos_id]], axis=0)

    def tokenize(example: dict[str, Any]) -> dict[str, Any]:
        targets = tf.map_fn(
            lambda text: encode(text, output_features["targets"].vocabulary),
            example["responses"],
            fn_output_signature=tf.RaggedTensorSpec([None], tf.int32, ragged_rank=0),
        )
        return example | {
            "inputs": tf.concat([prefix, encode(example["prompt"], inputs)], axis=0),
            "targets": targets.flat_values,
            "target_lengths": tf.cast(targets.row_lengths(), tf.int32),
        }

    return dataset.map(tokenize, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


_OUR_VOCABULARIES: dict[str, Vocabulary] = {}


def source_of_task(name: str) -> SeqioSource:
    """Returns the registered seqio task or mixture of that name as a source for the cache.

    Raises:
      DataError: there is no such task; the message lists the registered tasks.
    """
    import seqio

    if name in seqio.TaskRegistry.names():
        provider = seqio.TaskRegistry.get(name)
        tasks = [provider]
    elif name in seqio.MixtureRegistry.names():
        provider = seqio.MixtureRegistry.get(name)
        tasks = provider.tasks
    else:
        known = [
            *bundled_sources.BUNDLED,
            *seqio.TaskRegistry.names(),
            *seqio.MixtureRegistry.names(),
        ]
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
    """Returns our vocabulary with the ids of a seqio task's targets."""
    import seqio

    if task.name in _OUR_VOCABULARIES:
        return _OUR_VOCABULARIES[task.name]
    theirs = task.output_features["targets"].vocabulary
    if isinstance(getattr(theirs, "tokenizer", None), TokenizerVocabulary):
        return theirs.tokenizer
    if isinstance(theirs, seqio.SentencePieceVocabulary):
        return SentencePieceVocabulary(theirs.sentencepiece_model_file, theirs.extra_ids)
    if isinstance(theirs, seqio.ByteVocabulary):
        return ByteVocabulary(theirs.extra_ids)
    raise DataError(
        f"The task {task.name!r} uses {type(theirs).__name__}; only SentencePiece and byte vocabularies, "
        "and those of TokenizerVocabulary.to_seqio, can be cached."
    )


def _fractions(validation_fraction: float) -> dict[str, float]:
    if not 0 < validation_fraction < 1:
        raise DataError(f"validation_fraction={validation_fraction:g} must be between 0 and 1.")
    return {"train": 1 - validation_fraction, "validation": validation_fraction}
