"""The tokenised cache: a task is read, checked and tokenised once, and training reads ArrayRecord files.

A cache folder holds `<split>.array_record` (one `CachedExample` a record), `metadata.json`, `rejected.jsonl`, and the
SentencePiece model if there is one, so it can be moved to another machine as it is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.data import registry, sources, validation
from jaxalign.data.examples import encode_example
from jaxalign.data.records import Record
from jaxalign.data.rejections import DataError, RejectionLog
from jaxalign.data.tokenization import Limits, SplitSummary, Tokenized, make_examples, tokenize
from jaxalign.data.vocabularies import Vocabulary, vocabulary_from_dict, vocabulary_from_spec

METADATA_FILE = "metadata.json"
REJECTED_FILE = "rejected.jsonl"
_MODEL_FILE = "vocabulary.model"
_VERSION = 1


def cache(
    task: str,
    output_dir: str,
    *,
    vocabulary: str | None = None,
    extra_ids: int = 0,
    splits: Sequence[str] = ("train", "validation"),
    max_input_length: int = 512,
    max_target_length: int = 512,
    long_prompts: str = "truncate",
    max_rejected_fraction: float = 0.05,
    max_unknown_fraction: float = 0.2,
    duplicates: str = "reject",
    kind: str = "triplet",
    train_file: str | None = None,
    validation_file: str | None = None,
    responses_per_example: int = 1,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Tokenises a task into `output_dir` (`jaxalign cache`) and returns the metadata.

    Args:
      task: a bundled task (synthetic_triplets, synthetic_seq2seq, synthetic_pairs, synthetic_ranked), a task or mixture
        registered with seqio, or, with `train_file`, any name for your own file.
      output_dir: the cache folder. An identical cache there is reused, a different one refused unless `overwrite`.
      vocabulary: "bytes" or the path of a SentencePiece model; None takes the seqio task's own, else "bytes".
      extra_ids: sentinels after the vocabulary (100 for T5's).
      splits: splits to write; "train" gives the feedback statistics.
      max_input_length, max_target_length: in tokens, EOS included; a longer response is rejected.
      long_prompts: "truncate" (keep the beginning), "truncate_left" (keep the end) or "reject".
      max_rejected_fraction: above this share of rejected records the command stops.
      max_unknown_fraction: largest share of unknown pieces in a prompt or response.
      duplicates: "reject" or "keep" repeated records; logged data often repeats, and then "keep" is right.
      kind, train_file, validation_file: your own JSON Lines files; without a validation file a tenth of the prompts is used.
      responses_per_example: above 1, joins the records of one prompt into examples of up to that many responses.
      overwrite: replace a different cache in `output_dir`.

    Raises:
      DataError: too many bad records (all listed in a side file), no records, or a different cache in the way.
    """
    limits = Limits(
        max_input_length, max_target_length, long_prompts, max_unknown_fraction, duplicates
    )
    source: sources.RecordSource
    if train_file is not None:
        files = {"train": train_file}
        if validation_file is not None:
            files["validation"] = validation_file
        source = sources.JsonlSource(
            files, kind, responses_per_example=responses_per_example, duplicates=duplicates
        )
    else:
        source = registry.resolve_source(task)
    own = getattr(source, "vocabulary", None)
    chosen = vocabulary_from_spec(vocabulary or own or "bytes", extra_ids)
    if own is not None and chosen != own:
        raise DataError(
            f"The task {task!r} is tokenised by seqio with its own vocabulary, which is not {vocabulary!r}; register it "
            "with that vocabulary, or leave the option out."
        )
    return cache_source(
        source,
        output_dir,
        name=task,
        vocabulary=chosen,
        splits=tuple(splits),
        limits=limits,
        max_rejected_fraction=max_rejected_fraction,
        overwrite=overwrite,
    )


