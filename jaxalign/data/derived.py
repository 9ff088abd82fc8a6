"""Data sets made from others: pairs, filtered and best-of-n sets, groups of responses. Pure and deterministic."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jaxalign.data.records import Record


def _answers(
    records: Iterable[Record],
) -> dict[str, list[tuple[Record, str, float]]]:
    """(record, response, feedback) of every response, by prompt in the order of first sight."""
    by_prompt: dict[str, list[tuple[Record, str, float]]] = {}
    for record in records:
        if record.feedback is None:
            raise ValueError(f"{record.where}: a record without feedback cannot be compared.")
        for response, feedback in zip(record.responses, record.feedback, strict=True):
            by_prompt.setdefault(record.prompt, []).append((record, response, feedback))
    return by_prompt


def pairs_from_groups(records: Iterable[Record], *, mode: str = "best_worst") -> list[Record]:
    """Preference pairs among the responses to one prompt.

    Args:
      records: any kind with feedback.
      mode: "best_worst" gives at most one pair a prompt (first of the best against first of the worst); "all" gives every
        pair whose feedback differs, better first.

    Returns:
      `pair` records with feedback (difference, 0), and so without `reference_feedback`, which is not a difference. Ties give no pair.
    """
    if mode not in ("best_worst", "all"):
        raise ValueError(f"Unknown pair mode {mode!r}; known: 'best_worst', 'all'.")
    pairs = []
    for prompt, answers in _answers(records).items():
        if mode == "best_worst":
            candidates = [
                (max(answers, key=lambda item: item[2]), min(answers, key=lambda item: item[2]))
            ]
        else:
            candidates = [
                (a, b) if a[2] >= b[2] else (b, a) for a, b in itertools.combinations(answers, 2)
            ]
        for (origin, chosen, high), (_, rejected, low) in candidates:
            if high > low:
                pairs.append(
                    Record(
                        prompt,
                        (chosen, rejected),
                        (high - low, 0.0),
                        group=origin.group,
                        source=origin.source,
                        file=origin.file,
                        line=origin.line,
                    )
                )
    return pairs


def filter_by_feedback(
    records: Iterable[Record], *, threshold: float | None = None, quantile: float | None = None
) -> list[Record]:
    """seq2seq records of the responses whose feedback exceeds a threshold, for filtered SFT.

    Args:
      threshold: keep feedback > threshold.
      quantile: instead, leave out this share (0 to 1) of all responses, those with the lowest feedback, and what ties with them.
    """
    if (threshold is None) == (quantile is None):
        raise ValueError("Give either threshold or quantile to filter_by_feedback.")
    answers = [answer for group in _answers(records).values() for answer in group]
    if not answers:
        return []
    if threshold is None:
        assert quantile is not None
        ordered = sorted(feedback for _, _, feedback in answers)
        dropped = math.ceil(round(quantile * len(ordered), 9))
        threshold = ordered[dropped - 1] if dropped else -math.inf
    return [_seq2seq(record, response) for record, response, value in answers if value > threshold]


def best_of_n(records: Iterable[Record]) -> list[Record]:
    """One seq2seq record a prompt: its response with the highest feedback, the first of equals."""
    best = (max(group, key=lambda item: item[2]) for group in _answers(records).values())
    return [_seq2seq(record, response) for record, response, _ in best]


def _seq2seq(record: Record, response: str) -> Record:
    return dataclasses.replace(
        record, responses=(response,), feedback=None, scores=None, reference_feedback=None
    )


def group_by_prompt(records: Iterable[Record], max_responses: int) -> list[Record]:
    """Records with the same prompt joined into records of up to `max_responses` responses, in order of first sight.

    A joined record keeps the place of its first part. Feedback and scores must be present for all or for none.

    Raises:
      ValueError: records of a prompt have different `reference_feedback`.
    """
    open_groups: dict[str, list[Record]] = {}
    for record in records:
        open_groups.setdefault(record.prompt, []).append(record)
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
    """The JSON object that `parse_record` reads back as this record."""
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
    """Writes records as JSON Lines, replacing the file at once, and returns how many."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    partial = f"{path}.partial"
    count = 0
    with open(partial, "w", encoding="utf-8") as file:
        for record in records:
            obj = record_to_json(record, kind, score_names)
            file.write(json.dumps(obj, ensure_ascii=False) + "\n")
            count += 1
    os.replace(partial, path)
    return count
