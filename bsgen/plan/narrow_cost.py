"""The cost model of the Hopper kernels for narrow blocks: five demands of a tile, as in plan/hopper_cost.py.

The constants follow from the rates of plan/hopper_cost.py, from instruction counts, and from measured rates of mma.sync fed by
ldmatrix; they are not fitted to timings of these kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bsgen.plan.cost import LAUNCH_SECONDS, Cost, gate_seconds, memory_bytes, overlapped
from bsgen.plan.grouping import Tiles
from bsgen.plan.hopper_cost import COPY, L2_RATE, OVERLAP, SHARED_RATE, makespan
from bsgen.plan.narrow_tile import NarrowGeometry
from bsgen.plan.tile import MMA_ROWS
from bsgen.problem import Problem, Target
from bsgen.ranges import DEFAULT_ROWS

STEP = 7.0  # clocks of a multiply step on one of an SM's four schedulers
ISSUE = 1.5  # clocks of an instruction
OPERATION = 8.0  # instructions of a multiply beside fragments and steps: loop, words, addresses
LATENCY = 90.0  # clocks of a multiply alone: words, fragments, first step
CONFLICT = 2  # times that weights of 16-wide blocks, 32 bytes a row, pass through shared memory
TILE = 0.1  # clocks of an output element
TILE_LATENCY = 1500.0
FULL_LINE = 64  # bytes of the narrowest line that TMA fetches at the full rate

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Counts:
    """What tiles ask for: panels, and operations [tiles, slots]."""

    panels: Floats
    operations: Floats


def tile_counts(tiles: Tiles, problem: Problem, geo: NarrowGeometry) -> Counts:
    """Count from the parts in the slots of tiles."""
    panels = [
        len(np.unique(np.concatenate([np.zeros(0, int), *(part.inputs // geo.panel_blocks for part in tile if part)])))
        for tile in tiles
    ]
    operations = [[part.work if part else 0 for part in tile] for tile in tiles]
    return Counts(np.array(panels, float), np.array(operations, float))


def narrow_cost(problem: Problem, target: Target, geo: NarrowGeometry, counts: Counts, reduced: bool) -> Cost:
    """The cost of a plan; `reduced` has a second launch for split output blocks."""
    shape, n = geo.shape, problem.batch or DEFAULT_ROWS
    l2_bytes, demands = _demands(geo, counts)
    tiles = sum((demand**OVERLAP for demand in demands.values()), np.zeros(1)) ** (1 / OVERLAP)
    tiles = tiles + TILE * shape.rows * shape.tile_slots * geo.block + TILE_LATENCY
    row_tiles = -(-n // (shape.rows * shape.cluster))
    seconds = makespan(tiles, row_tiles, target.sms // shape.cluster) / target.clock
    memory = memory_bytes(problem, n) / target.hbm
    largest = max(demands, key=lambda name: float(demands[name].sum()))
    limiter = "device memory" if memory > seconds else largest
    total = overlapped(seconds, memory) + LAUNCH_SECONDS * (1 + reduced) + gate_seconds(problem, target)
    return Cost(n, total, limiter, float(l2_bytes.sum()) * row_tiles * shape.cluster)


def _demands(geo: NarrowGeometry, counts: Counts) -> tuple[Floats, dict[str, Floats]]:
    """Bytes from L2, and clocks by demand, of each tile."""
    shape, blocks = geo.shape, counts.operations.sum(axis=1)
    stages = np.maximum(1.0, (counts.panels * geo.panel_bytes + blocks * geo.piece_bytes) / shape.stage_bytes)
    odd = 0.5 * np.minimum(counts.operations, stages[:, None]) if geo.paired else 0.0  # operations without a partner
    steps = (counts.operations + odd) / (2 if geo.paired else 1)
    warps = steps.reshape(len(steps), shape.warps, shape.slots).sum(axis=2)
    total, busiest = warps.sum(axis=1), warps.max(axis=1)
    arriving = counts.panels * geo.panel_bytes + blocks * geo.piece_bytes
    l2_bytes = counts.panels * geo.panel_bytes + blocks * geo.piece_bytes / shape.cluster
    slowed = l2_bytes + counts.panels * geo.panel_bytes * (max(1.0, FULL_LINE / geo.line_bytes) - 1)
    fragments = 512 * shape.m_tiles + (2 * geo.piece_bytes if geo.paired else CONFLICT * geo.piece_bytes)
    multiplies = shape.m_tiles * geo.n_tiles
    turns = 0 if geo.axis else geo.box_rows // MMA_ROWS - 1  # addresses along a swizzled line of rows
    instructions = OPERATION + shape.m_tiles + 1 + turns + multiplies
    return l2_bytes, {
        "L2": slowed / L2_RATE[shape.cluster],
        "shared memory": (arriving + total * fragments) / SHARED_RATE,
        "math": total * multiplies * STEP / 4,
        "issue": total * instructions * ISSUE / 4,
        "latency": busiest * (LATENCY + multiplies * STEP),
        "copies": (counts.panels * geo.panel_boxes + blocks / shape.cluster) * COPY / 4,
    }
