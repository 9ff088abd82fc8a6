"""Vocabularies in plain Python: SentencePiece models and bytes.

Ids follow T5: 0 is PAD (and the decoder's start token), 1 is EOS, 2 is the unknown piece. `encode` never adds EOS;
the cache appends it once, so that it is counted in every log-probability. TensorFlow is imported only by `to_seqio`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

PAD_ID = 0
EOS_ID = 1
UNK_ID = 2
_BYTE_OFFSET = 3


class Vocabulary(Protocol):
    """What the data code needs of a vocabulary."""

    pad_id: int
    eos_id: int
    unk_id: int

    @property
    def size(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...

    def decode(self, ids: Iterable[int]) -> str: ...

    def to_dict(self) -> dict[str, Any]: ...

    def to_seqio(self) -> Any: ...


def _until_eos(ids: Iterable[int]) -> list[int]:
    """Ids before the first EOS, without PAD, as Python integers."""
    kept = []
    for token in np.asarray(ids if isinstance(ids, np.ndarray) else list(ids)).reshape(-1).tolist():
        if token == EOS_ID:
            break
        if token != PAD_ID:
            kept.append(int(token))
    return kept


class ByteVocabulary:
    """ByT5's vocabulary: UTF-8 byte b is id b + 3, after PAD, EOS and unknown; `extra_ids` sentinels follow."""

    pad_id, eos_id, unk_id = PAD_ID, EOS_ID, UNK_ID

    def __init__(self, extra_ids: int = 0):
        self.extra_ids = extra_ids

    @property
    def size(self) -> int:
        return 256 + _BYTE_OFFSET + self.extra_ids

    def encode(self, text: str) -> list[int]:
        """Ids of the text's bytes, without EOS."""
        return [byte + _BYTE_OFFSET for byte in text.encode("utf-8")]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Text up to the first EOS; ids that are not bytes and broken UTF-8 are left out."""
        kept = [i - _BYTE_OFFSET for i in _until_eos(ids) if _BYTE_OFFSET <= i < 256 + _BYTE_OFFSET]
        return bytes(kept).decode("utf-8", errors="ignore")

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "bytes", "extra_ids": self.extra_ids}

    def to_seqio(self) -> Any:
        """The matching seqio vocabulary (imports TensorFlow)."""
        import seqio

        return seqio.ByteVocabulary(extra_ids=self.extra_ids)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByteVocabulary) and self.extra_ids == other.extra_ids

    def __hash__(self) -> int:
        return hash(("bytes", self.extra_ids))


class SentencePieceVocabulary:
    """A SentencePiece model whose PAD is 0, EOS 1 and unknown 2, with `extra_ids` sentinels appended.

    The sentinels are written `<extra_id_0>`, `<extra_id_1>` ... in text and numbered from the end, as in T5
    (100 of them for T5's own 32,000 pieces).

    Raises:
      ValueError: if the model keeps PAD, EOS or unknown elsewhere. Ids are not shifted silently, because a
        checkpoint trained with the model's own ids would then read the wrong embeddings.
    """

    pad_id, eos_id, unk_id = PAD_ID, EOS_ID, UNK_ID

    def __init__(self, path: str | os.PathLike[str], extra_ids: int = 0):
        import sentencepiece

        self.path = os.fspath(path)
        self.extra_ids = extra_ids
        try:
            with open(self.path, "rb") as file:
                model = file.read()
        except OSError as error:
            raise ValueError(
                f"Cannot read the SentencePiece model {self.path}: {error.strerror}. "
                "Train one with `jaxalign vocabulary`, or use the vocabulary 'bytes'."
            ) from error
        self.sha256 = hashlib.sha256(model).hexdigest()
        if extra_ids:
            model = _with_sentinels(model, extra_ids)
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"{self.path} is not a SentencePiece model.") from error
        ids = self._processor.pad_id(), self._processor.eos_id(), self._processor.unk_id()
        if ids != (PAD_ID, EOS_ID, UNK_ID):
            raise ValueError(
                f"The SentencePiece model {self.path} has pad={ids[0]}, eos={ids[1]}, unk={ids[2]} (-1 = none); T5 needs "
                "pad=0, eos=1, unk=2. Train the model again with these ids (`jaxalign vocabulary` does)."
            )

    @property
    def size(self) -> int:
        return self._processor.GetPieceSize()

    def encode(self, text: str) -> list[int]:
        """Piece ids of the text, without EOS."""
        return self._processor.EncodeAsIds(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self._processor.Encode(list(texts), out_type=int) if len(texts) else []

    def decode(self, ids: Iterable[int]) -> str:
        """Text up to the first EOS, without PAD; ids outside the model read as unknown."""
        size = self.size
        return self._processor.DecodeIds([i if 0 <= i < size else UNK_ID for i in _until_eos(ids)])

    def pieces(self, text: str) -> list[str]:
        return self._processor.EncodeAsPieces(text)

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": "sentencepiece",
            "path": self.path,
            "extra_ids": self.extra_ids,
            "sha256": self.sha256,
        }

    def to_seqio(self) -> Any:
        """The matching seqio vocabulary (imports TensorFlow)."""
        import seqio

        return seqio.SentencePieceVocabulary(self.path, extra_ids=self.extra_ids)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, SentencePieceVocabulary)
            and self.sha256 == other.sha256
            and self.extra_ids == other.extra_ids
        )

    def __hash__(self) -> int:
        return hash((self.sha256, self.extra_ids))


def _with_sentinels(model: bytes, extra_ids: int) -> bytes:
    """The model with T5's sentinel pieces after its own, the highest number first."""
    from sentencepiece import sentencepiece_model_pb2

    # The module is generated, and a type checker cannot see its classes.
    model_proto: Any = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]
    proto = model_proto.FromString(model)
    for number in range(extra_ids - 1, -1, -1):
        piece = proto.pieces.add()
        piece.piece = f"\u2581<extra_id_{number}>"
        piece.score = 0.0
        piece.type = model_proto.SentencePiece.USER_DEFINED
    return proto.SerializeToString()


