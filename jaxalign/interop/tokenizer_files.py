"""Reads the tokenizer of a Hugging Face folder as a jaxalign vocabulary, and writes tokenizer files that give the same ids."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jaxalign.data import sentencepiece_models
from jaxalign.data.recorded_vocabulary import RecordedVocabulary
from jaxalign.data.tokenizer_vocabulary import TokenizerVocabulary
from jaxalign.data.vocabularies import ByteVocabulary, SentencePieceVocabulary, Vocabulary
from jaxalign.errors import UserError
from jaxalign.interop import storage, tokenizer_json

SENTENCEPIECE = "spiece.model"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
_ADDED_TOKENS = "added_tokens.json"
_T5_SENTINELS, _BYT5_SENTINELS = 100, 125  # transformers' defaults
_BYTES = "ByT5Tokenizer"


def read(folder: str) -> RecordedVocabulary | None:
    """Returns the vocabulary of a Hugging Face folder; None if it has no tokenizer files.

    Raises:
      UserError: its tokenizer is not that of T5, mT5 or ByT5 and the library tokenizers cannot read it either, or a SentencePiece model has
        tokens that were added later.
    """
    names = storage.children(folder)
    config = _object(folder, TOKENIZER_CONFIG) if TOKENIZER_CONFIG in names else {}
    stated = _stated_sentinels(folder, config)
    if str(config.get("tokenizer_class")).removesuffix("Fast") == _BYTES:
        bytes_only = ByteVocabulary(_BYT5_SENTINELS if stated is None else stated)
        # The bytes of a text never include a sentinel, so a task may have a different number of sentinels.
        return RecordedVocabulary(bytes_only.to_dict(), counted=False)
    if SENTENCEPIECE in names:
        path = storage.join(folder, SENTENCEPIECE)
        model, made = storage.read(folder, SENTENCEPIECE) or b"", None
    elif TOKENIZER in names:
        path = storage.join(folder, TOKENIZER)
        try:
            model, made = tokenizer_json.read(_object(folder, TOKENIZER), path)
        except UserError as refused:
            return _whole(folder, path, refused)
        stated = made if stated is None else stated
    else:
        return None
    proto = sentencepiece_models.parse(model, path)
    own = sentencepiece_models.count_sentinels(proto)
    count = own or (_T5_SENTINELS if stated is None else stated)
    pieces = [piece.piece for piece in proto.pieces]
    for name, given in _added_tokens(folder, names, config).items():
        tokenizer_json.check_added(storage.join(folder, name), given, pieces, count)
    vocabulary = SentencePieceVocabulary(SENTENCEPIECE, 0 if own else count, model=model)
    counted = bool(own) or stated is not None
    return RecordedVocabulary(vocabulary.to_dict(), folder, model, counted)


def _whole(folder: str, path: str, refused: UserError) -> RecordedVocabulary:
    """Returns a tokenizer.json that is no SentencePiece model, as the library tokenizers reads it, such as that of T5Gemma.

    Raises:
      UserError: `refused`, if the library is missing or cannot read the file as a vocabulary either.
    """
    content = storage.read(folder, TOKENIZER) or b""
    try:
        vocabulary = TokenizerVocabulary(TOKENIZER, model=content)
    except UserError as error:
        raise UserError(f"{refused}. As it is, it was not read because {error}") from error
    return RecordedVocabulary(vocabulary.to_dict(), folder, content)


def write(folder: str, vocabulary: Vocabulary, more: Mapping[str, Any]) -> list[str]:
    """Writes the files from which transformers makes a tokenizer with the same ids.

    Args:
      folder: the folder of the weights.
      vocabulary: the vocabulary of the weights.
      more: further fields of the tokenizer's configuration.

    Returns:
      A description of the differences that remain in transformers.
    """
    config: dict[str, Any] = {
        "extra_ids": vocabulary.sentinels,
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        **more,
    }
    notes = []
    if isinstance(vocabulary, ByteVocabulary):
        config["tokenizer_class"] = _BYTES
    elif isinstance(vocabulary, TokenizerVocabulary):
        storage.write(folder, TOKENIZER, vocabulary.with_ends())
        config |= _special_tokens(vocabulary)
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    else:
        assert isinstance(vocabulary, SentencePieceVocabulary)
        proto = sentencepiece_models.parse(vocabulary.model, vocabulary.path)
        storage.write(folder, SENTENCEPIECE, vocabulary.model)
        content = tokenizer_json.write(proto, vocabulary.sentinels)
        if content is None:
            notes.append(
                f"no {TOKENIZER}: the SentencePiece model treats spaces, or cuts words, in a way of its own, and transformers may give "
                "text other ids"
            )
        else:
            storage.write(folder, TOKENIZER, content)
        config["tokenizer_class"] = (
            "T5Tokenizer" if content is None or _is_t5s(proto) else "PreTrainedTokenizerFast"
        )
    storage.write(folder, TOKENIZER_CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    return notes


def _special_tokens(vocabulary: TokenizerVocabulary) -> dict[str, Any]:
    """Returns the texts of special tokens, by their names in a tokenizer's configuration."""
    table = vocabulary.table()
    unknown = table[vocabulary.unk_id] if vocabulary.unk_id >= 0 else None
    begin = table[vocabulary.prompt_prefix[0]] if vocabulary.prompt_prefix else None
    tokens = {
        "pad_token": table[vocabulary.pad_id],
        "eos_token": table[vocabulary.eos_id],
        "unk_token": unknown,
        "bos_token": begin,
    }
    return tokens


def _is_t5s(proto: Any) -> bool:
    """Returns whether transformers' T5 tokenizer gives this model's ids. It supports unigram models without user-defined symbols."""
    types = sentencepiece_models.model_proto().SentencePiece
    symbols = any(
        piece.type == types.USER_DEFINED and not sentencepiece_models.is_sentinel(piece.piece)
        for piece in proto.pieces
    )
    own = sentencepiece_models.count_sentinels(proto) > 0
    return proto.trainer_spec.model_type == 1 and not symbols and not own


def _object(folder: str, name: str) -> dict[str, Any]:
    return storage.read_json(folder, name) or {}


def _stated_sentinels(folder: str, config: dict[str, Any]) -> int | None:
    """Returns the number of sentinels that a tokenizer's configuration specifies in any of the known ways."""
    stated = config.get("extra_ids")
    if stated is not None:
        if type(stated) is not int or stated < 0:
            path = storage.join(folder, TOKENIZER_CONFIG)
            raise UserError(f"{path}: extra_ids is {stated!r}, not a number of sentinels")
        return stated
    for name in ("additional_special_tokens", "extra_special_tokens"):
        tokens = config.get(name)
        texts = [t.get("content") if isinstance(t, dict) else t for t in tokens or []]
        count = sum(isinstance(t, str) and sentencepiece_models.is_sentinel(t) for t in texts)
        if count:
            return count
    return None


def _added_tokens(
    folder: str, names: set[str], config: dict[str, Any]
) -> dict[str, dict[Any, Any]]:
    """Returns the ids of added tokens by text, grouped by the file that lists them."""
    found: dict[str, dict[Any, Any]] = {}
    if _ADDED_TOKENS in names:
        found[_ADDED_TOKENS] = _object(folder, _ADDED_TOKENS)
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        found[TOKENIZER_CONFIG] = {
            token.get("content") if isinstance(token, dict) else token: int(token_id)
            if str(token_id).isdecimal() and len(str(token_id)) < 10
            else token_id
            for token_id, token in decoder.items()
        }
    return found
