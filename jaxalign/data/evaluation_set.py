"""Prompts, references and feedback of an evaluation, from JSON Lines."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxalign.data.records import RecordError
from jaxalign.data.records import number as feedback_number
from jaxalign.errors import UserError


def read_json_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number from 1, object) of every line that is not blank.

    Raises:
      UserError: the file is missing, or a line is not UTF-8, not JSON, or not an object.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a JSON Lines file, one object a line.")
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            try:
                record = json.loads(raw.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise UserError(f"{path}:{number}: not UTF-8 ({error.reason}).") from None
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{path}:{number}: not JSON ({error.msg} at column {error.colno})."
                ) from None
            if not isinstance(record, dict):
                raise UserError(
                    f"{path}:{number}: expected an object, got {type(record).__name__}."
                )
            yield number, record


def prompt_of(record: dict[str, Any], field: str, path: str | Path, number: int) -> str:
    """The prompt of a record.

    Raises:
      UserError: the field is missing, or not a string, or empty.
    """
    if field not in record:
        names = ", ".join(sorted(record)) or "none"
        raise UserError(
            f"{path}:{number}: field '{field}' is missing (fields there: {names}); "
            "name the field with prompt_field."
        )
    prompt = record[field]
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{path}:{number}: field '{field}' must be a non-empty string.")
    return prompt


@dataclasses.dataclass(frozen=True)
class FeedbackRecord:
    """One logged response with its feedback: a number, higher is better."""

    prompt: str
    response: str
    feedback: float


@dataclasses.dataclass
class EvaluationSet:
    """What an evaluation reads.

    Attributes:
      prompts: distinct prompts in order of first appearance.
      references: for each prompt, the logged responses without feedback (human references of a
        seq2seq file), possibly none.
      feedback: every logged response with its feedback.
      long_prompts: which end of a prompt that is too long is cut, see `batches.encode_text`.
    """

    prompts: list[str] = dataclasses.field(default_factory=list)
    references: list[list[str]] = dataclasses.field(default_factory=list)
    feedback: list[FeedbackRecord] = dataclasses.field(default_factory=list)
    long_prompts: str = "truncate"

    def __post_init__(self) -> None:
        self._index = {prompt: i for i, prompt in enumerate(self.prompts)}

    def add_prompt(self, prompt: str) -> int:
        """The position of a prompt, added when new."""
        index = self._index.setdefault(prompt, len(self.prompts))
        if index == len(self.prompts):
            self.prompts.append(prompt)
            self.references.append([])
        return index

    def first(self, count: int) -> EvaluationSet:
        """The first `count` prompts with all that belongs to them; 0 keeps all."""
        if not count or count >= len(self.prompts):
            return self
        kept = set(self.prompts[:count])
        return EvaluationSet(
            self.prompts[:count],
            self.references[:count],
            [record for record in self.feedback if record.prompt in kept],
            self.long_prompts,
        )


def read_evaluation_set(
    path: str | Path, *, split: str = "validation", prompt_field: str = "prompt"
) -> EvaluationSet:
    """Reads a JSON Lines file, or a split of a cache folder."""
    if Path(path).is_dir():
        return read_cached_split(path, split)
    return read_file(path, prompt_field=prompt_field)


def read_cached_split(cache_dir: str | Path, split: str) -> EvaluationSet:
    """Reads the texts of a split of a cache; responses without feedback are references.

    Raises:
      DataError: the folder is no cache, or has no such split.
    """
    from jaxalign.data.cached_split import CachedSplit

    cached = CachedSplit.open(str(cache_dir), split)
    result = EvaluationSet(long_prompts=cached.metadata["limits"]["long_prompts"])
    for example in cached:
        index = result.add_prompt(example.prompt)
        if example.feedback is None:
            result.references[index] += [
                text for text in example.responses if text not in result.references[index]
            ]
        else:
            result.feedback += [
                FeedbackRecord(example.prompt, response, float(value))
                for response, value in zip(example.responses, example.feedback, strict=True)
            ]
    return result


def read_file(path: str | Path, *, prompt_field: str = "prompt") -> EvaluationSet:
    """Reads prompts with whatever else their lines hold.

    `response` is a reference where the line has no `feedback`, and a logged response where it has;
    `references` (a list) and `target` are references; a pair's `chosen` and `rejected` are logged
    responses with feedback 1 and 0.

    Raises:
      UserError: as `read_json_lines` and `prompt_of`; or the file has no line.
    """
    result = EvaluationSet()
    for number, record in read_json_lines(path):
        prompt = prompt_of(record, prompt_field, path, number)
        index = result.add_prompt(prompt)
        for response, feedback in _responses_of(record, path, number):
            if feedback is not None:
                result.feedback.append(FeedbackRecord(prompt, response, feedback))
            elif response not in result.references[index]:
                result.references[index].append(response)
    if not result.prompts:
        raise UserError(f"{path}: holds no prompts.")
    return result


def _responses_of(
    record: dict[str, Any], path: str | Path, number: int
) -> Iterator[tuple[str, float | None]]:
    try:
        feedback = feedback_number(record["feedback"], "feedback") if "feedback" in record else None
    except RecordError as error:
        raise UserError(f"{path}:{number}: {error}.") from None
    references = record.get("references", [])
    if isinstance(references, str):
        references = [references]
    named: list[tuple[str, Any, float | None]] = [("references", r, None) for r in references]
    if "target" in record:
        named.append(("target", record["target"], None))
    if "response" in record:
        named.append(("response", record["response"], feedback))
    if "chosen" in record and "rejected" in record:
        named += [("chosen", record["chosen"], 1.0), ("rejected", record["rejected"], 0.0)]
    for name, response, feedback in named:
        if not isinstance(response, str):
            raise UserError(f"{path}:{number}: field '{name}' must hold text, got {response!r}.")
        yield response, feedback
