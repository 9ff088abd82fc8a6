"""Reads and truncates the metrics file of a run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jaxalign import files, untrusted
from jaxalign.errors import UserError

METRICS_FILE = "metrics.jsonl"


def keep_lines_up_to(path: Path, step: int) -> None:
    """Removes the lines of a ``metrics.jsonl`` that belong to later steps, and an incomplete last line."""
    if not path.exists():
        return
    kept = []
    with untrusted.open_regular(path) as file:
        written = file.read().decode("utf-8", errors="replace")
    for line in written.split("\n"):
        record = _record(line)
        if record is not None and record["step"] <= step:
            kept.append(line)
    files.write_text(path, "".join(line + "\n" for line in kept))


def read_metrics(path: Path, split: str | None = None) -> list[dict[str, Any]]:
    """Reads the records of a ``metrics.jsonl``, optionally of one split. Skips an incomplete last line; empty without a file."""
    if not path.exists():
        return []
    with untrusted.open_regular(path) as file:
        text = file.read().decode("utf-8", errors="replace")
    records = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].split("\n")[:-1], start=1):
        record = _record(line)
        if record is None:
            raise UserError(f"{path}:{number}: not a line of metrics; correct or delete it")
        records.append(record)
    return [record for record in records if split is None or record["split"] == split]


def _record(line: str) -> dict[str, Any] | None:
    """Parses the record of a line; returns None if it is incomplete or is not a record with a step and a split."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("split"), str):
        return None
    step = record.get("step")
    return record if isinstance(step, int) and not isinstance(step, bool) else None
