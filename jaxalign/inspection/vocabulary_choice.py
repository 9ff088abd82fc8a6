"""The vocabulary of an inspected file: the given one, that of a checkpoint, or one that is trained on the file."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

from jaxalign.data import sources
from jaxalign.data.rejections import DataError, RejectionLog
from jaxalign.data.train_vocabulary import train_model
from jaxalign.data.vocabularies import (
    ByteVocabulary,
    FileVocabulary,
    SentencePieceVocabulary,
    Vocabulary,
    vocabulary_from_spec,
)
from jaxalign.inspection import model_presets
from jaxalign.inspection.start import Start

_TRAINING_CHARACTERS = 1_000_000
_TRAINING_TEXTS = 200_000
_LONGEST_TEXT = 10_000


def given_or_trained_vocabulary(
    source: sources.JsonlSource,
    vocabulary: str | None,
    extra_ids: int,
    vocab_size: int,
    output: str,
) -> tuple[Vocabulary, SentencePieceVocabulary | None]:
    """Returns the vocabulary, and the same again if it was trained here and is not written yet."""
    if vocabulary is not None:
        try:
            return vocabulary_from_spec(os.path.expanduser(vocabulary), extra_ids), None
        except ValueError as error:
            raise DataError(str(error)) from error
    path = f"{os.path.splitext(output)[0]}.model"
    try:
        texts = itertools.islice(_texts(source), _TRAINING_TEXTS)
        model = train_model(texts, path, vocab_size=vocab_size)
    except (RuntimeError, ValueError):
        # The text has more characters than pieces, or almost no text.
        print("No vocabulary of pieces could be trained on this text; VOCABULARY is 'bytes'.")
        return ByteVocabulary(extra_ids), None
    trained = SentencePieceVocabulary(path, model=model)
    return trained, trained


def vocabulary_of_start(
    start: Start, output: str
) -> tuple[Vocabulary, FileVocabulary | None, str | None, int]:
    """Returns the vocabulary of a checkpoint, the same again if it is to be written, the setting VOCABULARY, and EXTRA_IDS.

    Raises:
      DataError: the checkpoint has no vocabulary.
    """
    vocabulary = start.vocabulary
    if vocabulary is None:
        raise DataError(
            f"{start.address} records no vocabulary; give its own as --vocabulary=sentencepiece.model --extra_ids=100 (docs/checkpoints.md)"
        )
    if not isinstance(vocabulary, FileVocabulary):
        return vocabulary, None, "bytes", vocabulary.sentinels
    ending = "model" if isinstance(vocabulary, SentencePieceVocabulary) else "tokenizer.json"
    path = f"{os.path.splitext(output)[0]}.{ending}"
    copied = type(vocabulary)(path, vocabulary.extra_ids, model=vocabulary.model)
    return copied, copied, None, vocabulary.extra_ids


def vocabulary_of_preset(model: str, preset: model_presets.Preset) -> str:
    """Returns the vocabulary of a model that starts from a checkpoint, if it is no file.

    Raises:
      DataError: it is a file. Ids of another vocabulary would mean nothing to the checkpoint.
    """
    if preset.reads_bytes:
        return "bytes"
    raise DataError(
        f"models/{model}.gin is the network of a pretrained checkpoint, which needs its own vocabulary ({preset.vocabulary}, or "
        "spiece.model of the same model from Hugging Face): give it as --vocabulary=sentencepiece.model --extra_ids=100; see "
        "docs/checkpoints.md. To train from random weights, give --model=mini, or --vocabulary with a vocabulary of your own."
    )


def _texts(source: sources.JsonlSource) -> Iterator[str]:
    """Yields texts for training a vocabulary."""
    left = _TRAINING_CHARACTERS
    for record in source.records("all", RejectionLog()):
        for text in dict.fromkeys((record.prompt, *record.responses)):
            yield text[:_LONGEST_TEXT]
            left -= len(text[:_LONGEST_TEXT])
        if left < 0:
            return
