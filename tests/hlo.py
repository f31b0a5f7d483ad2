"""What a compiled program does, read off its optimized HLO text: kernels, arithmetic, traffic.

A kernel is an instruction that XLA launches: a fusion, a library call, a copy. The time it takes is
at least `Kernel.seconds`, the larger of its products at the machine's rate and of its traffic at
the memory's. A program's roofline is their sum, without gaps between kernels and without what a
cache holds from one kernel to the next.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

_HEADER = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*?)\)(.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
# Neither launched nor computed: names for what is there.
_FREE = frozenset(
    ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota")
    + ("partition-id", "replica-id", "copy-done", "opt-barrier")
)
_MOVES = _FREE | {"copy", "transpose", "reshape", "broadcast", "slice", "concatenate", "pad"}
_READS_PART = ("gather", "dynamic-slice", "slice")
_SECTOR_BYTES = 32  # the least that a GPU reads of its memory


class Instruction(NamedTuple):
    """One line of HLO: %name = type opcode(operands), attributes."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    def called(self, key: str) -> list[str]:
        """Returns the computations that an attribute names."""
        match = re.search(rf"\b{key}=(\{{[^}}]*\}}|%[\w.\-]+)", self.attributes)
        return _NAME.findall(match.group(1)) if match else []

    def text(self, key: str) -> str:
        """Returns a quoted attribute, "" where it is not there."""
        match = re.search(rf'\b{key}="([^"]*)"', self.attributes)
        return match.group(1) if match else ""

    def axes(self, key: str) -> list[int]:
        """Returns an attribute such as lhs_contracting_dims={1,2}."""
        match = re.search(rf"\b{key}=\{{([\d,]*)\}}", self.attributes)
        return [int(axis) for axis in match.group(1).split(",") if axis] if match else []


class Program(NamedTuple):
    """An HLO module: its computations by name, in order of execution, and which is the first."""

    computations: Mapping[str, Sequence[Instruction]]
    entry: str


class Rates(NamedTuple):
    """What a machine can do: operations a second by number format, and bytes a second."""

    half: float
    tf32: float
    single: float
    memory: float


class Kernel(NamedTuple):
    """What is launched once, or `times` times where it is in a loop.

    Attributes:
      kind: the opcode, or a library call's target.
      source: the JAX operation that it comes from, as a path of scopes.
      flops: of its products and convolutions, by field of `Rates`; other arithmetic is not counted.
      bytes: read and written.
      moves: whether it only rearranges numbers.
    """

    name: str
    kind: str
    source: str
    flops: Mapping[str, float]
    bytes: float
    moves: bool
    times: int = 1

    def seconds(self, rates: Rates) -> float:
        """Returns the least time that all its launches take."""
        arithmetic = sum(count / getattr(rates, name) for name, count in self.flops.items())
        return self.times * max(arithmetic, self.bytes / rates.memory)


def parse(text: str) -> Program:
    """Reads an HLO module as `Compiled.as_text()` prints it."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", []
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        elif found := _INSTRUCTION.match(line):
            operands = tuple(_NAME.findall(found[5]))
            current.append(Instruction(*found.group(2, 3, 4), operands, found[6], bool(found[1])))
    return Program(computations, entry)


def kernels(program: Program, branch: int) -> list[Kernel]:
    """Returns all kernels that one run launches; of each conditional, branch number `branch`."""
    return list(_launched(program, program.entry, branch, 1))


def _launched(program: Program, computation: str, branch: int, times: int) -> Iterator[Kernel]:
    instructions = program.computations[computation]
    types = {x.name: x.type for x in instructions}
    for x in instructions:
        if x.opcode in _FREE:
            continue
        if x.opcode == "while":
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', x.attributes)
            count = times * (int(trips[1]) if trips else 1)
            for inner in x.called("condition") + x.called("body"):
                yield from _launched(program, inner, branch, count)
        elif x.opcode == "conditional":
            chosen = x.called("branch_computations")
            chosen = chosen or x.called("false_computation") + x.called("true_computation")
            yield from _launched(program, chosen[branch], branch, times)
        elif x.opcode in ("call", "async-start"):
            for inner in x.called("to_apply") + x.called("calls"):
                yield from _launched(program, inner, branch, times)
        else:
            yield _kernel(program, x, types, times)


def _kernel(program: Program, x: Instruction, types: Mapping[str, str], times: int) -> Kernel:
    inside = [y for name in x.called("calls") for y in program.computations[name]]
    flops: dict[str, float] = {}
    for y, known in [(x, types), *_nested(program, x)]:
        rate, count = _products(y, known)
        if count:
            flops[rate] = flops.get(rate, 0.0) + count
    traffic = _fusion_bytes(inside) if inside else _plain_bytes(x, types)
    moves = x.opcode in _MOVES or bool(inside) and all(y.opcode in _MOVES for y in inside)
    kind = x.text("custom_call_target") or x.opcode
    return Kernel(x.name, kind, x.text("op_name"), flops, traffic, moves, times)


def _nested(program: Program, x: Instruction) -> Iterator[tuple[Instruction, Mapping[str, str]]]:
    """Yields what a fusion computes, with the types of what it is computed from."""
    for name in x.called("calls"):
        body = program.computations[name]
        types = {y.name: y.type for y in body}
        for y in body:
            yield y, types
            yield from _nested(program, y)


def _products(x: Instruction, types: Mapping[str, str]) -> tuple[str, float]:
    """Returns the rate at which an instruction multiplies, and its operations."""
    sides = [_shape(types[name]) for name in x.operands if name in types]
    target = x.text("custom_call_target")
    if x.opcode == "dot":
        contracted = math.prod(sides[0][axis] for axis in x.axes("lhs_contracting_dims"))
        count = 2.0 * math.prod(_shape(x.type)) * contracted
    elif "gemm" in target or "matmul" in target:
        found = re.search(r'"lhs_contracting_dimensions":\["(\d+)"', x.attributes)
        count = 2.0 * math.prod(_shape(x.type)) * (sides[0][int(found[1])] if found else 0)
    elif "fmha" in target:  # query [B, Q, heads, d], key [B, K, heads, d]; five products backward
        count = (10.0 if "Backward" in target else 4.0) * math.prod(sides[0]) * sides[1][1]
    elif "conv" in target and "dim_labels" in x.attributes or x.opcode == "convolution":
        count = _convolution(x, target, sides)
    else:
        return "single", 0.0
    return _rate(x, types), count


def _convolution(x: Instruction, target: str, sides: list[list[int]]) -> float:
    """Counts a convolution, or either of its derivatives, as the positions times the kernel."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", x.attributes)
    assert labels is not None
    image, kernel = sides[0], sides[1]
    out, label = _shape(x.type), labels[3]
    if "BackwardInput" in target:
        out = image
    elif "BackwardFilter" in target:
        out, kernel = sides[1], out
    features = out[label.index("f")]
    return 2.0 * math.prod(out) / features * math.prod(kernel)


