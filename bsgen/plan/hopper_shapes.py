"""The shapes that plans of fprop and dgrad on Hopper may have: warpgroups, clusters, rings, and what makes whole lines of L2."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple

from bsgen.plan.ring_records import MAXIMUM_LOADS, MOST_COUNTED
from bsgen.plan.rings import room
from bsgen.plan.shared_rings import MOST_PANELS
from bsgen.plan.tile import math_of
from bsgen.plan.warpgroup import (
    ATOM_ROWS,
    HALF_LINE,
    LINE_BYTES,
    NARROW,
    WARPGROUP_ROWS,
    WarpgroupGeometry,
    WarpgroupShape,
    is_turned,
    residual_panels,
    warpgroup_geometry,
)
from bsgen.problem import DType, Epilogue, Op, Problem, Target
from bsgen.ranges import DEFAULT_ROWS

BARRIER_BYTES = 1024  # two of 8 bytes a stage, and room to align
# Output blocks of a warpgroup; of one of 64 rows LOW_SLOTS, but by TF32, whose fragments leave no registers for taller ones.
MAXIMUM_SLOTS, LOW_SLOTS = 6, 2
LEAST_BESIDE_STORES = 8  # registers beside sums and OTHER_REGISTERS with which no epilogue spills
MOST_UNCROWDED = 2 * 128  # 64-row tiles of a warpgroup times its columns
STAGES = {1: (3, 4), 2: (2,)}  # of a ring, by the number of them: two rings are for tiles of few panels
MORE_STAGES = (6, 8)  # where rows are few: the first of a tile has come the earlier, the smaller it is
FEW_ROWS = 256  # of N, whose activations stay in L2, and whose tiles hardly outnumber the SMs
# With more rows than one warpgroup multiplies, but so few tiles of 128 x 256 for each SM, others may fill the SMs better.
FILLING_TILES, COMMON_TILE = 2, 128 * 256
WHOLE_LINE_ROWS = 128  # the least of a tile that pairs panels or results up: with fewer, other things are waited for
CLUSTERS = (1, 2)
ACROSS = (1, 2)  # thread blocks that share activations, where rows are few; 4 were never better
# Of N, and of inputs that no block uses where a panel's rows have half a line, from which on two rings were faster.
RINGED_ROWS, RINGED_IDLE = 8192, 0.15


class Form(NamedTuple):
    """Warpgroups down and across, 64-row tiles and columns of each."""

    row_groups: int
    columns: int
    m_tiles: int
    width: int


# Those that were best for some layout or N on an H200, and (1, 3, 1, 32), of which 384 output blocks of 32 make 128 tiles.
SHAPES: tuple[Form, ...] = (
    Form(1, 4, 2, 64),
    Form(1, 3, 2, 128),
    Form(2, 2, 2, 64),
    Form(1, 2, 2, 192),
    Form(1, 2, 2, 128),
    Form(2, 2, 1, 128),
    Form(1, 4, 1, 128),
    Form(2, 2, 1, 64),
    Form(1, 4, 1, 64),
    Form(1, 4, 1, 32),
    Form(1, 3, 1, 32),
    Form(1, 2, 1, 32),
    Form(1, 1, 1, 32),
    Form(1, 2, 1, 64),
    Form(1, 1, 1, 64),
    Form(1, 2, 1, 128),
    Form(1, 1, 1, 128),
)

# Between those: where tiles hardly outnumber the SMs, a part of which would be left without work.
FILLING_SHAPES: tuple[Form, ...] = (
    Form(1, 3, 2, 64),
    Form(1, 3, 1, 64),
    Form(1, 2, 2, 64),
    Form(2, 1, 2, 64),
    Form(1, 1, 2, 64),
    Form(1, 4, 2, 32),
    Form(1, 3, 2, 32),
    Form(1, 2, 2, 32),
    Form(1, 1, 2, 32),
)

# Of each of two rings, with clusters by the bytes of a panel's row as they were best.
RINGED_SHAPES = (Form(1, 2, 2, 64),)
RINGED_CLUSTERS = {64: 2, 128: 1}


def shapes(
    problem: Problem, target: Target, across: Sequence[int], rings: Sequence[int], alike: int
) -> Iterator[WarpgroupShape]:
    """Every shape whose accumulators fit the registers, alone and in clusters, with every ring; where output blocks can be counted
    off by `alike` that have the same inputs, products may be joined."""
    for (row_groups, columns, m_tiles, width), ringed in _forms(problem, target, rings):
        slots = width // problem.block_size
        tall, turned = row_groups * m_tiles > 1, is_turned(problem.op, math_of(problem))
        if turned and width != max(WARPGROUP_ROWS, problem.block_size):
            continue
        most = MAXIMUM_SLOTS if tall or problem.dtype is DType.FLOAT32 else LOW_SLOTS
        if width % problem.block_size or slots > most:
            continue
        few, more = _few(problem, row_groups * m_tiles), few_rows(problem) and not tall
        clusters = _clusters(problem, across) if ringed == 1 else [(RINGED_CLUSTERS[_row_bytes(problem)], 1)]
        joint = tall and not turned and ringed == 1 and slots > 1 and alike % slots == 0
        ways = product(
            clusters,
            _paired(problem),
            _stored(problem, slots),
            STAGES[ringed] + MORE_STAGES * more,
            (False, True)[: 1 + joint],
        )
        for (cluster, beside), paired, stored, stages, joined in ways:
            form = WarpgroupShape(
                row_groups, columns, m_tiles, slots, cluster, few, paired, stored, beside, ringed, stages,
                crowded=m_tiles * width > MOST_UNCROWDED, joined=joined,
            )  # fmt: skip
            if (beside > 1 and form.rows >= WHOLE_LINE_ROWS) or (paired and max(beside, ringed) > 1):
                continue
            shape = _with_ring(form, target)
            geo = warpgroup_geometry(problem, shape)
            if (paired or geo.coupled) and form.rows < WHOLE_LINE_ROWS:
                continue
            if geo.direct and slots // form.product_slots > MOST_COUNTED:
                continue
            residual = residual_panels(problem, geo)
            fits = residual <= MAXIMUM_LOADS and residual * geo.residual_bytes <= shape.stage_bytes
            if not fits or geo.registers(1) > shape.consumer_registers:
                continue
            panels = 2 if stages in MORE_STAGES else 1
            if room(geo) >= panels * geo.panel_bytes + max(panels, _least_pieces(shape)) * geo.piece_bytes:
                yield shape


def form_of(geo: WarpgroupGeometry) -> Form:
    """The form of a shape."""
    shape = geo.shape
    return Form(shape.row_groups, shape.columns, shape.m_tiles, shape.slots * geo.block)


def stores_fit(problem: Problem, geo: WarpgroupGeometry, split: bool) -> bool:
    """Whether warps have registers for what follows a product, of `split` output blocks or not, as ptxas has it. Where sums leave
    next to none: with features last for all but a bias that two neighbours are stored with, or that of wider blocks; with
    features first for nothing. Nor for a bias beside a residual that takes stages in turn, where panels come in pairs through
    registers.
    """
    epilogue = problem.epilogue
    if epilogue.bias and epilogue.residual and geo.residual_parts > 1 and geo.in_registers and geo.shape.paired:
        return False
    if geo.shape.consumer_registers - geo.registers(0) >= LEAST_BESIDE_STORES:
        return not (geo.shape.crowded and problem.feature_first and split)
    if problem.feature_first:
        return epilogue == Epilogue() and not split
    return not epilogue.bias or (problem.block_size <= NARROW and not geo.coupled)


def few_rows(problem: Problem) -> bool:
    """Whether the hint for N asks for so few."""
    return (problem.batch or DEFAULT_ROWS) <= FEW_ROWS


def rings_worth(problem: Problem, idle: float) -> tuple[int, ...]:
    """How many rings to consider, where a share of the inputs is `idle`."""
    many = (problem.batch or DEFAULT_ROWS) >= RINGED_ROWS and not problem.feature_first
    return (1, 2) if many and (_row_bytes(problem) == LINE_BYTES or idle > RINGED_IDLE) else (1,)


def _forms(problem: Problem, target: Target, rings: Sequence[int]) -> Iterator[tuple[Form, int]]:
    """Forms for so many rings; with one, those that fill the SMs, too, where tiles hardly outnumber them."""
    n, outputs = problem.batch or DEFAULT_ROWS, _sides(problem)[1] * problem.block_size
    hardly = n > WARPGROUP_ROWS and n * outputs <= FILLING_TILES * target.sms * COMMON_TILE
    alone = (*SHAPES, *FILLING_SHAPES) if hardly else SHAPES
    for number in rings:
        yield from ((form, number) for form in (alone if number == 1 else RINGED_SHAPES))


def _few(problem: Problem, height: int) -> int:
    """Rows to load where the hint for N asks for fewer than the 64 that a warpgroup multiplies; 0 for all."""
    n = problem.batch or DEFAULT_ROWS
    if problem.feature_first:
        return 0
    return -(-n // ATOM_ROWS) * ATOM_ROWS if height == 1 and n <= WARPGROUP_ROWS - ATOM_ROWS else 0


def _clusters(problem: Problem, across: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Thread blocks of a cluster below each other, and across."""
    yield from ((cluster, 1) for cluster in CLUSTERS)
    panels = _sides(problem)[0] * problem.block_size * problem.dtype.itemsize // _row_bytes(problem)
    if panels <= MOST_PANELS and not problem.feature_first:
        yield from ((1, beside) for beside in across if beside > 1)


