"""The collective communication of one execution of a compiled program, read from its text."""

from __future__ import annotations

import dataclasses
import math
import re

from jaxalign.planning.hlo import Computation, Instruction, Module

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)

# How the compiler for TPUs names fusions that hold a part of a collective beside other work.
SPREAD = "async_collective_fusion"


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind.

    Attributes:
      kind: one of `KINDS`.
      count: number of executions; the body of a loop counts as often as it runs.
      num_bytes: bytes per chip of the larger of operand and result, summed over all executions.
      sent_bytes: bytes that a chip sends with the optimal algorithm on a ring of the n chips of a group: ``(n - 1) / n`` of the bytes,
        twice that for all-reduce, all of them for collective-permute.
    """

    kind: str
    count: float
    num_bytes: float
    sent_bytes: float


def count_collectives(module: Module) -> dict[str, Collective]:
    """Counts the collectives of one execution by kind; kinds that do not occur are omitted."""
    totals: dict[str, list[float]] = {}
    spread, counted = _spread_channels(module), set()
    for computation, instruction, times in module.executed():
        kind = instruction.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        channel = _channel(instruction)
        if channel in counted:
            continue
        if channel in spread:
            # Its first part stands for all.
            times = spread[channel]
            counted.add(channel)
        if kind == "all-reduce" and "all-reduce-scatter" in computation.name:
            kind = "reduce-scatter"  # programs for TPUs express it in this form
            size = sum(array.num_bytes for array in instruction.arrays)
        else:
            size = _num_bytes(kind, instruction, computation, group_size(instruction, module))
        members = group_size(instruction, module)
        total = totals.setdefault(kind, [0.0, 0.0, 0.0])
        total[0] += times
        total[1] += times * size
        total[2] += times * size * _sent_share(kind, members)
    return {kind: Collective(kind, *totals[kind]) for kind in KINDS if kind in totals}


def _spread_channels(module: Module) -> dict[str, float]:
    """How often each collective runs that the compiler spreads over several fusions with other work, by its channel.

    All of its parts name the channel and the whole arrays. A part in the body of a loop, over whose iterations it is spread, runs more
    often than the collective, which runs as often as its rarest part, the start.
    """
    runs: dict[str, list[float]] = {}
    spread = set()
    for computation, instruction, times in module.executed():
        if instruction.opcode.removesuffix("-start") in KINDS:
            channel = _channel(instruction)
            runs.setdefault(channel, []).append(times)
            if computation.name.startswith(SPREAD):
                spread.add(channel)
    return {channel: min(runs[channel]) for channel in spread}


def _channel(instruction: Instruction) -> str:
    found = re.search(r"channel_id=\d+", instruction.attributes)
    return found[0] if found else instruction.name


def group_size(instruction: Instruction, module: Module) -> int:
    """Returns the number of chips that take part in a collective."""
    text = instruction.attributes
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", text)
    if mesh:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        # A part of an axis is written as 'axis':(major)size.
        named = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part) if part else sizes[name] for name, part in named)
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=", text)
    if iota:
        return math.prod(int(size) for size in iota[1].split(",")[1:])
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", text)
    if listed and listed[1]:
        return listed[1].count(",") + 1
    return module.num_partitions


def _num_bytes(kind: str, instruction: Instruction, computation: Computation, members: int) -> int:
    arrays = instruction.arrays
    started = instruction.opcode.endswith("-start")
    if started and kind in ("all-gather", "collective-permute"):
        # The shape is (operands, results, ...), with as many results as operands.
        operands = len(instruction.operands)
        return sum(array.num_bytes for array in arrays[operands : 2 * operands])
    size = sum(array.num_bytes for array in arrays)
    return size * members if kind == "reduce-scatter" else size


def _sent_share(kind: str, members: int) -> float:
    if kind in ("collective-permute", "collective-broadcast"):
        return 1.0
    share = (members - 1) / members
    return 2 * share if kind == "all-reduce" else share
