"""Vocabularies with tokens for identifiers.

Either the SentencePiece model gets user-defined pieces (`<c3>`, `<a17>`, ...) behind its own and behind T5's sentinels, or the sentinels
themselves name the parts of identifiers, so that a T5 checkpoint's vocabulary and embedding table stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxalign.data import sentencepiece_models
from jaxalign.data.vocabularies import SentencePieceVocabulary, Vocabulary
from jaxalign.errors import UserError
from jaxalign.retrieval.identifiers import Block, Identifiers, make_blocks, pieces, token_ids

PIECES, SENTINELS = "pieces", "sentinels"
TOKENS = (PIECES, SENTINELS)


def with_identifiers(
    vocabulary: Vocabulary, sizes: Sequence[tuple[str, int]], path: str, mark: str
) -> tuple[SentencePieceVocabulary, list[Block]]:
    """Returns a SentencePiece vocabulary with pieces for identifiers behind its other ids, which do not change, and their blocks.

    Args:
      vocabulary: the vocabulary of the texts.
      sizes: letter and number of tokens of every position.
      path: the path that the model will have.
      mark: a text that the model records, so that vocabularies of different indexes differ even if their pieces are the same.

    Raises:
      UserError: it is no SentencePiece vocabulary, or one of its pieces is that of an identifier.
    """
    if not isinstance(vocabulary, SentencePieceVocabulary):
        raise UserError(
            f"identifiers need pieces of a SentencePiece model, and the vocabulary is {vocabulary.to_dict()['kind']!r}; `jaxalign "
            "vocabulary` trains a model"
        )
    proto = sentencepiece_models.parse(vocabulary.model, vocabulary.path)
    proto = sentencepiece_models.with_sentinels(proto, vocabulary.extra_ids)
    own = {piece.piece.removeprefix(sentencepiece_models.SPACE) for piece in proto.pieces}
    names = pieces(sizes)
    overlap = [name for name in names if name in own]
    if overlap:
        raise UserError(
            f"{vocabulary.path} has the piece {overlap[0]} already, which would mean a text and an identifier; give the vocabulary "
            "that holds no identifiers"
        )
    # The first piece of a text follows the space that most models put before it.
    leading = (
        proto.normalizer_spec.add_dummy_prefix and not proto.trainer_spec.treat_whitespace_as_suffix
    )
    first = len(proto.pieces)
    for number, name in enumerate(names):
        piece = proto.pieces.add()
        starts = leading and number < sizes[0][1]
        piece.piece = f"{sentencepiece_models.SPACE if starts else ''}{name}"
        piece.score = 0.0
        piece.type = sentencepiece_models.model_proto().SentencePiece.USER_DEFINED
    proto.trainer_spec.model_prefix = f"identifiers {mark}"
    extended = SentencePieceVocabulary(path, model=proto.SerializeToString())
    return extended, make_blocks(sizes, first)


def sentinel_blocks(vocabulary: Vocabulary, sizes: Sequence[tuple[str, int]]) -> list[Block]:
    """Returns blocks of the sentinels of a vocabulary, which T5 and ByT5 have behind their other ids.

    Raises:
      UserError: there are too few sentinels, or they have no text.
    """
    if not isinstance(vocabulary, SentencePieceVocabulary):
        raise UserError(
            f"the sentinels of the vocabulary {vocabulary.to_dict()['kind']!r} have no text that identifiers can use; give a "
            "SentencePiece model"
        )
    needed = sum(size for _, size in sizes)
    if needed > vocabulary.sentinels:
        raise UserError(
            f"identifiers need {needed} tokens, and the vocabulary has {vocabulary.sentinels} sentinels (--extra_ids); use fewer "
            "clusters, codes or levels, or --tokens=pieces"
        )
    return make_blocks(sizes, vocabulary.size - vocabulary.sentinels)


def identifier_texts(
    vocabulary: Vocabulary, identifiers: Identifiers, blocks: Sequence[Block]
) -> list[str]:
    """Returns the text of every identifier, whose tokens are exactly those of the identifier.

    Raises:
      UserError: the vocabulary reads a text otherwise.
    """
    tokens = token_ids(identifiers, blocks).tolist()
    texts = [vocabulary.decode(row) for row in tokens]
    for text, row, again in zip(texts, tokens, vocabulary.encode_batch(texts), strict=True):
        if list(again) != row:
            raise UserError(
                f"the vocabulary reads the identifier {text!r} as the tokens {list(again)} and not {row}; use a vocabulary of "
                "`jaxalign vocabulary` or T5's"
            )
    return texts


def holds_identifier_tokens(tokens: Sequence[int], blocks: Sequence[Block]) -> bool:
    """Returns whether a text's tokens include one of an identifier, which a query must not."""
    ids = np.asarray(tokens)
    first, last = blocks[0].first, blocks[-1].first + blocks[-1].size
    return bool(((ids >= first) & (ids < last)).any())
