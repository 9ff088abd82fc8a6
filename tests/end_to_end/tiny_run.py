"""Trains a tiny DRO-V run from feedback in a JSON Lines file; a test kills it half-way.

python tiny_run.py FEEDBACK CACHE_DIR MODEL_DIR TRAIN_STEPS [KILL_AT [INITIAL_CHECKPOINT]]
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
_DEVICES = os.environ.get("TINY_RUN_DEVICES", "2")
_FLAGS = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{_FLAGS} --xla_force_host_platform_device_count={_DEVICES}"

from jaxalign.data.task_data import TaskData
from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy
from jaxalign.networks.value import ValueNetwork
from jaxalign.objectives.dro import DROV
from jaxalign.parallel.devices import Devices
from jaxalign.training.checkpointing import CheckpointPolicy
from jaxalign.training.loop import LoopConfig
from jaxalign.training.optimizers import adafactor
from jaxalign.training.run import train
from jaxalign.training.start import StartFrom

CHECKPOINTS = CheckpointPolicy(period=4)
CONFIG = T5Config(
    vocab_size=272,
    emb_dim=8,
    num_heads=2,
    head_dim=4,
    mlp_dim=8,
    num_encoder_layers=1,
    num_decoder_layers=1,
    dropout_rate=0.1,
    mlp_activations=("relu",),
)


def main(
    feedback: str,
    cache_dir: str,
    model_dir: str,
    steps: int,
    kill_at: int = 0,
    *,
    checkpoint: CheckpointPolicy = CHECKPOINTS,
    **options: Any,
) -> None:
    def probe(step: int, params: object) -> dict[str, float]:
        if step == kill_at:
            assert (Path(model_dir) / "checkpoints" / "4").exists()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"probed": 1.0}

    train(
        model_dir=model_dir,
        objective=DROV(policy=Policy(CONFIG), value=ValueNetwork(CONFIG)),
        data=TaskData(
            task="tiny",
            cache_dir=cache_dir,
            feature_lengths={"inputs": 16, "targets": 16},
            train_file=feedback,
            pack=True,
            max_examples_per_row=2,
            row_lengths={"inputs": 24, "targets": 24},
        ),
        optimizers={"policy": adafactor(1e-3, warmup_steps=3)},
        loop=LoopConfig(
            train_steps=steps,
            log_period=3,
            eval_period=6,
            checkpoint=checkpoint,
            progress=False,
        ),
        evaluators={"probe": probe},
        **({"batch_size": 4, "devices": Devices(microbatches=2)} | options),
    )


if __name__ == "__main__":
    start = {"start_from": StartFrom(sys.argv[6])} if len(sys.argv) > 6 else {}
    main(*sys.argv[1:4], *map(int, sys.argv[4:6]), **start)
