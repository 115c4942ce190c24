"""The stored blocks as fprop and dgrad see them: for each output block, its input blocks and their places in W."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bsgen.problem import Op, Problem

IntArray = NDArray[np.int32]


@dataclass(frozen=True)
class Reduction:
    """An output block whose inputs were split: partial sums `first` ... `first + count - 1`, added in that order."""

    output: int
    first: int
    count: int


@dataclass(frozen=True, eq=False)
class Part:
    """All inputs of one output block, or a run of them: what one accumulator slot computes.

    `target` is the output block, or ~p for the p-th partial sum of a split one.
    """

    output: int
    target: int
    inputs: IntArray
    blocks: IntArray

    @property
    def work(self) -> int:
        """Stored blocks to multiply."""
        return len(self.inputs)


@dataclass(frozen=True, eq=False)
class OutputBlocks:
    """The layout from the side of the outputs: `starts` delimits each output block's run in `inputs` and `blocks`."""

    outputs: int
    inputs_total: int
    starts: IntArray
    inputs: IntArray
    blocks: IntArray

    @cached_property
    def work(self) -> IntArray:
        """Stored blocks of each output block."""
        return np.diff(self.starts).astype(np.int32)

    @cached_property
    def idle(self) -> float:
        """The share of input blocks that no output block uses."""
        return (self.inputs_total - len(np.unique(self.inputs))) / self.inputs_total

    @cached_property
    def classes(self) -> tuple[list[int], ...]:
        """Output blocks that have the same inputs, in the order of the first of each."""
        found: dict[bytes, list[int]] = {}
        for output, inputs in enumerate(np.split(self.inputs, self.starts[1:-1])):
            found.setdefault(inputs.tobytes(), []).append(output)
        return tuple(found.values())

    @cached_property
    def alike(self) -> int:
        """The most by which all output blocks can be counted off so that those counted together have the same inputs."""
        return math.gcd(*map(len, self.classes))

    def part(self, output: int, target: int, begin: int, end: int) -> Part:
        """The inputs `begin` ... `end - 1` of an output block as one part."""
        run = slice(int(self.starts[output]) + begin, int(self.starts[output]) + end)
        return Part(output, target, self.inputs[run], self.blocks[run])


def output_blocks(problem: Problem) -> OutputBlocks:
    """View the layout by output blocks: columns for fprop, rows for dgrad."""
    coordinates = problem.layout.blocks
    sources, results = (coordinates[:, 0], coordinates[:, 1])
    rows, columns = problem.layout.shape
    if problem.op is Op.DGRAD:
        sources, results, rows, columns = results, sources, columns, rows
    order = np.lexsort((sources, results)).astype(np.int32)
    starts = np.zeros(columns + 1, np.int32)
    np.cumsum(np.bincount(results, minlength=columns), out=starts[1:])
    return OutputBlocks(columns, rows, starts, sources[order].astype(np.int32), order)


def split(view: OutputBlocks, limit: int) -> tuple[list[Part], tuple[Reduction, ...]]:
    """Cut output blocks of more than `limit` inputs into equal parts, and say how their partial sums are reduced."""
    parts: list[Part] = []
    reductions: list[Reduction] = []
    partials = 0
    for output, work in enumerate(view.work.tolist()):
        ways = max(1, -(-work // limit))
        if ways == 1:
            parts.append(view.part(output, output, 0, work))
            continue
        cuts = [work * way // ways for way in range(ways + 1)]
        parts += [view.part(output, ~(partials + i), cuts[i], cuts[i + 1]) for i in range(ways)]
        reductions.append(Reduction(output, partials, ways))
        partials += ways
    return parts, tuple(reductions)
