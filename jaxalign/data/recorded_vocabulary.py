"""A vocabulary as recorded by a cache, a run folder or a checkpoint, and a check whether two of them give text the same ids."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from jaxalign.data import sentencepiece_models
from jaxalign.data.sentencepiece_models import SPACE, is_sentinel
from jaxalign.data.vocabularies import (
    FILE_KINDS,
    ByteVocabulary,
    FileVocabulary,
    SentencePieceVocabulary,
    Vocabulary,
    vocabulary_from_dict,
)
from jaxalign.errors import UserError

# Texts by which vocabularies of different libraries are compared, besides their tables.
_PROBES = (
    "The quick brown fox jumps over 13 lazy dogs.",
    "naïve café, 日本語 ﬁn Ⅳ",
    "x <extra_id_0> y",
    "Don't - stop; (ever)!",
    "unübertreffliche Straßenbahnhaltestellen",
    "a",
)


@dataclasses.dataclass(frozen=True)
class RecordedVocabulary:
    """The description of a vocabulary and its location.

    Attributes:
      spec: the result of `Vocabulary.to_dict`: kind, extra_ids, and for a file path and sha256.
      folder: the folder to which a relative path refers.
      model: the content of the file itself, if it was not read from a local file.
      counted: whether the number of sentinels is known; False if it was only assumed.
    """

    spec: Mapping[str, Any]
    folder: str = ""
    model: bytes | None = None
    counted: bool = True

    def load(self) -> Vocabulary:
        """Returns the vocabulary.

        Raises:
          UserError: its model is missing or differs from the description.
        """
        if self.model is not None:
            kind = FILE_KINDS[str(self.spec["kind"])]
            return kind(str(self.spec["path"]), self.spec["extra_ids"], model=self.model)
        return vocabulary_from_dict(self.spec, self.folder)

    def describe(self) -> str:
        """Returns a description in words."""
        sentinels = f"{self.spec.get('extra_ids', 0)} extra ids"
        if self.spec.get("kind") not in FILE_KINDS:
            return f"{self.spec.get('kind')} with {sentinels}"
        digest = str(self.spec.get("sha256"))[:12]
        if self.spec["kind"] == "tokenizer":
            return f"the tokenizer.json {digest}"
        return f"the SentencePiece model {digest} with {sentinels}"

    def agrees_with(self, other: RecordedVocabulary) -> bool:
        """Returns whether every text has the same ids in both; sentinels are compared if both know their number."""
        if _identity(self.spec) == _identity(other.spec):
            return True
        if ("bytes" in (self.spec.get("kind"), other.spec.get("kind"))) and (
            self.spec.get("kind") != other.spec.get("kind")
        ):
            return False
        try:
            mine, theirs = self.load(), other.load()
        except UserError:
            # The digests already differ. A missing model cannot show that only its file differs and its ids do not.
            return False
        counted = self.counted and other.counted
        if isinstance(mine, ByteVocabulary) or isinstance(theirs, ByteVocabulary):
            return not counted or mine.sentinels == theirs.sentinels
        assert isinstance(mine, FileVocabulary) and isinstance(theirs, FileVocabulary)
        if type(mine) is not type(theirs):
            return _same_pieces(mine, theirs)
        same_sentinels = not counted or mine.sentinels == theirs.sentinels
        return same_sentinels and mine.digest == theirs.digest

    def is_extended_by(self, other: RecordedVocabulary) -> bool:
        """Returns whether the other one has all ids of this one, and user-defined pieces behind them."""
        try:
            mine, theirs = self.load(), other.load()
        except UserError:
            return False
        if not isinstance(mine, SentencePieceVocabulary) or not isinstance(
            theirs, SentencePieceVocabulary
        ):
            return False
        return sentencepiece_models.is_extended(
            sentencepiece_models.parse(mine.model, mine.path),
            mine.extra_ids,
            sentencepiece_models.parse(theirs.model, theirs.path),
        )


def require_same_vocabulary(
    what: str, theirs: RecordedVocabulary, ours: RecordedVocabulary, *, may_extend: bool = False
) -> None:
    """Refuses a task whose tokenisation differs from the one that a network was trained with.

    Args:
      what: the network, for the message: "the run runs/sft".
      theirs: the vocabulary of the network.
      ours: the vocabulary of the task, with the cache as its folder.
      may_extend: accept user-defined pieces behind all ids of the network's vocabulary, such as those of identifiers. The network then
        learns them in free rows of its embedding table.

    Raises:
      UserError: the vocabularies differ; the message names the setting to change.
    """
    if theirs.agrees_with(ours) or (may_extend and theirs.is_extended_by(ours)):
        return
    place = str(theirs.spec.get("path", "bytes"))
    if theirs.folder and "path" in theirs.spec:
        place = os.path.join(theirs.folder, place)
    raise UserError(
        f"{ours.folder} was tokenised with another vocabulary than {what}: with {ours.describe()}, not {theirs.describe()}, so tokens "
        f"would mean something else; set VOCABULARY = {place!r} and EXTRA_IDS = {theirs.spec.get('extra_ids', 0)}, and another CACHE_DIR"
    )


def _same_pieces(one: FileVocabulary, other: FileVocabulary) -> bool:
    """Returns whether a SentencePiece model and a tokenizer.json are the same vocabulary: the same table, and the same ids of texts."""
    tables = [
        [
            # SentencePiece writes the space before a sentinel into its piece.
            piece.removeprefix(SPACE) if piece and is_sentinel(piece) else piece
            for piece in vocabulary.table()
        ]
        for vocabulary in (one, other)
    ]
    return tables[0] == tables[1] and one.encode_batch(_PROBES) == other.encode_batch(_PROBES)


def _identity(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {"extra_ids": 0} | {key: value for key, value in spec.items() if key != "path"}
