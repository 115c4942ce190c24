"""Plans for fprop and dgrad, `out = activations @ B` with B block-sparse: tiles of output blocks, stages of inputs."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import numpy as np

from bsgen.outline import Grid, Launch, Workspace
from bsgen.plan import occupancy
from bsgen.plan.blocks import IntArray, OutputBlocks, Part, Reduction, output_blocks, split
from bsgen.plan.cost import Cost, matmul_cost
from bsgen.plan.stages import RecordFormat, Stage, encode, pack, tile_items
from bsgen.plan.tile import CHUNK_BYTES, Geometry, TileShape, geometry, math_of
from bsgen.problem import Op, Problem, Target

NO_OUTPUT = -(2**31) + 1
REDUCE_THREADS = 256
SAMPLE, SHORTLIST = 6, 2  # tiles that a draft is estimated from, drafts that are worked out
SKEWED = 1.5  # a longest output block of so many times the mean is worth balancing


@dataclass(frozen=True, eq=False)
class MatMulPlan:
    """A plan of fprop or dgrad.

    Tile t runs stages `tile_stages[t]` ... `tile_stages[t + 1] - 1`, whose records are rows of `records`, and writes slot
    s to `targets[t, s]`: an output block, ~p for partial sum p, or NO_OUTPUT.
    """

    problem: Problem
    target: Target
    geometry: Geometry
    grouping: str
    tile_stages: IntArray
    targets: IntArray
    form: RecordFormat
    records: IntArray
    reductions: tuple[Reduction, ...]
    cost: Cost

    @property
    def family(self) -> str:
        """portable (tensor cores) or simt (CUDA cores)."""
        return "portable" if self.geometry.math.tensor else "simt"

    @property
    def template(self) -> str:
        """The template that renders it."""
        return "portable/matmul.cu.j2"

    @property
    def tiles(self) -> int:
        """Tiles of output blocks; the grid repeats them for each tile of rows."""
        return len(self.targets)

    @property
    def partials(self) -> int:
        """Partial sums of split output blocks."""
        return sum(reduction.count for reduction in self.reductions)

    @property
    def activations(self) -> str:
        """The argument that holds the activations."""
        return "x" if self.problem.op is Op.FPROP else "dy"

    @property
    def features(self) -> tuple[int, int]:
        """Features of a row of the activations and of a row of the result."""
        sizes = self.problem.in_features, self.problem.out_features
        return sizes if self.problem.op is Op.FPROP else (sizes[1], sizes[0])

    @property
    def ragged(self) -> bool:
        """Whether the last panel reaches past the activations' features."""
        return self.features[0] % self.geometry.shape.panel != 0

    @property
    def no_output(self) -> int:
        """The target of a slot that holds nothing."""
        return NO_OUTPUT

    @property
    def reduction_table(self) -> IntArray:
        """The reductions as words: output block, first partial sum, count."""
        return np.array([(r.output, r.first, r.count) for r in self.reductions], np.int32)

    @property
    def record_ring(self) -> int:
        """Records kept in shared memory."""
        return record_ring(self.geometry.shape)

    @property
    def shared_memory(self) -> int:
        """Dynamic shared memory of the main kernel, bytes."""
        shape = self.geometry.shape
        return shape.stages * shape.stage_bytes + self.record_ring * self.form.words * 4

    @property
    def blocks_per_sm(self) -> int:
        """Thread blocks that one SM holds at once, by shared memory and registers."""
        return resident(self.geometry, self.shared_memory, self.target)

    @property
    def entry(self) -> str:
        """Name of the main kernel: what a profiler shows."""
        problem = self.problem
        return f"bsgen_{problem.op}_b{problem.block_size}_{problem.dtype}_{self.family}_{problem.layout.digest}"

    @property
    def epilogue_arguments(self) -> tuple[str, ...]:
        """Operands of the epilogue, in order."""
        epilogue = self.problem.epilogue
        return ("bias",) * epilogue.bias + ("residual",) * epilogue.residual

    @property
    def reduce_rows(self) -> int:
        """Rows of one split output block that a block of the reduction kernel covers, two columns a thread."""
        return REDUCE_THREADS * 2 // self.problem.block_size

    @property
    def workspace(self) -> Workspace:
        """Partial sums, [partials, N, b]."""
        return Workspace(per_row=self.partials * self.problem.block_size)

    @cached_property
    def launches(self) -> tuple[Launch, ...]:
        """The main kernel, and the reduction of split output blocks when there are any."""
        shape, tail = self.geometry.shape, self.epilogue_arguments
        workspace = ("workspace",) * bool(self.reductions)
        arguments = (self.activations, "w", "out", *tail, *workspace, "n")
        main = Launch(self.entry, Grid(self.tiles, shape.rows), shape.threads, self.shared_memory, arguments)
        if not self.reductions:
            return (main,)
        grid = Grid(len(self.reductions), self.reduce_rows)
        return main, Launch(f"{self.entry}_reduce", grid, REDUCE_THREADS, 0, ("out", *tail, "workspace", "n"))

    @property
    def summary(self) -> str:
        """One line: the tile, the pipeline and how the outputs are grouped."""
        geo, shape = self.geometry, self.geometry.shape
        split_text = f", {len(self.reductions)} split outputs" if self.reductions else ""
        return (
            f"{geo.math.name}, tile {shape.rows} x {shape.slots * geo.block}, {shape.warps_m} x {shape.warps_n} warps, "
            f"{shape.stages} stages of {shape.stage_bytes // 1024} KiB, panels of {shape.panel}, "
            f"{self.grouping} groups{split_text}"
        )


