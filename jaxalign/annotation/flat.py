"""Candidates as flat lists with one item per response, which networks and judges read, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.data.candidates import Candidates
from jaxalign.runs.folder import Run

# The fields of a line that hold reference responses: a text or a list of texts.
_REFERENCES = ("references", "reference", "target", "response")


def flat(candidates: Candidates) -> tuple[list[str], list[str]]:
    """Returns the prompt and the text of every response."""
    prompts = [
        prompt
        for prompt, texts in zip(candidates.prompts, candidates.responses, strict=True)
        for _ in texts
    ]
    return prompts, [text for texts in candidates.responses for text in texts]


def split(values: np.ndarray, candidates: Candidates) -> list[np.ndarray]:
    """Returns the rows of an array with one row per response as one array per prompt."""
    ends = np.cumsum([len(texts) for texts in candidates.responses])[:-1]
    return np.split(values, ends) if len(candidates) else []


def references_of(candidates: Candidates) -> list[list[str]] | None:
    """Returns the reference responses to the prompt of every response, from the fields of the lines; None if no line has any."""
    found = []
    for fields, texts in zip(candidates.fields, candidates.responses, strict=True):
        found += [_references(fields)] * len(texts)
    return found if any(found) else None


def _references(fields: Mapping[str, Any]) -> list[str]:
    for name in _REFERENCES:
        given = fields.get(name)
        texts = [given] if isinstance(given, str) else given
        if isinstance(texts, list) and texts and all(isinstance(each, str) for each in texts):
            return texts
    return []


def run_identity(run: Run) -> dict[str, Any]:
    """Returns what identifies a checkpoint in a side file."""
    return {"run": str(run.folder), "run_id": run.description.run_id, "step": run.step}


def file_identity(path: str | Path) -> dict[str, Any]:
    """Returns the path and the digest of a file."""
    digest = hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()
    return {"file": str(path), "sha256": digest}


def lengths_of(groups: Sequence[Sequence[Any]]) -> dict[int, list[int]]:
    """Returns the indices of the groups by their number of items, without the empty ones."""
    found: dict[int, list[int]] = {}
    for index, group in enumerate(groups):
        if len(group):
            found.setdefault(len(group), []).append(index)
    return found
