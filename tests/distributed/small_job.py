"""A process of a job without training: all processes exchange data in steps until an event happens to one of them.

Usage: python small_job.py EVENT VICTIM FOLDER. The processes find each other through the environment.
"""

import os
import signal
import sys
import time
from typing import Any

import numpy as np

from jaxalign.cli.main import run_with_one_line_errors
from jaxalign.errors import UserError
from jaxalign.parallel import processes


def fail() -> None:
    raise UserError("a mistake that all make")


def restore_without(victim: int, mesh: Any, folder: str) -> None:
    """All processes save states and delete one; then one process dies while the others restore the remaining state."""
    import jax
    import jax.numpy as jnp

    from jaxalign.parallel import partitioning
    from jaxalign.training.checkpointing import Checkpointer, CheckpointPolicy
    from jaxalign.training.state import TrainState

    def make(step: Any) -> TrainState:
        params = {"policy": {"w": jnp.arange(8.0)}}
        return TrainState(step=step, params=params, opt_state={"policy": {}})

    abstract = jax.eval_shape(make, jnp.int32(0))
    shardings = jax.tree.map(lambda _: partitioning.replicated_sharding(mesh), abstract)
    checkpointer = Checkpointer(folder, CheckpointPolicy(keep_latest=1, asynchronous=False))
    for step in (1, 2):
        state = jax.jit(make, out_shardings=shardings)(jnp.int32(step))
        checkpointer.save(state, {"position": 1}, {"note": "test"})
        checkpointer.keep([1])
    assert checkpointer.steps() == [1, 2]
    checkpointer.keep([2])
    checkpointer.prune()
    assert checkpointer.steps() == [2]
    restored, position = checkpointer.restore(abstract, shardings)
    assert position == {"position": 1}
    assert jax.device_get(restored.params["policy"]["w"]).tolist() == list(range(8))
    if jax.process_index() == victim:
        kill()
    for _ in range(20):
        checkpointer.restore(abstract, shardings)


def work(event: str, victim: int, folder: str) -> int:
    from jaxalign.parallel import distributed

    distributed.initialize(processes.find_process_config())
    import jax

    from jaxalign.parallel import partitioning

    mesh = partitioning.make_mesh()
    index = jax.process_index()
    assert distributed.broadcast_from_first(lambda: {"decided by": index}) == {"decided by": 0}
    if event == "restoring":
        restore_without(victim, mesh, folder)
    rows = distributed.process_local_rows(mesh, 8)
    batch = {
        "response_mask": np.ones((len(rows), 1, 1), np.float32),
        "encoder_segment_ids": np.ones((len(rows), 3), np.int32),
        "decoder_segment_ids": np.ones((len(rows), 2), np.int32),
        "prompt_ids": np.array(rows)[:, None],
    }
    view = distributed.GlobalBatchFields(mesh)
    for number in range(20):
        fields, counts = jax.device_get(view(partitioning.make_global_batch(mesh, batch)))
        assert sorted(fields) == ["prompt_ids", "response_mask"]
        assert fields["prompt_ids"].ravel().tolist() == list(range(8))
        assert [int(count) for count in counts] == [8, 40]
        if number < 5:
            continue
        if event == "all_fail":
            distributed.broadcast_from_first(fail)
        if index == victim:
            {"mistake": fail, "defect": lambda: [][0], "killed": kill, "silent": kill}[event]()
        if event == "silent":
            # The others wait in no call that could fail.
            time.sleep(3600)
    return 0


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    event, victim, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    sys.exit(
        processes.run_guarded(lambda: run_with_one_line_errors(lambda: work(event, victim, folder)))
    )
