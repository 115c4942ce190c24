"""The cost model of the Hopper kernels for narrow blocks: five demands of a tile, as in plan/hopper_cost.py.

The constants are fits to the timings of 143 plans on an H200 (bfloat16; C = K = 4096, N = 16384, 1 ... 50 % of the blocks, and
12288 with N = 64; b = 8 and 16; features last and first), with a root mean square error of 7 %; the plan of least predicted time
took at most 11 % longer than the fastest (`tests/gpu/results/variants_h200.json`, `axis_h200.json`). Those of turned products rest
on `turned_h200.json`. Clocks are of `Target.clock`, which the GPU exceeds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bsgen.plan.blocks import IntArray
from bsgen.plan.cost import DEPENDENT_LAUNCH_SECONDS, Cost, gate_seconds, memory_bytes, overlapped, partial_seconds
from bsgen.plan.grouping import Tiles
from bsgen.plan.hopper_cost import makespan
from bsgen.plan.narrow_tile import NarrowGeometry
from bsgen.plan.registers import WARPGROUP_WARPS
from bsgen.plan.streamed import kept_bytes, kept_runs
from bsgen.plan.tile import MMA_ROWS
from bsgen.problem import Problem, Target
from bsgen.ranges import DEFAULT_ROWS

L2_RATE = 54.6  # bytes a clock that an SM gets from L2 through TMA
NARROW = 1.39  # how much more rows of panels of fewer than 128 bytes cost
SHARED_RATE = 150.0  # bytes a clock of shared memory
STEP = 9.0  # clocks of a multiply step on one of an SM's four schedulers
ISSUE = 3.0  # clocks of an instruction
OPERATION = 8.9  # instructions of a multiply beside fragments and steps: loop, words, addresses
TURNED_STEP = 0.54  # clocks of a turned multiply step for each row
TURNED_LATENCY = 60.0  # and of what lies between two of them
LATENCY = 184.0  # clocks of a multiply alone: words, fragments, first step
CONFLICT = 2  # times that weights pass through shared memory
# Clocks of a copy, by warpgroups that load: of a box of a panel, or of stored blocks that follow one another in W.
COPY = {1: 16.3, 2: 9.1}
TILE = 0.109  # clocks of an output element
SECTOR = 0.42  # and of one whose neighbour in the same 32 bytes of a row is stored apart from it
TILE_LATENCY = 200.0
OVERLAP = 7.5  # the norm's exponent
LINE_BYTES, SECTOR_BYTES = 128, 32

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Counts:
    """What tiles ask for: panels, operations [tiles, slots], multiply steps of turned products [tiles, warpgroups], runs of stored
    blocks that follow one another in W, and the share of output blocks whose sectors are stored in parts."""

    panels: Floats
    operations: Floats
    steps: Floats
    runs: Floats
    apart: float


def tile_counts(tiles: Tiles, problem: Problem, geo: NarrowGeometry) -> Counts:
    """Count from the parts in the slots of tiles."""
    panels = [_distinct([part.inputs // geo.panel_blocks for part in tile if part]) for tile in tiles]
    operations = [[part.work if part else 0 for part in tile] for tile in tiles]
    stored = [np.sort(np.concatenate([np.zeros(0, int), *(part.blocks for part in tile if part)])) for tile in tiles]
    runs = [np.count_nonzero(np.diff(blocks) != 1) + (len(blocks) > 0) for blocks in stored]
    steps = _turned_steps(tiles, geo) if geo.turned else np.zeros((len(tiles), 0))
    return Counts(
        np.array(panels, float), np.array(operations, float), steps, np.array(runs, float), _apart(tiles, geo)
    )


def _turned_steps(tiles: Tiles, geo: NarrowGeometry) -> Floats:
    """Multiply steps of each warpgroup of each tile: a warp's inputs are those of the others."""
    width = geo.shape.slots * WARPGROUP_WARPS
    blocks = geo.step_blocks
    groups = [[tile[i : i + width] for i in range(0, len(tile), width)] for tile in tiles]
    return np.array([[_distinct([p.inputs // blocks for p in group if p]) for group in tile] for tile in groups], float)


def _distinct(arrays: list[IntArray]) -> int:
    return len(np.unique(np.concatenate(arrays))) if arrays else 0


def _apart(tiles: Tiles, geo: NarrowGeometry) -> float:
    """The share of output blocks narrower than a sector of 32 bytes that are not in slots beside the other half's."""
    if geo.axis == 0 or geo.block * geo.itemsize >= SECTOR_BYTES:
        return 0.0
    targets = np.array([[-1 if part is None else part.target for part in tile] for tile in tiles])
    first, second = targets[:, 0::2], targets[:, 1::2]
    whole = (first % 2 == 0) & (second == first + 1)
    return float(1 - 2 * np.count_nonzero(whole & (first >= 0)) / max(1, int(np.count_nonzero(targets >= 0))))


def narrow_cost(problem: Problem, target: Target, geo: NarrowGeometry, counts: Counts, partials: int) -> Cost:
    """The cost of a plan with so many partial sums of split output blocks, which a second launch adds."""
    shape, n = geo.shape, problem.batch or DEFAULT_ROWS
    l2_bytes, demands = _demands(geo, counts)
    tiles = sum((demand**OVERLAP for demand in demands.values()), np.zeros(1)) ** (1 / OVERLAP)
    tiles = tiles + (TILE + SECTOR * counts.apart) * shape.rows * shape.tile_slots * geo.block + TILE_LATENCY
    row_tiles = -(-n // shape.rows)
    seconds = makespan(tiles, row_tiles, target.sms) / target.clock
    memory = (memory_bytes(problem, n) - kept_bytes(problem, kept_runs(problem))) / target.hbm
    largest = max(demands, key=lambda name: float(demands[name].sum()))
    limiter = "device memory" if memory > seconds else largest
    total = overlapped(seconds, memory) + DEPENDENT_LAUNCH_SECONDS + gate_seconds(problem, target)
    total += partial_seconds(problem, n, partials, L2_RATE * target.sms * target.clock)
    return Cost(n, total, limiter, float(l2_bytes.sum()) * row_tiles)


def _demands(geo: NarrowGeometry, counts: Counts) -> tuple[Floats, dict[str, Floats]]:
    """Bytes from L2, and clocks by demand, of each tile."""
    shape, blocks = geo.shape, counts.operations.sum(axis=1)
    arriving = counts.panels * geo.panel_bytes + blocks * geo.piece_bytes
    rate = L2_RATE / (NARROW if geo.line_bytes < LINE_BYTES else 1)
    multiplies = _turned_multiplies if geo.turned else _multiplies
    return arriving, {
        "L2": counts.panels * geo.panel_bytes / rate + blocks * geo.piece_bytes / L2_RATE,
        **multiplies(geo, counts, arriving),
        "copies": (counts.panels * geo.panel_boxes + counts.runs) * COPY[shape.loading_groups],
    }


def _multiplies(geo: NarrowGeometry, counts: Counts, arriving: Floats) -> dict[str, Floats]:
    """The demands of warps that multiply by themselves."""
    shape = geo.shape
    stages = np.maximum(1.0, arriving / shape.stage_bytes)
    odd = 0.5 * np.minimum(counts.operations, stages[:, None]) if geo.paired else 0.0  # operations without a partner
    steps = (counts.operations + odd) / (2 if geo.paired else 1)
    warps = steps.reshape(len(steps), shape.warps, shape.slots).sum(axis=2)
    total, busiest = warps.sum(axis=1), warps.max(axis=1)
    fragments = 512 * shape.m_tiles + CONFLICT * geo.piece_bytes
    multiplies = shape.m_tiles * geo.n_tiles
    turns = 0 if geo.axis else geo.box_rows // MMA_ROWS - 1  # addresses along a swizzled line of rows
    instructions = OPERATION + shape.m_tiles + 1 + turns + multiplies
    return {
        "shared memory": (arriving + total * fragments) / SHARED_RATE,
        "math": total * multiplies * STEP / 4,
        "issue": total * instructions * ISSUE / 4,
        "latency": busiest * (LATENCY + multiplies * STEP),
    }


def _turned_multiplies(geo: NarrowGeometry, counts: Counts, arriving: Floats) -> dict[str, Floats]:
    """The demands of turned products: a warpgroup's step reads the inputs of all rows, and a block's worth for each warp."""
    shape, total = geo.shape, counts.steps.sum(axis=1)
    fragments = WARPGROUP_WARPS * CONFLICT * geo.step**2 * geo.itemsize
    return {
        "shared memory": (arriving + total * (shape.rows * geo.step * geo.itemsize + fragments)) / SHARED_RATE,
        "math": total * shape.rows * TURNED_STEP,
        "latency": counts.steps.max(axis=1) * (TURNED_LATENCY + shape.rows * TURNED_STEP),
    }
