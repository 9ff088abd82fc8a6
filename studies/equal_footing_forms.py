"""Data of the equal-footing study: the same annotated responses in every form that a method reads."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from studies import human_feedback, rnnlg

# Number of dialogue acts whose samples are used. They are drawn at random, because the file is ordered by domain.
ACTS = 3000
RATINGS = human_feedback.SOURCES[0]


@dataclasses.dataclass(frozen=True)
class Form:
    """A form of the same annotated responses.

    Attributes:
      file: stem of the file names.
      kind: kind of the records.
      packing: batch size and lengths of packed rows, per task; a batch holds about 30 responses, and the table shows their number.
      joined: number of triplets that form one group, per task.
    """

    file: str
    kind: str
    packing: dict[str, tuple[int, int, int]]
    joined: dict[str, int] = dataclasses.field(default_factory=dict)


FORMS = {
    "triplets": Form("triplets", "triplet", {"rnnlg": (6, 160, 144), "nlg_ratings": (6, 128, 128)}),
    "goodness": Form("goodness", "triplet", {"rnnlg": (6, 160, 144), "nlg_ratings": (6, 128, 128)}),
    "best": Form("best", "seq2seq", {"rnnlg": (6, 160, 144)}),
    "pairs": Form("pairs", "pair", {"rnnlg": (5, 128, 192), "nlg_ratings": (4, 96, 144)}),
    "thirds": Form("thirds", "ranked", {"rnnlg": (4, 96, 224)}),
    "groups": Form(
        "groups",
        "triplet",
        {"rnnlg": (3, 96, 288), "nlg_ratings": (4, 96, 144)},
        {"rnnlg": rnnlg.SAMPLES_PER_ACT, "nlg_ratings": 2},
    ),
    "references": Form("references", "triplet", {"rnnlg": (6, 160, 144)}),
}


def rnnlg_forms(folder: Path, seed: int, job: Path) -> dict[str, Any]:
    """Writes the samples of a seed in every form; each file holds the same annotations."""
    counts: dict[str, Any] = {}
    for split in ("train", "validation"):
        source = folder / f"rnnlg/samples/seed{seed}/triplets.{split}.jsonl"
        rows = read_rows(source)
        by_prompt: dict[str, list[dict[str, Any]]] = {}
        acts = list(dict.fromkeys(row["prompt"] for row in rows))
        drawn = np.random.default_rng(0).permutation(len(acts))[:ACTS]
        chosen = {acts[index] for index in drawn}
        rows = [row for row in rows if row["prompt"] in chosen]
        for row in rows:
            by_prompt.setdefault(row["prompt"], []).append(row)
        references, thirds = [], []
        for prompt, group in by_prompt.items():
            ordered = sorted(group, key=lambda row: -row["feedback"])
            if len(group) == rnnlg.SAMPLES_PER_ACT:
                for index, row in enumerate(group):
                    others = [other["feedback"] for at, other in enumerate(group) if at != index]
                    references.append({**row, "reference_feedback": others})
            if len(group) > 2 and ordered[0]["feedback"] > ordered[-1]["feedback"]:
                # The third response is a sample of the reference, independent of its feedback.
                three = [ordered[0], ordered[-1], group[0]]
                thirds.append(
                    {
                        "prompt": prompt,
                        "responses": [row["response"] for row in three],
                        "feedback": [row["feedback"] for row in three],
                    }
                )
        forms = {
            "triplets": rows,
            "groups": rows,
            "goodness": [{**row, "feedback": max(0.0, 1 + row["feedback"])} for row in rows],
            "references": references,
            "thirds": thirds,
            **{
                name: [
                    row
                    for row in read_rows(source.with_name(f"{name}.{split}.jsonl"))
                    if row["prompt"] in chosen
                ]
                for name in ("pairs", "best")
            },
        }
        counts[split] = _write_forms(job, split, forms)
    return counts


def ratings_forms(folder: Path, seed: int, job: Path) -> dict[str, Any]:
    """Writes ratings of quality in every form that two rated sentences per prompt allow."""
    del seed
    counts: dict[str, Any] = {}
    for split in ("train", "validation"):
        rows = read_rows(folder / f"nlg_ratings/data/{split}.jsonl")
        by_prompt: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            by_prompt.setdefault(row["prompt"], []).append(row)
        pairs = []
        for prompt, group in by_prompt.items():
            for one, other in itertools.combinations(group, 2):
                better, worse = sorted((one, other), key=lambda row: -row["feedback"])
                margin = better["feedback"] - worse["feedback"]
                if margin > 0 and better["response"] != worse["response"]:
                    pairs.append(
                        {
                            "prompt": prompt,
                            "chosen": better["response"],
                            "rejected": worse["response"],
                            "margin": margin,
                        }
                    )
        forms = {
            "triplets": rows,
            "groups": rows,
            "goodness": [{**row, "feedback": (row["feedback"] - 1) / 5} for row in rows],
            "pairs": pairs,
        }
        counts[split] = _write_forms(job, split, forms)
    return counts


def _write_forms(
    job: Path, split: str, forms: Mapping[str, list[dict[str, Any]]]
) -> dict[str, int]:
    for name, rows in forms.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (job / f"{name}.{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return {name: len(rows) for name, rows in forms.items()}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads the objects of a JSON Lines file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
