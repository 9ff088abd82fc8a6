"""Human labels of responses from a file.

A line of labels has the prompt, or the `id` of the candidates, and one of these forms:

    {"prompt": "...", "response": "...", "feedback": 1}                            one response
    {"prompt": "...", "chosen": "...", "rejected": "..."}                          a comparison
    {"prompt": "...", "responses": ["...", "..."], "feedback": [0.5, null]}        all responses; null is not labelled
    {"prompt": "...", "response_a": "...", "response_b": "...", "winner": "a"}     a comparison: "a", "b", "tie", or null

Any number of lines may label the same response, for example of several people; their mean counts. `labels_wanted` writes the last two
forms with null, for a person to fill in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.annotation.annotators import register_annotator
from jaxalign.annotation.flat import file_identity
from jaxalign.data.candidates import Candidates
from jaxalign.data.json_lines import read_json_objects
from jaxalign.data.record_fields import RecordError, number
from jaxalign.data.rejections import DataError
from jaxalign.errors import UserError, require_one_of

_WINNERS = {"a": 1.0, "b": 0.0, "tie": 0.5}


@dataclasses.dataclass(frozen=True)
class _Label:
    """One label: `value` of the response `first`, or the probability `value` that `first` is preferred to `second`."""

    where: str
    prompt: Any
    first: str
    second: str | None
    value: float


@register_annotator("labels")
class Labels:
    """The labels of a file. A response without a label is missing, which is counted.

    Scores of a response are the mean of its labels; a comparison gives 1 to the preferred response and 0 to the other one. So a file
    with both needs ratings in [0, 1].
    Preferences are the mean outcome of the comparisons of two responses; labels of single responses are compared, too.

    Args:
      file: the file of labels.
      kind: `scores` or `preferences`; by default `preferences` if the file holds comparisons only, else `scores`.
    """

    whole_file = True

    def __init__(self, file: str, kind: str = "") -> None:
        require_one_of("labels", ("", "scores", "preferences"), kind=kind)
        if not Path(file).expanduser().is_file():
            raise UserError(f"{file}: no such file of labels (labels_wanted writes one to fill in)")
        self._file = file
        self._labels: list[_Label] = []
        self._null = 0
        for line_number, line in read_json_objects(file):
            labels, null = _parse(line, f"{file}:{line_number}")
            self._labels += labels
            self._null += null
        if not self._labels:
            raise UserError(f"{file} holds no labels ({self._null} are null); fill them in")
        compared = all(label.second is not None for label in self._labels)
        self.kind = kind or ("preferences" if compared else "scores")
        mixed = not compared and any(label.second is not None for label in self._labels)
        for label in self._labels if mixed and self.kind == "scores" else ():
            if not 0 <= label.value <= 1:
                raise UserError(
                    f"{label.where}: the rating {label.value:g} cannot be averaged with the comparisons of this file, whose outcomes are 0 "
                    "and 1; put ratings and comparisons into two files, scale the ratings to [0, 1], or give kind=preferences"
                )

    def identity(self) -> Mapping[str, Any]:
        return {"labels": file_identity(self._file), "kind": self.kind}

    def check(self, candidates: Candidates) -> None:
        """Raises `UserError` for a label of an unknown prompt or response."""
        self.annotate(candidates)

    def counts(self) -> dict[str, int]:
        """Returns the number of labels in the file and of those that are null."""
        return {"labels": len(self._labels), "labels that are null": self._null}

    def annotate(self, candidates: Candidates) -> Sequence[np.ndarray]:
        places = _Places(candidates)
        single = [np.zeros((len(texts), 2)) for texts in candidates.responses]
        compared = [np.zeros((len(texts), len(texts), 2)) for texts in candidates.responses]
        for label in self._labels:
            if label.second is None:
                for index, k in places.of(label, label.first):
                    single[index][k] += (label.value, 1)
                continue
            for index, first, second in places.of_both(label, label.second):
                compared[index][first, second] += (label.value, 1)
                compared[index][second, first] += (1 - label.value, 1)
        if self.kind == "scores":
            return [
                _means(one + both.sum(axis=1)) for one, both in zip(single, compared, strict=True)
            ]
        return [
            _means(both + _outcomes(_means(one)))
            for one, both in zip(single, compared, strict=True)
        ]


def _means(sums: np.ndarray) -> np.ndarray:
    """Returns total / count of (total, count) on the last axis; NaN where nothing was counted."""
    return np.where(sums[..., 1] > 0, sums[..., 0] / np.maximum(sums[..., 1], 1), np.nan)


def _outcomes(scores: np.ndarray) -> np.ndarray:
    """Returns (1, 1/2 or 0, 1) for every two scored responses, and zeros for other pairs, [K, K, 2]."""
    differences = scores[:, None] - scores[None, :]
    known = np.isfinite(differences) & ~np.eye(len(scores), dtype=bool)
    outcome = np.where(known, 0.5 * (1 + np.sign(np.where(known, differences, 0))), 0)
    return np.stack([outcome, known.astype(float)], axis=-1)


class _Places:
    """Finds the (prompt, response) that a label means. Equal texts all get the label."""

    def __init__(self, candidates: Candidates) -> None:
        self._candidates = candidates
        self._by_prompt: dict[Any, list[int]] = {}
        for index, prompt in enumerate(candidates.prompts):
            self._by_prompt.setdefault(prompt, []).append(index)
            identifier = candidates.fields[index].get("id")
            if isinstance(identifier, (str, int)):
                self._by_prompt.setdefault(("id", identifier), []).append(index)

    def of(self, label: _Label, response: str) -> list[tuple[int, int]]:
        """Returns the places of a response.

        Raises:
          DataError: the prompt or the response is not among the candidates; the message names the line.
        """
        indices = self._by_prompt.get(label.prompt)
        if indices is None:
            known = label.prompt[1] if isinstance(label.prompt, tuple) else label.prompt[:60]
            raise DataError(
                f"{label.where}: labels the unknown prompt {known!r}; {self._candidates.path} does not hold it"
            )
        found = [
            (index, k)
            for index in indices
            for k, text in enumerate(self._candidates.responses[index])
            if text == response
        ]
        if not found:
            raise DataError(
                f"{label.where}: labels the response {response[:60]!r}, which {self._candidates.path} does not hold for its prompt"
            )
        return found

    def of_both(self, label: _Label, second: str) -> list[tuple[int, int, int]]:
        """Returns the prompts that have both responses of a comparison, with the places of both.

        Raises:
          DataError: no line holds both, or they are the same text.
        """
        others = self.of(label, second)
        found = [
            (index, k, other)
            for index, k in self.of(label, label.first)
            for line, other in others
            if line == index and other != k
        ]
        if not found or label.first == second:
            raise DataError(
                f"{label.where}: compares two responses that are equal or not on one line of {self._candidates.path}"
            )
        return found


def _parse(line: Mapping[str, Any], where: str) -> tuple[list[_Label], int]:
    """Returns the labels of a line, and the number of its labels that are null."""
    prompt: Any = line.get("prompt")
    if prompt is None and line.get("id") is not None:
        prompt = ("id", line["id"])
    if not isinstance(prompt, (str, tuple)) or not _hashable(prompt):
        raise DataError(f"{where}: the field 'prompt' must be a text, or 'id' an id")
    if "chosen" in line or "rejected" in line:
        texts = _texts(line, ("chosen", "rejected"), where)
        return [_Label(where, prompt, texts[0], texts[1], 1.0)], 0
    if "response_a" in line or "response_b" in line:
        texts = _texts(line, ("response_a", "response_b"), where)
        winner = line.get("winner")
        if winner is None:
            return [], 1
        if str(winner).lower() not in _WINNERS:
            raise DataError(f'{where}: \'winner\' is {winner!r}; write "a", "b", "tie" or null')
        return [_Label(where, prompt, texts[0], texts[1], _WINNERS[str(winner).lower()])], 0
    responses: Any = line.get("responses")
    feedback: Any = line.get("feedback")
    if "response" in line:
        responses, feedback = _texts(line, ("response",), where), [feedback]
    else:
        plain = isinstance(responses, list) and all(isinstance(each, str) for each in responses)
        if not plain or not isinstance(feedback, list) or len(feedback) != len(responses):
            raise DataError(
                f"{where}: a label needs 'response' and 'feedback', 'chosen' and 'rejected', 'response_a', 'response_b' and 'winner', or "
                "'responses' with a list 'feedback' of equal length"
            )
    labels = []
    for text, value in zip(responses, feedback, strict=True):
        if value is None:
            continue
        try:
            labels.append(_Label(where, prompt, text, None, number(value, "feedback")))
        except RecordError as error:
            raise DataError(f"{where}: {error}") from None
    return labels, len(responses) - len(labels)


def _texts(line: Mapping[str, Any], names: Sequence[str], where: str) -> list[str]:
    for name in names:
        if not isinstance(line.get(name), str):
            raise DataError(f"{where}: the field {name!r} must be a text")
    return [line[name] for name in names]


def _hashable(prompt: Any) -> bool:
    return isinstance(prompt, str) or isinstance(prompt[1], (str, int))
