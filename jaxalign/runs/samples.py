"""Reads what a run's policy answered during training: ``samples.jsonl`` of the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxalign.errors import UserError
from jaxalign.runs.metrics import read_metrics

SAMPLES_FILE = "samples.jsonl"


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """Returns the samples of a run, of each step and prompt the newest; empty if it has none.

    Raises:
      UserError: the file is malformed.
    """
    newest: dict[tuple[int, str], dict[str, Any]] = {}
    for record in read_metrics(folder / SAMPLES_FILE):
        if not all(isinstance(record.get(name), str) for name in ("prompt", "response")):
            raise UserError(f"{folder / SAMPLES_FILE}: a line lacks the text of prompt or response")
        newest[record["step"], record["prompt"]] = record
    return list(newest.values())
