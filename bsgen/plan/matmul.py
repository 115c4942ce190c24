"""Plans for fprop and dgrad, `out = activations @ B` with B block-sparse: tiles of output blocks, stages of inputs."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from bsgen.plan.blocks import IntArray, OutputBlocks, Part, Reduction, output_blocks, split
from bsgen.plan.cost import Cost, matmul_cost
from bsgen.plan.launch import Grid, Launch, Workspace
from bsgen.plan.stages import RecordFormat, Stage, encode, pack, tile_items
from bsgen.plan.tile import CHUNK_BYTES, Geometry, TileShape, geometry
from bsgen.problem import Op, Problem, Target

NO_OUTPUT = -(2**31) + 1
REDUCE_THREADS = 256
OTHER_REGISTERS = {True: 64, False: 112}  # of a thread, beside its accumulators: with tensor cores, without


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
    def no_output(self) -> int:
        """The target of a slot that holds nothing."""
        return NO_OUTPUT

    @property
    def reduction_table(self) -> IntArray:
        """The reductions as words: output block, first partial sum, count."""
        return np.array([(r.output, r.first, r.count) for r in self.reductions], np.int32)

    @property
    def record_ring(self) -> int:
        """Records kept in shared memory: a stage's record arrives one pipeline's length before its loads are issued."""
        return 2 * self.geometry.shape.stages - 1

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
    """Thread blocks an SM holds: its shared memory (1 KiB is the system's, each block) and about 65536 registers."""
    by_memory = (target.shared_memory + 1024) // (shared_memory + 1024)
    return max(1, min(by_memory, by_registers(geo)))


def by_registers(geo: Geometry) -> int:
    """Thread blocks whose registers fit an SM."""
    return 65536 // ((geo.shape.accumulators(geo.block) + OTHER_REGISTERS[geo.math.tensor]) * geo.shape.threads)


# Threads, accumulators and the balance of loads against math; measured on an H200 (see tests/gpu/bench_portable.py).
SHAPES = (
    (4, 2, 2, 64),  # warps_m, warps_n, m_tiles, output columns of a warp
    (4, 4, 2, 64),
    (1, 16, 4, 32),
    (1, 8, 4, 32),
    (2, 4, 2, 64),
    (4, 1, 2, 128),
    (4, 2, 2, 128),
    (2, 4, 4, 64),
    (1, 8, 4, 64),
    (2, 2, 2, 128),
    (2, 4, 1, 128),
    (1, 4, 1, 128),
)


def shapes(problem: Problem, target: Target) -> Iterator[TileShape]:
    """Every tile shape worth a plan: accumulators fit the registers, two stages or more fit shared memory."""
    block, item = problem.block_size, problem.dtype.itemsize
    for warps_m, warps_n, m_tiles, columns in SHAPES:
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
    for budget in ((target.shared_memory + 1024) // blocks - 1024 for blocks in residents):
        for stages in (4, 3):
            stage_bytes = (budget * 15 // 16 // stages) // 1024 * 1024  # the rest holds records
            if least <= stage_bytes:
                yield replace(shape, stages=stages, stage_bytes=stage_bytes)


def candidates(problem: Problem, target: Target) -> Iterator[MatMulPlan]:
    """Plans to choose from: every shape, outputs in order and balanced, long outputs whole and split."""
    view = output_blocks(problem)
    for shape in shapes(problem, target):
        geo = geometry(problem, shape)
        for limit in split_limits(view, geo, target):
            parts, reductions = split(view, limit)
            for grouping, tiles in groupings(parts, geo):
                plan = assemble(problem, target, geo, grouping, tiles, reductions)
                if plan is not None:
                    yield plan


def split_limits(view: OutputBlocks, geo: Geometry, target: Target) -> Iterator[int]:
    """No split; and, when one output block outweighs what a tile has on average, parts of half that weight."""
    longest = int(view.work.max())
    yield max(1, longest)
    tiles = -(-view.outputs // geo.shape.slots)
    fair = max(4, int(view.work.sum()) // max(tiles, target.sms // 4))
    if longest > fair:
        yield fair


def groupings(parts: Sequence[Part], geo: Geometry) -> Iterator[tuple[str, list[list[Part | None]]]]:
    """Ways to put parts into the slots of tiles."""
    slots = geo.shape.slots
    in_order = [list(parts[i : i + slots]) for i in range(0, len(parts), slots)]
    yield "contiguous", [tile + [None] * (slots - len(tile)) for tile in in_order]
    work = [part.work for part in parts]
    if max(work) > 1.5 * (sum(work) / len(work)):
        yield "balanced", balanced(parts, geo)


def balanced(parts: Sequence[Part], geo: Geometry) -> list[list[Part | None]]:
    """Longest part first into the lightest tile with a free slot, and likewise onto the warps inside a tile."""
    shape = geo.shape
    tiles = _spread(sorted(parts, key=lambda part: -part.work), -(-len(parts) // shape.slots), shape.slots)
    tiles.sort(key=lambda tile: -sum(part.work for part in tile))
    return [
        [slot for warp in _spread(tile, shape.warps_n, shape.slots_per_warp) for slot in _padded(warp, shape.slots_per_warp)]
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


def assemble(
    problem: Problem,
    target: Target,
    geo: Geometry,
    grouping: str,
    tiles: Sequence[Sequence[Part | None]],
    reductions: tuple[Reduction, ...],
) -> MatMulPlan | None:
    """Cut the tiles into stages and encode them; None when the records outgrow shared memory."""
    stages: list[Stage] = []
    starts = [0]
    for tile in tiles:
        stages += pack(tile_items(tile, problem.op, geo), geo)
        starts.append(len(stages))
    form, records = encode(stages, geo)
    targets = [[NO_OUTPUT if part is None else part.target for part in tile] for tile in tiles]
    tile_stages = np.array(starts, np.int32)
    shared_memory = geo.shape.stages * geo.shape.stage_bytes + (2 * geo.shape.stages - 1) * form.words * 4
    if shared_memory > target.shared_memory:
        return None
    cost = matmul_cost(problem, target, geo, stages, tile_stages, resident(geo, shared_memory, target))
    targets_array = np.array(targets, np.int32)
    return MatMulPlan(
        problem, target, geo, grouping, tile_stages, targets_array, form, records, reductions, cost
    )
