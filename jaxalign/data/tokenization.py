"""Converts records to tokenised examples, and checks the limits of a tokenised record."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from jaxalign.data import preferences
from jaxalign.data.examples import CachedExample, make_example
from jaxalign.data.images import ImageFormat
from jaxalign.data.records import COMPARED_KINDS, Record, prompt_id
from jaxalign.data.rejections import DataError, RejectionLog
from jaxalign.data.vocabularies import Vocabulary
from jaxalign.errors import require_one_of, require_range

LONG_PROMPTS = ("truncate", "truncate_left", "reject")
DUPLICATES = ("reject", "keep")
BLOCK = 1024


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of a tokenised record.

    Attributes:
      max_input_length, max_target_length: the tokens of a prompt and of each response, including EOS.
      long_prompts: "truncate" keeps the beginning, "truncate_left" the end (the last turns of a dialogue), "reject" rejects.
      max_unknown_fraction: the largest share of unknown pieces in a prompt or response.
      duplicates: "reject" or "keep".
    """

    max_input_length: int = 512
    max_target_length: int = 512
    long_prompts: str = "truncate"
    max_unknown_fraction: float = 0.2
    duplicates: str = "reject"

    def __post_init__(self) -> None:
        require_one_of("cache", LONG_PROMPTS, long_prompts=self.long_prompts)
        require_one_of("cache", DUPLICATES, duplicates=self.duplicates)
        # EOS counts as a token.
        require_range(
            "cache",
            "[2, inf)",
            max_input_length=self.max_input_length,
            max_target_length=self.max_target_length,
        )
        require_range("cache", "[0, 1]", max_unknown_fraction=self.max_unknown_fraction)


Tokenized = tuple[Record, list[int], list[list[int]]]
Item = TypeVar("Item")


def tokenize(records: Iterable[Record], vocabulary: Vocabulary) -> Iterator[Tokenized]:
    """Yields (record, prompt tokens, response tokens) without EOS."""
    for block in _blocks(records):
        texts = [text for record in block for text in (record.prompt, *record.responses)]
        tokens = iter(vocabulary.encode_batch(texts))
        for record in block:
            prompt = [*vocabulary.prompt_prefix, *next(tokens)]
            yield record, prompt, [next(tokens) for _ in record.responses]


def make_examples(
    tokenized: Iterable[Tokenized],
    vocabulary: Vocabulary,
    limits: Limits,
    log: RejectionLog,
    split: str = "",
    *,
    kind: str,
    images: ImageFormat | None = None,
) -> Iterator[CachedExample]:
    """Yields examples of the records that pass the limits, responses best first, with EOS appended; the others go to the log.

    The log's notes count the losses: `truncated_prompts`; `unknown_prompts` and `unknown_responses`, which hold unknown
    pieces; `changed_prompts` and `changed_responses`, whose tokens decode to another text; `reordered` records, whose feedback
    contradicts the order of their responses; and `ties`, records whose responses all have the same feedback.

    With `images`, the tokens of a record's image come before those of its prompt, which has the rest of the length.
    """
    for block in _blocks(tokenized):
        changed = _changed(block, vocabulary)
        for given, inputs, given_targets in block:
            prompt_changed, responses_changed = next(changed)
            record, targets, reordered = preferences.ordered(given, given_targets, kind)
            image_tokens = images.tokens if images and record.image is not None else range(0)
            room = beside_image(limits, len(image_tokens))
            problem = find_problem(inputs, targets, vocabulary, room, kind)
            if problem is not None:
                log.reject_record(record, *problem, split=split)
                continue
            unknown = vocabulary.unk_id
            _note(
                log,
                unknown_prompts=unknown in inputs,
                changed_prompts=prompt_changed,
                unknown_responses=sum(unknown in target for target in targets),
                changed_responses=responses_changed,
                reordered=reordered and kind in COMPARED_KINDS,
                ties=preferences.is_tie(record.feedback),
                truncated_prompts=len(inputs) > room.max_input_length - 1,
            )
            prompt = [*image_tokens, *cut_prompt(inputs, room, vocabulary.prompt_prefix)]
            yield _example(record, prompt, targets, vocabulary.eos_id)


def _note(log: RejectionLog, **counts: int) -> None:
    """Adds counts to the notes of a log; a note that would be 0 is left out."""
    for name, count in counts.items():
        if count:
            log.notes[name] += int(count)


