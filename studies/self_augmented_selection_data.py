"""Delexicalised data of the study of self-augmented selection: one domain, and the other domains of `rnnlg`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxalign.data import slots
from studies.equal_footing_forms import read_rows

# Domain -> the files that it comes from.
# Delexicalised, `hotel` and `restaurant` of rnnlg have too few acts that are not in their training files.
DOMAINS = {"tv": "rnnlg", "attraction": "fewshotwoz"}


def joined_act(prompt: str) -> str:
    """Returns the acts of `fewshotwoz`, such as ``request ( area = ? ) @ inform ( choice = 79 )``, as one act in the form of `rnnlg`."""
    types, pairs = [], []
    for part in prompt.split(" @ "):
        found = re.fullmatch(r"\s*([\w ]+?)\s*\((.*)\)\s*", part)
        if found is None:
            raise ValueError(f"not an act: {part!r}")
        types.append(found.group(1))
        for pair in filter(None, map(str.strip, found.group(2).split(" ; "))):
            slot, _, value = pair.partition("=")
            # A comma or a semicolon in a value would separate slots.
            value = re.sub(r"[;,]", " ", value).strip()
            pairs.append(f"{slot.strip().replace(' ', '')}={value}" if value else slot.strip())
    return f"{' '.join(types)}({';'.join(pairs)})"


def domain_rows(source: Path, domain: str) -> dict[str, list[tuple[str, str]]]:
    """Returns delexicalised pairs ``base`` (other domains), ``train`` and ``test``, and ``unlabelled`` acts with empty sentences."""
    rnnlg = {
        split: read_rows(source / f"rnnlg.seq2seq.{split}.jsonl") for split in ("train", "dev")
    }
    base = [row for row in rnnlg["train"] if row["domain"] != domain]
    if DOMAINS[domain] == "rnnlg":
        train, test = (
            [row for row in rnnlg[split] if row["domain"] == domain] for split in ("train", "dev")
        )
        unlabelled = train
    else:
        files = ("seq2seq.train", "seq2seq.test", "prompts.unlabelled")
        train, test, unlabelled = (
            [
                {**row, "prompt": joined_act(row["prompt"])}
                for row in read_rows(source / f"fewshotwoz.{name}.jsonl")
                if row["domain"] == domain
            ]
            for name in files
        )
    return {
        "base": _delexicalised(base),
        "train": _delexicalised(train),
        "test": _delexicalised(test),
        "unlabelled": [(act, "") for act, _ in _delexicalised(unlabelled)],
    }


def _delexicalised(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    pairs = [slots.delexicalise(row["prompt"], row.get("response", ""))[:2] for row in rows]
    return [pair for pair in dict.fromkeys(pairs) if slots.counted_slots(slots.parse_act(pair[0]))]
