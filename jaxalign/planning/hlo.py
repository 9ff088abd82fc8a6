"""Parser of the text of a compiled XLA module: computations, instructions, shapes, and how often each computation runs."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_ITEM_BITS = {"pred": 8, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\](\{[^}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"(?:calls|to_apply|called_computations|branch_computations|true_computation|false_computation)=(\{[^}]*\}|%[\w.\-]+)"
)
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SAME_VALUE = ("copy", "bitcast", "convert", "copy-done", "optimization-barrier")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape: its bytes, and whether it is in a chip's main memory rather than in on-chip memory."""

    num_bytes: int
    in_main_memory: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a computation.

    Attributes:
      name: the name without the percent sign.
      opcode: for example 'all-gather' or 'fusion'.
      shape: the shape of the result, as text.
      operands: names of instructions; for a constant, parameter or iota the text in the brackets.
      attributes: the text after the operands.
      root: whether this instruction is the computation's result.
    """

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of the result; more than one if it is a tuple."""
        return tuple(parse_shape(self.shape))

    def attribute(self, name: str) -> str | None:
        """The computation that an attribute names, for example ``condition``."""
        found = re.search(rf"\b{name}=%([\w.\-]+)", self.attributes)
        return found[1] if found else None

    @property
    def called(self) -> tuple[str, ...]:
        """The computations that this instruction runs, except those of a loop."""
        if self.opcode == "while":
            return ()
        return tuple(
            name for text in _CALLED.findall(self.attributes) for name in _NAME.findall(text)
        )


@dataclasses.dataclass(frozen=True)
class Computation:
    """A named list of instructions."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """The instruction whose value is the value of the computation."""
        return next(each for each in self.instructions.values() if each.root)

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        """The parameters by number."""
        return {
            int(each.operands[0]): each
            for each in self.instructions.values()
            if each.opcode == "parameter"
        }


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program of one device.

    Attributes:
      computations: the computations by name.
      entry: name of the entry computation.
      num_partitions: number of devices over which the program is partitioned.
    """

    computations: dict[str, Computation]
    entry: str
    num_partitions: int

    @functools.cached_property
    def runs(self) -> dict[str, float]:
        """How often each reachable computation runs in one execution; every branch of a condition counts as taken."""
        return self._count()[0]

    @functools.cached_property
    def unknown_loops(self) -> tuple[str, ...]:
        """Loops whose trip count could not be determined; their bodies count once."""
        return self._count()[1]

    def executed(self) -> Iterator[tuple[Computation, Instruction, float]]:
        """Every instruction that runs, with its computation and its number of executions."""
        for name, times in self.runs.items():
            for instruction in self.computations[name].instructions.values():
                yield self.computations[name], instruction, times

    def trip_count(self, computation: Computation, loop: Instruction) -> int | None:
        """Returns how often the body of a loop runs: from XLA's annotation, or from constant start, bound and step; otherwise None."""
        known = _KNOWN_TRIPS.search(loop.attributes)
        if known:
            return int(known[1])
        condition = self.computations.get(loop.attribute("condition") or "")
        body = self.computations.get(loop.attribute("body") or "")
        start = computation.instructions.get(loop.operands[0])
        if condition is None or body is None or start is None or start.opcode != "tuple":
            return None
        test = condition.root
        if test.opcode != "compare" or "direction=LT" not in test.attributes:
            return None
        counter = _element(condition, test.operands[0])
        bound = _constant(condition, test.operands[1])
        if bound is None:
            index = _element(condition, test.operands[1])
            bound = None if index is None else _constant(computation, start.operands[index])
        if counter is None or bound is None:
            return None
        first = _constant(computation, start.operands[counter])
        step = _step(body, counter, computation, start)
        if first is None or step is None or step <= 0:
            return None
        return max(0, math.ceil((bound - first) / step))

    def _count(self) -> tuple[dict[str, float], tuple[str, ...]]:
        runs: dict[str, float] = {}
        unknown: dict[str, None] = {}

        def visit(name: str, times: float) -> None:
            runs[name] = runs.get(name, 0.0) + times
            computation = self.computations[name]
            for instruction in computation.instructions.values():
                if instruction.opcode == "while":
                    trips = self.trip_count(computation, instruction)
                    if trips is None:
                        unknown[instruction.name] = None
                        trips = 1
                    body = instruction.attribute("body")
                    if body in self.computations and trips:
                        visit(body, times * trips)
                elif instruction.opcode in ("fusion", "call", "conditional", "async-start"):
                    for called in instruction.called:
                        if called in self.computations:
                            visit(called, times)

        visit(self.entry, 1.0)
        return runs, tuple(unknown)


