"""A job of several processes: starting it, what the first decides for all, whose rows are whose, and leaving it."""

from __future__ import annotations

import itertools
import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

# What Orbax uses as well: jax.distributed has no public way to the store of keys and values that its processes share.
from jax._src import distributed as jax_distributed
from jax.sharding import Mesh, NamedSharding

from jaxalign.errors import UserError
from jaxalign.parallel import partitioning
from jaxalign.parallel.processes import Launch

# A process that has not been heard of for so long is lost; the others notice within a minute.
HEARTBEAT_SECONDS = 30
START_SECONDS = 300
_ALIKE_SECONDS = 10
_FOR_EVER_MS = 7 * 24 * 3600 * 1000
_FIRST = "first process"
_counter = itertools.count()
_LOST = re.compile(
    r"gloo|connection (reset|closed|refused)|socket closed|heartbeat|coordination service|barrier|UNAVAILABLE|DEADLINE_EXCEEDED",
    re.IGNORECASE,
)


class MissingProcessError(UserError):
    """The other processes of the job were not there; all of them may be launched again, as when one is lost."""


def start(launch: Launch | None) -> None:
    """Joins the other processes; before anything else of JAX is used.

    Raises:
      MissingProcessError: if they are not found in time, or JAX has started already.
    """
    if launch is None:
        return
    known = (launch.coordinator_address, launch.num_processes, launch.process_id)
    if None not in known:
        print(
            f"process {launch.process_id} of {launch.num_processes} waits for the others at {launch.coordinator_address}, for up to "
            f"{START_SECONDS // 60} minutes",
            file=sys.stderr,
        )
    try:
        jax.distributed.initialize(
            *known,
            # Not even a look at a cluster's metadata where everything is known.
            cluster_detection_method="deactivate" if None not in known else None,
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError, OSError) as error:
        where = f" at {launch.coordinator_address}" if launch.coordinator_address else ""
        raise MissingProcessError(
            f"could not join the other processes of the job{where} ({_line(error)}); are all of them started, with the same "
            "--coordinator_address and --num_processes?"
        ) from error


def several() -> bool:
    """Whether the job has more than one process."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def first(decide: Callable[[], Any]) -> Any:
    """What ``decide`` returns on the first process (JSON), on all of them; its `UserError` is raised on all of them.

    To be called by all processes in the same order.
    """
    if not several():
        return decide()
    client: Any = jax_distributed.global_state.client
    key = f"jaxalign/first/{next(_counter)}"
    if not is_first():
        answer = json.loads(client.blocking_key_value_get(key, _FOR_EVER_MS))
        if "error" in answer:
            raise UserError(answer["error"])
        return answer["result"]
    try:
        answer = {"result": decide()}
    except UserError as error:
        client.key_value_set(key, json.dumps({"error": f"{_FIRST}: {error}"}))
        raise
    client.key_value_set(key, json.dumps(answer))
    return answer["result"]


def local_rows(mesh: Mesh, batch_size: int) -> Sequence[int] | None:
    """The rows of a global batch that this process's devices hold, ascending; None for all.

    Where a tensor axis spans processes, several of them hold the same rows.
    """
    sharding = NamedSharding(mesh, partitioning.BATCH_SPEC)
    rows: set[int] = set()
    parts: Any = sharding.addressable_devices_indices_map((batch_size,)).values()
    for (part,) in parts:
        rows.update(range(*part.indices(batch_size)))
    return None if len(rows) == batch_size else sorted(rows)


class GlobalView:
    """What every process has to know of a global batch, of which it holds only some rows."""

    def __init__(self, mesh: Mesh) -> None:
        self._view = jax.jit(_view, out_shardings=partitioning.replicated(mesh))

    def __call__(self, batch: Mapping[str, jax.Array]) -> tuple[dict[str, Any], Any]:
        """Per-example fields of all rows, and numbers of responses and of tokens; the device is not waited for."""
        return self._view(dict(batch))


def _view(batch: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], Any]:
    """Fields of examples and responses are small; those of tokens stay where they are."""
    per_row = batch["response_mask"].shape[1]
    fields = {name: array for name, array in batch.items() if array.shape[1] == per_row}
    tokens = [(batch[f"{side}_segment_ids"] > 0).sum() for side in ("encoder", "decoder")]
    return fields, ((batch["response_mask"] > 0).sum(), sum(tokens))


def check_batch(
    check: Callable[[Mapping[str, Any]], None], mesh: Mesh, batch: Mapping[str, np.ndarray]
) -> None:
    """Runs a check such as `Objective.check_batch` on the global batch, so that all processes decide alike."""
    if not several():
        check(batch)
        return
    fields, _ = GlobalView(mesh)(partitioning.put_batch(mesh, batch))
    check({**batch, **jax.device_get(fields)})


def lost_process(error: BaseException) -> str | None:
    """One line if an error of JAX's runtime says that another process is gone; None if it does not, or there is no other."""
    if jax_distributed.global_state.client is None or isinstance(error, UserError):
        return None
    if not isinstance(error, (RuntimeError, ValueError)) or not _LOST.search(str(error)):
        return None
    return (
        f"another process of the job was lost ({_line(error)}); see its own log, launch all processes again, "
        "and the run goes on from its last checkpoint"
    )


def leave() -> None:
    """Before exiting with an error: waits a little for the others, which may fail alike and shall end with their own code.

    The ordinary exit of JAX would wait minutes for processes that are waiting for this one.
    """
    client = jax_distributed.global_state.client
    if client is None:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        client.wait_at_barrier("jaxalign/failed", _ALIKE_SECONDS * 1000)
    except Exception:
        return
    if jax_distributed.global_state.process_id == 0:
        # When the first one goes, JAX aborts those that are still there.
        time.sleep(1)


def joined() -> bool:
    """Whether this process has joined others; does not start JAX's devices."""
    return jax_distributed.global_state.client is not None


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__
