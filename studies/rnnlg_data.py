"""Data of the RNNLG study: delexicalised acts, splits by act, feedback from exact slot errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxalign.data import slots
from jaxalign.data.derived import write_jsonl
from jaxalign.data.records import Record
from jaxalign.data.train_vocabulary import train_sentencepiece
from jaxalign.selection.from_feedback import best_of_n, filter_by_feedback, pairs_from_groups

VALIDATION_ACTS = 500


def prepare(source: Path, folder: Path, vocab_size: int) -> dict[str, int]:
    """Writes ``train``, ``validation`` and ``test`` as JSON Lines and trains the vocabulary on ``train``.

    Values are delexicalised, as is common in the literature on this corpus, because a model of a million parameters cannot learn to copy
    names. The acts of the source's dev split become ``test``, without acts whose delexicalised form is in the training split.
    ``validation`` consists of 500 random acts of the training split. Acts without slots cannot be judged and are not in validation and
    test.
    """
    rows = {split: _read(source / f"rnnlg.seq2seq.{split}.jsonl") for split in ("train", "dev")}
    train_acts = sorted({act for act, _ in rows["train"]})
    judged = [act for act in train_acts if slots.counted_slots(slots.parse_act(act))]
    order = np.random.default_rng(0).permutation(len(judged))
    validation = {judged[index] for index in order[:VALIDATION_ACTS]}
    known = set(train_acts)
    splits = {
        "train": [row for row in rows["train"] if row[0] not in validation],
        "validation": [row for row in rows["train"] if row[0] in validation],
        "test": [
            row
            for row in rows["dev"]
            if row[0] not in known and slots.counted_slots(slots.parse_act(row[0]))
        ],
    }
    for split, pairs in splits.items():
        records = [Record(act, (sentence,)) for act, sentence in dict.fromkeys(pairs)]
        write_jsonl(records, str(folder / f"{split}.jsonl"), "seq2seq")
    texts = [text for pair in dict.fromkeys(splits["train"]) for text in pair]
    train_sentencepiece(
        texts,
        str(folder / "spm.model"),
        vocab_size=vocab_size,
        user_defined_symbols=slots.placeholders(texts),
    )
    return {split: len({act for act, _ in pairs}) for split, pairs in splits.items()}


def acts(folder: Path, split: str, *, judged_only: bool = True) -> list[str]:
    """Returns the distinct acts of a split, in order."""
    with (folder / f"{split}.jsonl").open(encoding="utf-8") as file:
        found = dict.fromkeys(json.loads(line)["prompt"] for line in file)
    return [act for act in found if not judged_only or slots.counted_slots(slots.parse_act(act))]


def some_acts(folder: Path, split: str, count: int) -> list[str]:
    """Returns judged acts of a split, drawn at random because the file is ordered by domain; the same for all seeds."""
    found = acts(folder, split)
    order = np.random.default_rng(0).permutation(len(found))[:count]
    return [found[index] for index in sorted(order)]


def feedback(act: str, sentence: str) -> float:
    """Returns minus the fraction of slots that are wrong (missing or invented)."""
    errors = slots.slot_errors(act, sentence)
    return -(errors.missing + errors.invented) / errors.total


def slot_error_rate(prompts: Sequence[str], responses: Sequence[str]) -> float:
    """Returns the number of missing and invented slots, divided by the number of slots of all acts."""
    errors = [slots.slot_errors(act, text) for act, text in zip(prompts, responses, strict=True)]
    return sum(e.missing + e.invented for e in errors) / sum(e.total for e in errors)


def write_feedback(
    folder: Path, split: str, prompts: Sequence[str], responses: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Writes the same annotated responses as triplets, pairs, filtered responses and best-of-n; empty responses are omitted."""
    records = [
        Record(act, (text,), (feedback(act, text),))
        for act, samples in zip(prompts, responses, strict=True)
        for text in samples
        if text.strip()
    ]
    mean = float(np.mean([record.feedback[0] for record in records if record.feedback]))
    pairs = pairs_from_groups(records)
    filtered = filter_by_feedback(records, threshold=mean)
    best = best_of_n(records)
    for name, kind, made in (
        ("triplets", "triplet", records),
        ("pairs", "pair", pairs),
        ("filtered", "seq2seq", filtered),
        ("best", "seq2seq", best),
    ):
        write_jsonl(made, str(folder / f"{name}.{split}.jsonl"), kind)
    return {
        "responses": len(records),
        "mean_feedback": mean,
        "pairs": len(pairs),
        "filtered": len(filtered),
        "best": len(best),
    }


def _read(path: Path) -> list[tuple[str, str]]:
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [slots.delexicalise(row["prompt"], row["response"])[:2] for row in rows]
