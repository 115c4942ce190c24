"""The cost model of Hopper's wgrad for blocks of 32 and wider, in clocks and bytes a clock of an SM.

tests/gpu/README.md says what it was fitted to.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bsgen.plan.cost import DEPENDENT_LAUNCH_SECONDS, Cost, memory_bytes, overlapped
from bsgen.plan.gradient_geometry import GradientGeometry
from bsgen.plan.gradient_tiles import GradientTile
from bsgen.plan.warpgroup import WARPGROUP_ROWS
from bsgen.problem import Problem, Target
from bsgen.ranges import DEFAULT_ROWS

L2_RATE = {32: 35.0, 64: 40.0}  # by the lines of a copy
SHARED_RATE, OVERLAP = 128.0, 4.0
STAGE, START = 60.0, 300.0  # clocks of a stage's barriers, and of a thread block
STORE = 64.0  # bytes of sums a clock


def panel_count(tile: GradientTile, geo: GradientGeometry) -> int:
    """Panels of a tile."""
    return (len(tile.rows) + len({column.column for column in tile.columns})) * geo.parts


def unit_count(tile: GradientTile, geo: GradientGeometry) -> int:
    """Units of a tile."""
    return sum(geo.room.units_of(len(column)) for column in tile.columns)


def stage_clocks(tile: GradientTile, geo: GradientGeometry) -> float:
    """Clocks of a stage of a tile: bytes from L2, bytes through shared memory and multiply steps at once."""
    arriving, units = panel_count(tile, geo) * geo.panel_bytes, unit_count(tile, geo)
    reads = units * (WARPGROUP_ROWS + geo.block) * geo.rows * geo.itemsize
    lines = geo.rows if geo.axis else geo.depth
    demands = arriving / L2_RATE[lines], (arriving + reads) / SHARED_RATE, units * geo.steps * geo.block / 2
    return float(sum(demand**OVERLAP for demand in demands) ** (1 / OVERLAP)) + STAGE / geo.groups


def gradient_cost(
    problem: Problem,
    target: Target,
    geo: GradientGeometry,
    tiles: Sequence[GradientTile],
    clocks: NDArray[np.float64],
    splits: int,
) -> Cost:
    """Rounds of thread blocks, bounded by device memory, and adding the splits' sums."""
    n = problem.batch or DEFAULT_ROWS
    stages = -(-n // geo.rows)
    sums = sum(unit_count(tile, geo) for tile in tiles) * geo.unit_elements * 4 * splits
    store = sums / (len(tiles) * splits) / STORE
    work = clocks * -(-stages // splits) + START + store
    rounds = -(-len(tiles) * splits // target.sms)
    seconds = max(float(work.mean()) * rounds, float(work.max())) / target.clock
    reduce = DEPENDENT_LAUNCH_SECONDS + sums / target.hbm if splits > 1 or problem.gate else 0.0
    l2_bytes = float(sum(panel_count(tile, geo) for tile in tiles)) * geo.panel_bytes * stages
    memory = memory_bytes(problem, n) / target.hbm
    limiter = "device memory" if memory > seconds else "L2"
    return Cost(n, overlapped(seconds, memory) + reduce + DEPENDENT_LAUNCH_SECONDS, limiter, l2_bytes)
