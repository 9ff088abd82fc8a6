"""Accelerators: the published peak rates of a chip, and the limits that define the default mesh of a run."""

from __future__ import annotations

import dataclasses
from typing import Any

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One chip of a TPU generation, or one GPU, with its vendor's figures.

    Attributes:
      name: as in topology names, for example 'v5e'.
      device_kinds: values, or prefixes, of `jax.Device.device_kind`.
      memory_bytes: high-bandwidth memory of a chip.
      peak_flops: dense bfloat16 operations per second of a chip.
      memory_bandwidth: bytes per second between a chip and its memory.
      interconnect_bandwidth: bytes per second that a chip sends to its neighbours over all links together, in one direction.
      chips_per_host: chips that one process drives on a slice of several hosts.
      max_fsdp: the largest number of chips over which parameters are sharded by default; further chips hold further copies.
    """

    name: str
    device_kinds: tuple[str, ...]
    memory_bytes: int
    peak_flops: float
    memory_bandwidth: float
    interconnect_bandwidth: float
    chips_per_host: int
    max_fsdp: int


# TPUs: Google's pages cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}. They state the interconnect for both directions together; it is halved
# here. GPUs: NVIDIA's data sheets (SXM, without sparsity); NVLink is halved in the same way.
ACCELERATORS: dict[str, Accelerator] = {
    each.name: each
    for each in (
        Accelerator("v4", ("TPU v4",), 32 * GIB, 275e12, 1200e9, 300e9, 4, 64),
        Accelerator("v5e", ("TPU v5 lite", "TPU v5e"), 16 * GIB, 197e12, 819e9, 200e9, 8, 64),
        Accelerator("v5p", ("TPU v5p", "TPU v5"), 95 * GIB, 459e12, 2765e9, 600e9, 4, 64),
        Accelerator("v6e", ("TPU v6 lite", "TPU v6e"), 32 * GIB, 918e12, 1640e9, 400e9, 8, 64),
        Accelerator("a100", ("NVIDIA A100",), 80 * GIB, 312e12, 2039e9, 300e9, 8, 8),
        Accelerator("h100", ("NVIDIA H100",), 80 * GIB, 989e12, 3350e9, 450e9, 8, 8),
        Accelerator("h200", ("NVIDIA H200",), 141 * 10**9, 989e12, 4800e9, 450e9, 8, 8),
    )
}


def find_accelerator(device: Any) -> Accelerator | None:
    """The accelerator of a JAX device; None for a CPU or a kind that is not listed."""
    kind = device.device_kind
    # The longest name is tried first, because 'TPU v5' is a prefix of 'TPU v5 lite'.
    names = [(name, each) for each in ACCELERATORS.values() for name in each.device_kinds]
    for name, each in sorted(names, key=lambda pair: -len(pair[0])):
        if kind.startswith(name):
            return each
    return None
