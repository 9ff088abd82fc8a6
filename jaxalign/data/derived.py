"""Groups the responses to one prompt, and writes records as JSON Lines."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jaxalign import files
from jaxalign.data.records import Record


def group_by_prompt(records: Iterable[Record], max_responses: int) -> list[Record]:
    """Joins records with the same prompt into records of up to `max_responses` responses, in order of first appearance.

    A joined record keeps the position of its first part. Feedback and scores must be present for all records or for none.

    Raises:
      ValueError: the records of a prompt have different `reference_feedback`.
    """
    open_groups: dict[str, list[Record]] = {}
    for record in records:
        open_groups.setdefault(record.prompt_key, []).append(record)
    joined = []
    for parts in open_groups.values():
        for start in _chunks(parts, max_responses):
            joined.append(_join(start))
    return joined


def _chunks(parts: Sequence[Record], max_responses: int) -> Iterator[list[Record]]:
    chunk: list[Record] = []
    count = 0
    for part in parts:
        if chunk and count + len(part.responses) > max_responses:
            yield chunk
            chunk, count = [], 0
        chunk.append(part)
        count += len(part.responses)
    if chunk:
        yield chunk


def _join(parts: Sequence[Record]) -> Record:
    def concatenate(values: list[Any]) -> Any:
        if any(value is None for value in values):
            return None
        return tuple(itertools.chain.from_iterable(values))

    for part in parts[1:]:
        if part.reference_feedback != parts[0].reference_feedback:
            raise ValueError(
                f"{part.where}: reference_feedback differs from that of the same prompt at {parts[0].where}."
            )
    return dataclasses.replace(
        parts[0],
        responses=concatenate([part.responses for part in parts]),
        feedback=concatenate([part.feedback for part in parts]),
        scores=concatenate([part.scores for part in parts]),
    )


def record_to_json(record: Record, kind: str, score_names: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the JSON object that `parse_record` converts back to this record."""
    obj: dict[str, Any] = {"prompt": record.prompt}
    feedback = record.feedback
    if kind == "pair":
        obj["chosen"], obj["rejected"] = record.responses
        if feedback is not None:
            obj["margin"] = feedback[0] - feedback[1]
    elif kind == "ranked":
        obj["responses"] = list(record.responses)
        if feedback is not None:
            obj["feedback"] = list(feedback)
    else:
        (obj["response"],) = record.responses
        if kind != "seq2seq" and feedback is not None:
            obj["feedback"] = feedback[0]
        if kind == "multi" and record.scores is not None:
            obj["scores"] = dict(zip(score_names, record.scores[0], strict=True))
    if kind != "seq2seq" and record.reference_feedback is not None:
        obj["reference_feedback"] = list(record.reference_feedback)
    if record.group is not None:
        obj["group"] = record.group
    return obj


def write_jsonl(
    records: Iterable[Record], path: str, kind: str, *, score_names: Sequence[str] = ()
) -> int:
    """Writes records as JSON Lines, replaces the file atomically, and returns their number."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    count = 0
    with files.replacing(path, "w") as file:
        for record in records:
            obj = record_to_json(record, kind, score_names)
            file.write(json.dumps(obj, ensure_ascii=False) + "\n")
            count += 1
    return count
