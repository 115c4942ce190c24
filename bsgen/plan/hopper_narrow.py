"""Plans for fprop and dgrad on Hopper with blocks of 8 and 16: rings filled by TMA, and warps that multiply (mma.sync).

A *panel* is 32 or 64 features of the activations, for all rows of a tile: TMA fetches lines of 64 bytes and more at the full rate,
narrower ones at half of it or less. Where features come first, a line is of rows of one feature, and a panel may be as narrow as
a block: a tile then loads the input blocks that it multiplies, and few others. A *run* is stored blocks that follow one another
in W, fetched by one copy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np

from bsgen.outline import Grid, Launch, TensorMap
from bsgen.plan.blocks import IntArray, OutputBlocks, Part, Reduction, output_blocks, split
from bsgen.plan.cost import Cost
from bsgen.plan.grouping import Grouping, Tiles, groupings, similar
from bsgen.plan.hopper import chosen
from bsgen.plan.narrow_cost import Counts, narrow_cost, tile_counts
from bsgen.plan.narrow_records import NarrowStage, bounds_bytes, encode_records, operation_bytes, record_starts
from bsgen.plan.narrow_stages import encode_loads, pack, tile_items
from bsgen.plan.narrow_tile import NarrowGeometry, NarrowShape, narrow_geometry
from bsgen.plan.product import NO_OUTPUT, ProductPlan
from bsgen.plan.registers import WARP
from bsgen.plan.streamed import Kept, kept_runs
from bsgen.problem import DType, Op, Problem, Target
from bsgen.ranges import DEFAULT_ROWS

BLOCK_SIZES = (8, 16)
BARRIER_BYTES = 1024  # two of 8 bytes a stage, 16 bytes of zeros, and room to align
STAGES = (3, 4)
PANELS = (32, 64)
FEATURE_FIRST_PANELS = (8, 16, 32)
WAYS = (2, 3, 4, 5, 6, 8)  # to split the inputs of every output block, where rows are few, too
FEW_ROWS = 512  # of N, whose tiles hardly outnumber the SMs
FEW_LOADING_GROUPS = 2  # they wait for the copies of stored blocks to be issued


@dataclass(frozen=True, eq=False)
class HopperNarrowPlan(ProductPlan):
    """A plan of fprop or dgrad for narrow blocks.

    Stage s loads what row s of `loads` says, and `records[record_starts[s]:record_starts[s + 1]]`, which lists the operations
    of every slot, to its end. Of W that is `streamed` L2 keeps a part.
    """

    geometry: NarrowGeometry
    loads: IntArray
    records: IntArray
    record_starts: IntArray
    streamed: Kept | None

    @property
    def family(self) -> str:
        """hopper."""
        return "hopper"

    @property
    def template(self) -> str:
        """The template that renders it."""
        return "hopper/narrow.cu.j2"

    @property
    def band(self) -> int:
        """Rows of tiles that are worked on together."""
        return 1

    @property
    def loads_a_stage(self) -> int:
        """Loads of a row of `loads`, the record's and those of nothing among them."""
        return int(self.loads.shape[1])

    @property
    def bounds_bytes(self) -> int:
        """Bytes of the bounds of the lists of operations, at the end of a stage."""
        return bounds_bytes(self.geometry)

    @property
    def operation_bytes(self) -> int:
        """Bytes of an operation in a stage's record."""
        return operation_bytes(self.geometry)

    @property
    def shared_memory(self) -> int:
        """Dynamic shared memory, bytes."""
        shape = self.geometry.shape
        return shape.stages * shape.stage_bytes + BARRIER_BYTES + shape.scratch_bytes

    @property
    def blocks_per_sm(self) -> int:
        """Persistent thread blocks have an SM each."""
        return 1

    @property
    def maps(self) -> tuple[TensorMap, ...]:
        """How TMA sees the activations."""
        shape, dtype = self.geometry.shape, str(self.problem.dtype)
        if self.problem.feature_first:
            return (TensorMap(self.activations, 0, self.features[0], self.geometry.box_rows, shape.panel, dtype),)
        return (TensorMap(self.activations, self.features[0], 0, shape.panel, shape.rows, dtype),)

    @cached_property
    def launches(self) -> tuple[Launch, ...]:
        """The main kernel, after weights are gated, and the reduction of split output blocks when there are any."""
        shape, maps = self.geometry.shape, self.maps
        arguments = (*(tensor_map.argument for tensor_map in maps), self.weights, *self.tail_arguments)
        grid = Grid(self.tiles, shape.rows, persistent=True)
        main = Launch(self.entry, grid, shape.threads, self.shared_memory, arguments, maps, dependent=True)
        return *self.gate_launches, main, *self.reduce_launches

    @property
    def summary(self) -> str:
        """One line: the tile, the pipeline and how the outputs are grouped."""
        geo, shape = self.geometry, self.geometry.shape
        math = f"wgmma_{geo.math.ptx} turned" if geo.turned else geo.math.name
        return (
            f"{math}, tile {shape.rows} x {shape.tile_slots * geo.block}, {shape.warps} warps, "
            f"{f'{shape.loaders // WARP} that load, ' * (shape.loading_groups > 1)}panels of {shape.panel}, "
            f"{shape.stages} stages of {shape.stage_bytes // 1024} KiB, {self.grouping} groups"
            f"{self.streamed.text if self.streamed else ''}{self.split_text}{self.gate_text}"
        )


