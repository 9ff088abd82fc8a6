"""Roofline model: bounds on a step's time from its operations, memory traffic and communication at a chip's published peaks."""

from __future__ import annotations

import dataclasses

from jaxalign.parallel.accelerators import Accelerator


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step on every chip, if each resource ran at its published peak.

    Attributes:
      compute_seconds: matrix products, including recomputation.
      memory_seconds: traffic with main memory.
      interconnect_seconds: bytes sent to other chips, with all links busy.
      lower_seconds: the longest of the three, which assumes perfect overlap.
      upper_seconds: their sum, which assumes no overlap. Neither predicts a real chip, whose matrix products run below the peak.
      bound_by: the resource with the longest time.
      mfu_upper: model FLOPs utilisation at `lower_seconds`: operations of the model without recomputation, divided by those at the peak.
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
    """Returns the bounds of a step; all counts are per chip.

    Args:
      accelerator: the chip whose peaks apply.
      flops: operations, including recomputation.
      model_flops: operations without recomputation.
      memory_bytes: bytes read from and written to main memory.
      sent_bytes: bytes sent to other chips.
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