def vocabulary_from_dict(spec: Mapping[str, Any], directory: str | None = None) -> Vocabulary:
    """The vocabulary that `to_dict` described.

    Args:
      spec: {"kind": "bytes" | "sentencepiece", "extra_ids": int, "path": str, "sha256": str}.
      directory: where a relative path starts (a cache or run folder); the current folder if None.

    Raises:
      ValueError: unknown kind, missing file, or a file whose content is not the one described.
    """
    kind = spec.get("kind")
    extra_ids = int(spec.get("extra_ids", 0))
    if kind == "bytes":
        return ByteVocabulary(extra_ids)
    if kind != "sentencepiece":
        raise ValueError(f"Unknown vocabulary kind {kind!r}; known: 'bytes', 'sentencepiece'.")
    path = spec["path"]
    if directory is not None and not os.path.isabs(path):
        path = os.path.join(directory, path)
    vocabulary = SentencePieceVocabulary(path, extra_ids)
    if spec.get("sha256") not in (None, vocabulary.sha256):
        raise ValueError(
            f"The SentencePiece model {path} is not the one this data was made with (its sha256 is "
            f"{vocabulary.sha256[:12]}..., expected {spec['sha256'][:12]}...)."
        )
    return vocabulary


def vocabulary_from_spec(
    spec: str | Mapping[str, Any] | Vocabulary, extra_ids: int = 0
) -> Vocabulary:
    """A vocabulary from "bytes", the path of a SentencePiece model, a `to_dict` mapping, or itself."""
    if isinstance(spec, Mapping):
        return vocabulary_from_dict(spec)
    if not isinstance(spec, str):
        return spec
    return (
        ByteVocabulary(extra_ids) if spec == "bytes" else SentencePieceVocabulary(spec, extra_ids)
    )