def resident(geo: Geometry, shared_memory: int, target: Target) -> int:
    """Thread blocks an SM holds, by shared memory and registers."""
    return max(1, min(occupancy.by_shared_memory(shared_memory, target), by_registers(geo)))


def by_registers(geo: Geometry) -> int:
    """Thread blocks whose registers fit an SM."""
    return occupancy.by_registers(geo.shape.threads, geo.shape.accumulators(geo.block), geo.math.tensor)


# Tile shapes that were best for some block size or N on an H200; tests/gpu/README.md has what was tried and dropped.
SHAPES = (
    (4, 2, 2, 64),  # warps_m, warps_n, m_tiles, output columns of a warp
    (1, 8, 4, 32),
    (4, 2, 2, 128),
    (2, 4, 4, 64),
    (1, 8, 4, 64),
    (4, 1, 2, 128),
    (2, 4, 1, 64),
    (1, 4, 1, 64),
    (1, 4, 1, 128),
)
# On CUDA cores operands take more registers: 64 accumulators a thread.
FMA_SHAPES = ((4, 2, 2, 64), (1, 8, 4, 32), (4, 1, 1, 128), (2, 4, 1, 64), (1, 4, 1, 64), (1, 4, 1, 128))


def shapes(problem: Problem, target: Target) -> Iterator[TileShape]:
    """Every tile shape worth a plan: accumulators fit the registers, two stages or more fit shared memory."""
    block, item = problem.block_size, problem.dtype.itemsize
    for warps_m, warps_n, m_tiles, columns in SHAPES if math_of(problem).tensor else FMA_SHAPES:
        for panel_bytes in (64, 128):
            panel = panel_bytes // item
            if columns < block or (block > panel and panel_bytes < 128):
                continue
            shape = TileShape(warps_m, warps_n, m_tiles, columns // block, panel, 0, 0)
            if by_registers(geometry(problem, shape)) == 0:
                continue
            yield from _pipelines(shape, problem, target)


def _pipelines(shape: TileShape, problem: Problem, target: Target) -> Iterator[TileShape]:
    """Stages for one resident block an SM, and for two where registers allow."""
    geo = geometry(problem, shape)
    residents = range(1, min(2, by_registers(geo)) + 1)
    least = (geo.panel_size + 2 * geo.piece_chunks) * CHUNK_BYTES
    for budget in (occupancy.shared_memory_of(blocks, target) for blocks in residents):
        for stages in (3, 2):
            stage_bytes = (budget * 15 // 16 // stages) // 1024 * 1024  # the rest holds records
            if least <= stage_bytes:
                yield replace(shape, stages=stages, stage_bytes=stage_bytes)
                break


Tiles = Sequence[Sequence[Part | None]]


@dataclass(frozen=True, eq=False)
class Draft:
    """A candidate before its stages are cut: the geometry, and the parts in the slots of each tile."""

    geometry: Geometry
    grouping: str
    tiles: Tiles
    reductions: tuple[Reduction, ...]


def drafts(problem: Problem, target: Target) -> Iterator[Draft]:
    """Every shape with every grouping."""
    view = output_blocks(problem)
    for shape in shapes(problem, target):
        geo = geometry(problem, shape)
        for grouping, tiles, reductions in groupings(view, geo, target):
            yield Draft(geo, grouping, tiles, reductions)


def candidates(problem: Problem, target: Target) -> Iterator[MatMulPlan]:
    """Plans of all drafts, to measure."""
    yield from filter(None, (assemble(problem, target, draft) for draft in drafts(problem, target)))


def shortlist(problem: Problem, target: Target) -> Iterator[MatMulPlan]:
    """Plans of the drafts that are predicted, from a sample of their tiles, to be cheapest."""
    ranked = sorted(drafts(problem, target), key=lambda draft: estimate(problem, target, draft))
    plans = filter(None, (assemble(problem, target, draft) for draft in ranked))
    yield from islice(plans, SHORTLIST)


def estimate(problem: Problem, target: Target, draft: Draft) -> float:
    """Predicted seconds from the heaviest tile and a few more."""
    geo, work = draft.geometry, [sum(part.work for part in tile if part is not None) for tile in draft.tiles]
    chosen = {*range(0, len(work), -(-len(work) // SAMPLE)), max(range(len(work)), key=work.__getitem__)}
    stages, starts = cut([draft.tiles[i] for i in sorted(chosen)], problem, geo)
    share = sum(work[i] for i in chosen) / max(1, sum(work))
    shared_memory = geo.shape.stages * geo.shape.stage_bytes
    return matmul_cost(problem, target, geo, stages, starts, resident(geo, shared_memory, target), share or 1.0).seconds


def groupings(view: OutputBlocks, geo: Geometry, target: Target) -> Iterator[tuple[str, Tiles, tuple[Reduction, ...]]]:
    """Ways to put output blocks into the slots of tiles: in order; and for skewed layouts balanced, with the long ones split."""
    slots, longest = geo.shape.slots, max(1, int(view.work.max()))
    parts, _ = split(view, longest)
    yield "contiguous", [_padded(parts[i : i + slots], slots) for i in range(0, len(parts), slots)], ()
    if longest <= SKEWED * view.work.mean():
        return
    yield "balanced", balanced(parts, geo), ()
    fair = max(4, int(view.work.sum()) // max(-(-view.outputs // slots), target.sms // 4))
    if longest > fair:
        parts, reductions = split(view, fair)
        yield "balanced", balanced(parts, geo), reductions


def balanced(parts: Sequence[Part], geo: Geometry) -> list[list[Part | None]]:
    """Longest part first into the lightest tile with a free slot, and likewise onto the warps inside a tile."""
    shape = geo.shape
    tiles = _spread(sorted(parts, key=lambda part: -part.work), -(-len(parts) // shape.slots), shape.slots)
    tiles.sort(key=lambda tile: -sum(part.work for part in tile))
    return [
        [
            slot
            for warp in _spread(tile, shape.warps_n, shape.slots_per_warp)
            for slot in _padded(warp, shape.slots_per_warp)
        ]
        for tile in tiles
    ]


def _spread(parts: Sequence[Part], bins: int, room: int) -> list[list[Part]]:
    filled: list[list[Part]] = [[] for _ in range(bins)]
    heap = [(0, index) for index in range(bins)]
    for part in parts:
        load, index = heapq.heappop(heap)
        filled[index].append(part)
        if len(filled[index]) < room:
            heapq.heappush(heap, (load + part.work, index))
    return filled


def _padded(parts: Sequence[Part], length: int) -> list[Part | None]:
    return [*parts, *[None] * (length - len(parts))]


def cut(tiles: Tiles, problem: Problem, geo: Geometry) -> tuple[list[Stage], IntArray]:
    """The stages of all tiles, one after the other, and where each tile's begin."""
    stages: list[Stage] = []
    starts = [0]
    for tile in tiles:
        stages += pack(tile_items(tile, problem.op, geo), geo)
        starts.append(len(stages))
    return stages, np.array(starts, np.int32)


def assemble(problem: Problem, target: Target, draft: Draft) -> MatMulPlan | None:
    """Cut the tiles into stages and encode them; None when the records outgrow shared memory."""
    geo, shape = draft.geometry, draft.geometry.shape
    stages, starts = cut(draft.tiles, problem, geo)
    form, records = encode(stages, geo)
    targets = [[NO_OUTPUT if part is None else part.target for part in tile] for tile in draft.tiles]
    shared_memory = shape.stages * shape.stage_bytes + record_ring(shape) * form.words * 4
    if shared_memory > target.shared_memory:
        return None
    cost = matmul_cost(problem, target, geo, stages, starts, resident(geo, shared_memory, target))
    return MatMulPlan(
        problem, target, geo, draft.grouping, starts, np.array(targets, np.int32), form, records, draft.reductions, cost
    )


def record_ring(shape: TileShape) -> int:
    """Records in shared memory: a stage's record arrives one pipeline's length before its loads are issued."""
    return 2 * shape.stages - 1
