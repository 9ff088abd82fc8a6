"""Vocabularies in plain Python: SentencePiece models, bytes, and (in `tokenizer_vocabulary`) the library tokenizers.

Ids follow T5: 0 is PAD (and the decoder's start token), 1 is EOS, 2 is the unknown piece. `encode` never adds EOS;
the cache appends it once, so that it is counted in every log-probability. TensorFlow is imported only by `to_seqio`.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jaxalign import hub
from jaxalign.data import sentencepiece_models
from jaxalign.data.token_ids import EOS_ID, PAD_ID, until_eos
from jaxalign.data.tokenizer_vocabulary import FILE, TokenizerVocabulary
from jaxalign.errors import UserError

UNK_ID = 2
_BYTE_OFFSET = 3


class Vocabulary(Protocol):
    """The interface of a vocabulary that the data code needs.

    Attributes:
      lossless: whether the tokens of every text restore it.
      prompt_prefix: the tokens that begin every prompt, such as BOS; () for T5's vocabularies.
    """

    lossless: bool
    prompt_prefix: tuple[int, ...]
    pad_id: int
    eos_id: int
    unk_id: int
    sentinels: int

    @property
    def size(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...

    def decode(self, ids: Iterable[int]) -> str: ...

    def decode_batch(self, batch: Sequence[Sequence[int]]) -> list[str]: ...

    def to_dict(self) -> dict[str, Any]: ...

    def to_seqio(self) -> Any: ...


class ByteVocabulary:
    """ByT5's vocabulary: UTF-8 byte b is id b + 3, after PAD, EOS and unknown; `extra_ids` sentinels follow."""

    pad_id, eos_id, unk_id = PAD_ID, EOS_ID, UNK_ID
    prompt_prefix: tuple[int, ...] = ()
    lossless = True

    def __init__(self, extra_ids: int = 0):
        if extra_ids < 0:
            raise UserError(f"extra_ids is a number of sentinels, not {extra_ids}")
        self.extra_ids = self.sentinels = extra_ids

    @property
    def size(self) -> int:
        return 256 + _BYTE_OFFSET + self.extra_ids

    def encode(self, text: str) -> list[int]:
        """Returns the ids of the text's bytes, without EOS."""
        return [byte + _BYTE_OFFSET for byte in text.encode("utf-8")]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = [text.encode("utf-8") for text in texts]
        # One conversion of all bytes is several times faster than one for each text.
        ids = (np.frombuffer(b"".join(encoded), np.uint8).astype(np.int32) + _BYTE_OFFSET).tolist()
        ends = list(itertools.accumulate(map(len, encoded)))
        return [ids[end - len(found) : end] for found, end in zip(encoded, ends, strict=True)]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text up to the first EOS; ids that are not bytes and broken UTF-8 are left out."""
        kept = [i - _BYTE_OFFSET for i in until_eos(ids) if _BYTE_OFFSET <= i < 256 + _BYTE_OFFSET]
        return bytes(kept).decode("utf-8", errors="ignore")

    def decode_batch(self, batch: Sequence[Sequence[int]]) -> list[str]:
        return [self.decode(ids) for ids in batch]

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "bytes", "extra_ids": self.extra_ids}

    def to_seqio(self) -> Any:
        """Returns the matching seqio vocabulary (imports TensorFlow)."""
        import seqio

        return seqio.ByteVocabulary(extra_ids=self.extra_ids)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByteVocabulary) and self.extra_ids == other.extra_ids

    def __hash__(self) -> int:
        return hash(("bytes", self.extra_ids))


class SentencePieceVocabulary:
    """A SentencePiece model with PAD 0, EOS 1 and unknown 2, and its sentinels.

    The sentinels are written `<extra_id_0>`, `<extra_id_1>` ... in text and numbered from the end, as in T5 (100 of them after T5's own
    32,000 pieces). A model such as mT5's may already have sentinels. Then none are added, and `extra_ids` is 0 or their number.

    Attributes:
      extra_ids: the number of sentinels added to the model's own pieces.
      sentinels: the total number of sentinels, including the model's own.

    Raises:
      UserError: the model has other ids for PAD, EOS or unknown. Ids are not shifted silently, because a checkpoint trained with the
        model's own ids would then read the wrong embeddings. Also raised if the number of its sentinels differs from `extra_ids`.
    """

    pad_id, eos_id, unk_id = PAD_ID, EOS_ID, UNK_ID
    prompt_prefix: tuple[int, ...] = ()
    lossless = False

    def __init__(
        self, path: str | os.PathLike[str], extra_ids: int = 0, *, model: bytes | None = None
    ):
        import sentencepiece

        self.path = os.fspath(path)
        if extra_ids < 0:
            raise UserError(f"extra_ids is a number of sentinels, not {extra_ids}")
        self.model = _read_model(self.path) if model is None else model
        self.sha256 = hashlib.sha256(self.model).hexdigest()
        proto = sentencepiece_models.parse(self.model, self.path)
        own = sentencepiece_models.count_sentinels(proto)
        if own and extra_ids not in (0, own):
            raise UserError(
                f"{self.path} has {own} sentinels (<extra_id_0> ...) of its own, so extra_ids is 0 or {own}, not {extra_ids}"
            )
        self.extra_ids = 0 if own else extra_ids
        self.sentinels = own or extra_ids
        extended = sentencepiece_models.with_sentinels(proto, self.extra_ids)
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(extended.SerializeToString())
        except (RuntimeError, TypeError) as error:
            raise UserError(f"{self.path} is not a SentencePiece model") from error
        ids = self._processor.pad_id(), self._processor.eos_id(), self._processor.unk_id()
        if ids != (PAD_ID, EOS_ID, UNK_ID):
            raise UserError(
                f"The SentencePiece model {self.path} has pad={ids[0]}, eos={ids[1]}, unk={ids[2]} (-1 = none); T5 needs "
                "pad=0, eos=1, unk=2. Train the model again with these ids (`jaxalign vocabulary` does)."
            )

    @functools.cached_property
    def digest(self) -> str:
        """Returns `sentencepiece_models.digest` of the model: equal digests mean equal ids, except those of sentinels."""
        return sentencepiece_models.digest(sentencepiece_models.parse(self.model, self.path))

    @property
    def size(self) -> int:
        return self._processor.GetPieceSize()

    def encode(self, text: str) -> list[int]:
        """Returns the piece ids of the text, without EOS."""
        return self._processor.EncodeAsIds(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self._processor.Encode(list(texts), out_type=int) if len(texts) else []

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text up to the first EOS, without PAD; ids outside the model are read as unknown."""
        return self._processor.DecodeIds(self._known(ids))

    def decode_batch(self, batch: Sequence[Sequence[int]]) -> list[str]:
        """Returns `decode` of every list of ids, faster than one after another."""
        size = self.size
        kept = [
            ids if ids and min(ids) > EOS_ID and max(ids) < size else self._known(ids)
            for ids in batch
        ]
        return self._processor.Decode(kept) if kept else []

    def _known(self, ids: Iterable[int]) -> list[int]:
        size = self.size
        return [i if 0 <= i < size else UNK_ID for i in until_eos(ids)]

    def pieces(self, text: str) -> list[str]:
        return self._processor.EncodeAsPieces(text)

    def table(self) -> list[str]:
        """Returns the text of every id."""
        return [self._processor.IdToPiece(index) for index in range(self.size)]

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": "sentencepiece",
            "path": self.path,
            "extra_ids": self.extra_ids,
            "sha256": self.sha256,
        }

    def to_seqio(self) -> Any:
        """Returns the matching seqio vocabulary (imports TensorFlow)."""
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


