"""Jobs of several processes: joining, decisions of the first process for all, the rows each process holds, and exit after an error."""

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

# jax.distributed has no public access to the key-value store that its processes share. Orbax uses this private module too.
from jax._src import distributed as jax_distributed
from jax.sharding import Mesh, NamedSharding

from jaxalign.errors import UserError
from jaxalign.parallel import partitioning
from jaxalign.parallel.processes import ProcessConfig

# A process without a heartbeat for this long counts as lost; the others notice within a minute.
HEARTBEAT_SECONDS = 30
START_SECONDS = 300
_EXIT_BARRIER_SECONDS = 10
_NO_TIMEOUT_MS = 7 * 24 * 3600 * 1000
_broadcast_ids = itertools.count()
_LOST_PROCESS_ERROR = re.compile(
    r"gloo|connection (reset|closed|refused)|socket closed|heartbeat|coordination service|barrier|UNAVAILABLE|DEADLINE_EXCEEDED",
    re.IGNORECASE,
)


class MissingProcessError(UserError):
    """The other processes of the job did not join. All of them can be launched again, as after a lost process."""


def initialize(launch: ProcessConfig | None) -> None:
    """Joins the other processes. Call this before any other use of JAX.

    Raises:
      MissingProcessError: if the processes do not join in time, or if JAX has already started.
    """
    if launch is None:
        return
    known = (launch.coordinator_address, launch.num_processes, launch.process_id)
    if None not in known:
        print(
            f"process {launch.process_id} of {launch.num_processes} waits for the others at {launch.coordinator_address} for up to "
            f"{START_SECONDS // 60} minutes",
            file=sys.stderr,
        )
    try:
        jax.distributed.initialize(
            *known,
            # Where everything is known, JAX must not query a cluster's metadata either.
            cluster_detection_method="deactivate" if None not in known else None,
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError, OSError) as error:
        where = f" at {launch.coordinator_address}" if launch.coordinator_address else ""
        raise MissingProcessError(
            f"could not join the other processes of the job{where} ({_first_line(error)}); check that all of them are started with the "
            "same --coordinator_address and --num_processes"
        ) from error


def is_multiprocess() -> bool:
    """Whether the job has more than one process."""
    return jax.process_count() > 1


def is_primary_process() -> bool:
    """Whether this is process 0, which writes the files and lines that a job writes once."""
    return jax.process_index() == 0


def broadcast_from_first(decide: Callable[[], Any]) -> Any:
    """Calls ``decide`` on the first process and returns its result (JSON) on all processes; its `UserError` is raised on all of them.

    All processes must make these calls in the same order.
    """
    if not is_multiprocess():
        return decide()
    client: Any = jax_distributed.global_state.client
    key = f"jaxalign/first/{next(_broadcast_ids)}"
    if not is_primary_process():
        answer = json.loads(client.blocking_key_value_get(key, _NO_TIMEOUT_MS))
        if "error" in answer:
            raise UserError(answer["error"])
        return answer["result"]
    try:
        answer = {"result": decide()}
    except UserError as error:
        client.key_value_set(key, json.dumps({"error": f"first process: {error}"}))
        raise
    client.key_value_set(key, json.dumps(answer))
    return answer["result"]


def process_local_rows(mesh: Mesh, batch_size: int) -> Sequence[int] | None:
    """The rows of a global batch that this process's devices hold, in ascending order; None for all rows.

    Where a tensor axis spans processes, several processes hold the same rows.
    """
    sharding = NamedSharding(mesh, partitioning.BATCH_SPEC)
    rows: set[int] = set()
    parts: Any = sharding.addressable_devices_indices_map((batch_size,)).values()
    for (part,) in parts:
        rows.update(range(*part.indices(batch_size)))
    return None if len(rows) == batch_size else sorted(rows)


class GlobalBatchFields:
    """Gathers the parts of a global batch that every process needs, although each process holds only some rows."""

    def __init__(self, mesh: Mesh) -> None:
        self._gather = jax.jit(_gather_fields, out_shardings=partitioning.replicated_sharding(mesh))

    def __call__(self, batch: Mapping[str, jax.Array]) -> tuple[dict[str, Any], Any]:
        """Returns the per-example fields of all rows and the numbers of responses and of tokens, without waiting for the device."""
        return self._gather(dict(batch))


def _gather_fields(batch: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], Any]:
    """Selects the fields of examples and responses, which are small; fields of tokens are not gathered."""
    per_row = batch["response_mask"].shape[1]
    fields = {name: array for name, array in batch.items() if array.shape[1] == per_row}
    tokens = [(batch[f"{side}_segment_ids"] > 0).sum() for side in ("encoder", "decoder")]
    return fields, ((batch["response_mask"] > 0).sum(), sum(tokens))


def check_global_batch(
    check: Callable[[Mapping[str, Any]], None], mesh: Mesh, batch: Mapping[str, np.ndarray]
) -> None:
    """Runs a check such as `Objective.check_batch` on the global batch, so that all processes reach the same result."""
    if not is_multiprocess():
        check(batch)
        return
    fields, _ = GlobalBatchFields(mesh)(partitioning.make_global_batch(mesh, batch))
    check({**batch, **jax.device_get(fields)})


def lost_process_message(error: BaseException) -> str | None:
    """Returns a one-line message if an error of JAX's runtime means that another process was lost.

    Returns None for every other error, and in a process that has joined no job.
    """
    if jax_distributed.global_state.client is None or isinstance(error, UserError):
        return None
    if not isinstance(error, (RuntimeError, ValueError)):
        return None
    if not _LOST_PROCESS_ERROR.search(str(error)):
        return None
    return (
        f"another process of the job was lost ({_first_line(error)}); its own log has the reason; launch all processes again, "
        "and the run continues from its last checkpoint"
    )


def wait_before_exit() -> None:
    """Prepares an exit with an error: waits briefly for the other processes.

    They may fail for the same reason, and then each of them should exit with its own code. JAX's ordinary exit would wait minutes for
    processes that wait for this one.
    """
    client = jax_distributed.global_state.client
    if client is None:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        client.wait_at_barrier("jaxalign/failed", _EXIT_BARRIER_SECONDS * 1000)
    except Exception:
        return
    if jax_distributed.global_state.process_id == 0:
        # When the first process exits, JAX aborts the processes that still run.
        time.sleep(1)


def is_initialized() -> bool:
    """Whether this process has joined a job. The call does not initialise JAX's devices."""
    return jax_distributed.global_state.client is not None


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__
