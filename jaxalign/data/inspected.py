"""What `inspection` found in a data file."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping

from jaxalign.data.recognition import Found
from jaxalign.data.records import Record


@dataclasses.dataclass
class Inspection:
    """What was found in a file; lengths in tokens, EOS included.

    Attributes:
      found: kind, layout and fields.
      records, rejected: read in all, and left out by reason.
      notes: other counts (`tokenization.make_examples`).
      prompt_lengths, response_lengths, longest_responses: of every prompt, every response, and of the longest response to each prompt.
      responses: how many responses the records have, with how many records have so many.
      feedback: how many responses have each value.
      repeated: records equal to an earlier one.
      dialogues: prompts with several turns.
      validation_prompts: distinct prompts that a tenth held out by their text would hold; None where a validation file is given.
      examples: the first records, with their tokens.
    """

    found: Found
    records: int = 0
    rejected: Mapping[str, int] = dataclasses.field(default_factory=dict)
    first_rejected: str = ""
    notes: Counter[str] = dataclasses.field(default_factory=Counter)
    prompt_lengths: list[int] = dataclasses.field(default_factory=list)
    response_lengths: list[int] = dataclasses.field(default_factory=list)
    longest_responses: list[int] = dataclasses.field(default_factory=list)
    responses: Counter[int] = dataclasses.field(default_factory=Counter)
    feedback: Counter[float] = dataclasses.field(default_factory=Counter)
    prompts: set[int] = dataclasses.field(default_factory=set)
    repeated: int = 0
    dialogues: int = 0
    validation_prompts: int | None = 0
    examples: list[tuple[Record, list[int], list[list[int]]]] = dataclasses.field(
        default_factory=list
    )

    @property
    def examples_count(self) -> int:
        return len(self.prompt_lengths)