# The kinds of vocabularies that are a file.
FILE_KINDS: dict[str, type[SentencePieceVocabulary] | type[TokenizerVocabulary]] = {
    "sentencepiece": SentencePieceVocabulary,
    "tokenizer": TokenizerVocabulary,
}
FileVocabulary = SentencePieceVocabulary | TokenizerVocabulary


def _read_model(path: str) -> bytes:
    try:
        with open(os.path.expanduser(path), "rb") as file:
            return file.read()
    except OSError as error:
        raise UserError(
            f"Cannot read the SentencePiece model {path}: {error.strerror}. "
            "Train one with `jaxalign vocabulary`, or use the vocabulary 'bytes'."
        ) from error


def vocabulary_from_dict(spec: Mapping[str, Any], directory: str | None = None) -> Vocabulary:
    """Returns the vocabulary that `to_dict` described.

    Args:
      spec: {"kind": "bytes" | "sentencepiece" | "tokenizer", "extra_ids": int, "path": str, "sha256": str}.
      directory: the folder to which a relative path refers (a cache or run folder); None means the current folder.

    Raises:
      UserError: the kind is unknown, the file is missing, or its content differs from the description.
    """
    kind = spec.get("kind")
    extra_ids = spec.get("extra_ids", 0)
    if not isinstance(extra_ids, int) or isinstance(extra_ids, bool) or extra_ids < 0:
        raise UserError(f"a vocabulary's extra_ids is a number of sentinels, not {extra_ids!r}")
    if kind == "bytes":
        return ByteVocabulary(extra_ids)
    if kind not in FILE_KINDS:
        raise UserError(
            f"Unknown vocabulary kind {kind!r}; known: 'bytes', {', '.join(map(repr, FILE_KINDS))}."
        )
    path = spec.get("path")
    if not isinstance(path, str):
        raise UserError(
            f"a vocabulary of the kind {kind!r} needs the path of its file, not {path!r}"
        )
    if directory is not None and not os.path.isabs(path):
        path = os.path.join(directory, path)
    vocabulary = FILE_KINDS[kind](path, extra_ids)
    if spec.get("sha256") not in (None, vocabulary.sha256):
        raise UserError(
            f"The vocabulary {path} is not the one this data was made with (its sha256 is "
            f"{vocabulary.sha256[:12]}..., expected {str(spec['sha256'])[:12]}...)."
        )
    return vocabulary