def serves(problem: Problem, target: Target) -> bool:
    """Whether this family can do it."""
    return (
        target.arch == "sm_90a"
        and problem.op is not Op.WGRAD
        and problem.block_size in BLOCK_SIZES
        and problem.dtype is not DType.FLOAT32
        and problem.layout.nnz > 0
    )


# One of SHAPES, features of a panel, stages, whether products are turned.
Form = tuple[tuple[int, int, int], int, int, bool]

# 16-row tiles of a warp, warps side by side, and columns of each.
SHAPES = (
    (4, 16, 32),
    (8, 16, 16),
    (4, 16, 16),
    (2, 16, 32),
    (2, 16, 16),
    (1, 16, 32),
    (1, 16, 16),
    (4, 8, 16),
    (1, 8, 16),
)

# The same where products are turned: as many rows as wgmma has columns, two warpgroups with 64 outputs each. More accumulators than
# registers at launch, whatever setmaxnreg hands out later, ptxas would refuse or serialise (C7602, C7512).
TURNED_SHAPE, TURNED_PANEL, TURNED_STAGES = (16, 8, 16), 32, 3
# The least share of blocks for which it is considered. Zeros stand for the others: 0 times an infinity of x is NaN.
TURNED_DENSITY = 0.15


def shapes(problem: Problem, target: Target) -> Iterator[NarrowShape]:
    """Every shape with every ring; no taller than the hint for N asks."""
    n, block = problem.batch or DEFAULT_ROWS, problem.block_size
    loading = FEW_LOADING_GROUPS if n <= FEW_ROWS else 1
    least = min(m_tiles * 16 for m_tiles, _, _ in SHAPES)
    for (m_tiles, warps, columns), panel, stages, turned in forms(problem):
        shape = _with_ring(NarrowShape(m_tiles, warps, columns // block, panel, loading, turned, stages), target)
        if shape.rows < max(2 * n, 2 * least) and shape.stage_bytes > 0:
            yield shape


def forms(problem: Problem) -> Iterator[Form]:
    """Every form with every panel and number of stages; turned ones where many blocks are stored and rows are many."""
    for form, panel, stages in product(SHAPES, panels(problem), STAGES):
        yield form, panel, stages, False
    many = (problem.batch or DEFAULT_ROWS) > FEW_ROWS and problem.layout.density >= TURNED_DENSITY
    if many:
        yield TURNED_SHAPE, TURNED_PANEL, TURNED_STAGES, True


def panels(problem: Problem) -> tuple[int, ...]:
    """Features of a panel, to choose from."""
    if problem.feature_first:
        return tuple(panel for panel in FEATURE_FIRST_PANELS if panel >= problem.block_size)
    return PANELS


def _with_ring(shape: NarrowShape, target: Target) -> NarrowShape:
    budget = target.shared_memory - BARRIER_BYTES - shape.scratch_bytes
    return replace(shape, stage_bytes=budget // shape.stages // 1024 * 1024)


@dataclass(frozen=True, eq=False)
class Draft:
    """A candidate before its stages are cut, with its cost."""

    geometry: NarrowGeometry
    grouping: str
    tiles: Tiles
    reductions: tuple[Reduction, ...]
    cost: Cost


def drafts(problem: Problem, target: Target) -> Iterator[Draft]:
    """Every shape with every grouping."""
    if not serves(problem, target):
        return
    view, n = output_blocks(problem), problem.batch or DEFAULT_ROWS
    ways: dict[tuple[int, int], list[Grouping]] = {}
    counted: dict[tuple[int, ...], Counts] = {}
    for shape in shapes(problem, target):
        geo, key = narrow_geometry(problem, shape), (shape.warps, shape.slots)
        if key not in ways:
            ways[key] = [*groupings(view, *key, target), *similar(view, shape.tile_slots)]
            ways[key] += spread(view, shape.tile_slots, target) if n <= FEW_ROWS else ()
        for index, (grouping, tiles, reductions) in enumerate(ways[key]):
            case = *key, shape.panel, shape.turned, index
            if case not in counted:
                counted[case] = tile_counts(tiles, problem, geo)
            partials = sum(reduction.count for reduction in reductions)
            cost = narrow_cost(problem, target, geo, counted[case], partials)
            yield Draft(geo, grouping, tiles, reductions, cost)


def spread(view: OutputBlocks, tile_slots: int, target: Target) -> Iterator[Grouping]:
    """The inputs of every output block split into as many parts; a tile has the same part of neighbours."""
    tiles, longest = -(-view.outputs // tile_slots), int(view.work.max())
    for ways in WAYS:
        if tiles * ways > target.sms or longest < 4 * ways:
            return
        parts, reductions = split(view, -(-longest // ways))
        turns = {reduction.first + i: i for reduction in reductions for i in range(reduction.count)}
        chosen = sorted(parts, key=lambda part: (turns.get(~part.target, 0), part.output))
        yield (
            f"{ways}-way split",
            [_padded(chosen[i : i + tile_slots], tile_slots) for i in range(0, len(chosen), tile_slots)],
            reductions,
        )


def _padded(parts: Sequence[Part], length: int) -> list[Part | None]:
    return [*parts, *[None] * (length - len(parts))]


def candidates(problem: Problem, target: Target) -> Iterator[HopperNarrowPlan]:
    """Plans of all drafts, to measure."""
    for draft in drafts(problem, target) if chosen(problem) else ():
        yield assemble(problem, target, draft)


def shortlist(problem: Problem, target: Target, limit: float = math.inf) -> Iterator[HopperNarrowPlan]:
    """The plan of the cheapest draft, if below `limit` seconds."""
    best = min(drafts(problem, target) if chosen(problem) else (), key=lambda draft: draft.cost.seconds, default=None)
    if best is not None and best.cost.seconds < limit:
        yield assemble(problem, target, best)


def cut(tiles: Tiles, geo: NarrowGeometry) -> tuple[list[NarrowStage], IntArray]:
    """The stages of all tiles, one after the other, and where each tile's begin."""
    stages: list[NarrowStage] = []
    starts = [0]
    for tile in tiles:
        stages += pack(tile_items(tile, geo), geo)
        starts.append(len(stages))
    return stages, np.array(starts, np.int32)


def assemble(problem: Problem, target: Target, draft: Draft) -> HopperNarrowPlan:
    """Cut the tiles into stages and encode them."""
    geo = draft.geometry
    stages, starts = cut(draft.tiles, geo)
    targets = [[NO_OUTPUT if part is None else part.target for part in tile] for tile in draft.tiles]
    return HopperNarrowPlan(
        problem, target, draft.grouping, starts, np.array(targets, np.int32), draft.reductions, draft.cost,
        geo, encode_loads(stages, geo), encode_records(stages, geo), record_starts(stages, geo),
        kept_runs(problem),
    )  # fmt: skip
