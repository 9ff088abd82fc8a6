"""The correct answers to prompts, which tell how often votes are right.

A specification says where they are: `field:NAME` of the candidates' lines, `file:PATH` of lines that name their prompt, or
`annotation:NAME`, scores that mark correct responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxalign.annotation.answers import AnswerExtractor
from jaxalign.data.candidates import Candidates
from jaxalign.data.evaluation_records import prompt_of
from jaxalign.data.json_lines import read_json_objects
from jaxalign.errors import UserError
from jaxalign.plugins import parse_spec

# Fields of a file of correct answers, the first that a line has.
FIELDS = ("answer", "references", "reference", "target", "response")
# A score above this marks a correct response: feedback is 0 and 1, or -1 and 1.
_ABOVE = 0.5

Truths = list[set[str]]


def correct_answers(
    spec: str,
    candidates: Candidates,
    answers: Sequence[Sequence[str | None]],
    extract: AnswerExtractor,
) -> Truths:
    """Returns the correct answers of every prompt; of `annotation`, none if no response is correct.

    Args:
      spec: see the docstring of the module.
      candidates: the prompts and responses.
      answers: the answer of every response.
      extract: reads the answer from a text that a field or file gives.

    Raises:
      UserError: there is no such field, file or annotation, or a prompt has no correct answer there.
    """
    parts = parse_spec(spec)
    if parts.name == "annotation" and parts.argument:
        scores = candidates.annotation(parts.argument, "scores").values
        return [
            {text for text, score in zip(each, values, strict=True) if text and score > _ABOVE}
            for each, values in zip(answers, scores, strict=True)
        ]
    if parts.name == "field" and parts.argument:
        return [
            _answers(fields, (parts.argument,), extract, f"{candidates.path}, prompt {index}")
            for index, fields in enumerate(candidates.fields)
        ]
    if spec.startswith("file:") and spec != "file:":
        return _from_file(spec.removeprefix("file:"), candidates, extract)
    raise UserError(
        f"vote.correct is {spec!r}; write field:NAME (of the candidates' lines), file:PATH (lines with a prompt and its answer) or "
        "annotation:NAME (scores that mark correct responses)"
    )


def _from_file(path: str, candidates: Candidates, extract: AnswerExtractor) -> Truths:
    known: dict[str, set[str]] = {}
    for number, line in read_json_objects(path):
        found = _answers(line, FIELDS, extract, f"{path}:{number}")
        known.setdefault(prompt_of(line, "prompt", path, number), set()).update(found)
    missing = [prompt for prompt in candidates.prompts if prompt not in known]
    if missing:
        raise UserError(
            f"{path} has no correct answer to {len(missing)} of {len(candidates)} prompts of {candidates.path}, for example to "
            f"{missing[0][:60]!r}"
        )
    return [known[prompt] for prompt in candidates.prompts]


def _answers(line: Any, names: Sequence[str], extract: AnswerExtractor, where: str) -> set[str]:
    name = next((name for name in names if line.get(name) is not None), None)
    if name is None:
        fields = ", ".join(sorted(line)) or "none"
        raise UserError(f"{where}: there is no field {' or '.join(names)} (fields there: {fields})")
    given = line[name] if isinstance(line[name], list) else [line[name]]
    found = set()
    for value in given:
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise UserError(
                f"{where}: the field {name!r} must hold a text, a number or a list of them"
            )
        answer = extract(str(value))
        if answer is None:
            raise UserError(
                f"{where}: the answer extractor finds no answer in the correct answer {str(value)[-40:]!r}; name another one with "
                "--correct_extractor"
            )
        found.add(answer)
    return found
