"""Encodes texts for networks: one encoder and one length rule for training, generation, evaluation and judging.

The cache and an evaluation leave out and count the records of a file that break a limit (`find_problem`). A prompt without
responses is cut at the side that the run sets. A response that must have a score, because a judge scores it, is cut at its end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jaxalign.data.tokenization import Limits, beside_image, cut_prompt, find_problem
from jaxalign.data.vocabularies import Vocabulary
from jaxalign.errors import UserError
from jaxalign.networks.image_tokens import IMAGE_TOKENS

CUT_FLAGS = "--max_input_length and --long_prompts change it"


@dataclasses.dataclass(frozen=True)
class EncodedTexts:
    """The tokens of several texts.

    Attributes:
      tokens: the tokens of every text, including EOS.
      cut: the number of texts that were cut.
      unknown_fraction: the share of pieces, before cutting, that the vocabulary does not contain.
    """

    tokens: list[list[int]]
    cut: int
    unknown_fraction: float

    @property
    def cut_fraction(self) -> float:
        """The share of the texts that were cut."""
        return self.cut / max(len(self.tokens), 1)


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """Converts texts to the tokens of a run.

    Attributes:
      vocabulary: the vocabulary of the run.
      limits: the length limits of the run, and how it cuts prompts.
    """

    vocabulary: Vocabulary
    limits: Limits

    def prompts(
        self, texts: Sequence[str], image_tokens: Sequence[int] | None = None
    ) -> EncodedTexts:
        """Encodes prompts and cuts those that are too long.

        Args:
          texts: the prompts.
          image_tokens: the number of image tokens with which each prompt begins; none by default.

        Raises:
          UserError: a prompt is too long and the limits reject long prompts.
        """
        prefix = self.vocabulary.prompt_prefix
        pieces = [[*prefix, *ids] for ids in self.vocabulary.encode_batch(list(texts))]
        counts = [0] * len(pieces) if image_tokens is None else image_tokens
        limits = self.limits
        rooms = [beside_image(limits, count) for count in counts]
        if limits.long_prompts == "reject":
            for text, tokens, room in zip(texts, pieces, rooms, strict=True):
                if len(tokens) + 1 > room.max_input_length:
                    raise UserError(
                        f"the prompt {text[:60]!r} has {len(tokens) + 1} tokens with EOS, more than max_input_length="
                        f"{limits.max_input_length}, and the run rejects such prompts; give --long_prompts=truncate or "
                        "truncate_left, or a larger --max_input_length"
                    )
        kept = [
            cut_prompt(tokens, room, prefix) for tokens, room in zip(pieces, rooms, strict=True)
        ]
        encoded = self._encoded(pieces, kept)
        if not any(counts):
            return encoded
        images = [range(IMAGE_TOKENS, IMAGE_TOKENS + count) for count in counts]
        joined = [[*image, *text] for image, text in zip(images, encoded.tokens, strict=True)]
        return dataclasses.replace(encoded, tokens=joined)

    def responses(self, texts: Sequence[str]) -> EncodedTexts:
        """Encodes responses and cuts those that are too long at their end."""
        pieces = self.vocabulary.encode_batch(list(texts))
        return self._encoded(
            pieces, [tokens[: self.limits.max_target_length - 1] for tokens in pieces]
        )

    def problem(
        self, prompt: str, responses: Sequence[str], image_tokens: int = 0
    ) -> tuple[str, str] | None:
        """Returns (reason, message) if a cache with these limits would reject a record, else None."""
        inputs, *targets = self.vocabulary.encode_batch([prompt, *responses])
        room = beside_image(self.limits, image_tokens)
        inputs = [*self.vocabulary.prompt_prefix, *inputs]
        return find_problem(inputs, targets, self.vocabulary, room)

    def describe_cut(self, encoded: EncodedTexts) -> str:
        """Returns one sentence about the prompts that were cut, or '' if none was."""
        return describe_cut(encoded.cut, len(encoded.tokens), self.limits, CUT_FLAGS)

    def _encoded(self, pieces: list[list[int]], kept: list[Sequence[int]]) -> EncodedTexts:
        unknown = sum(token == self.vocabulary.unk_id for tokens in pieces for token in tokens)
        return EncodedTexts(
            tokens=[[*map(int, tokens), self.vocabulary.eos_id] for tokens in kept],
            cut=sum(len(now) < len(then) for now, then in zip(kept, pieces, strict=True)),
            unknown_fraction=unknown / max(sum(map(len, pieces)), 1),
        )


def describe_cut(cut: int, total: int, limits: Limits, remedy: str) -> str:
    """Returns one sentence about the prompts that were cut and the option that changes it, or '' if none was."""
    if not cut:
        return ""
    side = "beginning" if limits.long_prompts == "truncate_left" else "end"
    return f"{cut} of {total} prompts were cut at their {side} (max_input_length={limits.max_input_length}; {remedy})"
