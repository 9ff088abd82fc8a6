"""An estimate, from a compiled program's text, of the bytes that one execution moves between a chip's units and its main memory."""

from __future__ import annotations

import functools

from jaxalign.planning.collectives import KINDS, SPREAD
from jaxalign.planning.hlo import Computation, Instruction, Module

_FREE_OPCODES = frozenset(
    (
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "while",
        "call",
        "conditional",
        "after-all",
        "partition-id",
        "replica-id",
        "optimization-barrier",
        "async-start",
        "async-update",
        "async-done",
    )
)
_PARTIAL_READS = ("dynamic-slice", "gather", "slice")


def memory_bytes(module: Module) -> float:
    """Estimates the bytes read from and written to main memory; the body of a loop counts as often as it runs.

    Every instruction outside a fusion reads its operands and writes its result. A fusion that slices an operand reads the slice; a fusion
    that updates a part of an array in place writes the part. Arrays in on-chip memory cost nothing.
    """
    fused = {
        called
        for computation in module.computations.values()
        for each in computation.instructions.values()
        if each.opcode == "fusion"
        for called in each.called
    }
    cost = functools.cache(lambda name: _computation_bytes(module, module.computations[name]))
    return sum(times * cost(name) for name, times in module.runs.items() if name not in fused)


def _computation_bytes(module: Module, computation: Computation) -> int:
    return sum(
        _instruction_bytes(module, computation, each)
        for each in computation.instructions.values()
        if each.opcode not in _FREE_OPCODES and not each.opcode.endswith("-done")
    )


def _instruction_bytes(module: Module, computation: Computation, instruction: Instruction) -> int:
    operands = [
        computation.instructions[name]
        for name in instruction.operands
        if name in computation.instructions
    ]
    if instruction.opcode == "slice-start" and len(instruction.arrays) > 1:
        # The shape is (source, slice, ...); only the slice is moved.
        moved = instruction.arrays[1]
        return moved.num_bytes * (2 if moved.in_main_memory else 1)
    if instruction.opcode.endswith("-start"):
        # The result contains the operands too.
        return _main_memory_bytes(instruction)
    if instruction.opcode in _PARTIAL_READS:
        return 2 * _main_memory_bytes(instruction)
    if instruction.opcode == "dynamic-update-slice" and len(operands) > 1:
        return 2 * _main_memory_bytes(operands[1])
    inner = [
        module.computations[name] for name in instruction.called if name in module.computations
    ]
    if instruction.opcode == "fusion" and inner:
        return _fusion_bytes(inner[0], operands, instruction)
    return _main_memory_bytes(instruction) + sum(map(_main_memory_bytes, operands))


def _fusion_bytes(inner: Computation, operands: list[Instruction], instruction: Instruction) -> int:
    users: dict[str, list[Instruction]] = {}
    for each in inner.instructions.values():
        for name in each.operands:
            users.setdefault(name, []).append(each)
    spread = _of_spread_collective(inner)
    written, updated = _written_bytes(inner, instruction, spread)
    total = written
    for number, operand in enumerate(operands):
        full = _main_memory_bytes(operand)
        parameter = inner.parameters.get(number)
        if parameter is not None and parameter.name in spread:
            continue
        if parameter is None or not full:
            total += full
            continue
        names = _aliases(parameter.name, users)
        if names & updated:
            continue
        uses = [use for name in names for use in users.get(name, []) if use.opcode != "bitcast"]
        if uses and all(use.opcode in _PARTIAL_READS and use.operands[0] in names for use in uses):
            full = min(full, sum(array.num_bytes for use in uses for array in use.arrays))
        total += full
    return total


def _of_spread_collective(inner: Computation) -> set[str]:
    """Returns the arrays of a collective that a fusion only goes on with, beside other work: its start counts them."""
    if not inner.name.startswith(SPREAD):
        return set()
    collectives = [
        each for each in inner.instructions.values() if each.opcode.removesuffix("-start") in KINDS
    ]
    used = {
        name
        for each in inner.instructions.values()
        if each not in (*collectives, inner.root)
        for name in each.operands
    }
    passed = {parameter.name for parameter in inner.parameters.values()} - used
    return {each.name for each in collectives} | passed


def _written_bytes(
    inner: Computation, instruction: Instruction, spread: set[str]
) -> tuple[int, set[str]]:
    """Returns the bytes that a fusion writes, and the names of arrays that it updates in place, of which it writes only a part."""
    root = inner.root
    names = root.operands if root.opcode == "tuple" else (root.name,)
    total, updated = 0, set()
    for name, array in zip(names, instruction.arrays, strict=False):
        if name in spread:
            continue
        result = inner.instructions[name]
        while result.opcode in ("bitcast", "copy") and result.operands[0] in inner.instructions:
            result = inner.instructions[result.operands[0]]
        size = array.num_bytes
        if result.opcode == "dynamic-update-slice":
            part = sum(each.num_bytes for each in inner.instructions[result.operands[1]].arrays)
            size = min(size, part)
            updated.add(result.operands[0])
        total += size if array.in_main_memory else 0
    return total, updated


def _aliases(name: str, users: dict[str, list[Instruction]]) -> set[str]:
    """Returns the name of an instruction and the names of its bitcasts."""
    found, queue = {name}, [name]
    while queue:
        for user in users.get(queue.pop(), []):
            if user.opcode == "bitcast" and user.name not in found:
                found.add(user.name)
                queue.append(user.name)
    return found


def _main_memory_bytes(instruction: Instruction) -> int:
    return sum(array.num_bytes for array in instruction.arrays if array.in_main_memory)
