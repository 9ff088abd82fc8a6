"""TPU topologies by name; libtpu describes them on a machine without TPUs."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from typing import Any

import jax

from jaxalign.errors import UserError, first_line
from jaxalign.parallel.accelerators import ACCELERATORS, Accelerator

# The topologies of `--topology=auto`: slices that Google Cloud offers.
DEFAULT_TOPOLOGIES = (
    "v5e:2x4",
    "v5e:4x4",
    "v5e:4x8",
    "v6e:2x4",
    "v6e:4x4",
    "v4:2x2x4",
    "v5p:2x2x2",
    "v5p:2x2x4",
)
INSTALL = 'jaxalign plan compiles with libtpu, which is not installed; pip install "jaxalign[tpu]" or pip install libtpu'
_NAME = re.compile(r"(v\d+[a-z]?):(\d+)x(\d+)(?:x(\d+))?(?:\*(\d+))?")
# Without these variables libtpu queries the machine for its TPUs, logs many errors, and takes the lock of a process that uses TPUs.
_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


def require_libtpu() -> None:
    """Raises a `UserError` with the command that installs libtpu if it is missing."""
    if importlib.util.find_spec("libtpu") is None and not os.environ.get("TPU_LIBRARY_PATH"):
        raise UserError(INSTALL)


def parse_topology(name: str) -> tuple[Accelerator, tuple[int, ...], int]:
    """Returns the accelerator, the extent of a slice in chips, and the number of slices of a name such as 'v5e:4x4' or 'v5e:4x4*2'.

    Raises:
      UserError: if the name is malformed or its generation unknown.
    """
    match = _NAME.fullmatch(name)
    if not match or match[1] not in ACCELERATORS:
        tpus = ", ".join(each for each in ACCELERATORS if _NAME.fullmatch(f"{each}:1x1"))
        raise UserError(
            f"topology {name!r} must be a generation and the chips along each axis, such as v5e:4x4 or v5p:2x2x4, with *2 for two "
            f"slices; generations: {tpus}"
        )
    extent = tuple(int(size) for size in match.groups()[1:4] if size)
    if 0 in extent or match[5] == "0":
        raise UserError(f"topology {name!r} has no chips")
    return ACCELERATORS[match[1]], extent, int(match[5] or 1)


def describe(name: str) -> tuple[Accelerator, list[Any]]:
    """Returns the accelerator and the devices of a topology, as targets of compilation.

    Raises:
      UserError: if libtpu is missing or does not know the topology.
    """
    accelerator, extent, num_slices = parse_topology(name)
    require_libtpu()
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    options: dict[str, Any] = {}
    if num_slices > 1:
        options["num_slices"] = num_slices
    if math.prod(extent) < accelerator.chips_per_host:
        # The slice is smaller than a host, so libtpu's default bounds of a host do not divide it.
        options["chips_per_host_bounds"] = [*extent, *[1] * (3 - len(extent))]
    if accelerator.name == "v4":
        options["chip_config_name"] = "megacore"  # one device per chip, as in JAX on v4
    base = f"{accelerator.name}:{'x'.join(map(str, extent))}"
    try:
        described = topologies.get_topology_desc(base, platform="tpu", **options)
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        reason = first_line(error)
        raise UserError(f"libtpu has no topology {name}: {reason}") from error
    return accelerator, list(described.devices)