def _example(
    record: Record,
    inputs: Sequence[int],
    targets: Sequence[Sequence[int]],
    eos_id: int,
) -> CachedExample:
    return make_example(
        [*inputs, eos_id],
        [[*target, eos_id] for target in targets],
        record.feedback,
        record.scores,
        record.reference_feedback,
        prompt_id=prompt_id(record.prompt_key),
        prompt=record.prompt,
        responses=record.responses,
        group=record.group,
        source=record.source,
        file=os.path.basename(record.file),
        line=record.line,
        image=record.image,
    )


def beside_image(limits: Limits, image_tokens: int) -> Limits:
    """Returns the limits of the text of a prompt that begins with an image.

    Raises:
      DataError: no token of text fits.
    """
    if not image_tokens:
        return limits
    room = limits.max_input_length - image_tokens
    if room < 2:
        raise DataError(
            f"An image has {image_tokens} patches, each of which is a token of the prompt, and max_input_length={limits.max_input_length} "
            "leaves no room for text: give a larger length (TASK_FEATURE_LENGTHS['inputs'] of a run) or larger patches."
        )
    return dataclasses.replace(limits, max_input_length=room)


def cut_prompt(tokens: Sequence[int], limits: Limits, prefix: Sequence[int] = ()) -> Sequence[int]:
    """Returns the tokens of a prompt that fit into the limit, without EOS; `prefix` begins every prompt, even one cut at its beginning."""
    room = limits.max_input_length - 1
    if len(tokens) <= room:
        return tokens
    if limits.long_prompts != "truncate_left":
        return tokens[:room]
    end = max(room - len(prefix), 1)
    return [*prefix, *tokens[-end:]][:room]


def _changed(block: Sequence[Tokenized], vocabulary: Vocabulary) -> Iterator[tuple[bool, int]]:
    """Yields for each record whether its tokens do not restore its prompt, and the number of such responses (outer spaces aside)."""
    if vocabulary.lossless:
        yield from itertools.repeat((False, 0), len(block))
        return
    before = len(vocabulary.prompt_prefix)
    decoded = iter(
        vocabulary.decode_batch(
            [tokens for _, inputs, targets in block for tokens in (inputs[before:], *targets)]
        )
    )
    for record, _, _ in block:
        prompt, *responses = (
            next(decoded).strip() != text.strip() for text in (record.prompt, *record.responses)
        )
        yield prompt, sum(responses)


def find_problem(
    inputs: Sequence[int],
    targets: Sequence[Sequence[int]],
    vocabulary: Vocabulary,
    limits: Limits,
    kind: str = "",
) -> tuple[str, str] | None:
    """Returns (reason, message) if the tokens of a record, without EOS, break a limit, else None."""
    named = [
        ("the prompt", inputs),
        *((f"response {k}", target) for k, target in enumerate(targets)),
    ]
    for name, tokens in named:
        if vocabulary.eos_id in tokens or vocabulary.pad_id in tokens:
            return (
                "control_tokens",
                f"{name} holds the text of EOS or PAD, which the vocabulary reads as such: the model would read an end inside of it",
            )
        unknown = tokens.count(vocabulary.unk_id)
        if unknown > limits.max_unknown_fraction * len(tokens):
            return (
                "unknown_pieces",
                f"{unknown} of {len(tokens)} pieces of {name} are unknown to the vocabulary, more than "
                f"max_unknown_fraction={limits.max_unknown_fraction:g}",
            )
    if limits.long_prompts == "reject" and len(inputs) + 1 > limits.max_input_length:
        return (
            "long_prompt",
            f"the prompt has {len(inputs) + 1} tokens with EOS, more than "
            f"max_input_length={limits.max_input_length}",
        )
    for response, target in enumerate(targets):
        if not target:
            return "empty_response", f"response {response} has no tokens"
        if len(target) + 1 > limits.max_target_length:
            return (
                "long_response",
                f"response {response} has {len(target) + 1} tokens with EOS, more than "
                f"max_target_length={limits.max_target_length} (TASK_FEATURE_LENGTHS['targets'] of a training run)",
            )
    if kind in COMPARED_KINDS and all(list(target) == list(targets[0]) for target in targets[1:]):
        return "identical", "all responses are the same tokens of the vocabulary"
    return None


def _blocks(items: Iterable[Item]) -> Iterator[list[Item]]:
    block: list[Item] = []
    for item in items:
        block.append(item)
        if len(block) == BLOCK:
            yield block
            block = []
    if block:
        yield block
