"""The metrics file of a run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"


def keep_lines_up_to(path: Path, step: int) -> None:
    """Drops lines of a ``metrics.jsonl`` that lie after a step, and a torn last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record.get("step", 0) <= step:
            kept.append(line)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    partial.replace(path)


def read_metrics(path: Path, split: str | None = None) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl``, of one split if it is named; none if there is no file, nor for a torn last line."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    records = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return [record for record in records if split is None or record["split"] == split]
