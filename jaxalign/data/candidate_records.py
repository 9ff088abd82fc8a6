"""Reads lines of candidates (see `candidates`) as records of any kind, so that training reads them without conversion.

| kind    | records of one line                                                                                        |
|---------|------------------------------------------------------------------------------------------------------------|
| seq2seq | one for each response                                                                                      |
| triplet | one for each response that has feedback                                                                    |
| multi   | the same, with the named numbers of `scores`; feedback is optional                                         |
| ranked  | one with all responses that have feedback                                                                  |
| pair    | one: the best against the worst response; `jaxalign select` makes other pairs                              |

Feedback is the field `feedback`, or what `fields` names: feedback=annotations.judge (or annotations.judge.scores), or the column of
vectors, feedback=annotations.features.length. The scores of `multi` are all annotations of kind `scores` and all named columns of
vectors, without the one that is the feedback; or the annotation that `fields` names, scores=annotations.features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxalign.data.images import ImageReader
from jaxalign.data.record_fields import RecordError, field_value
from jaxalign.data.records import Record, parse_record

_ANNOTATIONS = "annotations"
# Fields of a line that its records keep.
_KEPT = ("group", "reference_feedback", "image")


@dataclasses.dataclass(frozen=True)
class CandidatesParser:
    """Converts one line of candidates to records; a response that cannot be used is rejected alone.

    Attributes:
      kind: the record kind.
      fields: the file's names of `feedback`, `scores`, `prompt` and `responses`, if they differ.
      score_names: for `multi`, the required scores in order.
      images: reads the image of the line's prompt; None to read none.
    """

    kind: str
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    score_names: Sequence[str] = ()
    images: ImageReader | None = None

    def __call__(
        self,
        obj: Any,
        *,
        file: str,
        line: int,
        reject: Callable[[str, str], None],
        note: Callable[[str], None],
    ) -> list[Record]:
        """Returns the records of the line; a response that cannot be used goes to `reject`.

        Raises:
          RecordError: the line itself cannot be used.
        """
        del note
        prompt, responses = self._texts(obj)
        kept = {name: obj[name] for name in _KEPT if obj.get(name) is not None}

        def parse(content: Mapping[str, Any]) -> Record:
            return parse_record(
                {**kept, "prompt": prompt, **content},
                self.kind,
                score_names=self.score_names or None,
                source=str(obj.get("source", "")),
                file=file,
                line=line,
                images=self.images,
            )

        if self.kind in ("pair", "ranked"):
            feedback = self._feedback(obj, len(responses), required=True)
            known = [k for k, value in enumerate(feedback) if value is not None]
            for _ in range(len(responses) - len(known)):
                reject("missing_rating", "a response has no feedback")
            if len(known) < 2:
                raise RecordError("missing_rating", "fewer than two responses have feedback")
            return [parse(_compared(self.kind, responses, feedback, known))]
        contents = self._single(obj, responses)
        records = []
        for position, content in enumerate(contents):
            try:
                if content.get("feedback", 0) is None and self._needs_feedback:
                    raise RecordError("missing_rating", "no feedback")
                records.append(parse(content))
            except RecordError as error:
                reject(error.reason, f"response {position}: {error}")
        return records

    @property
    def _needs_feedback(self) -> bool:
        """Whether feedback is stated, so that a response without it would be read as something else."""
        return self.kind == "triplet" or "feedback" in self.fields

    def _texts(self, obj: Any) -> tuple[str, list[str]]:
        if not isinstance(obj, Mapping):
            raise RecordError("wrong_type", "the line does not hold an object")
        prompt = field_value(obj, self.fields.get("prompt", "prompt"))
        responses = field_value(obj, self.fields.get("responses", "responses"))
        if not isinstance(prompt, str):
            raise RecordError("missing_field", "the field 'prompt' is missing, or is not a text")
        if not prompt.strip():
            raise RecordError("empty_prompt", "the prompt is empty")
        if not isinstance(responses, list) or not all(isinstance(each, str) for each in responses):
            raise RecordError("missing_field", "the field 'responses' is missing, or is no list")
        return prompt, responses

    def _single(self, obj: Mapping[str, Any], responses: Sequence[str]) -> list[dict[str, Any]]:
        """Returns the fields of one record for each response."""
        contents: list[dict[str, Any]] = [{"response": text} for text in responses]
        if self.kind == "seq2seq":
            return contents
        multi = self.kind == "multi"
        feedback = self._feedback(obj, len(responses), required=not multi)
        scores = line_scores(obj, self.fields, len(responses)) if multi else {}
        for k, content in enumerate(contents):
            content["feedback"] = feedback[k] if feedback else None
            if multi:
                content["scores"] = {name: values[k] for name, values in scores.items()}
        return contents

    def _feedback(self, obj: Mapping[str, Any], count: int, *, required: bool) -> list[Any]:
        name = self.fields.get("feedback", "feedback")
        values = _values_at(obj, name, count)
        if values is None and (required or "feedback" in self.fields):
            known = ", ".join(_known(obj)) or "none"
            raise RecordError(
                "missing_field",
                f"there is no list of {count} numbers in {name!r}; annotations of kind scores: {known} (fields=feedback=annotations.NAME)",
            )
        return values or []


def line_scores(
    obj: Mapping[str, Any], fields: Mapping[str, str], count: int
) -> dict[str, list[Any]]:
    """Returns the named scores of a line for the kind `multi`, one list with a number for each response by name."""
    given = fields.get("scores")
    names = _known(obj)
    if given is not None:
        wanted = given.removeprefix(f"{_ANNOTATIONS}.").removesuffix(".scores")
        wanted = wanted.removesuffix(".vectors")
        names = [name for name in names if name == wanted or name.startswith(f"{wanted}.")]
        if not names:
            raise RecordError("missing_field", f"there is no annotation with scores in {given!r}")
    else:
        feedback = fields.get("feedback", "").removeprefix(f"{_ANNOTATIONS}.")
        names = [name for name in names if name != feedback.removesuffix(".scores")]
    found = {}
    for name in names:
        values = _values_at(obj, f"{_ANNOTATIONS}.{name}", count)
        # A column has its own name, which is that of the extractor of a feature.
        outer = name in obj.get(_ANNOTATIONS, {})
        found[name if outer else name.partition(".")[2]] = values or [None] * count
    if not found:
        raise RecordError("missing_field", "the line has no annotation of kind scores")
    return found


def common_scores(
    objects: Iterable[tuple[int, Any, str]], fields: Mapping[str, str]
) -> tuple[str, ...]:
    """Returns the sorted names of the scores of the first line that has scores; empty if none has."""
    for _, obj, _ in objects:
        try:
            if isinstance(obj, Mapping) and isinstance(obj.get("responses"), list):
                return tuple(sorted(line_scores(obj, fields, len(obj["responses"]))))
        except RecordError:
            continue
    return ()


def feedback_field(obj: Mapping[str, Any]) -> str | None:
    """Returns the field that is the most likely feedback of a line: `feedback`, or the first annotation of kind scores; else None."""
    if isinstance(obj.get("feedback"), list):
        return "feedback"
    annotations = obj.get(_ANNOTATIONS)
    if not isinstance(annotations, Mapping):
        return None
    names = [
        name
        for name, value in annotations.items()
        if isinstance(value, Mapping) and isinstance(value.get("scores"), list)
    ]
    return f"{_ANNOTATIONS}.{names[0]}.scores" if names else None


def _known(obj: Mapping[str, Any]) -> list[str]:
    """Returns the names of the annotations of kind scores, and NAME.COLUMN of the named columns of vectors."""
    annotations = obj.get(_ANNOTATIONS)
    names: list[str] = []
    for name, value in annotations.items() if isinstance(annotations, Mapping) else ():
        if isinstance(value, Mapping) and isinstance(value.get("scores"), list):
            names.append(name)
        elif isinstance(value, Mapping) and isinstance(value.get("names"), list):
            names += [f"{name}.{column}" for column in value["names"]]
    return names


def _values_at(obj: Mapping[str, Any], path: str, count: int) -> list[Any] | None:
    """Returns a list of `count` values: a field, an annotation of kind scores, or a column of an annotation; None if there is none."""
    value = field_value(obj, path)
    if isinstance(value, Mapping):
        value = value.get("scores")
    if value is None and path.startswith(f"{_ANNOTATIONS}."):
        value = _column(obj, path.removeprefix(f"{_ANNOTATIONS}."))
    return value if isinstance(value, list) and len(value) == count else None


def _column(obj: Mapping[str, Any], name: str) -> list[Any] | None:
    annotations = obj.get(_ANNOTATIONS)
    if not isinstance(annotations, Mapping):
        return None
    for outer, found in annotations.items():
        if not name.startswith(f"{outer}.") or not isinstance(found, Mapping):
            continue
        names, vectors = found.get("names"), found.get("vectors")
        column = name.removeprefix(f"{outer}.")
        if isinstance(names, list) and column in names and isinstance(vectors, list):
            index = names.index(column)
            return [
                row[index] if isinstance(row, list) and index < len(row) else None
                for row in vectors
            ]
    return None


def _compared(
    kind: str, responses: Sequence[str], feedback: Sequence[Any], known: Sequence[int]
) -> dict[str, Any]:
    if kind == "ranked":
        return {
            "responses": [responses[k] for k in known],
            "feedback": [feedback[k] for k in known],
        }
    if not all(isinstance(feedback[k], (int, float)) for k in known):
        raise RecordError("wrong_type", "the feedback of a response is not a number")
    best = max(known, key=lambda k: feedback[k])
    worst = min(reversed(known), key=lambda k: feedback[k])
    return {
        "chosen": responses[best],
        "rejected": responses[worst],
        "margin": feedback[best] - feedback[worst],
    }