def _rate(x: Instruction, types: Mapping[str, str]) -> str:
    formats = {_ARRAY.findall(types[name])[0][0] for name in x.operands[:2] if name in types}
    if formats & {"f16", "bf16"} and "f32" not in formats:
        return "half"
    return "single" if "highest" in x.attributes else "tf32"


def _plain_bytes(x: Instruction, types: Mapping[str, str]) -> float:
    read = sum(array_bytes(types[name]) for name in x.operands if name in types)
    return array_bytes(x.type) + read


def _fusion_bytes(inside: Sequence[Instruction]) -> float:
    """Counts what a fusion reads and writes; of a table only the parts that it looks up."""
    by_name = {y.name: y for y in inside}
    total = 0.0
    for y in inside:
        if y.opcode == "parameter":
            total += min(array_bytes(y.type), _read(y, inside))
    root = next(y for y in inside if y.root)
    roots = [by_name[name] for name in root.operands] if root.opcode == "tuple" else [root]
    return total + sum(_written(y, by_name) for y in roots)


def _read(parameter: Instruction, inside: Sequence[Instruction]) -> float:
    """Returns how much of a parameter is read, inf where that is all of it."""
    total = 0.0
    for y in inside:
        if parameter.name not in y.operands:
            continue
        first = y.operands.index(parameter.name) == 0 and y.operands.count(parameter.name) == 1
        if y.opcode == "bitcast":
            total += _read(y, inside)
        elif y.opcode in _READS_PART and first:
            total += _touched(y)
        elif y.opcode in ("dynamic-update-slice", "scatter") and first:
            continue  # in place: counted where it is written
        else:
            return math.inf
    return total


def _touched(x: Instruction) -> float:
    sizes = x.axes("slice_sizes")
    if x.opcode != "gather" or not sizes:
        return array_bytes(x.type)
    shape = _shape(x.type)
    row = math.prod(sizes)
    width = array_bytes(x.type) / max(math.prod(shape), 1) * row
    return math.prod(shape) / max(row, 1) * max(width, _SECTOR_BYTES)


def _written(x: Instruction, inside: Mapping[str, Instruction]) -> float:
    while x.opcode == "bitcast" and x.operands[0] in inside:
        x = inside[x.operands[0]]
    if x.opcode == "dynamic-update-slice":
        return array_bytes(inside[x.operands[1]].type)
    if x.opcode == "scatter":  # each row of an update is read, added to and written
        update = inside[x.operands[2]]
        window = x.axes("update_window_dims")
        shape = _shape(update.type)
        row = math.prod(shape[axis] for axis in window) if window else 1
        width = array_bytes(update.type) / max(math.prod(shape), 1) * row
        touched = math.prod(shape) / max(row, 1) * max(width, _SECTOR_BYTES)
        return 2.0 * min(touched, array_bytes(x.type))
    return array_bytes(x.type)


def array_bytes(kind: str) -> float:
    """Returns the size of a type such as f32[3,4]{1,0}, or of a tuple of such."""
    total = 0
    for name, sides in _ARRAY.findall(kind):
        bits = re.search(r"\d+", name)
        total += max(int(bits[0]) if bits else 8, 8) * math.prod(_sides(sides)) // 8
    return total


def _shape(kind: str) -> list[int]:
    """Returns the shape of an array, or of the first of a tuple's."""
    return _sides(_ARRAY.findall(kind)[0][1])


def _sides(text: str) -> list[int]:
    return [int(side) for side in text.split(",") if side]
