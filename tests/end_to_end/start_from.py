"""Trains a tiny run from a checkpoint of any format, with one of three methods; a test may have it die before its first checkpoint.

python start_from.py METHOD FEEDBACK CACHE_DIR MODEL_DIR TRAIN_STEPS CHECKPOINT [die]
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from tiny_run import CONFIG

from jaxalign.data.task_data import TaskData
from jaxalign.networks.policy import Policy
from jaxalign.networks.value import ValueNetwork
from jaxalign.objectives.dro import DROV
from jaxalign.objectives.kto import KTO
from jaxalign.objectives.sft import SFT
from jaxalign.training.checkpointing import CheckpointPolicy
from jaxalign.training.loop import LoopConfig
from jaxalign.training.optimizers import adafactor
from jaxalign.training.run import train
from jaxalign.training.start import StartFrom

METHODS = {
    "sft": lambda: SFT(policy=Policy(CONFIG)),
    "dro_v": lambda: DROV(policy=Policy(CONFIG), value=ValueNetwork(CONFIG)),
    "kto": lambda: KTO(policy=Policy(CONFIG)),
}


def main(method, feedback, cache_dir, model_dir, steps, checkpoint, die=""):
    def probe(step, params):
        if die:
            assert not list(Path(model_dir, "checkpoints").glob("*"))
            os.kill(os.getpid(), signal.SIGKILL)
        return {"probed": 1.0}

    summary = train(
        model_dir=model_dir,
        objective=METHODS[method](),
        data=TaskData(
            task="tiny",
            cache_dir=cache_dir,
            feature_lengths={"inputs": 16, "targets": 16},
            train_file=feedback,
        ),
        optimizers={"policy": adafactor(1e-3, warmup_steps=0)},
        loop=LoopConfig(
            # A run saves its last step, so one that shall die before has another ahead of it.
            train_steps=int(steps) + bool(die),
            log_period=1,
            eval_period=1,
            checkpoint=CheckpointPolicy(period=1000),
            progress=False,
        ),
        batch_size=4,
        start_from=StartFrom(checkpoint),
        evaluators={"probe": probe},
    )
    print(f"finished at step {summary['step']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
