"""A tiny T5 with random parameters, and checkpoints of it in every format."""

import numpy as np
import pytest

from jaxalign.interop import parameters, storage, t5x
from jaxalign.interop.arrays import DTYPES, from_numpy
from jaxalign.interop.convert import convert
from jaxalign.networks.config import T5Config

CONFIG = T5Config(
    vocab_size=40,
    emb_dim=8,
    num_heads=2,
    head_dim=3,
    mlp_dim=12,
    num_encoder_layers=2,
    num_decoder_layers=3,
)
V1_0 = CONFIG.replace(mlp_activations=("relu",), logits_via_embedding=True)


def random_values(config=CONFIG, dtype="float32", seed=0):
    """Values by T5X's dotted names, none of them symmetric or equal to another."""
    generator = np.random.default_rng(seed)
    return {
        name: generator.normal(size=shape).astype(DTYPES[dtype])
        for name, shape in parameters.shapes(config).items()
    }


@pytest.fixture
def values():
    return random_values


@pytest.fixture
def make_checkpoint(tmp_path):
    """`make_checkpoint(to, values, config)` writes a checkpoint of step 7 and returns its path."""

    def make(to, values, config=CONFIG, name="source", **options):
        first = tmp_path / f"{name}-t5x" / "checkpoint_7"
        first.mkdir(parents=True)
        t5x.write_legacy(str(first), {n: from_numpy(v) for n, v in values.items()}, 7)
        if to == "t5x":
            return str(first)
        output = str(tmp_path / f"{name}-{to}")
        return convert(checkpoint=str(first), output=output, to=to, model=config, **options)[
            "output"
        ]

    return make


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Makes gs://bucket a folder on this machine, whose path it returns."""
    root = tmp_path / "bucket"
    root.mkdir()
    real = storage.kvstore

    def fake(folder):
        assert not folder.startswith("gs://") or real(folder)["driver"] == "gcs"
        return real(folder.replace("gs://bucket", str(root)))

    def write(folder, name):
        path = root.joinpath(folder.removeprefix("gs://bucket/"), name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb")

    monkeypatch.setattr(storage, "kvstore", fake)
    monkeypatch.setattr(storage, "open_for_writing", write)
    return root
