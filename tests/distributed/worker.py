"""One process of a tiny training job that tests start, stop and kill; its exit codes are those of `jaxalign train`.

Usage: python worker.py JSON, with the keys of `Options`. The processes find each other through the environment.
"""

import dataclasses
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))

from jaxalign.cli.main import run_with_one_line_errors
from jaxalign.parallel import processes


@dataclasses.dataclass
class Options:
    """The options of a job.

    Attributes:
      feedback, cache, folder: the data, the cache and the run folder.
      steps: updates in total.
      period: steps between checkpoints.
      mesh: arguments of `MeshShape`.
      method: 'sft', 'dro_v', or 'kto', which checks the whole batch.
      term_at: step after which this process sends itself SIGTERM; from then on every step takes ``pause`` longer.
      kill_at: step after which this process kills itself, with a delay of ``delay``.
      saved_first: checkpoint that must exist before the process kills itself.
      kill_writing: the process kills itself while it writes the checkpoint of this step.
      delay, pause: seconds.
      best: keep the best checkpoint by validation loss.
    """

    feedback: str
    cache: str
    folder: str
    steps: int
    period: int = 4
    mesh: dict = dataclasses.field(default_factory=dict)
    method: str = "sft"
    term_at: int = 0
    kill_at: int = 0
    saved_first: int = 0
    kill_writing: int = 0
    delay: float = 0.0
    pause: float = 0.0
    best: bool = False


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def disturb(options: Options) -> None:
    """Installs the signals and kills that the options request."""
    from jaxalign.training.loop import Loop

    receive = Loop._receive

    def received(loop, step, bar):
        receive(loop, step, bar)
        if step.number == options.term_at:
            os.kill(os.getpid(), signal.SIGTERM)
        if options.term_at and step.number >= options.term_at:
            # JAX's runtime checks for the signal once a second, and then asks the other processes for their steps.
            time.sleep(options.pause)
        if step.number == options.kill_at:
            wait_for(options, options.saved_first)
            threading.Timer(options.delay, kill).start() if options.delay else kill()

    Loop._receive = received
    if options.kill_writing:
        threading.Thread(target=kill_when_writing, args=(options,), daemon=True).start()


def wait_for(options: Options, step: int) -> None:
    while step and not (Path(options.folder) / "checkpoints" / str(step)).exists():
        time.sleep(0.01)


def kill_when_writing(options: Options) -> None:
    folder = Path(options.folder) / "checkpoints"
    while not list(folder.glob(f"{options.kill_writing}.orbax-checkpoint-tmp*")):
        time.sleep(0.0005)
    time.sleep(options.delay)
    kill()


def work(options: Options, launch: processes.ProcessConfig | None) -> int:
    import tiny_run

    from jaxalign.objectives.kto import KTO
    from jaxalign.objectives.sft import SFT
    from jaxalign.parallel import distributed
    from jaxalign.parallel.devices import Devices
    from jaxalign.parallel.partitioning import MeshShape
    from jaxalign.training.checkpointing import CheckpointPolicy

    distributed.initialize(launch)
    disturb(options)
    policy = CheckpointPolicy(
        period=options.period, best_metric="validation/loss" if options.best else None
    )
    methods = {"kto": KTO, "sft": SFT}
    if options.method in methods:
        tiny_run.DROV = lambda policy, value: methods[options.method](policy=policy)
    tiny_run.main(
        options.feedback,
        options.cache,
        options.folder,
        options.steps,
        checkpoint=policy,
        devices=Devices(
            mesh=MeshShape(**options.mesh), microbatches=2 if options.method == "dro_v" else 1
        ),
        batch_size=8,
    )
    return 0


def main() -> int:
    options = Options(**json.loads(sys.argv[1]))
    launch = processes.find_process_config()

    def run() -> int:
        return run_with_one_line_errors(lambda: work(options, launch))

    return run() if launch is None else processes.run_guarded(run)


if __name__ == "__main__":
    sys.exit(main())
