"""Plans for fprop and dgrad, `out = activations @ B` with B block-sparse: tiles of output blocks, stages of inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import numpy as np

from bsgen.outline import Grid, Launch
from bsgen.plan import occupancy
from bsgen.plan.blocks import IntArray, Reduction, output_blocks
from bsgen.plan.cost import matmul_cost
from bsgen.plan.grouping import Tiles, groupings
from bsgen.plan.product import NO_OUTPUT, ProductPlan
from bsgen.plan.stages import RecordFormat, Stage, encode, pack, tile_items
from bsgen.plan.tile import CHUNK_BYTES, Geometry, TileShape, geometry, math_of
from bsgen.problem import Problem, Target

SAMPLE, ROUGH = (
    6,
    1,
)  # tiles that a draft is estimated from: to choose among drafts; to see whether any beats another family
SHORTLIST = 2  # drafts that are worked out


@dataclass(frozen=True, eq=False)
class MatMulPlan(ProductPlan):
    """A plan of fprop or dgrad by mma.sync or on CUDA cores: a stage's record is a row of `records`."""

    geometry: Geometry
    form: RecordFormat
    records: IntArray

    @property
    def family(self) -> str:
        """portable (tensor cores) or simt (CUDA cores)."""
        return "portable" if self.geometry.math.tensor else "simt"

    @property
    def template(self) -> str:
        """The template that renders it."""
        return "portable/matmul.cu.j2"

    @property
    def ragged(self) -> bool:
        """Whether the last panel reaches past the activations' features."""
        return self.features[0] % self.geometry.shape.panel != 0

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

    @cached_property
    def launches(self) -> tuple[Launch, ...]:
        """The main kernel, after weights are gated, and the reduction of split output blocks when there are any."""
        shape, arguments = self.geometry.shape, (self.activations, self.weights, *self.tail_arguments)
        main = Launch(self.entry, Grid(self.tiles, shape.rows), shape.threads, self.shared_memory, arguments)
        return *self.gate_launches, main, *self.reduce_launches

    @property
    def summary(self) -> str:
        """One line: the tile, the pipeline and how the outputs are grouped."""
        geo, shape = self.geometry, self.geometry.shape
        return (
            f"{geo.math.name}, tile {shape.rows} x {shape.slots * geo.block}, {shape.warps_m} x {shape.warps_n} warps, "
            f"{shape.stages} stages of {shape.stage_bytes // 1024} KiB, panels of {shape.panel}, "
            f"{self.grouping} groups{self.split_text}{self.gate_text}"
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
    block = problem.block_size
    for warps_m, warps_n, m_tiles, columns in SHAPES if math_of(problem).tensor else FMA_SHAPES:
        for panel in _panels(problem):
            if columns < block:
                continue
            shape = TileShape(warps_m, warps_n, m_tiles, columns // block, panel, 0, 0)
            if by_registers(geometry(problem, shape)) == 0:
                continue
            yield from _pipelines(shape, problem, target)


def _panels(problem: Problem) -> tuple[int, ...]:
    """Features of a panel: 64 or 128 bytes of a row, 128 for wider blocks; a block, or two, where features come first."""
    block, item = problem.block_size, problem.dtype.itemsize
    if problem.feature_first:
        return tuple(sorted({min(block, 128 // item), min(2 * block, 128 // item)}))
    return tuple(width // item for width in (64, 128) if block <= width // item or width == 128)


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
        for grouping, tiles, reductions in groupings(view, shape.warps_n, shape.slots_per_warp, target):
            yield Draft(geo, grouping, tiles, reductions)


def candidates(problem: Problem, target: Target) -> Iterator[MatMulPlan]:
    """Plans of all drafts, to measure."""
    yield from filter(None, (assemble(problem, target, draft) for draft in drafts(problem, target)))


def shortlist(problem: Problem, target: Target, limit: float = math.inf) -> Iterator[MatMulPlan]:
    """Plans of the drafts that are predicted, from a sample of their tiles, to be cheapest; none that takes `limit` seconds."""
    sample = SAMPLE if math.isinf(limit) else ROUGH
    estimates = [(estimate(problem, target, draft, sample), draft) for draft in drafts(problem, target)]
    ranked = sorted((pair for pair in estimates if pair[0] < limit), key=lambda pair: pair[0])
    plans = filter(None, (assemble(problem, target, draft) for _, draft in ranked))
    yield from islice(plans, SHORTLIST)


def estimate(problem: Problem, target: Target, draft: Draft, sample: int) -> float:
    """Predicted seconds from the heaviest tile and `sample` more."""
    geo, work = draft.geometry, [sum(part.work for part in tile if part is not None) for tile in draft.tiles]
    chosen = {*range(0, len(work), -(-len(work) // sample)), max(range(len(work)), key=work.__getitem__)}
    stages, starts = cut([draft.tiles[i] for i in sorted(chosen)], problem, geo)
    share = sum(work[i] for i in chosen) / max(1, sum(work))
    shared_memory = geo.shape.stages * geo.shape.stage_bytes
    return matmul_cost(problem, target, geo, stages, starts, resident(geo, shared_memory, target), share or 1.0).seconds


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
        problem, target, draft.grouping, starts, np.array(targets, np.int32), draft.reductions, cost, geo, form, records
    )


def record_ring(shape: TileShape) -> int:
    """Records in shared memory: a stage's record arrives one pipeline's length before its loads are issued."""
    return 2 * shape.stages - 1