def cache_source(
    source: sources.RecordSource,
    output_dir: str,
    *,
    name: str,
    vocabulary: Vocabulary,
    splits: Sequence[str] = ("train", "validation"),
    limits: Limits | None = None,
    max_rejected_fraction: float = 0.05,
    overwrite: bool = False,
) -> dict[str, Any]:
    """`cache` for a source object; see there."""
    limits = limits or Limits()
    output_dir = os.path.abspath(output_dir)
    options = {
        "version": _VERSION,
        "kind": source.kind,
        "splits": list(splits),
        "limits": dataclasses.asdict(limits),
        "vocabulary": _portable(vocabulary),
    }
    source_fingerprint = source.fingerprint()
    existing = _existing(output_dir)
    request = _digest([options, source_fingerprint]) if source_fingerprint else None
    if existing and request and existing.get("request") == request and not overwrite:
        return existing
    parent = os.path.dirname(output_dir)
    os.makedirs(parent, exist_ok=True)
    partial = tempfile.mkdtemp(prefix=f".{os.path.basename(output_dir)}.", dir=parent)
    try:
        metadata = _write(
            source, partial, splits, vocabulary, limits, max_rejected_fraction, output_dir, name
        )
        metadata = {"name": name, **options, "request": request, **metadata}
        with open(os.path.join(partial, METADATA_FILE), "w", encoding="utf-8") as file:
            json.dump(metadata, file, indent=2, ensure_ascii=False)
            file.write("\n")
        if existing and not overwrite:
            if existing["fingerprint"] == metadata["fingerprint"]:
                return existing
            raise DataError(
                f"{output_dir} already holds a different cache (task {existing['name']!r}); choose another "
                "output_dir (CACHE_DIR of a training run), delete the folder, or pass overwrite=True to `jaxalign cache`."
            )
        _move_into_place(partial, output_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return metadata


def load_metadata(cache_dir: str) -> dict[str, Any]:
    """The cache's metadata.

    Keys: name, kind, responses_per_example (K), fields (which of feedback, scores, reference_feedback the batches have),
    reference_samples (numbers in reference_feedback; caches of before it lack the key), score_names,
    num_examples (by split), num_prompts (by split), feedback {"mean", "std"} of the training split's responses or None,
    num_responses (by split) and feedback_ranges (by split: {"feedback", "chosen_feedback"} {"min", "max"} of all and of the first
    responses; older caches lack both),
    vocabulary (see `load_vocabulary`), lengths (percentiles of prompt and response tokens by split), num_read (records
    read, good and bad, by split), rejected (counts by split and reason), notes (other counts by split, such as
    truncated_prompts, or without_margin of pairs), limits, fingerprint (of the content).
    """
    path = os.path.join(cache_dir, METADATA_FILE)
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        raise DataError(
            f"{cache_dir} is not a cache: it has no {METADATA_FILE}. Make one with `jaxalign cache`."
        ) from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not valid JSON ({error}); make the cache again.") from None


def load_vocabulary(cache_dir: str) -> Vocabulary:
    """The vocabulary the cache was made with."""
    return vocabulary_from_dict(load_metadata(cache_dir)["vocabulary"], cache_dir)


def split_path(cache_dir: str, split: str) -> str:
    """The ArrayRecord file of a split."""
    return os.path.join(cache_dir, f"{split}.array_record")


def lengths_path(cache_dir: str, split: str) -> str:
    """The array of a split's lengths: int32 [examples, 2], tokens of the prompt and of all responses."""
    return os.path.join(cache_dir, f"{split}.lengths.npy")


def _tokenized_split(
    source: sources.RecordSource,
    split: str,
    vocabulary: Vocabulary,
    duplicates: str,
    log: RejectionLog,
) -> Iterator[Tokenized]:
    """The split through seqio's own pipeline where the task has one, else through ours (the ids are the same)."""
    if hasattr(source, "tokenized"):
        tokenized = source.tokenized(split, log)
        if duplicates == "reject":
            tokenized = validation.drop_duplicates(tokenized, log, split, record_of=lambda t: t[0])
        return tokenized
    records: Iterable[Record] = source.records(split, log)
    if duplicates == "reject":
        records = validation.drop_duplicates(records, log, split)
    return tokenize(records, vocabulary)


def _write(
    source: sources.RecordSource,
    folder: str,
    splits: Sequence[str],
    vocabulary: Vocabulary,
    limits: Limits,
    max_rejected_fraction: float,
    output_dir: str,
    name: str,
) -> dict[str, Any]:
    """Writes the splits and the side file into a fresh folder; returns what was found."""
    all_rejected = RejectionLog()
    content = hashlib.sha256()
    summaries: dict[str, SplitSummary] = {}
    rejected: dict[str, dict[str, int]] = {}
    read: dict[str, int] = {}
    reference_samples = validation.ReferenceSamples()
    notes: dict[str, dict[str, int]] = {}
    for split in splits:
        log = RejectionLog()
        tokenized = _tokenized_split(source, split, vocabulary, limits.duplicates, log)
        tokenized = reference_samples.same(tokenized, log, split, record_of=lambda item: item[0])
        summary = SplitSummary()
        content.update(f"{split}\n".encode())
        with _writer(split_path(folder, split)) as writer:
            for example in make_examples(tokenized, vocabulary, limits, log, split):
                data = encode_example(example)
                content.update(hashlib.sha256(data).digest())
                writer.write(data)
                summary.add(example)
        with open(lengths_path(folder, split), "wb") as file:
            np.save(file, summary.example_lengths(), allow_pickle=False)
        log.check(max_rejected_fraction, f"{output_dir}.rejected.jsonl")
        if not summary.prompt_lengths:
            raise DataError(f"The split {split!r} has no usable records ({log.seen} read).")
        summaries[split] = summary
        rejected[split] = log.counts
        notes[split] = dict(log.notes)
        read[split] = log.seen
        all_rejected.entries.extend(log.entries)
    all_rejected.write(os.path.join(folder, REJECTED_FILE))
    _check_no_straddling(summaries, by_seqio=hasattr(source, "tokenized"), name=name)
    spec = _portable(vocabulary)
    if "path" in spec:
        shutil.copyfile(vocabulary.to_dict()["path"], os.path.join(folder, _MODEL_FILE))
    everything = summaries.values()
    return {
        "responses_per_example": max(s.responses for s in everything),
        "fields": sorted(set.intersection(*(s.fields for s in everything))),
        "reference_samples": max(s.reference_samples for s in everything),
        "score_names": list(source.score_names),
        "num_examples": {name: len(s.prompt_lengths) for name, s in summaries.items()},
        "num_prompts": {name: len(s.prompts) for name, s in summaries.items()},
        "num_responses": {name: len(s.response_lengths) for name, s in summaries.items()},
        "feedback_ranges": {name: s.feedback_ranges() for name, s in summaries.items()},
        "feedback": summaries["train"].feedback_statistics() if "train" in summaries else None,
        "lengths": {name: s.lengths() for name, s in summaries.items()},
        "rejected": rejected,
        "notes": notes,
        "num_read": read,
        "fingerprint": content.hexdigest(),
    }


def _check_no_straddling(
    summaries: Mapping[str, SplitSummary], *, by_seqio: bool, name: str
) -> None:
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
            shared = summaries[first].prompts & summaries[second].prompts
            if shared:
                example = min(shared)
                raise DataError(
                    f"{len(shared)} prompts are in both {first!r} and {second!r}, for example {example[:80]!r}; {advice}."
                )


def _portable(vocabulary: Vocabulary) -> dict[str, Any]:
    """The vocabulary's description with the path it has inside the cache."""
    spec = dict(vocabulary.to_dict())
    if "path" in spec:
        spec["path"] = _MODEL_FILE
    return spec


class _writer:
    """An ArrayRecord file with one record a group, which random access wants."""

    def __init__(self, path: str):
        from array_record.python import array_record_module

        self._writer = array_record_module.ArrayRecordWriter(path, "group_size:1")

    def __enter__(self) -> Any:
        return self._writer

    def __exit__(self, *exception: Any) -> None:
        self._writer.close()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _existing(output_dir: str) -> dict[str, Any] | None:
    if not os.path.exists(output_dir) or (os.path.isdir(output_dir) and not os.listdir(output_dir)):
        return None
    if not os.path.exists(os.path.join(output_dir, METADATA_FILE)):
        raise DataError(
            f"{output_dir} exists and is not a cache; choose another output_dir (nothing was changed)."
        )
    return load_metadata(output_dir)


def _move_into_place(partial: str, output_dir: str) -> None:
    """Renames the finished folder; readers see the old cache or the new one, never a mixture."""
    os.chmod(partial, 0o755)
    old = None
    if os.path.exists(output_dir):
        old = tempfile.mkdtemp(prefix=".old.", dir=os.path.dirname(output_dir))
        os.replace(output_dir, os.path.join(old, "cache"))
    os.replace(partial, output_dir)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
