"""A tiny start of rounds: a T5 of bytes that answers prompts with a few letters."""

import functools
import json

import pytest

from jaxalign.data.task_data import TaskData
from jaxalign.losses.pairwise import dpo_loss
from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy
from jaxalign.objectives.responses import Pairwise
from jaxalign.objectives.sft import SFT
from jaxalign.parallel.devices import Devices
from jaxalign.parallel.partitioning import MeshShape
from jaxalign.training.checkpointing import CheckpointPolicy
from jaxalign.training.loop import LoopConfig
from jaxalign.training.optimizers import adamw
from jaxalign.training.run import train

CONFIG = T5Config(
    vocab_size=272,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=32,
    num_encoder_layers=1,
    num_decoder_layers=1,
    scan_layers=False,
    remat_policy="none",
)
POLICY = Policy(CONFIG, logits_chunk_size=None)
LENGTHS = {"inputs": 8, "targets": 8}
ONE_DEVICE = Devices(mesh=MeshShape(data=8))


def arguments(objective, steps, cache, learning_rate=1e-2, **data):
    """Everything that `train` needs besides its folder."""
    return {
        "objective": objective,
        "data": TaskData(
            task="letters", cache_dir=str(cache), feature_lengths=LENGTHS, eval_split="", **data
        ),
        "optimizers": {"policy": adamw(learning_rate)},
        "loop": LoopConfig(
            steps,
            log_period=1,
            eval_period=0,
            checkpoint=CheckpointPolicy(period=100, keep_latest=1, asynchronous=False),
            progress=False,
        ),
        "batch_size": 8,
        "devices": ONE_DEVICE,
    }


def training(values):
    """DPO with the hyperparameters of a round, as a gin file would build it."""
    loss = functools.partial(dpo_loss, beta=values.get("BETA", 0.1))
    objective = Pairwise(policy=POLICY, loss_function=loss)
    steps = values.get("TRAIN_STEPS", 2)
    given = arguments(objective, steps, "", values.get("LEARNING_RATE", 1e-3))
    return functools.partial(train, model_dir="", **given)


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """The run folder of the start."""
    folder = tmp_path_factory.mktemp("start")
    lines = [
        {"prompt": f"say {i % 10}", "response": "ab" if i % 3 else "abc"} for i in range(40)
    ]
    file = folder / "sft.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = {"kind": "seq2seq", "train_file": str(file), "duplicates": "keep"}
    run = arguments(SFT(policy=POLICY), 60, folder / "cache", 2e-2, **data)
    train(model_dir=str(folder / "run"), **run)
    return folder / "run"


@pytest.fixture
def prompts(tmp_path):
    """A file of twenty prompts."""
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"ask {i}"}) + "\n" for i in range(20)))
    return path
