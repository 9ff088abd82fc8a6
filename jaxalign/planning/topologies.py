"""TPU topologies by name, described by libtpu on a machine that has none."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from typing import Any

import jax

from jaxalign.errors import UserError
from jaxalign.parallel.accelerators import ACCELERATORS, Accelerator

# What `--topology=auto` tries: slices of one to 128 chips that Google Cloud offers.
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
# libtpu asks the machine about TPUs that are not there, and complains at length; and it takes a lock, as if it held them.
_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


def require_libtpu() -> None:
    """Raises `UserError` that says how to install libtpu, if it is not there."""
    if importlib.util.find_spec("libtpu") is None and not os.environ.get("TPU_LIBRARY_PATH"):
        raise UserError(INSTALL)


def parse_topology(name: str) -> tuple[Accelerator, tuple[int, ...], int]:
    """The accelerator, the extent of a slice in chips, and the number of slices of, for example, 'v5e:4x4' or 'v5e:4x4*2'.

    Raises:
      UserError: if it is no such name.
    """
    match = _NAME.fullmatch(name)
    if not match or match[1] not in ACCELERATORS:
        tpus = ", ".join(each for each in ACCELERATORS if _NAME.fullmatch(f"{each}:1x1"))
        raise UserError(
            f"topology {name!r} is not a generation and chips along each axis, such as v5e:4x4 or v5p:2x2x4, with *2 for two slices; "
            f"generations: {tpus}"
        )
    extent = tuple(int(size) for size in match.groups()[1:4] if size)
    if 0 in extent or match[5] == "0":
        raise UserError(f"topology {name!r} has no chips")
    return ACCELERATORS[match[1]], extent, int(match[5] or 1)


def describe(name: str) -> tuple[Accelerator, list[Any]]:
    """The accelerator and the devices of a topology, to compile for.

    Raises:
      UserError: without libtpu, or if libtpu does not know the topology.
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
        # Less than a host: libtpu's own bounds would not divide it.
        options["chips_per_host_bounds"] = [*extent, *[1] * (3 - len(extent))]
    if accelerator.name == "v4":
        options["chip_config_name"] = "megacore"  # one device a chip, as JAX has it on v4
    base = f"{accelerator.name}:{'x'.join(map(str, extent))}"
    try:
        described = topologies.get_topology_desc(base, platform="tpu", **options)
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"libtpu has no topology {name}: {reason}") from error
    return accelerator, list(described.devices)
