"""Determines the vocabulary of a checkpoint: its own, or the one that the user of a command specifies."""

from __future__ import annotations

from jaxalign.data.recorded_vocabulary import RecordedVocabulary
from jaxalign.data.tokenizer_vocabulary import TokenizerVocabulary
from jaxalign.data.vocabularies import ByteVocabulary, SentencePieceVocabulary
from jaxalign.errors import UserError
from jaxalign.interop import storage, tokenizer_files
from jaxalign.interop.checkpoint_sources import HUGGING_FACE, Source
from jaxalign.networks.network_config import NetworkConfig


def own_vocabulary(source: Source) -> RecordedVocabulary | None:
    """Returns the vocabulary that a checkpoint records; None if it records none. T5X checkpoints never record one.

    Raises:
      UserError: jaxalign does not support its tokenizer, or the tokenizer lies outside of its folder.
    """
    if source.format == HUGGING_FACE:
        return tokenizer_files.read(source.path)
    return None if source.run is None else source.run.recorded_vocabulary


def choose_vocabulary(
    source: Source, config: NetworkConfig, given: str, extra_ids: int | None
) -> RecordedVocabulary | None:
    """Returns the vocabulary that is written with a checkpoint into its new folder.

    Args:
      source: the checkpoint.
      config: the configuration of its network.
      given: a SentencePiece model, a tokenizer.json or 'bytes', as specified by the user; '' for the checkpoint's own vocabulary.
      extra_ids: the number of sentinels, as specified by the user.

    Returns:
      The vocabulary; None if the checkpoint has none and none is given.

    Raises:
      UserError: the given vocabulary is not the checkpoint's own, or has more tokens than the embedding table has rows.
    """
    own = own_vocabulary(source)
    chosen = own if not given else _given(given, _sentinels(own, extra_ids))
    if chosen is None:
        if extra_ids is not None:
            raise UserError(
                "--extra_ids counts the sentinels of a vocabulary; give --vocabulary as well"
            )
        return None
    if not given and extra_ids is not None:
        chosen = _counted_otherwise(source, chosen, extra_ids)
    if given and own is not None and not chosen.agrees_with(own):
        raise UserError(
            f"--vocabulary is {chosen.describe()}, but {source.path} has {own.describe()}; leave --vocabulary out, or take the "
            "tokenizer's files out of a copy of the folder if they are not the model's"
        )
    size = chosen.load().size
    if size > config.vocab_size:
        remedy = "" if chosen.counted else "; say how many sentinels there are: --extra_ids=N"
        raise UserError(
            f"the vocabulary has {size} tokens with its sentinels, but the embedding table {config.vocab_size} rows{remedy}"
        )
    return chosen


def _sentinels(own: RecordedVocabulary | None, extra_ids: int | None) -> int:
    """Returns the number of sentinels of a given vocabulary: the user's number, or otherwise that of the checkpoint's vocabulary."""
    if extra_ids is not None:
        return extra_ids
    return 0 if own is None else int(own.spec.get("extra_ids", 0))


def _given(given: str, extra_ids: int) -> RecordedVocabulary:
    if given == "bytes":
        return RecordedVocabulary(ByteVocabulary(extra_ids).to_dict())
    file = storage.absolute(given)
    folder, _, name = file.rpartition("/")
    content = storage.read(folder, name)
    if content is None:
        raise UserError(f"the vocabulary {file} is missing")
    kind = TokenizerVocabulary if name.endswith(".json") else SentencePieceVocabulary
    vocabulary = kind(name, extra_ids, model=content)
    return RecordedVocabulary(vocabulary.to_dict(), folder, content)


def _counted_otherwise(
    source: Source, own: RecordedVocabulary, extra_ids: int
) -> RecordedVocabulary:
    """Returns the checkpoint's own vocabulary with the user's number of sentinels, if the checkpoint does not record a number."""
    vocabulary = own.load()
    if vocabulary.sentinels != extra_ids and (own.counted or own.model is None):
        raise UserError(
            f"--extra_ids={extra_ids}, but {source.path} says that its vocabulary has {vocabulary.sentinels} sentinels"
        )
    if own.model is None or vocabulary.sentinels == extra_ids:
        return own
    recounted = SentencePieceVocabulary(str(own.spec["path"]), extra_ids, model=own.model)
    return RecordedVocabulary(recounted.to_dict(), own.folder, own.model)
