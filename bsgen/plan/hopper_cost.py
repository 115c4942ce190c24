"""The cost model of the Hopper kernels: what a tile asks of its SM, in clocks; tables read as the kernel reads them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bsgen.plan.blocks import IntArray
from bsgen.plan.cost import DEFAULT_ROWS, LAUNCH_SECONDS, Cost, makespan, memory_bytes
from bsgen.plan.rings import RingStage
from bsgen.plan.warpgroup import WarpgroupGeometry
from bsgen.problem import Problem, Target

L2_RATE = 38.0  # bytes a clock that an SM gets from L2 through TMA
SHARED_RATE = 128.0  # bytes a clock of shared memory
VISIT = 150.0  # clocks of a visit beside its multiply steps
STAGE = 150.0  # clocks of a warpgroup to turn to the next stage
TILE = 1500.0  # clocks of a tile beside its stages, mostly hidden
STORE_RATE = 40.0  # bytes a clock of the epilogue


def hopper_cost(
    problem: Problem,
    target: Target,
    geo: WarpgroupGeometry,
    stages: Sequence[RingStage],
    tile_stages: IntArray,
    share: float = 1.0,
) -> Cost:
    """The cost of a plan; the tiles may be a sample, `share` of the work."""
    shape, n = geo.shape, problem.batch or DEFAULT_ROWS
    panels = np.array([len(stage.panels) for stage in stages], float)
    pieces = np.array([stage.piece_count for stage in stages], float)
    visits = np.array([_visits(stage, geo) for stage in stages], float).reshape(len(stages), shape.columns)
    bytes_in = panels * geo.panel_bytes + pieces * geo.piece_bytes
    fragments = visits.sum(axis=1) * shape.row_groups * 64 * geo.row_bytes
    step = max(geo.block / 2, 13.0)
    multiply = pieces * shape.row_groups * geo.steps * step
    demands = {
        "L2": (panels * geo.panel_bytes + pieces * geo.piece_bytes / shape.cluster) / L2_RATE,
        "shared memory": (bytes_in + fragments + pieces * geo.piece_bytes * shape.row_groups) / SHARED_RATE,
        "math": multiply,
        "latency": visits.max(axis=1) * VISIT + multiply / shape.groups + STAGE,
    }
    total = sum((demand**4 for demand in demands.values()), np.zeros(1)) ** 0.25
    sums = np.concatenate([[0.0], np.cumsum(total)])
    outputs = shape.rows * shape.tile_slots * geo.block * geo.itemsize
    tiles = sums[tile_stages[1:]] - sums[tile_stages[:-1]] + TILE + outputs / STORE_RATE * 0.5
    row_tiles = -(-n // (shape.rows * shape.cluster)) * shape.cluster
    seconds = makespan(tiles, row_tiles / share, target.sms) / target.clock
    count = len(tiles) * row_tiles / (share if len(tiles) else 1.0)
    waves = max(1.0, count / target.sms)
    seconds *= -(-count // target.sms) / waves
    memory = memory_bytes(problem, n) / target.hbm
    largest = max(demands, key=lambda name: float(demands[name].sum()))
    limiter = "device memory" if memory > seconds else largest
    l2_bytes = (panels * geo.panel_bytes + pieces * geo.piece_bytes / shape.cluster).sum()
    return Cost(n, max(seconds, memory) + LAUNCH_SECONDS, limiter, float(l2_bytes) * row_tiles / share)


def _visits(stage: RingStage, geo: WarpgroupGeometry) -> list[int]:
    """Visits of each column of warpgroups."""
    counts = [0] * geo.shape.columns
    for pieces in stage.pieces:
        for column in {slot // geo.shape.slots for slot, _, _ in pieces}:
            counts[column] += 1
    return counts
