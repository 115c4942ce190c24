"""The cost model of Hopper's wgrad for blocks of 32 and wider, in clocks and bytes a clock of an SM.

Fitted to 440 plans on an H200 (`tests/gpu/results/wide_wgrad_h200.json`: bfloat16, b = 32, 64 and 128, N = 64 ... 16384, 5 ... 50 %
of the blocks), of which the error is 13 % (root mean square); the plan of least predicted time takes 2 % longer than the fastest
of those timed, at most 17 % (`tests/gpu/model_error.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bsgen.plan.cost import Cost, memory_bytes, overlapped
from bsgen.plan.gradient_geometry import GradientGeometry
from bsgen.plan.gradient_tiles import GradientTile
from bsgen.plan.warpgroup import WARPGROUP_ROWS
from bsgen.problem import Problem, Target
from bsgen.ranges import DEFAULT_ROWS

# Bytes a clock that each SM gets from L2 when all ask, and the most that one gets, by the lines of a copy.
L2_RATE, ALONE_RATE = {32: 37.9, 64: 34.4}, {32: 73.7, 64: 112.0}
SHARED_RATE, OVERLAP, MEMORY_OVERLAP = 128.0, 10.8, 2.27
REGISTER_STEP = 105.0  # clocks of a multiply step whose x passes through registers; a warpgroup's follow one another
ARRIVAL = 2260.0  # clocks from a stage's copies to its return, which all stages of a ring share
START = 617.0  # clocks of a thread block beside its stages
STORE, PASSED_STORE = 46.0, 80.8  # bytes of sums a clock, to dW in 16 bits; in float32
LAUNCH_SECONDS, REDUCE_SECONDS = 0.68e-6, 2.25e-6  # of the first kernel, and of one that adds the splits' sums,
REDUCED = 2.48  # which takes so many times what device memory takes for them


class TileCounts(NamedTuple):
    """Panels and units of each tile."""

    panels: NDArray[np.int64]
    units: NDArray[np.int64]


def tile_counts(tiles: Sequence[GradientTile], geo: GradientGeometry) -> TileCounts:
    """Count them."""
    panels = [(len(tile.rows) + len({column.column for column in tile.columns})) * geo.parts for tile in tiles]
    units = [sum(geo.room.units_of(len(column)) for column in tile.columns) for tile in tiles]
    return TileCounts(np.array(panels), np.array(units))


def _stage_clocks(counts: TileCounts, geo: GradientGeometry, share: float) -> NDArray[np.float64]:
    """Clocks of a stage of each tile, where a `share` of the SMs has work: bytes from L2, bytes through shared memory and multiply
    steps at once, and the time that copies take."""
    arriving = counts.panels * geo.panel_bytes
    reads = counts.units * (WARPGROUP_ROWS + geo.block) * geo.rows * geo.itemsize
    lines = geo.rows if geo.axis else geo.depth
    demands = [
        arriving / min(L2_RATE[lines] / share, ALONE_RATE[lines]),
        (arriving + reads) / SHARED_RATE,
        counts.units * (geo.steps * geo.block / 2),
        np.full(len(arriving), ARRIVAL / geo.stages),
    ]
    if geo.in_registers:
        demands.append(counts.units / geo.groups * geo.steps * REGISTER_STEP)
    together: NDArray[np.float64] = np.sum(np.array(demands) ** OVERLAP, axis=0) ** (1 / OVERLAP)
    return together


def gradient_cost(problem: Problem, target: Target, geo: GradientGeometry, counts: TileCounts, splits: int) -> Cost:
    """Rounds of thread blocks, bounded by device memory, and adding the splits' sums."""
    n, tiles = problem.batch or DEFAULT_ROWS, len(counts.panels)
    stages = -(-n // geo.rows)
    passed = splits > 1 or problem.gate
    sums = counts.units * (geo.unit_elements * 4.0)
    store = sums / (PASSED_STORE if passed or problem.wgrad_dtype else STORE)
    share = min(1.0, tiles * splits / target.sms)
    work = _stage_clocks(counts, geo, share) * -(-stages // splits) + START + store
    rounds = -(-tiles * splits // target.sms)
    seconds = max(float(work.mean()) * rounds, float(work.max())) / target.clock
    reduce = REDUCE_SECONDS + REDUCED * float(sums.sum()) * splits / target.hbm if passed else 0.0
    memory = memory_bytes(problem, n) / target.hbm
    limiter = "device memory" if memory > seconds else "L2"
    l2_bytes = float(counts.panels.sum()) * geo.panel_bytes * stages
    return Cost(n, overlapped(seconds, memory, MEMORY_OVERLAP) + reduce + LAUNCH_SECONDS, limiter, l2_bytes)
