"""Writes the file of responses that a person is to label, in the forms that `labels` reads, and counts what is still missing in it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxalign import files
from jaxalign.data.candidates import Candidates
from jaxalign.data.json_lines import read_json_objects
from jaxalign.errors import UserError, require_one_of

FORMS = ("scores", "pairs")


def labels_wanted(
    candidates: Candidates,
    path: str | Path,
    *,
    form: str = "scores",
    pairs: Sequence[tuple[int, int, int]] | None = None,
) -> int:
    """Writes the responses that are to be labelled, for a person to fill in, and returns the number of lines.

    Args:
      candidates: the prompts with their responses.
      path: the file; an existing one is refused, because it may hold labels.
      form: `scores` for one line per prompt with a list `feedback`, `pairs` for one line per comparison with a `winner`. Nobody is asked
        about an empty response, so a prompt may have no line.
      pairs: for `pairs`, the comparisons (prompt, response, response); by default all pairs of distinct responses.

    Raises:
      UserError: the file exists.
    """
    require_one_of("labels_wanted", FORMS, form=form)
    if Path(path).exists():
        raise UserError(f"{path} exists already and may hold labels; move it, or give another file")
    lines: list[dict[str, Any]] = []
    if form == "scores":
        for index, (prompt, texts) in enumerate(
            zip(candidates.prompts, candidates.responses, strict=True)
        ):
            texts = [text for text in texts if text.strip()]
            if not texts:
                continue
            lines.append(
                {
                    "id": candidates.fields[index].get("id", index),
                    "prompt": prompt,
                    "responses": list(texts),
                    "feedback": [None] * len(texts),
                }
            )
    else:
        for index, i, j in _all_pairs(candidates) if pairs is None else pairs:
            texts = candidates.responses[index]
            lines.append(
                {
                    "id": candidates.fields[index].get("id", index),
                    "prompt": candidates.prompts[index],
                    "response_a": texts[i],
                    "response_b": texts[j],
                    "winner": None,
                }
            )
    with files.replacing(path) as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    return len(lines)


def labels_missing(path: str | Path) -> int:
    """Returns the number of labels that are still null in a file of labels."""
    missing = 0
    for _, line in read_json_objects(path):
        feedback = line.get("feedback")
        if isinstance(feedback, list):
            missing += sum(value is None for value in feedback)
        elif "winner" in line or "feedback" in line:
            missing += line.get("winner", feedback) is None
    return missing


def _all_pairs(candidates: Candidates) -> list[tuple[int, int, int]]:
    return [
        (index, i, j)
        for index, texts in enumerate(candidates.responses)
        for i, j in itertools.combinations(range(len(texts)), 2)
        if texts[i] != texts[j] and texts[i].strip() and texts[j].strip()
    ]
