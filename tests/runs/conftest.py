"""A small run folder, as training writes it."""

import json
import shutil

import jax
import pytest

from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy
from jaxalign.runs.description import write_description
from jaxalign.training.checkpointing import Checkpointer, CheckpointPolicy
from jaxalign.training.optimizers import adamw
from jaxalign.training.state import build_transformations, create_state

CONFIG = T5Config(
    vocab_size=259,
    emb_dim=8,
    num_heads=1,
    head_dim=8,
    mlp_dim=8,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_activations=("relu",),
)


@pytest.fixture(scope="session")
def written_run(tmp_path_factory):
    """A run of a policy with the checkpoints 2 and 4."""
    folder = tmp_path_factory.mktemp("written") / "run"
    policy = Policy(CONFIG)
    write_description(
        folder_made(folder),
        {
            "run_id": "abc",
            "networks": {"policy": policy.description()},
            "objective": "sft",
            "vocabulary": {"kind": "bytes", "extra_ids": 0},
            "feature_lengths": {"inputs": 16, "targets": 8},
            "reward": {"mean": 0.0, "std": 1.0},
            "manifests": True,
        },
    )
    checkpointer = Checkpointer(folder, CheckpointPolicy(keep_latest=None))
    for step in (2, 4):
        params = {"policy": policy.init(jax.random.key(step))}
        state = create_state(params, build_transformations({"policy": adamw()}, {}))
        checkpointer.save(state.replace(step=step), {"position": step}, {"run_id": "abc"})
    checkpointer.close()
    return folder


def folder_made(folder):
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def run_copy(written_run, tmp_path):
    """The run folder, to be changed."""
    return shutil.copytree(written_run, tmp_path / "run")


@pytest.fixture
def edit_json():
    """`edit_json(file, change)` changes a JSON object in place."""

    def edit(file, change):
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return edit
