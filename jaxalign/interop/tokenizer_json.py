"""Converts between SentencePiece models and ``tokenizer.json`` of the tokenizers library. It reads only T5's Unigram tokenizers.

The library's files can express far more than SentencePiece. This module reads what T5's files contain, and refuses everything else.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any

from jaxalign.data.sentencepiece_models import SPACE, is_sentinel, model_proto
from jaxalign.errors import UserError

_SPECIAL = ("<pad>", "</s>", "<unk>")  # in the order of their ids
_UNIGRAM, _BPE = 1, 2  # the numbers that SentencePiece uses
_SPACES = {"Regex": " {2,}"}  # the pattern that transformers 4 replaces by one space


def read(parsed: dict[str, Any], path: str) -> tuple[bytes, int]:
    """Returns the SentencePiece model that a Unigram ``tokenizer.json`` was made from, without its sentinels, and their number.

    Args:
      parsed: the parsed content.
      path: the path of the file, for messages.

    Raises:
      UserError: the tokenizer does something that a T5 tokenizer does not.
    """
    model = parsed.get("model")
    if not isinstance(model, dict) or model.get("type") != "Unigram":
        kind = model.get("type") if isinstance(model, dict) else None
        raise _refused(path, f"its model is {kind!r}; only T5's 'Unigram' is read")
    vocab = model.get("vocab")
    if not isinstance(vocab, list) or not all(map(_is_entry, vocab)):
        raise UserError(f"{path}: model.vocab is no list of pieces with their scores")
    if tuple(piece for piece, _ in vocab[:3]) != _SPECIAL or model.get("unk_id") != 2:
        raise _refused(path, f"its first pieces are not {', '.join(_SPECIAL)}")
    if model.get("byte_fallback"):
        raise _refused(path, "unknown characters fall back to bytes")
    proto = model_proto()()
    charsmap = _charsmap(parsed.get("normalizer"), path)
    _check_pre_tokenizer(parsed.get("pre_tokenizer"), path)
    _check_post_processor(parsed.get("post_processor"), path)
    pieces = [piece for piece, _ in vocab]
    count = sum(map(is_sentinel, pieces))
    if any(is_sentinel(piece) for piece in pieces[: len(pieces) - count]):
        raise _refused(path, "its sentinels (<extra_id_0> ...) are not its last pieces")
    symbols = _check_added_tokens(parsed.get("added_tokens") or [], pieces, path)
    if not count:
        count = sum(map(is_sentinel, symbols))
    proto.trainer_spec.model_type = _UNIGRAM
    proto.trainer_spec.vocab_size = len(pieces) - sum(map(is_sentinel, pieces))
    proto.trainer_spec.pad_id, proto.trainer_spec.eos_id = 0, 1
    proto.trainer_spec.unk_id, proto.trainer_spec.bos_id = 2, -1
    proto.normalizer_spec.name = "from_tokenizer_json"
    proto.normalizer_spec.precompiled_charsmap = charsmap
    proto.normalizer_spec.add_dummy_prefix = True
    proto.normalizer_spec.remove_extra_whitespaces = True
    proto.normalizer_spec.escape_whitespaces = True
    types = model_proto().SentencePiece
    kinds = {"<pad>": types.CONTROL, "</s>": types.CONTROL, "<unk>": types.UNKNOWN}
    for piece, score in vocab[: proto.trainer_spec.vocab_size]:
        added = proto.pieces.add()
        added.piece, added.score = piece, score
        added.type = kinds.get(piece, types.USER_DEFINED if piece in symbols else types.NORMAL)
    return proto.SerializeToString(), count


def write(proto: Any, sentinels: int) -> bytes | None:
    """Returns the content of a ``tokenizer.json`` that gives the ids of a SentencePiece model, with </s> at the end of every text.

    Args:
      proto: the model, including its own sentinels if it has some.
      sentinels: the total number of sentinels.

    Returns:
      The content; None if the library cannot reproduce the model, because its algorithm or its treatment of spaces differs from T5's.
    """
    spec = proto.normalizer_spec
    usual_spaces = spec.add_dummy_prefix and spec.remove_extra_whitespaces
    usual_spaces = usual_spaces and spec.escape_whitespaces
    kind = proto.trainer_spec.model_type
    if (
        kind not in (_UNIGRAM, _BPE)
        or not usual_spaces
        or proto.trainer_spec.treat_whitespace_as_suffix
    ):
        return None
    vocab = [(_plain(p.piece), p.score) for p in proto.pieces]
    if not any(is_sentinel(piece) for piece, _ in vocab):
        vocab += [(f"<extra_id_{number}>", 0.0) for number in range(sentinels - 1, -1, -1)]
    types = model_proto().SentencePiece
    symbols = [
        p.piece
        for p in proto.pieces
        if p.type == types.USER_DEFINED and not is_sentinel(p.piece) and p.piece != SPACE
    ]
    special = [
        (token_id, piece)
        for token_id, (piece, _) in enumerate(vocab)
        if token_id < len(_SPECIAL) or is_sentinel(piece)
    ]
    metaspace = {
        "type": "Metaspace",
        "replacement": SPACE,
        "prepend_scheme": "always",
        "split": True,
    }
    splits = []
    if symbols:
        # As added tokens they would remove the preceding space, which SentencePiece keeps as a separate piece.
        pattern = "|".join(map(re.escape, sorted(symbols, key=len, reverse=True)))
        splits = [
            {
                "type": "Split",
                "pattern": {"Regex": pattern},
                "behavior": "Isolated",
                "invert": False,
            }
        ]
    charsmap = base64.b64encode(spec.precompiled_charsmap).decode("ascii")
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(*item) for item in special],
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap}
        if charsmap
        else None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace, *splits],
        },
        "post_processor": _end_of_text(),
        "decoder": metaspace,
        "model": _unigram(proto, vocab) if kind == _UNIGRAM else _bpe(proto, vocab, bool(symbols)),
    }
    return (json.dumps(content, ensure_ascii=False) + "\n").encode()


def _plain(piece: str) -> str:
    """Returns a sentinel without the space that SentencePiece may have before it."""
    return piece.removeprefix(SPACE) if is_sentinel(piece) else piece


def _unigram(proto: Any, vocab: list[tuple[str, float]]) -> dict[str, Any]:
    fallback = proto.trainer_spec.byte_fallback
    return {"type": "Unigram", "unk_id": 2, "vocab": vocab, "byte_fallback": fallback}


def _bpe(proto: Any, vocab: list[tuple[str, float]], symbols: bool) -> dict[str, Any]:
    """Returns a model with byte-pair merges in the order of the scores of their results, by which SentencePiece chooses."""
    ids = {piece: token_id for token_id, (piece, _) in enumerate(vocab)}
    types = model_proto().SentencePiece
    merges = []
    for token_id, piece in enumerate(proto.pieces):
        if piece.type != types.NORMAL:
            continue
        text = piece.piece
        parts = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        known = [pair for pair in parts if pair[0] in ids and pair[1] in ids]
        ranked = sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        merges += [(-piece.score, token_id, pair) for pair in ranked]
    merges.sort(key=lambda merge: merge[:2])
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": _SPECIAL[2],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": proto.trainer_spec.byte_fallback,
        # A symbol that is a single piece by definition has no merges that produce it.
        "ignore_merges": symbols,
        "vocab": ids,
        "merges": [list(pair) for _, _, pair in merges],
    }


def _end_of_text() -> dict[str, Any]:
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [first, end],
        "pair": [first, end, second, end],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
    }


def _added_token(token_id: int, piece: str) -> dict[str, Any]:
    places = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": piece, **places, "special": True}


def _refused(path: str, what: str) -> UserError:
    return UserError(
        f"{path} is no tokenizer of a T5 that jaxalign can obey: {what}. Put the model's spiece.model beside it, or give --vocabulary "
        "for a folder without tokenizer files"
    )


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
        return False
    return isinstance(entry[1], (int, float)) and not isinstance(entry[1], bool)


def _charsmap(normalizer: Any, path: str) -> bytes:
    """Returns SentencePiece's character table, which the library's file contains; empty if there is none."""
    steps = _steps(normalizer, "normalizers")
    found = b""
    for step in steps:
        kind = step.get("type")
        text = step.get("precompiled_charsmap")
        if kind == "Precompiled" and isinstance(text, str) and not found:
            try:
                found = base64.b64decode(text, validate=True)
            except binascii.Error as error:
                raise UserError(f"{path}: its precompiled_charsmap is no base64") from error
        elif not (kind == "Strip" or (kind == "Replace" and step.get("pattern") == _SPACES)):
            raise _refused(path, f"it normalises text with {kind!r}")
    return found


def _check_pre_tokenizer(pre_tokenizer: Any, path: str) -> None:
    kinds = [step.get("type") for step in _steps(pre_tokenizer, "pretokenizers")]
    if kinds not in (["Metaspace"], ["WhitespaceSplit", "Metaspace"]):
        raise _refused(path, f"it splits text with {kinds}")
    space = _steps(pre_tokenizer, "pretokenizers")[-1]
    prefixed = space.get("prepend_scheme", "always") == "always" and space.get(
        "add_prefix_space", True
    )
    if space.get("replacement") != SPACE or not prefixed:
        raise _refused(path, "it puts no space before a text")


def _check_post_processor(post_processor: Any, path: str) -> None:
    expected = _end_of_text()
    given = post_processor if isinstance(post_processor, dict) else {}
    if post_processor is not None and any(
        given.get(key) != expected[key] for key in ("type", "single")
    ):
        raise _refused(path, "it does not put </s> alone around a text")


def _check_added_tokens(added: Any, pieces: list[str], path: str) -> set[str]:
    """Returns the texts of the added tokens. Each must be a piece of the vocabulary, or a sentinel with its expected id."""
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise UserError(f"{path}: added_tokens is no list of tokens")
    given = {token.get("content"): token.get("id") for token in added}
    check_added(path, given, pieces, sum(map(is_sentinel, given)) or sum(map(is_sentinel, pieces)))
    return {str(content) for content in given}


def check_added(path: str, given: dict[Any, Any], pieces: list[str], sentinels: int) -> None:
    """Checks added tokens against the vocabulary that they were added to.

    Args:
      path: the file that lists them.
      given: the ids by text.
      pieces: the pieces of the vocabulary, including its own sentinels if it has some.
      sentinels: the total number of sentinels.

    Raises:
      UserError: a token is neither a piece of the vocabulary nor a sentinel.
    """
    size = len(pieces)
    own = any(map(is_sentinel, pieces))
    for content, token_id in given.items():
        if not isinstance(content, str) or type(token_id) is not int:
            raise UserError(f"{path}: {content!r} has the id {token_id!r}")
        here = 0 <= token_id < size and _plain(pieces[token_id]) == content
        number = re.fullmatch(r"<extra_id_(\d{1,9})>", content)
        place = size + sentinels - 1 - int(number[1]) if number and not own else -1
        if not here and token_id != place:
            raise UserError(
                f"{path} gives {content!r} the id {token_id}, which the model of pieces does not have: tokens added later are not "
                "supported. Train a vocabulary that has them (`jaxalign vocabulary --user_defined_symbols`)"
            )


def _steps(component: Any, plural: str) -> list[dict[str, Any]]:
    """Returns the parts of a normaliser or pre-tokenizer, which may be a single part or a sequence."""
    if component is None:
        return []
    if not isinstance(component, dict):
        return [{}]
    if component.get("type") != "Sequence":
        return [component]
    parts = component.get(plural)
    return [part if isinstance(part, dict) else {} for part in parts or []]
