"""A vocabulary and items that the tests of retrieval share."""

import json

import jax
import numpy as np
import pytest

from jaxalign.data.train_vocabulary import train_sentencepiece
from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy
from jaxalign.retrieval.index import index
from jaxalign.retrieval.index_folder import read_index

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


@pytest.fixture(scope="session")
def small_index(tmp_path_factory, item_lines, query_lines, spm):
    """An index of the twelve items, with clusters, one level of codes and a counter."""
    folder = tmp_path_factory.mktemp("small")
    for name, lines in (("items", item_lines), ("queries", query_lines)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text)
    index(
        str(folder / "items.jsonl"),
        str(folder / "index"),
        vocabulary=str(spm),
        queries=str(folder / "queries.jsonl"),
        coarse=3,
        levels=1,
        codes=3,
    )
    return read_index(folder / "index")


@pytest.fixture(scope="session")
def retriever(small_index):
    """An untrained T5 over the vocabulary of the index, and its parameters."""
    config = T5Config(small_index.vocabulary.size + 3, 8, 1, 8, 8, 1, 1, dropout_rate=0.0)
    policy = Policy(config, logits_chunk_size=None)
    params = policy.init(jax.random.key(3))
    # Sharper than at initialisation, so that rankings are not decided by rounding.
    return policy, jax.tree.map(lambda leaf: 3 * leaf, params)
