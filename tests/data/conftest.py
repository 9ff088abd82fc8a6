"""Small caches and vocabularies for the data tests."""

import json

import pytest

from jaxalign.data import bundled_sources, cache, train_vocabulary, vocabularies


@pytest.fixture(scope="session")
def small_vocabulary(tmp_path_factory):
    """The path of a SentencePiece model of the bundled task."""
    folder = tmp_path_factory.mktemp("vocabulary")
    texts, _ = bundled_sources.write_triplets(str(folder), num_prompts=1000, num_validation=1)
    path = str(folder / "small.model")
    train_vocabulary.train_vocabulary(texts, path, kind="triplet", vocab_size=300)
    return path


@pytest.fixture
def write_lines(tmp_path):
    """Writes objects (or raw strings) as JSON Lines and returns the path."""

    def write(objects, name="data.jsonl"):
        path = tmp_path / name
        lines = [obj if isinstance(obj, str) else json.dumps(obj) for obj in objects]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(path)

    return write


@pytest.fixture(scope="session")
def make_cache(tmp_path_factory, small_vocabulary):
    """Caches a small bundled task of a kind, once a session."""
    made = {}

    def make(kind="triplet", num_prompts=60):
        if (kind, num_prompts) not in made:
            folder = str(tmp_path_factory.mktemp("cache") / kind)
            source = bundled_sources.SyntheticSource(
                kind, num_prompts, 13, responses_per_prompt=1 if kind == "triplet" else 3, seed=1
            )
            cache.cache_source(
                source,
                folder,
                name=kind,
                vocabulary=vocabularies.SentencePieceVocabulary(small_vocabulary),
            )
            made[kind, num_prompts] = folder
        return made[kind, num_prompts]

    return make