def _least_pieces(shape: WarpgroupShape) -> int:
    """Pieces that a stage must have room for beside a panel: all that multiply it where thread blocks share it, else it may be
    loaded again; at least a product's."""
    return shape.tile_slots if shape.across > 1 else max(min(2, shape.tile_slots), shape.product_slots)


def _sides(problem: Problem) -> tuple[int, int]:
    """Input and output blocks."""
    rows, columns = problem.layout.shape
    return (rows, columns) if problem.op is Op.FPROP else (columns, rows)


def _row_bytes(problem: Problem) -> int:
    """Bytes of a row of a panel: a block's, or what of it fits a line."""
    return min(LINE_BYTES, problem.block_size * problem.dtype.itemsize)


def _stored(problem: Problem, slots: int) -> tuple[int, ...]:
    """Bytes of a row that may be stored together: an output block's, or also two neighbours'."""
    if problem.feature_first or problem.dtype is DType.FLOAT32:
        return (LINE_BYTES if is_turned(problem.op, math_of(problem)) else HALF_LINE,)
    row, outputs = _row_bytes(problem), _sides(problem)[1]
    return (row, LINE_BYTES) if row < LINE_BYTES and slots % 2 == outputs % 2 == 0 else (row,)


def _paired(problem: Problem) -> tuple[bool, ...]:
    """Whether two panels may lie in a line: where their rows have half of one, and rows of activations are whole lines."""
    lines = 2 * _row_bytes(problem) == LINE_BYTES and _sides(problem)[0] % 2 == 0
    return (False, True) if lines and not problem.feature_first else (False,)


def _with_ring(shape: WarpgroupShape, target: Target) -> WarpgroupShape:
    budget = target.shared_memory - BARRIER_BYTES - shape.scratch_bytes
    return replace(shape, stage_bytes=budget // (shape.rings * shape.stages) // 1024 * 1024)
