"""What a compiled program does, read off its HLO text: collectives, arrays and matrix products, loops counted out."""

import math
import re
from collections import defaultdict
from typing import NamedTuple

import jax

_NAME = r"%?([\w.-]+)"
_CALLED = re.compile(rf"(?:calls|to_apply|body|condition|true_computation|false_computation)={_NAME}")


class Instruction(NamedTuple):
    name: str
    shapes: list[tuple[int, ...]]
    """Of its result, which may be several arrays."""
    op: str
    operands: list[str]
    line: str


class Program:
    """Computations by name, each with how often a call of the program runs it, and whether it stands in a loop."""

    def __init__(self, compiled: jax.stages.Compiled):
        self._computations: dict[str, list[Instruction]] = {}
        entry, now = "", None
        for line in compiled.as_text().splitlines():
            head = re.match(rf"(ENTRY )?{_NAME} \(.*\{{$", line)
            if head:
                now = self._computations[head[2]] = []
                entry = head[2] if head[1] else entry
            elif now is not None and (instruction := _instruction(line)):
                now.append(instruction)
        self._times, self._inside = defaultdict(int), set()
        self._visit(entry, 1, False)

    def _visit(self, name: str, times: int, inside: bool) -> None:
        self._times[name] += times
        if inside:
            self._inside.add(name)
        for instruction in self._computations[name]:
            loop = instruction.op == "while"
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.line) if loop else None
            assert trips or not loop, f"a loop of unknown length: {instruction.line}"
            for called in _CALLED.findall(instruction.line):
                self._visit(called, times * (int(trips[1]) if trips else 1), inside or loop)

    def sizes(self, op: str) -> tuple[list[int], list[int]]:
        """Elements of the results of each instruction `op` (or its start): those outside of loops, those inside."""
        found = ([], [])
        for name, instructions in self._computations.items():
            for i in instructions:
                if self._times[name] and i.op in (op, f"{op}-start"):
                    found[name in self._inside].append(sum(math.prod(shape) for shape in i.shapes))
        return found

    def largest(self) -> int:
        """Elements of the largest array on a device."""
        every = (i for instructions in self._computations.values() for i in instructions)
        return max(math.prod(shape) for i in every for shape in i.shapes)

    def matmul_flops(self) -> int:
        """Of all matrix products on a device, a multiply-add counted as two."""
        total = 0
        for name, instructions in self._computations.items():
            shapes = {i.name: i.shapes[0] for i in instructions if i.shapes}
            for i in instructions:
                if i.op == "dot":
                    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.line)[1]
                    depth = math.prod(shapes[i.operands[0]][int(d)] for d in contracted.split(",") if d)
                    total += 2 * self._times[name] * math.prod(i.shapes[0]) * depth
        return total


def _instruction(line: str) -> Instruction | None:
    found = re.match(rf"\s+(?:ROOT )?{_NAME} = (.*?) ([a-z][\w-]*)\((.*)$", line)
    if not found:
        return None
    shapes = [
        tuple(int(n) for n in dims.split(",") if n) for dims in re.findall(r"\w+\[([\d,]*)\]", found[2])
    ]
    operands = re.findall(r"%([\w.-]+)", found[4].split(")")[0])
    return Instruction(found[1], shapes, found[3], operands, line)
