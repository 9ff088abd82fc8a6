"""The prompts, references and feedback on which an evaluation tests every policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jaxalign.data.records import Record, prompt_key


@dataclasses.dataclass(frozen=True)
class FeedbackRecord:
    """One logged response with its feedback: a number, higher is better."""

    prompt: str
    response: str
    feedback: float
    image: bytes | None = dataclasses.field(default=None, repr=False)

    @property
    def prompt_key(self) -> str:
        """A text that equal prompts have in common, images included."""
        return prompt_key(self.prompt, self.image)


@dataclasses.dataclass
class EvaluationSet:
    """The data on which an evaluation tests every policy.

    Attributes:
      prompts: the distinct prompts in order of first appearance.
      references: for each prompt, the logged responses without feedback (human references of a
        seq2seq file); the list may be empty.
      feedback: every logged response with its feedback.
      images: for each prompt, the pixels of its image, or None; all None by default.
    """

    prompts: list[str] = dataclasses.field(default_factory=list)
    references: list[list[str]] = dataclasses.field(default_factory=list)
    feedback: list[FeedbackRecord] = dataclasses.field(default_factory=list)
    images: list[bytes | None] = dataclasses.field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        self.images = self.images or [None] * len(self.prompts)
        keys = map(prompt_key, self.prompts, self.images)
        self._index = {key: i for i, key in enumerate(keys)}

    def add(self, record: Record, references: Sequence[str] = ()) -> None:
        """Adds a record. Its responses are logged responses if they have feedback, else references."""
        index = self._index.setdefault(record.prompt_key, len(self.prompts))
        if index == len(self.prompts):
            self.prompts.append(record.prompt)
            self.images.append(record.image)
            self.references.append([])
        if record.feedback is not None:
            self.feedback += [
                FeedbackRecord(record.prompt, response, value, record.image)
                for response, value in zip(record.responses, record.feedback, strict=True)
            ]
        else:
            references = (*references, *record.responses)
        for text in references:
            if text not in self.references[index]:
                self.references[index].append(text)

    def first(self, count: int) -> EvaluationSet:
        """Returns the first `count` prompts with all their data; 0 keeps all prompts."""
        if not count or count >= len(self.prompts):
            return self
        kept = set(map(prompt_key, self.prompts[:count], self.images))
        return EvaluationSet(
            self.prompts[:count],
            self.references[:count],
            [record for record in self.feedback if record.prompt_key in kept],
            self.images[:count],
        )
