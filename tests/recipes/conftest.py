"""Tiny policies for rounds: they draw letters independently, so that nothing has to be trained."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxalign.data.task_data import TaskData
from jaxalign.data.vocabularies import ByteVocabulary
from jaxalign.interop import orbax_writer
from jaxalign.interop.arrays import LazyArray
from jaxalign.losses.pairwise import dpo_loss
from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy
from jaxalign.objectives.responses import Pairwise
from jaxalign.runs import checkpoints, manifests
from jaxalign.runs.description import write_description
from jaxalign.training.checkpointing import CheckpointPolicy
from jaxalign.training.loop import LoopConfig
from jaxalign.training.optimizers import adamw

CONFIG = T5Config(
    vocab_size=272,
    emb_dim=8,
    num_heads=2,
    head_dim=4,
    mlp_dim=8,
    num_encoder_layers=1,
    num_decoder_layers=1,
)
POLICY = Policy(CONFIG, logits_chunk_size=None)
LENGTHS = {"inputs": 8, "targets": 16}
EOS = 1


def write_policy(folder, run_id, probabilities):
    """Writes a run whose policy draws every token with these probabilities, such as {"a": 0.5, EOS: 0.5}."""
    policy = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), POLICY.abstract_params())
    policy["token_embedder"]["embedding"][:] = 1
    policy["decoder"]["decoder_norm"]["scale"][:] = 1
    logits = np.full(CONFIG.vocab_size, -30.0)
    for token, probability in probabilities.items():
        (index,) = [token] if isinstance(token, int) else ByteVocabulary(0).encode(token)
        logits[index] = np.log(probability)
    policy["decoder"]["logits_dense"]["kernel"][:] = logits / CONFIG.emb_dim
    checkpoint = Path(folder) / checkpoints.CHECKPOINTS / "1"
    checkpoint.mkdir(parents=True)
    lazy = jax.tree.map(lambda leaf: LazyArray(leaf.shape, leaf.dtype, leaf.__getitem__), policy)
    orbax_writer.write(str(checkpoint / "params"), {"policy": lazy})
    manifests.write_manifest(checkpoint, step=1, run_id=run_id)
    description = {
        "run_id": run_id,
        "networks": {"policy": POLICY.description()},
        "objective": "written",
        "reward": None,
        "manifests": True,
        "feature_lengths": LENGTHS,
        "vocabulary": ByteVocabulary(0).to_dict(),
    }
    write_description(Path(folder), description)


def arguments(values):
    """The arguments of a round's training, as a gin file would build them."""
    loss = functools.partial(dpo_loss, beta=values.get("BETA", 0.1))
    return {
        "model_dir": "",
        "objective": Pairwise(policy=POLICY, loss_function=loss),
        "data": TaskData(task="", cache_dir="", feature_lengths=LENGTHS),
        "optimizers": {"policy": adamw(1e-3)},
        "loop": LoopConfig(
            values.get("TRAIN_STEPS", 2),
            eval_period=0,
            checkpoint=CheckpointPolicy(asynchronous=False),
            progress=False,
        ),
        "batch_size": 8,
    }


def fake_train(*, model_dir, start_from, data, random_seed, **others):
    """Writes a policy with longer responses than the one it starts from, in place of training."""
    assert Path(data.cache_dir).is_dir() and Path(start_from.path).is_dir()
    probabilities = {"a": 0.4, "b": 0.4, EOS: 0.2 / (random_seed + 1)}
    if not Path(model_dir).exists():
        write_policy(model_dir, f"seed{random_seed}", probabilities)
    return {"train": {"loss": 0.5, "beta": 0.1}, "evaluation": {}, "others": sorted(others)}


def training(values):
    """`fake_train` with the arguments of a round."""
    return functools.partial(fake_train, **arguments(values))


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """The run folder of the start."""
    folder = tmp_path_factory.mktemp("start") / "run"
    write_policy(folder, "start", {"a": 0.35, "b": 0.35, EOS: 0.3})
    return folder


@pytest.fixture
def prompts(tmp_path):
    """A file of twenty prompts."""
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"ask {i}"}) + "\n" for i in range(20)))
    return path
