"""A vocabulary and items that the tests of retrieval share."""

import json

import numpy as np
import pytest

from jaxalign.data.train_vocabulary import train_sentencepiece

COLOURS = ("red", "green", "blue")
THINGS = ("circle", "square", "star", "cross")


@pytest.fixture(scope="session")
def spm(tmp_path_factory):
    """The path of a small SentencePiece model."""
    path = tmp_path_factory.mktemp("vocabulary") / "spm.model"
    texts = [f"a {colour} {thing} on the left or right" for colour in COLOURS for thing in THINGS]
    train_sentencepiece(texts, str(path), vocab_size=60)
    return path


@pytest.fixture
def write_lines(tmp_path):
    """Writes JSON Lines and returns the path as text."""

    def write(name, lines):
        path = tmp_path / name
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(path)

    return write


@pytest.fixture(scope="session")
def item_lines():
    """Twelve items with vectors; the last two have equal ones."""
    rng = np.random.default_rng(0)
    names = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]
    vectors = rng.normal(size=(len(names), 6)).round(4)
    vectors[-1] = vectors[-2]
    return [
        {"item": name, "text": name, "vector": vector.tolist()}
        for name, vector in zip(names, vectors, strict=True)
    ]


@pytest.fixture(scope="session")
def query_lines(item_lines):
    """Two queries for every item."""
    return [
        {"item": line["item"], "query": [f"a {line['text']}", line["text"]]} for line in item_lines
    ]