def vocabulary_from_spec(
    spec: str | Mapping[str, Any] | Vocabulary, extra_ids: int = 0
) -> Vocabulary:
    """Returns a vocabulary.

    Args:
      spec: "bytes"; the path of a SentencePiece model, of a `tokenizer.json`, or of a folder with one of them, or an address of the Hub,
        hf://OWNER/NAME; a `to_dict` mapping; or a vocabulary itself.
      extra_ids: the number of sentinels after the vocabulary's own tokens.
    """
    if isinstance(spec, Mapping):
        return vocabulary_from_dict(spec)
    if not isinstance(spec, str):
        return spec
    if spec == "bytes":
        return ByteVocabulary(extra_ids)
    path = _file_of(spec)
    if path.endswith(".json"):
        return TokenizerVocabulary(path, extra_ids)
    return SentencePieceVocabulary(path, extra_ids)


def _file_of(path: str) -> str:
    """Returns the file of a vocabulary, which may be given as the folder or the repository of the Hub that holds it.

    A `tokenizer.json` is taken before a SentencePiece model.
    """
    if hub.is_address(path):
        path = hub.download_tokenizer(path)
    folder = os.path.expanduser(path)
    if not os.path.isdir(folder):
        return path
    names = (FILE, "spiece.model", "tokenizer.model", "vocabulary.model")
    found = [name for name in names if os.path.isfile(os.path.join(folder, name))]
    if not found:
        raise UserError(
            f"the folder {path} holds no vocabulary ({', '.join(names)}); give a file, or 'bytes'"
        )
    return os.path.join(path, found[0])
