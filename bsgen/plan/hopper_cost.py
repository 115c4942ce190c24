"""The cost model of the Hopper kernels: predicts a plan's time from its tiles, as plan/cost.py does for the portable ones.

A tile makes five demands on its SM, in clocks: bytes from L2, bytes through shared memory, multiply steps, the chain of visits of
its busiest column of warpgroups, and issued copies. They overlap, but not wholly: their cost is a p-norm, and what a tile
takes beside (results, the ring running empty and full again) adds to it. Device memory bounds the whole. The constants are
fits to the timings of 99 plans on an H200 (bfloat16; C = K = 4096 and 12288, N = 4096 ... 16384, 1 ... 100 % of the blocks,
b = 32, 64, 128), with a root mean square error of 7 %; the plan of least predicted time took at most 9 % longer than the
fastest of those timed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bsgen.plan.cost import DEPENDENT_LAUNCH_SECONDS, Cost, gate_seconds, memory_bytes, overlapped
from bsgen.plan.grouping import Tiles
from bsgen.plan.warpgroup import WARPGROUP_ROWS, WarpgroupGeometry, residual_panels
from bsgen.problem import Problem, Target
from bsgen.ranges import DEFAULT_ROWS

L2_RATE = {1: 60.0, 2: 52.0}  # bytes a clock that an SM gets from L2 through TMA, by the size of the cluster
SHARED_RATE = 128.0  # bytes a clock of shared memory
LEAST_STEP = 16.0  # clocks of a multiply step of few columns
VISIT, PAIR = 15.0, 106.0  # clocks of a visit beside its multiply steps: alone, and for each two slots that it tests
STEP = 17.0  # clocks between multiply steps that depend on each other
COPY = 1.2  # clocks of the loading warp that a copy takes, as far as they are not hidden
TILE = 0.18  # clocks of an output element
OVERLAP = 4.8  # the norm's exponent
WALKED_ROWS = 128

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Counts:
    """What tiles ask for: panels, and copies that bring them, and [tiles, columns of warpgroups] pieces and visits."""

    panels: Floats
    copies: Floats
    pieces: Floats
    visits: Floats


def tile_counts(tiles: Tiles, inputs: int, geo: WarpgroupGeometry) -> Counts:
    """Count from the parts in the slots of tiles, for a layout of so many input blocks; panels loaded twice count once."""
    shape = geo.shape
    panels, copies = np.zeros(len(tiles)), np.zeros(len(tiles))
    pieces, visits = np.zeros((len(tiles), shape.columns)), np.zeros((len(tiles), shape.columns))
    for index, tile in enumerate(tiles):
        uses = np.zeros((inputs, shape.columns, shape.slots), bool)
        for slot, part in enumerate(tile):
            if part is not None:
                uses[part.inputs, slot // shape.slots, slot % shape.slots] = True
        used = np.asarray(uses.any(axis=(1, 2)))
        panels[index] = np.count_nonzero(used)
        copies[index] = panels[index] - (np.count_nonzero(used[:-1:2] & used[1::2]) if shape.paired else 0)
        visits[index] = np.count_nonzero(uses.any(axis=2), axis=0)
        pieces[index] = np.count_nonzero(uses, axis=(0, 2))
    return Counts(panels * geo.slices, copies * geo.slices, pieces * geo.slices, visits * geo.slices)


def hopper_cost(problem: Problem, target: Target, geo: WarpgroupGeometry, counts: Counts) -> Cost:
    """The cost of a plan."""
    shape, n = geo.shape, problem.batch or DEFAULT_ROWS
    residual = residual_panels(problem, geo)
    counts = replace(counts, panels=counts.panels + residual, copies=counts.copies + residual)
    l2_bytes, demands = _demands(geo, counts)
    tiles = sum((demand**OVERLAP for demand in demands.values()), np.zeros(1)) ** (1 / OVERLAP)
    tiles = tiles + TILE * shape.rows * shape.tile_slots * geo.block
    row_tiles = -(-n // (shape.rows * shape.cluster))
    seconds = makespan(tiles, row_tiles, target.sms // shape.cluster) / target.clock
    memory = memory_bytes(problem, n) / target.hbm
    largest = max(demands, key=lambda name: float(demands[name].sum()))
    limiter = "device memory" if memory > seconds else largest
    total = overlapped(seconds, memory) + DEPENDENT_LAUNCH_SECONDS + gate_seconds(problem, target)
    return Cost(n, total, limiter, float(l2_bytes.sum()) * row_tiles * shape.cluster)


def makespan(tiles: Floats, row_tiles: int, slots: int) -> float:
    """Clocks of the busiest of `slots` thread blocks, which walk the rows of tiles as the kernel does: each takes every
    `slots`-th tile. Of many rows a part is walked."""
    walked = min(row_tiles, WALKED_ROWS)
    work = np.zeros(-(-len(tiles) * walked // slots) * slots)
    work[: len(tiles) * walked] = np.tile(tiles, walked)
    return float(work.reshape(-1, slots).sum(axis=0).max()) * row_tiles / walked


def _demands(geo: WarpgroupGeometry, counts: Counts) -> tuple[Floats, dict[str, Floats]]:
    """Bytes from L2, and clocks by demand, of each tile."""
    shape, pieces = geo.shape, counts.pieces.sum(axis=1)
    arriving = counts.panels * geo.panel_bytes + pieces * geo.piece_bytes
    l2_bytes = counts.panels * geo.panel_bytes + pieces * geo.piece_bytes / shape.cluster
    reads = (counts.visits if geo.in_registers else counts.pieces).sum(axis=1)  # of a panel by a row of warpgroups
    heights = shape.multiplied_rows // WARPGROUP_ROWS
    shared = arriving + reads * geo.row_bytes * shape.multiplied_rows + pieces * geo.piece_bytes * heights
    visit = VISIT + PAIR * -(-shape.slots // 2)
    chain = counts.visits * visit + counts.pieces * (shape.m_tiles * geo.steps * (geo.block / 2 + STEP))
    return l2_bytes, {
        "L2": l2_bytes / L2_RATE[shape.cluster],
        "shared memory": shared / SHARED_RATE,
        "math": pieces * (geo.steps * max(geo.block / 2, LEAST_STEP) * shape.multiplied_rows / WARPGROUP_ROWS),
        "latency": chain.max(axis=1),
        "copies": (counts.panels + pieces * geo.piece_boxes / shape.cluster) * COPY,
    }
