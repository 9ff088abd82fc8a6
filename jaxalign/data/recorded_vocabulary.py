"""A vocabulary as recorded by a cache, a run folder or a checkpoint, and a check whether two of them give text the same ids."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from jaxalign.data import sentencepiece_models
from jaxalign.data.vocabularies import (
    ByteVocabulary,
    SentencePieceVocabulary,
    Vocabulary,
    vocabulary_from_dict,
)
from jaxalign.errors import UserError


@dataclasses.dataclass(frozen=True)
class RecordedVocabulary:
    """The description of a vocabulary and its location.

    Attributes:
      spec: the result of `Vocabulary.to_dict`: kind, extra_ids, and for a SentencePiece model path and sha256.
      folder: the folder to which a relative path refers.
      model: the SentencePiece model itself, if it was not read from a local file.
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
            return SentencePieceVocabulary(
                str(self.spec["path"]), self.spec["extra_ids"], model=self.model
            )
        return vocabulary_from_dict(self.spec, self.folder)

    def describe(self) -> str:
        """Returns a description in words."""
        sentinels = f"{self.spec.get('extra_ids', 0)} extra ids"
        if self.spec.get("kind") != "sentencepiece":
            return f"{self.spec.get('kind')} with {sentinels}"
        return f"the SentencePiece model {str(self.spec.get('sha256'))[:12]} with {sentinels}"

    def agrees_with(self, other: RecordedVocabulary) -> bool:
        """Returns whether every text has the same ids in both; sentinels are compared if both know their number."""
        if _identity(self.spec) == _identity(other.spec):
            return True
        if self.spec.get("kind") != other.spec.get("kind"):
            return False
        try:
            mine, theirs = self.load(), other.load()
        except UserError:
            # The digests already differ. A missing model cannot show that only its file differs and its ids do not.
            return False
        counted = self.counted and other.counted
        if isinstance(mine, ByteVocabulary) or isinstance(theirs, ByteVocabulary):
            return not counted or mine.sentinels == theirs.sentinels
        assert isinstance(mine, SentencePieceVocabulary)
        assert isinstance(theirs, SentencePieceVocabulary)
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


def _identity(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {"extra_ids": 0} | {key: value for key, value in spec.items() if key != "path"}
