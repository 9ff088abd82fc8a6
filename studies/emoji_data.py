"""The data of the study `emoji_retrieval`: items with pictures, and queries, with and without some items held out."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.data.json_lines import read_json_objects
from jaxalign.data.train_vocabulary import train_sentencepiece
from jaxalign.errors import UserError
from studies.text_features import tfidf, word_features

FIELDS = ("item", "name", "label", "tags", "train_queries", "test_queries")
PSEUDO_QUERIES, TAGS_OF_ONE = 3, 3
HELD_OUT_SHARE = 0.1
TEXT_WIDTH = 64


def read_emoji(data: Path) -> list[dict[str, Any]]:
    """Returns the lines of `captions.jsonl`, as `scripts/emoji_data.py` writes it.

    Raises:
      UserError: the file or the pictures are missing, or a line lacks a field.
    """
    folder = data / "emoji" if (data / "emoji").is_dir() else data
    if not (folder / "images.npz").is_file():
        raise UserError(f"{folder} has no images.npz; scripts/emoji_data.py makes it")
    lines = []
    for number, line in read_json_objects(folder / "captions.jsonl"):
        lacking = [name for name in FIELDS if name not in line]
        if lacking:
            raise UserError(f"{folder / 'captions.jsonl'}:{number}: has no {lacking[0]!r}")
        lines.append(line)
    return lines


def pseudo_queries(line: Mapping[str, Any]) -> list[str]:
    """Returns queries made of a few tags of an item, as a person might type them. They are used for training only."""
    rng = random.Random(f"pseudo {line['name']}")
    count = min(TAGS_OF_ONE, len(line["tags"]))
    found = [" ".join(rng.sample(line["tags"], count)) for _ in range(PSEUDO_QUERIES)]
    known = {*line["train_queries"], *line["test_queries"]}
    return [query for query in dict.fromkeys(found) if query and query not in known]


def held_out(lines: Sequence[Mapping[str, Any]]) -> set[str]:
    """Returns the names of a tenth of the items, whose queries are not trained on in the runs for new items."""
    names = [line["name"] for line in lines]
    return set(random.Random("held out").sample(names, round(HELD_OUT_SHARE * len(names))))


def write_data(data: Path, job: Path, pieces: int) -> dict[str, Any]:
    """Writes the files of the study, the vectors of texts and the vocabulary, and returns counts.

    `items`, `train`, `pseudo` and `test` are for all items; `old_items`, `old_train` and `old_pseudo` are without the held-out ones;
    `new_test` holds all queries of these.
    """
    lines = read_emoji(data)
    away = held_out(lines)
    old = [line for line in lines if line["name"] not in away]
    new = [line for line in lines if line["name"] in away]
    job.mkdir(parents=True, exist_ok=True)
    counts = {}
    for prefix, chosen in (("", lines), ("old_", old)):
        counts[f"{prefix}items"] = _write(
            job / f"{prefix}items.jsonl",
            ({"item": x["name"], "row": x["item"], "text": x["label"]} for x in chosen),
        )
        for name, queries in (
            ("train", [x["train_queries"] for x in chosen]),
            ("pseudo", [pseudo_queries(x) for x in chosen]),
            ("test", [x["test_queries"] for x in chosen]),
        ):
            counts[prefix + name] = _write(job / f"{prefix}{name}.jsonl", _pairs(chosen, queries))
    every = [[*x["train_queries"], *x["test_queries"]] for x in new]
    counts["new_test"] = _write(job / "new_test.jsonl", _pairs(new, every))
    # The texts of an item are its label and tags; its test queries are not read.
    texts = [" ; ".join([x["label"], *x["tags"]]) for x in lines]
    vectors = tfidf(texts, word_features, width=TEXT_WIDTH)
    # Rare words are lost in the projection; without this, items that have only such words would all lie at the origin.
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    np.save(job / "text.npy", vectors.astype(np.float32))
    wordings = [query for x in lines for query in [*x["train_queries"], *pseudo_queries(x)]]
    vocabulary = train_sentencepiece(wordings, str(job / "spm.model"), vocab_size=pieces)
    return {**counts, "pieces": vocabulary.size}


def _pairs(
    lines: Sequence[Mapping[str, Any]], queries: Sequence[Sequence[str]]
) -> Iterable[dict[str, Any]]:
    for line, texts in zip(lines, queries, strict=True):
        yield from ({"query": text, "item": line["name"]} for text in texts)


def _write(path: Path, lines: Iterable[Mapping[str, Any]]) -> int:
    written = [json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("\n".join(written) + "\n", encoding="utf-8")
    return len(written)