def parse_module(text: str) -> Module:
    """Parses the result of ``jax.stages.Compiled.as_text()``.

    Raises:
      ValueError: if the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry = None
    current: dict[str, Instruction] | None = None
    for line in text.splitlines():
        if current is None:
            header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
            if header:
                current = {}
                computations[header[2]] = Computation(header[2], current)
                entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        else:
            instruction = parse_instruction(line)
            if instruction is not None:
                current[instruction.name] = instruction
    if entry is None:
        raise ValueError("the text has no ENTRY computation: it is not a compiled XLA module")
    partitions = re.search(r"num_partitions=(\d+)", text[: text.find("\n")])
    return Module(computations, entry, int(partitions[1]) if partitions else 1)


def parse_instruction(line: str) -> Instruction | None:
    """Parses one line of a computation; returns None if it is not an instruction."""
    start = re.match(r"\s*(ROOT )?%?([\w.\-]+) = ", line)
    if not start:
        return None
    rest = line[start.end() :]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.find(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opened = rest.find("(")
    if opened < 0:
        return None
    opcode, rest = rest[:opened], rest[opened:]
    closed = _closing(rest)
    inside = rest[1:closed]
    names = tuple(_NAME.findall(inside))
    return Instruction(
        name=start[2],
        opcode=opcode,
        shape=shape,
        operands=names or tuple(part.strip() for part in inside.split(",")),
        attributes=rest[closed + 1 :],
        root=bool(start[1]),
    )


def parse_shape(text: str) -> Iterator[Array]:
    """Parses the arrays of a shape in order: one array, or the elements of a tuple."""
    for item, sizes, layout in _ARRAY.findall(text):
        bits = _ITEM_BITS.get(item)
        if bits is None:
            digits = re.match(r"[a-z]+(\d+)", item)
            bits = int(digits[1]) if digits else 0
        elements = math.prod(int(size.lstrip("<=")) for size in sizes.split(",") if size)
        yield Array(math.ceil(elements * bits / 8), "S(" not in (layout or ""))


def _closing(text: str) -> int:
    """Returns the position of the bracket that closes the first bracket of a text."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return position
    return len(text)


def _source(computation: Computation, name: str) -> Instruction | None:
    """Follows copies of a value to the instruction that computes it."""
    instruction = computation.instructions.get(name)
    while instruction is not None and instruction.opcode in _SAME_VALUE:
        instruction = computation.instructions.get(instruction.operands[0])
    return instruction


def _constant(computation: Computation, name: str) -> int | None:
    found = _source(computation, name)
    if found is None or found.opcode != "constant":
        return None
    return int(found.operands[0]) if re.fullmatch(r"-?\d+", found.operands[0]) else None


def _element(computation: Computation, name: str) -> int | None:
    """Returns which element of the loop's state an instruction reads, if it does nothing else."""
    found = _source(computation, name)
    if found is None or found.opcode != "get-tuple-element":
        return None
    owner = computation.instructions.get(found.operands[0])
    index = re.search(r"\bindex=(\d+)", found.attributes)
    return int(index[1]) if owner is not None and owner.opcode == "parameter" and index else None


def _step(body: Computation, counter: int, outside: Computation, start: Instruction) -> int | None:
    """Returns the constant that one pass of a loop adds to its counter."""
    if body.root.opcode != "tuple":
        return None
    added = _source(body, body.root.operands[counter])
    if added is None or added.opcode != "add":
        return None
    for this, other in (added.operands, added.operands[::-1]):
        if _element(body, this) != counter:
            continue
        index = _element(body, other)
        if index is not None:
            return _constant(outside, start.operands[index])
        return _constant(body, other)
    return None
