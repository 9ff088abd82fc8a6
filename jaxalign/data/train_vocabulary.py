"""Trains small SentencePiece models."""

from __future__ import annotations

import glob
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence

from jaxalign import files, untrusted
from jaxalign.data import (
    bundled_sources,
    data_files,
    sentencepiece_models,
    sources,
    task_registry,
)
from jaxalign.data.records import Record
from jaxalign.data.rejections import DataError
from jaxalign.data.sources import RecordSource
from jaxalign.data.vocabularies import EOS_ID, PAD_ID, UNK_ID, SentencePieceVocabulary
from jaxalign.errors import UserError, require_one_of, require_range

# In bytes; SentencePiece skips longer sentences.
_LONGEST_SENTENCE = 65536


def train_sentencepiece(
    texts: Iterable[str],
    output: str,
    *,
    vocab_size: int = 1000,
    user_defined_symbols: Sequence[str] = (),
    model_type: str = "auto",
    character_coverage: float = 1.0,
) -> SentencePieceVocabulary:
    """Trains a SentencePiece model (`train_model`), writes it to `output`, and returns its vocabulary."""
    model = train_model(
        texts,
        output,
        vocab_size=vocab_size,
        user_defined_symbols=user_defined_symbols,
        model_type=model_type,
        character_coverage=character_coverage,
    )
    return _write(output, model)


def train_model(
    texts: Iterable[str],
    name: str,
    *,
    vocab_size: int = 1000,
    user_defined_symbols: Sequence[str] = (),
    model_type: str = "auto",
    character_coverage: float = 1.0,
) -> bytes:
    """Returns a SentencePiece model with T5's ids. The training is deterministic: one thread, no sampling.

    If the model is not the one that was asked for, this prints which one it is and why.

    Args:
      texts: the sentences; a line break inside a sentence is read as a space.
      name: the path that the model will have, for messages.
      vocab_size: the number of pieces with PAD, EOS, unknown and the user-defined symbols; an upper bound if the text is small.
      user_defined_symbols: strings that are always one piece.
      model_type: "unigram" (as T5's), "bpe", or "auto": unigram unless the text has so few distinct words that the
        unigram trainer, which only considers strings that occur in two of them, ends below `vocab_size`.
      character_coverage: the share of characters that get a piece; the others are unknown.

    Raises:
      UserError: there is no text, or no model of this size can be trained on it.
    """
    import sentencepiece

    sentences = [" ".join(text.split()) for text in texts]
    sentences = [sentence for sentence in sentences if sentence]
    if not sentences:
        raise UserError(f"No text to train the vocabulary {name} on.")

    def train(model_type: str) -> bytes:
        buffer = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=buffer,
            model_type=model_type,
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            pad_id=PAD_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            bos_id=-1,
            user_defined_symbols=list(user_defined_symbols),
            # Only the unigram trainer can stop below the requested size.
            hard_vocab_limit=model_type != "unigram",
            shuffle_input_sentence=False,
            max_sentence_length=_LONGEST_SENTENCE,
            num_threads=1,
            minloglevel=2,
        )
        return buffer.getvalue()

    try:
        model = train("unigram" if model_type == "auto" else model_type)
    except RuntimeError as error:
        raise UserError(
            f"SentencePiece cannot train {vocab_size} pieces on this text for {name}: {_reason(error)}"
        ) from error
    size = _size(model)
    if size >= vocab_size:
        return model
    why = (
        f"a unigram model, as T5's, has only {size} of the {vocab_size} pieces asked for, because its pieces are the characters of the "
        "text and strings that occur in several of its words"
    )
    if model_type != "auto":
        _say(f"{name}: {why}; more text gives more")
        return model
    try:
        model = train("bpe")
    except RuntimeError as error:
        # Byte pairs cannot reach the size either: the text is tiny, and the smaller model is kept.
        most = _largest(error)
        remedy = (
            f", or --vocab_size={most} gives a byte-pair model (BPE) of that size" if most else ""
        )
        _say(f"{name} is smaller than asked for: {why}; more text gives more{remedy}")
        return model
    _say(
        f"{name} is a byte-pair model (BPE) of {_size(model)} pieces: {why}; `jaxalign vocabulary --model_type=unigram` makes the smaller "
        "one"
    )
    return model


def _reason(error: RuntimeError) -> str:
    """Returns SentencePiece's explanation without the place in its source."""
    most = _largest(error)
    if most is not None:
        return f"at most {most}; lower --vocab_size, or give more text"
    return re.sub(r"^.*\.(cc|h)\(\d+\) *(\[.*?\] *)?", "", str(error).strip().splitlines()[-1])


