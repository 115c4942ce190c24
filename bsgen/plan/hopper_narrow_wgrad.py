"""Plans for wgrad on Hopper with blocks of 8 and 16: rings filled by TMA, and warps that multiply (mma.sync).

Groups of blocks and their tables are those of plan/wgrad_units.py. Panels come by TMA, 32 rows of one swizzle line each; where
features come first, a line for each of some features, 32 or 64 rows of it. A warp multiplies its units at its own pace and gives
the stage back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, product

import numpy as np
from numpy.typing import NDArray

from bsgen.outline import TensorMap
from bsgen.plan.blocks import IntArray
from bsgen.plan.cost import DEPENDENT_LAUNCH_SECONDS, Cost, memory_bytes, overlapped
from bsgen.plan.hopper import chosen
from bsgen.plan.registers import WARPGROUP_WARPS, SharedRegisters
from bsgen.plan.tile import CHUNK_BYTES, LINE_CHUNKS, math_of
from bsgen.plan.wgrad import WGradPlan
from bsgen.plan.wgrad_geometry import WGradGeometry, WGradShape
from bsgen.plan.wgrad_units import Bands, bands, bands_of, encode, groups
from bsgen.problem import DType, Op, Problem, Target
from bsgen.ranges import DEFAULT_ROWS

BLOCK_SIZES = (8, 16)
BARRIER_BYTES = 1024  # two of 8 bytes a stage, and room to align
STAGES = (3, 2)
# Rows and features of a panel, by axis; copies of 16 rows came at less than half the rate.
PANELS = {1: ((32, 64),), 0: ((32, 32), (32, 64), (64, 16), (64, 32))}
ACCUMULATORS = ((16, 64), (16, 48))  # warps, and accumulators of each of their threads; 8 warps were never faster
MOST_PANELS = 128  # one for each thread of the loading warps
BANDS = (1, 2, 4, 6, 8, 10, 12, 16, 24)  # times 64 features of dy that the blocks of a tile are drawn from
SPLITS = (1, 2, 3, 5, 7, 11, 16)  # of the rows; 4 took 8 to 15 % longer than the model has it
LEAST_STAGES = 8  # of a split
ASTRAY = 1.3  # times what a whole plan is predicted to take, which its estimate may be
SAMPLE, SAMPLE_TILES, SHORTLIST = 2, 2, 3  # bands, and tiles of each, that a shape is estimated from; bands worked out

# The cost model, in clocks and bytes a clock of an SM: fits to the timings of 50 plans on an H200 (bfloat16, features last,
# C = K = 4096, N = 16384, b = 8 at 2 and 10 %, b = 16 at 1, 10 and 50 %), 4 % root mean square error, the choice within 7 % of the
# fastest. Rates of 16 and 64 lines a copy are those of wide blocks, scaled.
L2_RATE = {16: 22.0, 32: 47.0, 64: 53.0}  # by the lines of a copy
SHARED_RATE, OVERLAP = 150.0, 8.0
STEP, ISSUE = 5.3, 1.5  # clocks of a multiply step on one of four schedulers, and of an instruction
UNIT = 6.0  # instructions of a unit, each stage: addresses, branch
UNIT_LATENCY = 46.0  # clocks of a unit alone, each step along N, before its multiplies
STAGE, START, STORE = 11.0, 3000.0, 63.0  # clocks of a stage, of a thread block; bytes of sums a clock
REDUCE = 0.56  # of the time that device memory would take for the splits' sums, which L2 holds in part


@dataclass(frozen=True, eq=False)
class HopperNarrowWGradPlan(SharedRegisters, WGradPlan):
    """A plan of wgrad for narrow blocks; the tables are those of `WGradPlan`."""

    @property
    def family(self) -> str:
        """hopper."""
        return "hopper"

    @property
    def template(self) -> str:
        """The template that renders it."""
        return "hopper/narrow_wgrad.cu.j2"

    @property
    def consumer_groups(self) -> int:
        """Warps that multiply, by four."""
        return self.geometry.shape.warps // WARPGROUP_WARPS

    @property
    def shared_memory(self) -> int:
        """Dynamic shared memory of the main kernel, bytes."""
        return self.geometry.shape.stages * self.geometry.stage_bytes + BARRIER_BYTES

    @property
    def blocks_per_sm(self) -> int:
        """A thread block takes all of an SM's registers."""
        return 1

    @property
    def maps(self) -> tuple[TensorMap, ...]:
        """How TMA sees x and dy."""
        shape, dtype = self.geometry.shape, str(self.problem.dtype)
        names = zip(("x", "dy"), self.features, strict=True)
        if self.problem.feature_first:
            return tuple(TensorMap(name, 0, height, shape.rows, shape.panel, dtype) for name, height in names)
        return tuple(TensorMap(name, width, 0, shape.panel, shape.rows, dtype) for name, width in names)

    @property
    def dependent(self) -> bool:
        """It does."""
        return True

    @property
    def summary(self) -> str:
        """One line: units, the pipeline and the splits of N."""
        return f"TMA, {super().summary}"


def serves(problem: Problem, target: Target) -> bool:
    """Whether this family can do it."""
    served = problem.op is Op.WGRAD and problem.block_size in BLOCK_SIZES and problem.dtype is not DType.FLOAT32
    return target.arch == "sm_90a" and served and problem.layout.nnz > 0


