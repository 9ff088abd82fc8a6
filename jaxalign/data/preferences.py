"""The rule that decides which response to a prompt is the better one.

The feedback that a record states decides. The position of the responses decides only if the record states no feedback. Responses
are stored best first, so that code that reads positions (pairs, rankings, reward models) and code that reads feedback agree. A
negative margin of a pair means that its `rejected` is better by that much. Responses with equal feedback are a tie: they do not
show which response is better, and methods that learn from the position of two responses do not read them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxalign.data.records import Record


def best_first(feedback: Sequence[float]) -> list[int]:
    """Returns the positions of responses by feedback, the highest first; equal responses keep their order."""
    # Uses the precision of the cache, in which close numbers are equal.
    return np.argsort(-np.asarray(feedback, np.float32), kind="stable").tolist()


def is_tie(feedback: Sequence[float] | np.ndarray | None) -> bool:
    """Returns whether there are several responses and all have the same feedback."""
    if feedback is None or len(feedback) < 2:
        return False
    values = np.asarray(feedback, np.float32)
    return bool(values.min() == values.max())


def ordered(record: Record, targets: Sequence[Any], kind: str) -> tuple[Record, list[Any], bool]:
    """Returns the record with its responses best first, `targets` in the same order, and whether the order changed."""
    if record.feedback is None or len(record.responses) < 2:
        return record, list(targets), False
    order = best_first(record.feedback)
    if order == sorted(order):
        return record, list(targets), False
    feedback = tuple(record.feedback[k] for k in order)
    if kind == "pair":
        # The other response of a pair has feedback 0.
        feedback = (feedback[0] - feedback[1], 0.0)
    changed = dataclasses.replace(
        record,
        responses=tuple(record.responses[k] for k in order),
        feedback=feedback,
        scores=None if record.scores is None else tuple(record.scores[k] for k in order),
    )
    return changed, [targets[k] for k in order], True
