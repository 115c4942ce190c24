"""Plans for wgrad on Hopper where many blocks of 128 x 128 elements are stored: whole sums, of which stored blocks are kept.

Tiles, rings and splits are those of plan/hopper_wgrad.py for the layout of *coarse* blocks, 128 wide, that hold a stored block or
more. It costs what their dense product does, whatever the blocks are, so gates and coarse blocks of few are left to the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np

from bsgen.layout import Layout
from bsgen.plan import hopper_wgrad
from bsgen.plan.blocks import IntArray
from bsgen.plan.gradient_tiles import NOTHING
from bsgen.plan.hopper import chosen
from bsgen.plan.hopper_wgrad import Draft, HopperWGradPlan
from bsgen.plan.tile import math_of
from bsgen.plan.warpgroup import WARPGROUP_ROWS
from bsgen.problem import DType, Op, Problem, Target

BLOCK_SIZES, COARSE = (8, 16, 32, 64), 128
FULLNESS = 0.15  # the least share of the blocks in coarse ones that must be stored for it to be considered
# Seconds of an element that is kept, and of a row of its block, beside what the cost model says of the sums
# (`tests/gpu/results/coarse_h200.json`).
KEPT_ELEMENT, KEPT_ROW = 0.12e-12, 3.1e-12


@dataclass(frozen=True, eq=False)
class HopperCoarseWGradPlan(HopperWGradPlan):
    """A plan whose units sum coarse blocks. `kept[t, g, u]` says of each block of a unit, [64 / b, 128 / b], which stored one it is
    or NOTHING; the last two words of `units` say nothing.
    """

    kept: IntArray

    @property
    def coarse(self) -> bool:
        """Whether units sum more than is stored."""
        return True

    @property
    def summary(self) -> str:
        """One line: as of plans for wider blocks."""
        return f"{super().summary}, of which blocks of {self.problem.block_size} are kept"


def serves(problem: Problem, target: Target) -> bool:
    """Whether this family can do it."""
    served = problem.op is Op.WGRAD and problem.block_size in BLOCK_SIZES and problem.dtype is not DType.FLOAT32
    if target.arch != "sm_90a" or not served or problem.gate or not problem.layout.nnz:
        return False
    return fullness(problem) >= FULLNESS


def coarsened(problem: Problem) -> Problem:
    """The problem for coarse blocks, of which those at the end may reach past the layout."""
    width = COARSE // problem.block_size
    rows, columns = (-(-size // width) for size in problem.layout.shape)
    mask = np.zeros((rows * width, columns * width), bool)
    mask[: problem.layout.shape[0], : problem.layout.shape[1]] = problem.layout.mask
    used = mask.reshape(rows, width, columns, width).any(axis=(1, 3))
    return replace(problem, layout=Layout(used), block_size=COARSE)


def fullness(problem: Problem) -> float:
    """The share of the blocks in coarse ones, within the layout, that are stored."""
    width, (rows, columns) = COARSE // problem.block_size, problem.layout.shape
    used = coarsened(problem).layout.mask
    inside = np.repeat(np.repeat(used, width, axis=0), width, axis=1)[:rows, :columns]
    return problem.layout.nnz / int(np.count_nonzero(inside))


def drafts(problem: Problem, target: Target) -> Iterator[Draft]:
    """Those of the problem for coarse blocks."""
    rows = problem.layout.nnz * problem.block_size
    beside = rows * (KEPT_ROW + problem.block_size * KEPT_ELEMENT)
    for draft in hopper_wgrad.drafts(coarsened(problem), target) if serves(problem, target) else ():
        yield replace(draft, cost=replace(draft.cost, seconds=draft.cost.seconds + beside))


def candidates(problem: Problem, target: Target) -> Iterator[HopperCoarseWGradPlan]:
    """Plans of all drafts, to measure."""
    for draft in drafts(problem, target) if chosen(problem) else ():
        yield assemble(problem, target, draft)


def shortlist(problem: Problem, target: Target, limit: float = math.inf) -> Iterator[HopperCoarseWGradPlan]:
    """The plan of the cheapest draft, if below `limit` seconds."""
    found = hopper_wgrad.cheapest(problem, drafts(problem, target), limit)
    yield from (assemble(problem, target, draft) for draft in found)


def assemble(problem: Problem, target: Target, draft: Draft) -> HopperCoarseWGradPlan:
    """Encode the tables of a draft, and look up the stored blocks of its units."""
    plan = hopper_wgrad.assemble(coarsened(problem), target, draft)
    given = {field.name: getattr(plan, field.name) for field in fields(plan)}
    return HopperCoarseWGradPlan(**{**given, "problem": problem}, kept=_kept(plan, problem))


def _kept(plan: HopperWGradPlan, problem: Problem) -> IntArray:
    down, across = WARPGROUP_ROWS // problem.block_size, COARSE // problem.block_size
    coarse, chunks = plan.problem.layout, COARSE**2 // math_of(problem).chunk
    stored = np.full((coarse.shape[0] * across, coarse.shape[1] * across), NOTHING, np.int32)
    rows, columns = problem.layout.blocks.T
    stored[rows, columns] = np.arange(problem.layout.nnz)
    kept = np.full((*plan.units.shape[:3], down, across), NOTHING, np.int32)
    for place in np.argwhere(plan.units[..., 2] != NOTHING):
        block, inside = divmod(int(plan.units[(*place, 2)]), chunks)
        row, column = (int(corner) * across for corner in coarse.blocks[block])
        row += inside // (chunks * WARPGROUP_ROWS // COARSE) * down
        kept[tuple(place)] = stored[row : row + down, column : column + across]
    return kept