def geometries(problem: Problem, target: Target) -> Iterator[WGradGeometry]:
    """Every number of warps, band, kind of panel and ring, with as many panels as there is room for."""
    math = math_of(problem)
    columns = problem.layout.shape[1]
    widths = sorted({min(columns, band * LINE_CHUNKS * math.chunk // problem.block_size) for band in BANDS})
    kinds = PANELS[problem.axis]
    for (warps, accumulators), band, (rows, panel), stages in product(ACCUMULATORS, widths, kinds, STAGES):
        shape = WGradShape(warps, 1, rows, panel, stages, 1, band)
        geo = WGradGeometry(problem.block_size, math, shape, problem.axis)
        room = (target.shared_memory - BARRIER_BYTES) // (stages * geo.stage_bytes)
        units = accumulators // geo.accumulators
        if room >= 2:
            yield replace(geo, shape=replace(shape, units=units, panels=min(MOST_PANELS, room)))


def candidates(problem: Problem, target: Target) -> Iterator[HopperNarrowWGradPlan]:
    """Plans of every geometry with every split of N, to measure."""
    if not (serves(problem, target) and chosen(problem)):
        return
    seen = set()
    for geo in geometries(problem, target):
        for plan in _plans(problem, target, geo):
            if (
                plan.geometry,
                plan.splits,
            ) not in seen:  # room for more panels than a layout can use makes no difference
                seen.add((plan.geometry, plan.splits))
                yield plan


def shortlist(problem: Problem, target: Target, limit: float = math.inf) -> Iterator[HopperNarrowWGradPlan]:
    """The cheapest of the plans of the bands that are predicted, from a sample, to be cheapest."""
    if not (serves(problem, target) and chosen(problem)):
        return
    shapes = list(geometries(problem, target))
    found = bands_of(problem, shapes)
    estimates = [(estimate(problem, target, geo, found[geo.shape.band]), geo) for geo in shapes]
    fittest: dict[int, WGradGeometry] = {}
    for seconds, geo in sorted(estimates, key=lambda pair: pair[0]):
        if seconds < ASTRAY * limit:
            fittest.setdefault(geo.shape.band, geo)
    plans = [plan for geo in islice(fittest.values(), SHORTLIST) for plan in _plans(problem, target, geo)]
    best = min(plans, key=lambda plan: plan.cost.seconds, default=None)
    if best is not None and best.cost.seconds < limit:
        yield best


def _plans(problem: Problem, target: Target, geo: WGradGeometry) -> Iterator[HopperNarrowWGradPlan]:
    found = [group for band in bands(problem, geo.shape.band) for group in groups(band, geo)]
    geo, counts, panels, units = encode(found, geo)
    for splits in _splits(problem, geo):
        cost = _cost(problem, target, geo, _stage_clocks(geo, counts, units), splits)
        yield HopperNarrowWGradPlan(problem, target, geo, splits, counts, panels, units, cost)


def estimate(problem: Problem, target: Target, geo: WGradGeometry, everything: Bands) -> float:
    """Predicted seconds from the first tiles of a few bands, with the best split of N."""
    most = SAMPLE_TILES * geo.capacity * (2 if geo.paired else 1)
    sample = [band[:most] for band in everything[:: -(-len(everything) // SAMPLE)]]
    share = sum(map(len, sample)) / problem.layout.nnz
    geo, counts, _, units = encode([group for band in sample for group in groups(band, geo)], geo)
    clocks = np.tile(_stage_clocks(geo, counts, units), max(1, round(1 / share)))
    return min(_cost(problem, target, geo, clocks, splits).seconds for splits in _splits(problem, geo))


def _splits(problem: Problem, geo: WGradGeometry) -> list[int]:
    stages = (problem.batch or DEFAULT_ROWS) // geo.shape.rows
    return [splits for splits in SPLITS if splits == 1 or stages >= LEAST_STAGES * splits]


def _stage_clocks(geo: WGradGeometry, counts: IntArray, units: IntArray) -> NDArray[np.float64]:
    """Clocks of a stage of each tile: bytes from L2 and through shared memory, multiply steps, instructions, the busiest warp."""
    shape = geo.shape
    active = (units[:, :, 0] >= 0).reshape(len(units), shape.warps, shape.units).sum(axis=2)
    k_steps, multiplies = shape.rows // geo.math.depth, geo.m_tiles * geo.n_tiles
    arriving = counts.astype(float) * (geo.panel_size * CHUNK_BYTES)
    fragments = 512 * geo.m_tiles + 256 * geo.n_tiles
    work, busiest = active.sum(axis=1) * k_steps, active.max(axis=1) * k_steps
    instructions = work * (geo.m_tiles + max(1, geo.n_tiles // 2) + multiplies) + active.sum(axis=1) * UNIT
    demands = (
        arriving / L2_RATE[geo.panel_lines],
        (arriving + work * fragments) / SHARED_RATE,
        work * multiplies * STEP / 4,
        instructions * ISSUE / 4,
        busiest * (UNIT_LATENCY + multiplies * STEP),
    )
    return np.asarray(sum(demand**OVERLAP for demand in demands) ** (1 / OVERLAP) + STAGE)


def _cost(problem: Problem, target: Target, geo: WGradGeometry, clocks: NDArray[np.float64], splits: int) -> Cost:
    """Rounds of thread blocks, bounded by device memory, and adding the splits' sums."""
    n = problem.batch or DEFAULT_ROWS
    stages = -(-n // geo.shape.rows)
    sums = problem.layout.nnz * problem.block_size**2 * 4 * splits
    work = clocks * -(-stages // splits) + START + sums / (len(clocks) * splits) / STORE
    rounds = -(-len(clocks) * splits // target.sms)
    seconds = max(float(work.mean()) * rounds, float(work.max())) / target.clock
    reduce = DEPENDENT_LAUNCH_SECONDS + REDUCE * 2 * sums / target.hbm if splits > 1 or problem.gate else 0.0
    memory = memory_bytes(problem, n) / target.hbm
    limiter = "device memory" if memory > seconds else "L2"
    return Cost(n, overlapped(seconds, memory) + reduce + DEPENDENT_LAUNCH_SECONDS, limiter, 0.0)
