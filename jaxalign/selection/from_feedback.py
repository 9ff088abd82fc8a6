"""Selects records by their feedback: pairs, filtered sets, best-of-n. All functions are pure and deterministic."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable

from jaxalign.data.records import Record


def _answers(
    records: Iterable[Record],
) -> dict[str, list[tuple[Record, str, float]]]:
    """Groups (record, response, feedback) of every response by prompt, in the order in which prompts first occur."""
    by_prompt: dict[str, list[tuple[Record, str, float]]] = {}
    for record in records:
        if record.feedback is None:
            raise ValueError(f"{record.where}: a record without feedback cannot be compared.")
        for response, feedback in zip(record.responses, record.feedback, strict=True):
            by_prompt.setdefault(record.prompt, []).append((record, response, feedback))
    return by_prompt


def pairs_from_groups(records: Iterable[Record], *, mode: str = "best_worst") -> list[Record]:
    """Builds preference pairs from the responses to each prompt.

    Args:
      records: records of any kind with feedback.
      mode: "best_worst" returns at most one pair per prompt (the first of the best against the first of the worst); "all" returns
        every pair whose feedback differs, with the better response first.

    Returns:
      `pair` records with feedback (difference, 0). They have no `reference_feedback`, because it is not a difference. Ties give no pair.
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
    """Returns seq2seq records of the responses whose feedback exceeds a threshold, for filtered SFT.

    Args:
      threshold: keep feedback > threshold.
      quantile: instead of a threshold, the share (0 to 1) of responses to leave out. These are the responses with the lowest feedback
        and those that tie with them.
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
    """Returns one seq2seq record per prompt, with the response that has the highest feedback. The first response wins a tie."""
    best = (max(group, key=lambda item: item[2]) for group in _answers(records).values())
    return [_seq2seq(record, response) for record, response, _ in best]


def _seq2seq(record: Record, response: str) -> Record:
    return dataclasses.replace(
        record, responses=(response,), feedback=None, scores=None, reference_feedback=None
    )
