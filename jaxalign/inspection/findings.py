"""The result of `file_inspection` for a data file."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping

from jaxalign.data.recognition import Found
from jaxalign.data.records import Record


@dataclasses.dataclass
class Inspection:
    """The properties of a data file; lengths are in tokens, including EOS.

    Attributes:
      found: the kind, layout and fields.
      records, rejected: the number of records read in total, and the number left out by reason.
      notes: other counts (`tokenization.make_examples`).
      prompt_lengths, response_lengths, longest_responses: the lengths of every prompt, of every response, and of the longest response to
        each prompt.
      responses: the numbers of responses in a record, with the number of such records.
      feedback: the feedback values, with the number of responses of each value.
      repeated: the number of records equal to an earlier one.
      dialogues: the number of prompts with several turns.
      validation_prompts: the number of distinct prompts in a tenth held out by their text; None if a validation file is given.
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
