"""The cost model of the Hopper kernels: predicts a plan's time from its tiles, as plan/cost.py does for the portable ones.

A tile makes six demands on its SM, in clocks: bytes from L2, lines that L2 looks up for them, bytes through shared memory, multiply
steps, the chain of visits of its busiest column of warpgroups, and issued copies. They overlap, but not wholly: their cost is a
p-norm, and what a tile takes beside (results, the ring running empty and full again) adds to it. So does device memory. The
constants are fits to timings on an H200 (bfloat16, b = 32, 64 and 128; C = K = 1024 ... 12288, N = 1 ... 16384, 1 ... 100 % of the
blocks). Over the 1930 plans that `tests/gpu/model_error.py` compares, the root mean square error is 8 %, and the plan of least
predicted time takes 1 % longer than the fastest of those timed, at most 14 %; one plan varies by 8 % with the card's heat.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bsgen.plan.cost import Cost, gate_seconds, memory_bytes, overlapped, partial_seconds
from bsgen.plan.grouping import Tiles
from bsgen.plan.streamed import kept_bytes
from bsgen.plan.warpgroup import LINE_BYTES, NARROW, WarpgroupGeometry, residual_panels, streamed
from bsgen.problem import Problem, Target
from bsgen.ranges import DEFAULT_ROWS

L2_RATE = {1: 59.6, 2: 54.6}  # bytes a clock that an SM gets from L2 through TMA, by the size of the cluster
LINE_RATE = 0.745  # lines of up to 128 bytes
SHARED_RATE = 128.0  # bytes a clock of shared memory
AGAIN = 0.42  # of a piece's bytes, for each further 64 rows that one warpgroup multiplies
LEAST_STEP = 19.0  # clocks of a multiply step of few columns
VISIT, PAIR = 11.8, 38.5  # clocks of a visit beside its multiply steps: alone, and for each two slots that it tests
PAIRED_VISIT = 93.0  # and where its panel may be one of a pair
TALL_VISIT = 100.0  # and where fragments of the next, of two 64-row tiles, load meanwhile
STEP = 39.2  # clocks between multiply steps that depend on each other: of each piece,
FEW_SLOTS, WAITS = 4, 2.6  # or where a visit has more slots, whose steps follow one another, as of so many
# And beside those of a product of a panel where it lies, which does not wait for the one before; more where it is one of a pair.
PRODUCT, PAIRED_PRODUCT = 130.0, 80.0
DIRECT_READS = 0.88  # of a narrow panel, where it is multiplied as it lies
LARGE, LARGE_TILE = 128 * 256, 800.0  # outputs of a tile from which on one multiplied so takes so many clocks beside
COPY = 1.04  # clocks of the loading warps that a copy takes, as far as they are not hidden
OUTPUT, STORED = 0.031, 1.71  # clocks of an output element, and of a line of them that is stored
ACTIVATION, RESIDUAL = 0.081, 0.069  # of an output element whose activation is taken, to which a residual is added
PIECE_BYTES = 32  # of such a line where warps store what they hold, without a way through shared memory or by features
TOGETHER = 302.0  # clocks that a tile takes more in a cluster, and with warpgroups below each other
# Times its own stores that each of two tiles takes beside, which store at times of their own; where a panel's row is a line.
RINGED, RINGED_LINES = 1.54, 1.0
SPARED = 0.19  # of the time that inputs which no block uses would take in device memory
START_SECONDS = 1.46e-6  # until the first panels have come, and after the last results
OVERLAP = 4.53  # the norm's exponent
MEMORY_OVERLAP = 2.68  # and that of all this and device memory
TOGETHER_MEMORY = 1.05  # times what device memory takes where thread blocks of a cluster wait for it together
CLUSTERED = {4: 120 / 132}  # of the SMs hold clusters of four: the others' neighbours are few
WALKED_ROWS = 128

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Counts:
    """What tiles ask for: panels that arrive, panels that L2 gives, copies that bring them; and [tiles, columns of warpgroups]
    pieces and visits. Tiles across a cluster count as one: of what they share each has a part, and they wait for the one with most.
    """

    panels: Floats
    fetched: Floats
    copies: Floats
    pieces: Floats
    visits: Floats


def tile_counts(tiles: Tiles, inputs: int, geo: WarpgroupGeometry) -> Counts:
    """Count from the parts in the slots of tiles, for a layout of so many input blocks; panels loaded twice count once."""
    shape = geo.shape
    panels, copies, fetched = (np.zeros(len(tiles)) for _ in range(3))
    shared = np.zeros(inputs, bool)
    pieces, visits = np.zeros((len(tiles), shape.columns)), np.zeros((len(tiles), shape.columns))
    for index, tile in enumerate(tiles):
        used = np.zeros(inputs, bool)
        for column in range(shape.columns):
            own = np.zeros(inputs, bool)
            for part in tile[column * shape.slots : (column + 1) * shape.slots]:
                if part is not None:
                    own[part.inputs] = True
                    pieces[index, column] += len(part.inputs)
            visits[index, column] = np.count_nonzero(own)
            used |= own
        panels[index] = np.count_nonzero(used)
        fetched[index] = np.count_nonzero(used & ~shared)
        copies[index] = fetched[index] - (np.count_nonzero(used[:-1:2] & used[1::2]) if shape.paired else 0)
        shared = (shared | used) & bool((index + 1) % shape.across)  # by the tiles of a cluster so far
    counts = (panels, fetched, copies, pieces, visits)
    panels, fetched, copies, pieces, visits = (
        count.reshape(-1, shape.across, *count.shape[1:]) * geo.slices for count in counts
    )
    return Counts(panels.max(axis=1), fetched.mean(axis=1), copies.mean(axis=1), pieces.max(axis=1), visits.max(axis=1))


def hopper_cost(
    problem: Problem, target: Target, geo: WarpgroupGeometry, counts: Counts, idle: float, partials: int
) -> Cost:
    """The cost of a plan, of whose inputs a share is `idle`, with so many partial sums of split output blocks."""
    shape, n = geo.shape, problem.batch or DEFAULT_ROWS
    l2_bytes, demands = _demands(geo, counts, residual_panels(problem, geo) * geo.residual_parts)
    tiles = _tile_clocks(geo, demands, _store_clocks(problem, geo))
    row_tiles = -(-n // (shape.rows * shape.cluster))
    places = int(target.sms * CLUSTERED.get(shape.thread_blocks, 1.0)) // shape.thread_blocks * shape.rings
    seconds = makespan(tiles, row_tiles, places) / target.clock
    kept = kept_bytes(problem, streamed(problem, geo))
    memory = (memory_bytes(problem, n, SPARED * idle) - kept) / target.hbm
    memory *= TOGETHER_MEMORY if shape.thread_blocks > 1 else 1.0
    largest = max(demands, key=lambda name: float(demands[name].sum()))
    limiter = "device memory" if memory > seconds else largest
    total = overlapped(seconds, memory, MEMORY_OVERLAP) + START_SECONDS + gate_seconds(problem, target)
    total += partial_seconds(problem, n, partials, L2_RATE[1] * target.sms * target.clock)
    return Cost(n, total, limiter, float(l2_bytes.sum()) * row_tiles * shape.thread_blocks)


def _tile_clocks(geo: WarpgroupGeometry, demands: dict[str, Floats], stores: float) -> Floats:
    """Clocks of each tile from its demands, and its stores, with which nothing of it overlaps. Rings share the SM: what one waits
    for takes as many times longer, but one stores while another multiplies."""
    shape = geo.shape
    if shape.rings > 1:
        demands = {name: demand * shape.rings for name, demand in demands.items()}
        demands["latency"] = demands["latency"] / shape.rings + stores
        own = (RINGED_LINES if geo.row_bytes == LINE_BYTES else RINGED) * stores
    else:
        own = stores + TOGETHER * ((shape.thread_blocks > 1) + (shape.row_groups > 1))
        own += LARGE_TILE * (geo.direct and shape.rows * shape.tile_slots * geo.block > LARGE)
    return sum((demand**OVERLAP for demand in demands.values()), np.zeros(1)) ** (1 / OVERLAP) + own


def makespan(tiles: Floats, row_tiles: int, slots: int) -> float:
    """Clocks of the busiest of `slots` thread blocks, which walk the rows of tiles as the kernel does: each takes every
    `slots`-th tile. Of many rows a part is walked."""
    walked = min(row_tiles, WALKED_ROWS)
    work = np.zeros(-(-len(tiles) * walked // slots) * slots)
    work[: len(tiles) * walked] = np.tile(tiles, walked)
    return float(work.reshape(-1, slots).sum(axis=0).max()) * row_tiles / walked


def _store_clocks(problem: Problem, geo: WarpgroupGeometry) -> float:
    """Clocks to store the results of a tile."""
    outputs = geo.shape.rows * geo.shape.tile_slots * geo.block
    in_lines = geo.math.chunk == 8 and not problem.feature_first
    line = geo.shape.store_bytes if in_lines else PIECE_BYTES
    finish = ACTIVATION * (problem.epilogue.activation is not None) + RESIDUAL * problem.epilogue.residual
    return outputs * (OUTPUT + STORED * geo.itemsize / line + finish)


def _demands(geo: WarpgroupGeometry, counts: Counts, residual: int) -> tuple[Floats, dict[str, Floats]]:
    """Bytes from L2, and clocks by demand, of each tile."""
    shape, pieces, beside = geo.shape, counts.pieces.sum(axis=1), residual * geo.residual_bytes
    arriving = counts.panels * geo.panel_bytes + pieces * geo.piece_bytes + beside
    l2_bytes = counts.fetched * geo.panel_bytes + pieces * geo.piece_bytes / shape.cluster + beside
    copies = counts.copies * geo.panel_bytes / geo.panel_line_bytes + residual * geo.residual_rows
    lines = copies + pieces * geo.piece_boxes * geo.box_rows / shape.cluster
    # What takes its own multiply steps.
    units = counts.visits * geo.halves if geo.turned else counts.pieces / geo.shape.product_slots
    reads = (counts.visits if geo.in_registers else units).sum(axis=1)  # of a panel by a row of warpgroups
    reads = reads * (DIRECT_READS if geo.direct and geo.block <= NARROW else 1.0)
    heights = shape.row_groups * (1 + (geo.step_products - 1) * AGAIN)
    shared = arriving + reads * geo.row_bytes * shape.multiplied_rows + pieces * geo.piece_bytes * heights
    columns = geo.multiply_columns / 2
    steps = geo.steps * geo.step_products * columns
    if geo.direct:
        in_pairs = 2 * (counts.fetched - counts.copies) / np.maximum(counts.fetched, 1)
        chain = units * (PRODUCT + PAIRED_PRODUCT * in_pairs[:, None] + steps)
    else:
        visit = VISIT + PAIR * -(-shape.slots // 2) + PAIRED_VISIT * shape.paired
        visit += TALL_VISIT * (geo.double_buffered and shape.m_tiles > 1)
        waits = units if shape.slots <= FEW_SLOTS else counts.visits * WAITS
        chain = counts.visits * visit + units * steps + waits * (geo.steps * STEP)
    products = geo.steps * geo.step_products * shape.row_groups
    return l2_bytes, {
        "L2": l2_bytes / L2_RATE[min(shape.thread_blocks, 2)],
        "lines of L2": lines / LINE_RATE,
        "shared memory": shared / SHARED_RATE,
        "math": units.sum(axis=1) * (products * max(columns, LEAST_STEP)),
        "latency": chain.max(axis=1),
        "copies": (counts.copies + residual + pieces * geo.piece_boxes / shape.cluster) * COPY,
    }
