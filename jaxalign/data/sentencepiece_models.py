"""SentencePiece models as protocol buffers: their pieces, including T5's sentinels."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from jaxalign.errors import UserError

SPACE = "\u2581"
_SENTINEL = re.compile(rf"{SPACE}?<extra_id_(\d+)>")


def model_proto() -> Any:
    """Returns the class of the protocol buffer; the module is generated, so a type checker cannot analyse it."""
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]


def parse(model: bytes, path: str) -> Any:
    """Returns the protocol buffer of a model.

    Args:
      model: the content of a ``.model`` file.
      path: its name for the message.

    Raises:
      UserError: the content is not a SentencePiece model.
    """
    if model.lstrip()[:1] == b"{":
        raise UserError(
            f"{path} is a JSON file, not a SentencePiece model; `jaxalign convert --checkpoint=FOLDER --output=RUN` makes the model "
            "spiece.model of a folder with a T5 tokenizer.json"
        )
    from google.protobuf.message import DecodeError

    try:
        proto = model_proto().FromString(model)
    except DecodeError as error:
        raise UserError(f"{path} is not a SentencePiece model") from error
    if not proto.pieces:
        raise UserError(f"{path} is not a SentencePiece model: it has no pieces")
    return proto


def is_sentinel(piece: str) -> bool:
    """Returns whether a piece is one of T5's sentinels, ``<extra_id_N>``."""
    return _SENTINEL.fullmatch(piece) is not None


def count_sentinels(proto: Any) -> int:
    """Returns how many of a model's own pieces are sentinels, such as the last hundred of mT5."""
    return sum(
        "<extra_id_" in text and is_sentinel(text) for text in (p.piece for p in proto.pieces)
    )


def with_sentinels(proto: Any, extra_ids: int) -> Any:
    """Returns a copy of the model with T5's sentinel pieces after its own, the highest number first."""
    extended = model_proto()()
    extended.CopyFrom(proto)
    for number in range(extra_ids - 1, -1, -1):
        piece = extended.pieces.add()
        piece.piece = f"{SPACE}<extra_id_{number}>"
        piece.score = 0.0
        piece.type = model_proto().SentencePiece.USER_DEFINED
    return extended


def is_extended(proto: Any, extra_ids: int, longer: Any) -> bool:
    """Returns whether a model is another one with its sentinels and with user-defined pieces behind all of its own.

    Texts without these pieces then have the same ids in both.

    Args:
      proto, extra_ids: the shorter model and the number of sentinels behind its pieces.
      longer: the model with more pieces.
    """
    own = with_sentinels(proto, extra_ids)
    count = len(own.pieces)
    defined = model_proto().SentencePiece.USER_DEFINED
    return (
        len(longer.pieces) > count
        and list(longer.pieces)[:count] == list(own.pieces)
        and all(piece.type == defined for piece in list(longer.pieces)[count:])
        and longer.normalizer_spec == proto.normalizer_spec
        and longer.trainer_spec.model_type == proto.trainer_spec.model_type
    )


def digest(proto: Any) -> str:
    """Returns a digest of everything that determines ids: the pieces except sentinels, their scores, the algorithm, the normalisation.

    Two files with the same digest give every text the same ids, even if one was made from a ``tokenizer.json``.
    """
    found = hashlib.sha256(f"{proto.trainer_spec.model_type}\n".encode())
    found.update(proto.normalizer_spec.precompiled_charsmap)
    for piece in proto.pieces:
        if not is_sentinel(piece.piece):
            found.update(f"{piece.piece}\t{piece.score:.9g}\n".encode())
    return found.hexdigest()
