"""Run folders of tiny random networks, as training writes them, and small candidates."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.data.candidates import Annotation, Candidates
from jaxalign.data.train_vocabulary import train_sentencepiece
from jaxalign.networks.config import T5Config
from jaxalign.networks.feature_reward import FeatureReward
from jaxalign.networks.policy import Policy
from jaxalign.networks.reward import DecoderRewardNetwork
from jaxalign.runs.description import write_description
from jaxalign.training.checkpointing import Checkpointer, CheckpointPolicy
from jaxalign.training.optimizers import adamw
from jaxalign.training.state import build_transformations, create_state

CONFIG = T5Config(
    vocab_size=262,
    emb_dim=8,
    num_heads=1,
    head_dim=8,
    mlp_dim=8,
    num_encoder_layers=1,
    num_decoder_layers=1,
    dropout_rate=0.1,
    mlp_activations=("relu",),
)


def _write(folder, role, network, params, **description):
    folder.mkdir(parents=True)
    write_description(
        folder,
        {
            "run_id": folder.name,
            "networks": {role: network.description()},
            "vocabulary": {"kind": "bytes", "extra_ids": 0},
            "feature_lengths": {"inputs": 64, "targets": 16},
            "manifests": True,
            **description,
        },
    )
    checkpointer = Checkpointer(folder, CheckpointPolicy(keep_latest=None))
    transformations = build_transformations({role: adamw()}, {})
    state = create_state({role: params}, transformations)
    checkpointer.save(state.replace(step=3), {"position": 3}, {"run_id": folder.name})
    checkpointer.close()


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Paths of runs by name: the policies `a` and `b`, and `other` with another vocabulary; the rewards of scores `features`, `unnamed`,
    `rated` and `foreign`; the reward on decoder states `prefixes`, and `letters` with a vocabulary of few letters.
    """
    folder, policy = tmp_path_factory.mktemp("runs"), Policy(CONFIG)
    weights = {"head": {"layer_0": {"kernel": jnp.array([[2.0], [-1.0]])}}}
    for seed, name in enumerate(("a", "b")):
        _write(folder / name, "policy", policy, policy.init(jax.random.key(seed)))
    scores = ["words", "repetition"]
    _write(folder / "features", "reward", FeatureReward(2), weights, score_names=scores)
    reward = DecoderRewardNetwork(dataclasses.replace(CONFIG, dropout_rate=0.0))
    _write(folder / "prefixes", "reward", reward, reward.init(jax.random.key(0)))
    letters = train_sentencepiece(["a b", "b a"], str(folder / "letters.model"), vocab_size=16)
    for name, origin, change in (
        ("letters", "prefixes", {"vocabulary": {**letters.to_dict(), "path": "letters.model"}}),
        ("other", "a", {"vocabulary": {"kind": "bytes", "extra_ids": 3}}),
        ("unnamed", "features", {"score_names": []}),
        ("rated", "features", {"score_names": ["words", "honesty"]}),
        ("foreign", "features", {"score_names": ["words", "foreign_feature:count"]}),
    ):
        file = shutil.copytree(folder / origin, folder / name) / "networks.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
    (folder / "letters.model").rename(folder / "letters" / "letters.model")
    return {path.name: str(path) for path in folder.iterdir()}


@pytest.fixture
def candidates():
    """Three prompts with 2, 3 and 2 responses, feedback, and references."""
    return Candidates(
        ["one", "two words", "three"],
        [["a", "bb"], ["c c", "d", "eee"], ["f", "f"]],
        {
            "feedback": Annotation(
                "scores", [np.array([1.0, 0]), np.array([0.0, 2, 1]), np.array([1.0, 1])]
            )
        },
        [{"id": 0, "references": ["a"]}, {"id": 1, "references": ["d"]}, {"id": 2, "target": "f"}],
    )
