"""A bound on a step's time from what it computes, moves and sends, at a chip's published peaks."""

from __future__ import annotations

import dataclasses

from jaxalign.parallel.accelerators import Accelerator


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step on every chip, if each resource ran at its published peak.

    Attributes:
      compute_seconds: matrix products, recomputation included.
      memory_seconds: traffic with main memory.
      interconnect_seconds: bytes sent to other chips, all links busy.
      lower_seconds: the longest of the three: perfect overlap.
      upper_seconds: their sum: no overlap. Neither says what a real chip reaches; real matrix products run below the peak.
      bound_by: which of the three is longest.
      mfu_upper: model FLOPs utilisation at `lower_seconds`: operations of the model without recomputation over what the peak allows.
      mfu_lower: the same at `upper_seconds`.
    """

    compute_seconds: float
    memory_seconds: float
    interconnect_seconds: float
    lower_seconds: float
    upper_seconds: float
    bound_by: str
    mfu_upper: float
    mfu_lower: float


def roofline(
    accelerator: Accelerator,
    *,
    flops: float,
    model_flops: float,
    memory_bytes: float,
    sent_bytes: float,
) -> Roofline:
    """The bounds of a step; every argument is per chip.

    Args:
      accelerator: whose peaks to use.
      flops: operations, recomputation included.
      model_flops: operations without recomputation.
      memory_bytes: read from and written to main memory.
      sent_bytes: sent to other chips.
    """
    seconds = {
        "compute": flops / accelerator.peak_flops,
        "memory": memory_bytes / accelerator.memory_bandwidth,
        "interconnect": sent_bytes / accelerator.interconnect_bandwidth,
    }
    bound_by = max(seconds, key=lambda name: seconds[name])
    lower, upper = seconds[bound_by], sum(seconds.values())
    ideal = model_flops / accelerator.peak_flops
    return Roofline(
        compute_seconds=seconds["compute"],
        memory_seconds=seconds["memory"],
        interconnect_seconds=seconds["interconnect"],
        lower_seconds=lower,
        upper_seconds=upper,
        bound_by=bound_by,
        mfu_upper=ideal / lower if lower else 0.0,
        mfu_lower=ideal / upper if upper else 0.0,
    )
