"""Detection of jobs of several processes from flags and environment, before JAX is imported; and a parent process that guards them.

JAX's runtime ends a process with SIGABRT when another process of the job is lost. A parent process, which only waits, turns this into a
one-line message and an exit code.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import glob
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from jaxalign.errors import UserError

# Exit codes of a training process, besides 0, 2 (a user's mistake) and 130 (interrupted).
EXIT_PREEMPTED = (
    75  # SIGTERM or a maintenance notice, after saving: the same command continues the run
)
EXIT_LOST_PROCESS = 76  # another process of the job was lost: launch all of them again

_DEFAULT_PORT = 1234
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_PR_SET_PDEATHSIG = 1
# PCI: the vendor's number, and the first byte of a device class.
_GOOGLE_VENDOR = "0x1ae0"
_DISK_AND_NETWORK_CLASSES = ("0x01", "0x02")


@dataclasses.dataclass(frozen=True)
class ProcessConfig:
    """How this process finds the others. `jax.distributed` determines values that are None from the cluster.

    Attributes:
      coordinator_address: host:port of the first process.
      num_processes: number of processes.
      process_id: number of this process, from 0.
      cluster: the environment from which JAX takes values that are None: 'tpu', 'slurm', 'ompi', 'kubernetes', or '' for none.
    """

    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    cluster: str = ""


def find_process_config(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> ProcessConfig | None:
    """Returns the job of several processes that flags and environment describe; None for a single process.

    The function makes no network request. After the flags it reads ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and
    ``JAX_PROCESS_ID``; then the variables that XPK sets for GPUs (``JAX_COORDINATOR_IP`` or ``_ADDRESS``, ``JAX_COORDINATOR_PORT``,
    ``NNODES``, ``NODE_RANK``) and for CPUs (``JAX_PROCESS_COUNT``, ``JOB_INDEX``, ``PROCESSES_IN_JOB``, ``JOB_COMPLETION_INDEX``); and
    then the variables of clusters that `jax.distributed` supports.

    Raises:
      UserError: if a value is missing or malformed.
    """
    address = coordinator_address or _address(environment)
    count, index = num_processes, process_id
    if address is not None:
        count = _number(
            environment, "JAX_NUM_PROCESSES", "JAX_PROCESS_COUNT", "NNODES", given=count
        )
        index = _number(environment, "JAX_PROCESS_ID", "NODE_RANK", given=index)
        if index is None and count is not None:
            index = _index_in_job_set(environment)
    cluster = detect_cluster(environment)
    given = {"coordinator_address": address, "num_processes": count, "process_id": index}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return ProcessConfig(cluster=cluster) if cluster else None
    if missing and not cluster:
        present = [f"--{name}" for name, value in given.items() if value is not None]
        raise UserError(
            f"{' and '.join(present)} (or the environment) describe a job of several processes, but {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing"
        )
    if count is not None and index is not None and not 0 <= index < count:
        raise UserError(
            f"--process_id={index} must be from 0 to {count - 1} with --num_processes={count}"
        )
    if count == 1:
        return None
    if address is not None and not address.rpartition(":")[2].isdigit():
        port = environment.get("JAX_COORDINATOR_PORT", str(_DEFAULT_PORT))
        address = f"{address}:{port}"
    return ProcessConfig(address, count, index, cluster)


def detect_cluster(environment: Mapping[str, str]) -> str:
    """Returns the cluster that the environment indicates; '' for none, as for a single process on a laptop."""
    if _on_tpu(environment):
        return "tpu"
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    tasks = environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1"))
    if all(name in environment for name in slurm) and tasks != "1":
        return "slurm"
    if (
        "OMPI_MCA_orte_hnp_uri" in environment
        and environment.get("OMPI_COMM_WORLD_SIZE", "1") != "1"
    ):
        return "ompi"
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        return "kubernetes" if importlib.util.find_spec("kubernetes") else ""
    return ""


def _on_tpu(environment: Mapping[str, str]) -> bool:
    """Whether this is a host of a TPU slice. GKE states the number of hosts; on a TPU VM, JAX asks the metadata server."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms and "tpu" not in platforms.split(","):
        return False
    if environment.get("MEGASCALE_NUM_SLICES", "1") != "1":
        return True
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if hosts:
        return "," in hosts
    if "TPU_SKIP_MDS_QUERY" in environment or importlib.util.find_spec("libtpu") is None:
        return False
    return bool(glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")) and _has_tpu_chip()


def _has_tpu_chip(devices: str = "/sys/bus/pci/devices") -> bool:
    """Whether a PCI device of Google is present that is neither a disk nor a network card; other hosts have vfio groups too."""
    for folder in map(Path, glob.glob(f"{devices}/*")):
        with contextlib.suppress(OSError):
            vendor, kind = ((folder / name).read_text().strip() for name in ("vendor", "class"))
            if vendor == _GOOGLE_VENDOR and kind[:4] not in _DISK_AND_NETWORK_CLASSES:
                return True
    return False


def _address(environment: Mapping[str, str]) -> str | None:
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_COORDINATOR_IP")
    return next((environment[name] for name in names if environment.get(name)), None)


def _number(environment: Mapping[str, str], *names: str, given: int | None) -> int | None:
    for name in names:
        if given is not None or not environment.get(name):
            continue
        try:
            given = int(environment[name])
        except ValueError:
            raise UserError(
                f"the environment variable {name}={environment[name]!r} is not a number"
            ) from None
    return given


def _index_in_job_set(environment: Mapping[str, str]) -> int | None:
    """Returns the number of this process in a JobSet, whose jobs have equal numbers of pods; they are numbered consecutively."""
    within = _number(environment, "JOB_COMPLETION_INDEX", given=None)
    if within is None:
        return None
    job = _number(environment, "JOB_INDEX", given=None) or 0
    return job * (_number(environment, "PROCESSES_IN_JOB", given=None) or 0) + within


def run_guarded(run: Callable[[], int]) -> int:
    """Runs a process of a job in a child process and returns its exit code; `EXIT_LOST_PROCESS` if JAX's runtime ended it.

    The parent forwards signals, and the child dies with its parent. Call this before JAX is imported, because a process with threads
    cannot be forked safely.
    """
    if not sys.platform.startswith("linux"):
        return run()
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    # Signals are blocked until their handlers are installed.
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    child = os.fork()
    if child == 0:
        # The child gets its own process group, so that a terminal's ^C reaches it only once, through its parent.
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(EXIT_LOST_PROCESS)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
        return run()

    def forward(number: int, frame: object) -> None:
        del frame
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in _FORWARDED:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code >= 0:
        return code
    if code == -signal.SIGABRT:
        print(
            "jaxalign: JAX's runtime ended this process, as it does when another process of the job is lost or never joins (its messages "
            "are above); launch all processes again, and the run continues from its last checkpoint",
            file=sys.stderr,
        )
        return EXIT_LOST_PROCESS
    print(f"jaxalign: this process was killed by {signal.Signals(-code).name}", file=sys.stderr)
    return 128 - code
