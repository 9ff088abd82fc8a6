"""Counts rejected records by reason and writes them to a side file with file and line."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from typing import Any

from jaxalign.data.records import Record
from jaxalign.errors import UserError

# The share of rejected records that every command allows unless it is told otherwise.
MAX_REJECTED_FRACTION = 0.05
_MAX_QUOTED = 2000
# Advice for rejected records that are valid in other settings, by reason; options as typed for `jaxalign train` and `cache`.
_REMEDIES = {
    "duplicate": "Repeated records are normal in logged data: --gin.TaskData.duplicates=keep (--duplicates=keep of "
    "jaxalign cache) accepts them.",
    "long_response": "Longer responses need --gin.TASK_FEATURE_LENGTHS=\"{'inputs': ..., 'targets': ...}\" (--max_target_length of "
    "jaxalign cache); `jaxalign inspect FILE` says how long they are.",
    "control_tokens": "Take the text of the token out of the data; VOCABULARY = 'bytes' and SentencePiece models read it as text.",
    "unknown_pieces": "A vocabulary that knows the text is 'bytes', or one that `jaxalign vocabulary` trains on it.",
}


class DataError(UserError):
    """An error for data that cannot be used; the message says where the error is and what to do."""


class RejectionLog:
    """Collects rejected records.

    Attributes:
      seen: the number of records read, good and bad.
      entries: one dictionary for each rejected record: file, line, reason, message, split, record (the start of its text).
      notes: other counts to report (truncated prompts, pairs without a margin).
    """

    def __init__(self) -> None:
        self.seen = 0
        self.entries: list[dict[str, Any]] = []
        self.notes: Counter[str] = Counter()

    @classmethod
    def joined(cls, logs: Iterable[RejectionLog]) -> RejectionLog:
        """Returns one log with the counts and the entries of several logs."""
        result = cls()
        for log in logs:
            result.seen += log.seen
            result.entries.extend(log.entries)
            result.notes.update(log.notes)
        return result

    def reject(
        self, reason: str, message: str, *, file: str, line: int, record: str = "", split: str = ""
    ) -> None:
        self.entries.append(
            {
                "file": file,
                "line": line,
                "split": split,
                "reason": reason,
                "message": message,
                "record": record[:_MAX_QUOTED],
            }
        )

    def reject_record(self, record: Record, reason: str, message: str, split: str = "") -> None:
        text = json.dumps({"prompt": record.prompt, "responses": record.responses})
        self.reject(reason, message, file=record.file, line=record.line, record=text, split=split)

    @property
    def counts(self) -> dict[str, int]:
        """Returns the number of rejected records by reason, the most frequent first."""
        return dict(Counter(entry["reason"] for entry in self.entries).most_common())

    @property
    def fraction(self) -> float:
        return len(self.entries) / max(self.seen, 1)

    @property
    def first(self) -> str:
        """The place and the reason of the first rejection; '' if there is none."""
        found = self.entries[0] if self.entries else None
        return f"{found['file']}:{found['line']}: {found['message']}" if found else ""

    def write(self, path: str) -> None:
        """Writes the entries as JSON Lines."""
        with open(path, "w", encoding="utf-8") as file:
            for entry in self.entries:
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def check(self, max_fraction: float, side_file: str) -> None:
        """Writes the side file and raises DataError if more than `max_fraction` of the records were rejected."""
        if not self.entries or self.fraction <= max_fraction:
            return
        os.makedirs(os.path.dirname(os.path.abspath(side_file)), exist_ok=True)
        self.write(side_file)
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.counts.items())
        hints = "".join(f" {hint}" for reason, hint in _REMEDIES.items() if reason in self.counts)
        raise DataError(
            f"{len(self.entries)} of {self.seen} records ({self.fraction:.1%}) were rejected, more than "
            f"max_rejected_fraction={max_fraction:g}: {reasons}. First: {self.first}. All are listed in {side_file}.{hints}"
        )