def _largest(error: RuntimeError) -> int | None:
    """Returns the largest possible number of pieces, if SentencePiece's error says it."""
    found = re.search(r"size too high .* set it to a value <= (\d+)", str(error))
    return int(found[1]) if found else None


def _write(output: str, model: bytes) -> SentencePieceVocabulary:
    os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
    files.write_bytes(output, model)
    return SentencePieceVocabulary(output)


def _size(model: bytes) -> int:
    return len(sentencepiece_models.parse(model, "the trained model").pieces)


def _say(text: str) -> None:
    print(f"jaxalign: {text}", file=sys.stderr)


def train_vocabulary(
    task_or_file: str,
    output: str,
    *,
    vocab_size: int = 1000,
    kind: str = "seq2seq",
    layout: str = "records",
    fields: str = "",
    user_defined_symbols: Sequence[str] = (),
    model_type: str = "auto",
    character_coverage: float = 1.0,
    overwrite: bool = False,
) -> SentencePieceVocabulary:
    """Trains a small SentencePiece model on the prompts and responses of a task's training split (`jaxalign vocabulary`).

    Args:
      task_or_file: a registered or bundled task, or the path of a JSON Lines file, or a pattern such as ``data/*.jsonl``.
      output: the path of the `.model` file.
      vocab_size: number of pieces, including PAD, EOS and unknown.
      kind: record kind of the file (triplet, pair, ranked, seq2seq, multi); ignored for a task.
      layout, fields: how to read the file, as for `jaxalign cache`.
      user_defined_symbols: strings that are always one piece.
      model_type: "auto", "unigram" or "bpe"; see `train_model`.
      character_coverage: share of characters that get a piece of their own; the others become unknown.
      overwrite: replace an existing output.

    Raises:
      UserError: the task or file does not exist, the output exists, or a number is out of range.
    """
    # PAD, EOS and unknown are three pieces.
    require_range("vocabulary", "[4, inf)", vocab_size=vocab_size)
    require_range("vocabulary", "(0, 1]", character_coverage=character_coverage)
    require_one_of("vocabulary", ("auto", "unigram", "bpe"), model_type=model_type)
    source = _source(task_or_file, kind, layout, fields)

    def records() -> Iterator[Record]:
        empty = True
        for record in source.records("train"):
            empty = False
            yield record
        if empty:
            # A file with one prompt, such as a question about different images, lies in one split, which need not be this one.
            for split in source.splits:
                yield from source.records(split)

    def texts() -> Iterable[str]:
        for record in records():
            for text in (record.prompt, *record.responses):
                yield from _short_enough(text)

    model = train_model(
        texts(),
        output,
        vocab_size=vocab_size,
        user_defined_symbols=user_defined_symbols,
        model_type=model_type,
        character_coverage=character_coverage,
    )
    if overwrite or not os.path.exists(output):
        return _write(output, model)
    with untrusted.open_regular(output) as file:
        same = file.read(len(model) + 1) == model
    if not same:
        raise UserError(
            f"{output} exists already and is another model; --overwrite replaces it, and the ids of every run that reads it"
        )
    return SentencePieceVocabulary(output)


def _short_enough(text: str) -> Iterator[str]:
    """Yields parts of the text that the trainer does not skip, cut between words: a piece never spans two words."""
    part: list[str] = []
    size = 0
    for word in text.split():
        size += len(word.encode("utf-8", errors="replace")) + 1
        if size > _LONGEST_SENTENCE and part:
            yield " ".join(part)
            part, size = [], len(word.encode("utf-8", errors="replace")) + 1
        part.append(word)
    if part:
        yield " ".join(part)


def _source(task_or_file: str, kind: str, layout: str, fields: str) -> RecordSource:
    """Returns the files as a source if the text names any, else a task."""
    if data_files.exists(task_or_file):
        return sources.JsonlSource({"train": task_or_file}, kind, layout=layout, fields=fields)
    looks_like_a_path = "/" in task_or_file or glob.has_magic(task_or_file)
    if looks_like_a_path or os.path.splitext(task_or_file)[1]:
        raise UserError(f"no file matches {task_or_file!r}; correct --task_or_file")
    try:
        return task_registry.resolve_source(task_or_file)
    except DataError:
        known = ", ".join(bundled_sources.BUNDLED)
        raise UserError(
            f"{task_or_file!r} is neither a file nor a task (the bundled tasks are {known}); correct --task_or_file, or register the task "
            "in a gin file with REGISTER_TASKS"
        ) from None
