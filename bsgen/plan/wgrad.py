"""Plans for wgrad, `dW = x.T @ dy` at the stored blocks: groups of blocks that share panels of x and dy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

from bsgen.outline import Grid, Launch, TensorMap, Workspace
from bsgen.plan import occupancy
from bsgen.plan.blocks import IntArray
from bsgen.plan.cost import Cost, wgrad_cost
from bsgen.plan.gates import gradient_lanes, gradient_launch
from bsgen.plan.tile import CHUNK_BYTES, math_of
from bsgen.plan.wgrad_geometry import MAX_UNIT, WGradGeometry, WGradShape
from bsgen.plan.wgrad_units import Bands, bands, bands_of, encode, groups
from bsgen.problem import Problem, Target

REDUCE_THREADS, REDUCE_ELEMENTS = 256, 4
# Bands, and block columns, that a shape is estimated from; shapes worked out.
SAMPLE, SAMPLE_COLUMNS, SHORTLIST = 4, 8, 2
TABLE_BYTES = 4096  # at least what the tables of a tile take of shared memory


@dataclass(frozen=True, eq=False)
class WGradPlan:
    """A plan of wgrad.

    Tile t loads `panels[t, :panel_counts[t]]` (p is panel p of x, ~p panel p of dy) and gives warp v its units
    `units[t, v * shape.units:]`: (chunks from the stage's start to row 0 of its x features, of the
    second block's when paired, of its dy features; chunk of dW where it begins, where the second block does).
    """

    problem: Problem
    target: Target
    geometry: WGradGeometry
    splits: int
    panel_counts: IntArray
    panels: IntArray
    units: IntArray
    cost: Cost

    @property
    def family(self) -> str:
        """portable (tensor cores) or simt (CUDA cores)."""
        return "portable" if self.geometry.math.tensor else "simt"

    @property
    def template(self) -> str:
        """The template that renders it."""
        return "portable/wgrad.cu.j2"

    @property
    def tiles(self) -> int:
        """Groups of blocks; the grid repeats them for each split of the N rows."""
        return len(self.panels)

    @property
    def features(self) -> tuple[int, int]:
        """Features of a row of x and of a row of dy."""
        return self.problem.in_features, self.problem.out_features

    @property
    def formula(self) -> str:
        """What it computes, but for gates."""
        return "x @ dy.T" if self.problem.feature_first else "x.T @ dy"

    @property
    def ragged(self) -> bool:
        """Whether a last panel reaches past the features of x or of dy."""
        return any(features % self.geometry.shape.panel for features in self.features)

    @property
    def elements(self) -> int:
        """Elements of dW."""
        return self.problem.layout.nnz * self.problem.block_size**2

    @property
    def shared_memory(self) -> int:
        """Dynamic shared memory of the main kernel, bytes: the stages, then the tile's tables."""
        tables = -(-(self.panels.shape[1] + self.units[0].size) // 4) * CHUNK_BYTES if self.tiles else 0
        return self.geometry.shape.stages * self.geometry.stage_bytes + tables

    @property
    def blocks_per_sm(self) -> int:
        """Thread blocks that one SM holds at once, by shared memory and registers."""
        return resident(self.geometry, self.target)

    @property
    def entry(self) -> str:
        """Name of the main kernel: what a profiler shows."""
        problem = self.problem
        return f"bsgen_wgrad_b{problem.block_size}_{problem.dtype}_{self.family}_{problem.layout.digest}"

    @property
    def gated(self) -> bool:
        """Whether there are sums that gates multiply."""
        return self.problem.gate and self.tiles > 0

    @property
    def summed_later(self) -> bool:
        """Whether sums pass through the workspace to a second kernel: those of splits, and those that gates multiply."""
        return self.splits > 1 or self.gated

    @property
    def split_elements(self) -> int:
        """float32 elements of the sums of a split."""
        return self.elements

    @property
    def gradient_lanes(self) -> int:
        """Threads that sum a block's part of the gates' gradients."""
        return gradient_lanes(self.problem)

    @property
    def workspace(self) -> Workspace:
        """Partial sums, [splits, nnz, b, b]; none when the first kernel writes dW."""
        return Workspace(fixed=self.splits * self.elements if self.summed_later else 0)

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.geometry.threads

    @property
    def maps(self) -> tuple[TensorMap, ...]:
        """How TMA sees x and dy; none where threads copy."""
        return ()

    @property
    def dependent(self) -> bool:
        """Whether the kernels wait by themselves for those ahead."""
        return False

    @cached_property
    def launches(self) -> tuple[Launch, ...]:
        """The main kernel, and the reduction over splits or for gates where there are any; nothing for a layout with no blocks."""
        if not self.tiles:
            return ()
        destination = ("workspace",) if self.summed_later else ("out",)
        tail = ("n",) if self.summed_later else ("n", "accumulate")
        inputs = tuple(tensor_map.argument for tensor_map in self.maps) or ("x", "dy")
        arguments = (*inputs, *destination, *tail)
        grid = Grid(self.tiles * self.splits)
        main = Launch(self.entry, grid, self.threads, self.shared_memory, arguments, self.maps, self.dependent)
        if not self.summed_later:
            return (main,)
        if self.gated:
            return main, gradient_launch(self.entry, self.problem)
        grid = Grid(-(-self.elements // (REDUCE_THREADS * REDUCE_ELEMENTS)))
        arguments = ("workspace", "out", "accumulate")
        return main, Launch(f"{self.entry}_reduce", grid, REDUCE_THREADS, 0, arguments, dependent=self.dependent)

    @property
    def summary(self) -> str:
        """One line: units, the pipeline and the splits of N."""
        geo, shape = self.geometry, self.geometry.shape
        rows = 2 * geo.unit if geo.paired else geo.unit
        return (
            f"{geo.math.name}, {geo.capacity} units of {rows} x {geo.unit} on {shape.warps} warps, bands of {shape.band}, "
            f"{shape.stages} stages of {shape.rows} rows, {shape.panels} panels of {shape.panel}, {self.splits} splits of N"
            f"{', gated' * self.gated}"
        )


def resident(geo: WGradGeometry, target: Target) -> int:
    """Thread blocks an SM holds, by shared memory and registers."""
    shared_memory = geo.shape.stages * geo.stage_bytes + TABLE_BYTES
    return max(1, min(occupancy.by_shared_memory(shared_memory, target), by_registers(geo)))


def by_registers(geo: WGradGeometry) -> int:
    """Thread blocks whose registers fit an SM."""
    return occupancy.by_registers(geo.threads, geo.accumulators, geo.math.tensor)


def candidates(problem: Problem, target: Target) -> Iterator[WGradPlan]:
    """Plans to choose from: panel widths, and bands of output blocks that a tile may draw from."""
    seen = set()
    for shape in shapes(problem, target):
        plan = assemble(problem, target, _geometry(problem, shape))
        if plan.geometry not in seen:  # room for more panels than a layout can use makes no difference
            seen.add(plan.geometry)
            yield plan


def shortlist(problem: Problem, target: Target, limit: float = math.inf) -> Iterator[WGradPlan]:
    """Plans of the shapes that are predicted, from a sample of their bands, to be cheapest; none that takes `limit` seconds."""
    geometries = [_geometry(problem, shape) for shape in shapes(problem, target)]
    found = bands_of(problem, geometries)
    estimates = [(estimate(problem, target, geo, found[geo.shape.band]), geo) for geo in geometries]
    ranked = sorted((pair for pair in estimates if pair[0] < limit), key=lambda pair: pair[0])
    yield from (assemble(problem, target, geo) for _, geo in ranked[:SHORTLIST])


def estimate(problem: Problem, target: Target, geo: WGradGeometry, everything: Bands) -> float:
    """Predicted seconds from a few bands."""
    if not everything:
        return 0.0
    sample = everything[:: -(-len(everything) // max(SAMPLE, SAMPLE_COLUMNS // geo.shape.band))]
    share = sum(map(len, sample)) / problem.layout.nnz
    geo, counts, _, units = encode([group for band in sample for group in groups(band, geo)], geo)
    return wgrad_cost(problem, target, geo, counts, units, resident(geo, target), share)[0].seconds


def shapes(problem: Problem, target: Target) -> Iterator[WGradShape]:
    """Every shape worth a plan: about 64 accumulators a thread, stages that fit shared memory."""
    bands = {min(problem.layout.shape[1], band) for band in (1, 2, 4, 8, 16, 32)}
    for rows, panel, band in product((32, 64), _widths(problem), sorted(bands)):
        shape = WGradShape(8, 1, rows, panel, 3, 0, band)
        units = max(1, 64 // _geometry(problem, shape).accumulators)
        yield from _pipelines(replace(shape, units=units), problem, target)


def _geometry(problem: Problem, shape: WGradShape) -> WGradGeometry:
    return WGradGeometry(problem.block_size, math_of(problem), shape, problem.axis)


def _widths(problem: Problem) -> list[int]:
    """Features of a panel: 64 or 128 bytes of a row, but no more than a block, or one block (a unit) where features come first."""
    block, chunk = problem.block_size, math_of(problem).chunk
    if problem.feature_first:
        return [min(block, MAX_UNIT)]
    return sorted({min(chunks * chunk, max(block, 4 * chunk)) for chunks in (4, 8)})


def _pipelines(shape: WGradShape, problem: Problem, target: Target) -> Iterator[WGradShape]:
    """As many panels a stage as the units can use and shared memory holds, for one and two resident blocks."""
    geo = _geometry(problem, replace(shape, panels=1))
    useful = 2 * geo.capacity * (2 if geo.paired else 1)
    for blocks in range(1, min(2, by_registers(geo)) + 1):
        budget = occupancy.shared_memory_of(blocks, target) - TABLE_BYTES
        for stages in (3, 2):
            room = budget // (stages * geo.stage_bytes)
            if room >= 2 * max(1, geo.block // shape.panel):
                yield replace(shape, stages=stages, panels=min(room, useful))
                break


def assemble(problem: Problem, target: Target, geo: WGradGeometry) -> WGradPlan:
    """Group the blocks band by band and encode the groups."""
    found = [group for band in bands(problem, geo.shape.band) for group in groups(band, geo)]
    geo, counts, panels, units = encode(found, geo)
    cost, splits = wgrad_cost(problem, target, geo, counts, units, resident(geo, target))
    return WGradPlan(problem, target, geo, splits, counts, panels, units, cost)
