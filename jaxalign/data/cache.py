"""The command `jaxalign cache`: reads, checks and tokenises a task once. Training reads the cache (`data.task_cache`)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Sequence

from jaxalign import files
from jaxalign.data import cache_metadata, layouts, sources, task_registry
from jaxalign.data.cache_metadata import CacheMetadata
from jaxalign.data.cache_writer import CacheWriter, portable
from jaxalign.data.chat_templates import read_chat_template
from jaxalign.data.images import ImageFormat
from jaxalign.data.records import KINDS
from jaxalign.data.rejections import MAX_REJECTED_FRACTION, DataError
from jaxalign.data.task_cache import TaskCache
from jaxalign.data.tokenization import Limits
from jaxalign.data.vocabularies import Vocabulary, vocabulary_from_spec
from jaxalign.errors import require_one_of, require_range


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
    layout: str = "records",
    chat_template: str | None = None,
    train_file: str | None = None,
    validation_file: str | None = None,
    fields: list[str] | None = None,
    responses_per_example: int = 1,
    image_size: int = 0,
    patch_size: int = 0,
    overwrite: bool = False,
) -> CacheMetadata:
    """Tokenises a task into `output_dir` (`jaxalign cache`) and returns the metadata.

    Args:
      task: a bundled task (synthetic_triplets, synthetic_seq2seq, synthetic_pairs, synthetic_ranked), a task or mixture
        registered with seqio, or any name for your own file if `train_file` is given.
      output_dir: the cache folder. An identical cache is reused; a different cache is an error unless `overwrite` is set.
      vocabulary: "bytes", or the path of a SentencePiece model, a tokenizer.json or their folder; None uses the vocabulary of the seqio
        task, or "bytes".
      extra_ids: number of sentinels after the vocabulary (100 for T5).
      splits: splits to write; the feedback statistics are those of "train".
      max_input_length, max_target_length: limits in tokens, including EOS; a longer response is rejected.
      long_prompts: "truncate" (keep the beginning), "truncate_left" (keep the end) or "reject".
      max_rejected_fraction: the command stops if a larger share of the records of all splits together is rejected.
      max_unknown_fraction: largest share of unknown pieces in a prompt or response.
      duplicates: "reject" or "keep" repeated records. Logged data often contains repeats; use "keep" for such data.
      kind, train_file, validation_file: your own data files; without a validation file a tenth of the prompts is held out.
      layout: "records", or a layout of another library: "trl", "hh", "instructions", "compared", "halos", "openai",
        "ultrafeedback"; or "candidates" (docs/data.md).
      chat_template: a Jinja file, or the folder of a tokenizer that has a chat template, which turns chat messages into text; by default
        they become lines `role: content`.
      fields: names of the fields in your file, as ours=theirs, such as response=completion,feedback=label.
      responses_per_example: if above 1, the records of one prompt are joined into examples of up to that many responses.
      image_size: pixels of the side of the images of records (field `image`, docs/data.md); 0 reads no images.
      patch_size: pixels of the side of a patch, each of which is a token of the prompt; both as the network has them.
      overwrite: replace a different cache in `output_dir`.

    Raises:
      DataError: there are too many bad records (a side file lists them all), no records, or a different cache in the folder.
    """
    limits = Limits(
        max_input_length, max_target_length, long_prompts, max_unknown_fraction, duplicates
    )
    require_one_of("cache", KINDS, kind=kind)
    require_range("cache", "[0, 1]", max_rejected_fraction=max_rejected_fraction)
    require_range("cache", "[1, inf)", responses_per_example=responses_per_example)
    require_range("cache", "[0, inf)", extra_ids=extra_ids)
    require_range("cache", "[0, inf)", image_size=image_size, patch_size=patch_size)
    images = ImageFormat(image_size, patch_size) if image_size or patch_size else None
    if images is not None and train_file is None:
        raise DataError(
            "Images are read from data files only: give train_file, or leave image_size out."
        )
    if chat_template and train_file is None:
        raise DataError(
            "A chat template turns the messages of data files into text: give train_file, or leave chat_template out."
        )
    source: sources.RecordSource
    if train_file is not None:
        files = {"train": train_file}
        if validation_file is not None:
            files["validation"] = validation_file
        source = sources.JsonlSource(
            files,
            kind,
            layout=layout,
            fields=layouts.parse_fields(fields),
            responses_per_example=responses_per_example,
            duplicates=duplicates,
            images=images,
            chat_template=read_chat_template(chat_template) if chat_template else None,
        )
    else:
        source = task_registry.resolve_source(task)
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
    max_rejected_fraction: float = MAX_REJECTED_FRACTION,
    overwrite: bool = False,
) -> CacheMetadata:
    """Makes a cache from a source object; see `cache` for the options."""
    if not 0 <= max_rejected_fraction <= 1:
        raise DataError(f"max_rejected_fraction must be in [0, 1], not {max_rejected_fraction}.")
    limits = limits or Limits()
    output_dir = os.path.abspath(os.path.expanduser(output_dir))
    existing = _existing(output_dir)
    request = _request(source, vocabulary, splits, limits)
    if existing and request and existing.request == request and not overwrite:
        return existing
    partial = _unfinished_folder(output_dir)
    try:
        writer = CacheWriter(
            source,
            partial,
            vocabulary,
            limits,
            max_rejected_fraction,
            side_file=f"{output_dir}.rejected.jsonl",
            images=getattr(source, "images", None),
        )
        metadata = writer.write(splits, name, request)
        # Another process may have made a cache in the meantime and stored scores beside it.
        existing = _existing(output_dir)
        if existing and not overwrite:
            if existing.fingerprint == metadata.fingerprint:
                return existing
            raise DataError(
                f"{output_dir} already holds a different cache (task {existing.name!r}). Delete that folder, choose another one "
                "(--output_dir of `jaxalign cache`, CACHE_DIR of a run), or replace it with `jaxalign cache ... --overwrite`."
            )
        files.replace_folder(partial, output_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return metadata


def _request(
    source: sources.RecordSource, vocabulary: Vocabulary, splits: Sequence[str], limits: Limits
) -> str | None:
    """Returns a hash of everything that determines the content of a cache; None if the source's content has no hash."""
    content = source.fingerprint()
    options = {
        "version": cache_metadata.VERSION,
        "kind": source.kind,
        "splits": list(splits),
        "limits": dataclasses.asdict(limits),
        "vocabulary": portable(vocabulary),
    }
    if not content:
        return None
    return hashlib.sha256(json.dumps([options, content], sort_keys=True).encode()).hexdigest()


def _existing(output_dir: str) -> CacheMetadata | None:
    if not os.path.exists(output_dir) or (os.path.isdir(output_dir) and not os.listdir(output_dir)):
        return None
    if not TaskCache.exists(output_dir):
        raise DataError(
            f"{output_dir} exists and is not a cache; choose another output_dir (nothing was changed)."
        )
    return TaskCache(output_dir).metadata


def _unfinished_folder(output_dir: str) -> str:
    """Returns a new folder beside `output_dir`, and removes the folders of dead processes of this machine."""
    parent, base = os.path.dirname(output_dir), os.path.basename(output_dir)
    os.makedirs(parent, exist_ok=True)
    own = f".{base}.unfinished.{socket.gethostname()}."
    for entry in os.listdir(parent):
        process = entry.removeprefix(own).split(".")[0]
        if entry.startswith(own) and process.isdigit() and not _is_running(int(process)):
            print(
                f"jaxalign: removing {entry}, the rest of a cache that was interrupted",
                file=sys.stderr,
            )
            shutil.rmtree(os.path.join(parent, entry), ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{own}{os.getpid()}.", dir=parent)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
