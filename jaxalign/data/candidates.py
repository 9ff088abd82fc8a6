"""Candidates: prompts with several responses each, and named annotations of these responses. The interchange file of rounds.

`jaxalign generate` writes candidates, `jaxalign annotate` adds annotations, and `jaxalign select` turns them into training records.
A file has one prompt per line:

    {"id": 0, "prompt": "...", "responses": ["...", "..."], "log_probs": [-3.1, -4.0],
     "annotations": {"judge": {"scores": [0.5, 1.0]}, "self_judge": {"preferences": [[null, 0.7], [0.3, null]]}}}

`log_probs` and `feedback`, if a line has them as lists, are annotations of kind `scores` too. `null` stands for a missing value: an
annotator could not say. Vectors may have names of their columns, `{"vectors": [[3, 0.5], [4, 0.1]], "names": ["length", "overlap"]}`;
the column is then an annotation `NAME.COLUMN` of kind `scores`. All other fields of a line are kept.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign import files
from jaxalign.data.json_lines import read_json_objects
from jaxalign.data.record_fields import MAX_FLOAT32
from jaxalign.data.rejections import DataError

KINDS = ("scores", "preferences", "vectors")
# Annotations of kind `scores` that are fields of the line itself.
TOP_LEVEL = ("log_probs", "feedback")
_OWN_FIELDS = ("prompt", "responses", "annotations", *TOP_LEVEL)


@dataclasses.dataclass(frozen=True)
class Annotation:
    """One named annotation of all prompts.

    Attributes:
      kind: `scores` has one number per response; `preferences` has P(i preferred to j), NaN on the diagonal; `vectors` has one vector
        per response.
      values: one array per prompt, [K], [K, K] or [K, D], float64. NaN is a missing value.
      names: the names of the D columns of vectors, if they have names.
    """

    kind: str
    values: Sequence[np.ndarray]
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of annotation {self.kind!r}; known: {', '.join(KINDS)}")
        if self.names and self.kind != "vectors":
            raise ValueError(f"only vectors have named columns, not {self.kind}")

    @property
    def missing(self) -> int:
        """The number of missing values, without the diagonals of preferences."""
        absent = sum(int(np.isnan(array).sum()) for array in self.values)
        if self.kind != "preferences":
            return absent
        return absent - sum(int(np.isnan(np.diagonal(array)).sum()) for array in self.values)


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Prompts with their responses and annotations.

    Attributes:
      prompts: the prompts.
      responses: the responses to each prompt; their number may differ between prompts.
      annotations: the annotations by name.
      fields: the other fields of each line, `id` among them.
      path: the file, for messages.
    """

    prompts: Sequence[str]
    responses: Sequence[Sequence[str]]
    annotations: Mapping[str, Annotation] = dataclasses.field(default_factory=dict)
    fields: Sequence[Mapping[str, Any]] = ()
    path: str = "candidates"

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.responses):
            raise ValueError(
                f"{len(self.prompts)} prompts, but {len(self.responses)} groups of responses"
            )
        if not self.fields:
            object.__setattr__(self, "fields", [{"id": i} for i in range(len(self.prompts))])
        for name, annotation in self.annotations.items():
            _check_shapes(name, annotation, self.responses, self.path)

    def __len__(self) -> int:
        return len(self.prompts)

    def annotation(self, name: str, kind: str | None = None) -> Annotation:
        """Returns an annotation, or the column of vectors that `NAME.COLUMN` names, as scores.

        Raises:
          DataError: there is none of this name, or it has another kind; the message lists those that exist.
        """
        column = self._column(name)
        if name not in self.annotations and column is None:
            known = ", ".join(self.annotations) or "none"
            raise DataError(
                f"{self.path} has no annotation {name!r} (it has: {known}); add it with jaxalign annotate"
            )
        found = self.annotations[name] if column is None else column
        if kind is not None and found.kind != kind:
            raise DataError(
                f"{self.path}: the annotation {name!r} holds {found.kind}; {kind} are needed"
            )
        return found

    def _column(self, name: str) -> Annotation | None:
        outer, _, column = name.rpartition(".")
        found = self.annotations.get(outer)
        if name in self.annotations or found is None or column not in found.names:
            return None
        index = list(found.names).index(column)
        return Annotation("scores", [array[:, index] for array in found.values])

    def with_annotation(self, name: str, annotation: Annotation) -> Candidates:
        """Returns the candidates with one more annotation, which replaces an annotation of the same name."""
        return dataclasses.replace(self, annotations={**self.annotations, name: annotation})

    def take(self, indices: Sequence[int]) -> Candidates:
        """Returns the candidates of some prompts, in the given order."""
        return Candidates(
            [self.prompts[i] for i in indices],
            [self.responses[i] for i in indices],
            {
                name: Annotation(found.kind, [found.values[i] for i in indices], found.names)
                for name, found in self.annotations.items()
            },
            [self.fields[i] for i in indices],
            self.path,
        )

    def line(self, index: int) -> dict[str, Any]:
        """Returns the JSON object of one prompt."""
        annotations = dict(self.annotations)
        line: dict[str, Any] = {
            **self.fields[index],
            "prompt": self.prompts[index],
            "responses": list(self.responses[index]),
        }
        for name in TOP_LEVEL:
            if name in annotations:
                line[name] = _to_json(annotations.pop(name).values[index])
        # Written even if it is empty: it says that the responses are in no order.
        if annotations or "log_probs" not in line:
            line["annotations"] = {
                name: {found.kind: _to_json(found.values[index])}
                | ({"names": list(found.names)} if found.names else {})
                for name, found in annotations.items()
            }
        return line

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yields the JSON objects of all prompts."""
        return (self.line(index) for index in range(len(self)))


def read_candidates(path: str | Path) -> Candidates:
    """Reads a file of candidates.

    Raises:
      DataError: a line is malformed, or lines differ in their annotations; the message gives file and line.
    """
    prompts: list[str] = []
    responses: list[list[str]] = []
    fields: list[dict[str, Any]] = []
    values: dict[str, list[np.ndarray]] = {}
    kinds: dict[str, tuple[str, tuple[str, ...]]] = {}
    for number, line in read_json_objects(path):
        where = f"{path}:{number}"
        prompt, texts = line.get("prompt"), line.get("responses")
        if not isinstance(prompt, str) or not prompt.strip():
            raise DataError(f"{where}: the field 'prompt' must be a text that is not empty")
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise DataError(
                f"{where}: the field 'responses' must be a list of texts; `jaxalign annotate` makes candidates of logged records, and "
                "`jaxalign generate --num_samples=K --temperature=1` of prompts"
            )
        found = _annotations(line, where)
        if prompts and {name: each[:2] for name, each in found.items()} != kinds:
            raise DataError(
                f"{where}: its annotations ({', '.join(found) or 'none'}) or their kinds are not those of the lines before "
                f"({', '.join(kinds) or 'none'})"
            )
        for name, (kind, names, array) in found.items():
            kinds[name] = (kind, names)
            values.setdefault(name, []).append(array)
            _check_shape(name, kind, names, array, len(texts), where)
        prompts.append(prompt)
        responses.append(texts)
        # Feedback that is no list belongs to another response, the logged one of a line whose prompt got new responses.
        own = [name for name in _OWN_FIELDS if name in found or name != "feedback"]
        others = {key: value for key, value in line.items() if key not in own}
        fields.append({"id": len(fields), **others})
    if not prompts:
        raise DataError(f"{path} holds no candidates.")
    annotations = {
        name: Annotation(kinds[name][0], arrays, kinds[name][1]) for name, arrays in values.items()
    }
    return Candidates(prompts, responses, annotations, fields, str(path))


def write_candidates(path: str | Path, candidates: Candidates) -> None:
    """Writes a file of candidates atomically."""
    with files.replacing(path) as file:
        for line in candidates.lines():
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")


def _annotations(
    line: Mapping[str, Any], where: str
) -> dict[str, tuple[str, tuple[str, ...], np.ndarray]]:
    """Returns the kind, the names of columns and the values of every annotation of a line."""
    given = line.get("annotations", {})
    if not isinstance(given, Mapping):
        raise DataError(f"{where}: the field 'annotations' must be an object")
    found: dict[str, tuple[str, tuple[str, ...], np.ndarray]] = {}
    if line.get("log_probs") is not None:
        found["log_probs"] = ("scores", (), _from_json(line["log_probs"], "log_probs", where))
    if isinstance(line.get("feedback"), list):
        found["feedback"] = ("scores", (), _from_json(line["feedback"], "feedback", where))
    for name, value in given.items():
        kinds = set(value) - {"names"} if isinstance(value, Mapping) else set()
        if len(kinds) != 1 or not kinds <= set(KINDS):
            raise DataError(
                f"{where}: the annotation {name!r} must be an object with one of {', '.join(KINDS)}"
            )
        (kind,) = kinds
        found[name] = (kind, _names(value, name, where), _from_json(value[kind], name, where))
    return found


def _names(value: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    names = value.get("names", [])
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        raise DataError(f"{where}: the names of the annotation {name!r} must be a list of texts")
    if names and "vectors" not in value:
        raise DataError(f"{where}: the annotation {name!r} has names, which only vectors have")
    return tuple(names)


def _from_json(value: Any, name: str, where: str) -> np.ndarray:
    """Returns an array of nested lists of numbers, where null becomes NaN."""
    message = f"{where}: {name!r} must hold lists of finite numbers or null"
    if not isinstance(value, list):
        raise DataError(message)
    nested = bool(value) and all(isinstance(item, list) for item in value)
    rows = value if nested else [value]
    numbers = []
    for row in rows:
        for item in row:
            plain = isinstance(item, (int, float)) and not isinstance(item, bool)
            if item is not None and not (plain and abs(item) <= MAX_FLOAT32):
                raise DataError(f"{message}, not {str(item)[:40]!r}")
        numbers.append([math.nan if item is None else float(item) for item in row])
    if len({len(row) for row in numbers}) > 1:
        raise DataError(f"{where}: the lists of {name!r} differ in length")
    return np.array(numbers if nested else numbers[0], np.float64)


def _to_json(array: np.ndarray) -> Any:
    if array.ndim > 1:
        return [_to_json(row) for row in array]
    # Adding 0 writes -0.0 as 0.0.
    return [float(value) + 0.0 if math.isfinite(value) else None for value in array]


def _check_shapes(
    name: str, annotation: Annotation, responses: Sequence[Sequence[str]], path: str
) -> None:
    if len(annotation.values) != len(responses):
        raise DataError(
            f"{path}: the annotation {name!r} has {len(annotation.values)} entries for {len(responses)} prompts"
        )
    for index, (array, texts) in enumerate(zip(annotation.values, responses, strict=True)):
        where = f"{path}, prompt {index}"
        _check_shape(name, annotation.kind, annotation.names, array, len(texts), where)


def _check_shape(
    name: str, kind: str, names: Sequence[str], array: np.ndarray, count: int, where: str
) -> None:
    width = len(names) or -1
    wanted = {"scores": (count,), "preferences": (count, count), "vectors": (count, width)}[kind]
    fits = array.ndim == len(wanted) and all(
        size in (want, -1) or want == -1 for size, want in zip(array.shape, wanted, strict=True)
    )
    if not fits and not (count == 0 and array.size == 0):
        raise DataError(
            f"{where}: the annotation {name!r} has the shape {list(array.shape)}; its kind {kind} needs "
            f"{[size if size >= 0 else 'any' for size in wanted]} for {count} responses"
        )
    # A difference of rewards taken for a probability would be a wrong target of training.
    if kind == "preferences" and ((array < 0) | (array > 1)).any():
        raise DataError(
            f"{where}: the annotation {name!r} holds preferences outside [0, 1]; they are probabilities: apply the logistic function to "
            "differences, or give numbers of single responses as scores"
        )
