"""Plans for wgrad on Hopper: TMA brings rows of x and dy, warpgroups multiply x.T by dy (wgmma), for blocks of 32, 64 and 128.

A *panel* is some rows of the features of a block of x or dy, 64 features at most. A line of it, one swizzle line (64 or 128 bytes)
wide, is a row of its features, or where features come first (`axis` 0) the rows of one. A *unit* is the product that one wgmma
accumulates: 64 features of x times a block of dy. It stacks two blocks of 32 x 32 in one column, from any two rows: their panels
are as far apart as the leading dimension of the matrix descriptor says. Where features come first descriptors have no such
distance, and x passes through registers. The N rows are split among thread blocks of the same tile, whose sums a second kernel adds
in order. Thread blocks that run together walk the same rows at the same pace, so that x and dy pass through L2 once: tiles and
splits together fill whole rounds of SMs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np

from bsgen.outline import Grid, Launch, TensorMap, Workspace
from bsgen.plan.blocks import IntArray
from bsgen.plan.cost import Cost
from bsgen.plan.gates import gradient_lanes, gradient_launch
from bsgen.plan.gradient_cost import gradient_cost, tile_counts
from bsgen.plan.gradient_geometry import GradientGeometry
from bsgen.plan.gradient_tiles import NOTHING, Column, GradientTile, gradient_tiles, heights
from bsgen.plan.hopper import chosen
from bsgen.plan.tile import CHUNK_BYTES, math_of
from bsgen.plan.warpgroup import WARPGROUP_ROWS
from bsgen.problem import DType, Problem, Target
from bsgen.ranges import DEFAULT_ROWS

BLOCK_SIZES = (32, 64, 128)
BARRIER_BYTES = 1024  # two of 8 bytes a stage, and room to align
# Warpgroups that multiply, and accumulators of each of their threads; fewer warpgroups have registers for x beside as many units.
FROM_SHARED, THROUGH_REGISTERS = (3, 128), (2, 192)
RINGS = ((32, 3), (64, 3))  # rows of a stage, the least stages; copies of 16 rows came at less than half the rate
MOST_STAGES = 8
SPLITS, ROUNDS = (1, 2, 3, 4, 5, 6, 8, 11, 16), (1, 2, 3)
MAXIMUM_PANELS = 64  # of the 128 that the threads of the loading warps could bring
LEAST_STAGES = 8  # of a split: fewer do not pay for its sums
MOST_TARGETS, MANY_BLOCKS = 5, 8000  # numbers of tiles that are tried; of a layout of many blocks one
FULL = 1.06  # room for units over what tiles hold on average
REDUCE_THREADS = 256


@dataclass(frozen=True, eq=False)
class HopperWGradPlan:
    """A plan of wgrad by wgmma.

    Tile t loads `panels[t, :panel_counts[t]]`: the first feature f of a panel of x, ~f of one of dy. Its warpgroup g has
    `unit_counts[t, g]` units, `units[t, g, u]`: low words of the matrix descriptors of x.T and dy relative to a stage, and the
    chunks of dW where the first, and the second of two stacked blocks, begin (-1: none). Thread block i sums tile
    i % tiles over the `i // tiles`-th of `splits` parts of the N rows.
    """

    problem: Problem
    target: Target
    geometry: GradientGeometry
    height: int
    splits: int
    panel_counts: IntArray
    panels: IntArray
    unit_counts: IntArray
    units: IntArray
    cost: Cost

    @property
    def family(self) -> str:
        """hopper."""
        return "hopper"

    @property
    def template(self) -> str:
        """The template that renders it."""
        return "hopper/wgrad.cu.j2"

    @property
    def tiles(self) -> int:
        """Groups of blocks that are summed together."""
        return len(self.panels)

    @property
    def formula(self) -> str:
        """What it computes, but for gates."""
        return "x @ dy.T" if self.problem.feature_first else "x.T @ dy"

    @property
    def elements(self) -> int:
        """Elements of dW."""
        return self.problem.layout.nnz * self.problem.block_size**2

    @property
    def split_elements(self) -> int:
        """float32 elements of the sums of a split."""
        return self.tiles * self.geometry.capacity * self.geometry.unit_elements

    @property
    def shared_memory(self) -> int:
        """Dynamic shared memory, bytes."""
        return self.geometry.stages * self.geometry.stage_bytes + BARRIER_BYTES

    @property
    def blocks_per_sm(self) -> int:
        """A thread block takes all of an SM's registers."""
        return 1

    @property
    def entry(self) -> str:
        """Name of the main kernel: what a profiler shows."""
        problem = self.problem
        return f"bsgen_wgrad_b{problem.block_size}_{problem.dtype}_{self.family}_{problem.layout.digest}"

    @property
    def gated(self) -> bool:
        """Whether there are sums that gates multiply."""
        return self.problem.gate

    @property
    def coarse(self) -> bool:
        """Whether units sum more than is stored: those of wide blocks do not."""
        return False

    @property
    def summed_later(self) -> bool:
        """Whether sums pass through the workspace to a second kernel: those of splits, and those that gates multiply."""
        return self.splits > 1 or self.gated

    @property
    def stores_lines(self) -> bool:
        """Whether results pass through shared memory on their way to dW, so that whole lines are stored: those of 16 bits."""
        return not (self.summed_later or self.problem.wgrad_dtype)

    @property
    def gradient_lanes(self) -> int:
        """Threads that sum a block's part of the gates' gradients."""
        return gradient_lanes(self.problem)

    @property
    def workspace(self) -> Workspace:
        """Partial sums, [splits, tiles, units, 64, b]; none when the first kernel writes dW."""
        return Workspace(fixed=self.splits * self.split_elements if self.summed_later else 0)

    @cached_property
    def sum_places(self) -> IntArray:
        """Where the sums of each stored block are among a split's, [nnz, parts]: in rows of b, of which a part has up to 64."""
        geo, blocks = self.geometry, self.problem.layout.nnz
        chunks = self.units[..., 2 : 2 + geo.stacked]  # [tiles, groups, units, stacked]
        used = np.flatnonzero(chunks != NOTHING)
        rows = used // geo.stacked * WARPGROUP_ROWS + used % geo.stacked * geo.block
        part = chunks.ravel()[used] // (geo.block**2 // geo.math.chunk // geo.parts)
        places = np.zeros(blocks * geo.parts, np.int32)
        places[part] = rows
        return places.reshape(blocks, geo.parts)

    @property
    def maps(self) -> tuple[TensorMap, TensorMap]:
        """How TMA sees x and dy."""
        geo, problem, dtype = self.geometry, self.problem, str(self.problem.dtype)
        features = {"x": problem.in_features, "dy": problem.out_features}
        if problem.feature_first:
            x, dy = (TensorMap(name, 0, height, geo.rows, geo.depth, dtype) for name, height in features.items())
        else:
            x, dy = (TensorMap(name, width, 0, geo.depth, geo.rows, dtype) for name, width in features.items())
        return x, dy

    @cached_property
    def launches(self) -> tuple[Launch, ...]:
        """The main kernel, and the reduction over splits or for gates where there are any."""
        geo, maps = self.geometry, self.maps
        destination, tail = (("workspace",), ("n",)) if self.summed_later else (("out",), ("n", "accumulate"))
        arguments = (*(tensor_map.argument for tensor_map in maps), *destination, *tail)
        main = Launch(
            self.entry, Grid(self.tiles * self.splits), geo.threads, self.shared_memory, arguments, maps, dependent=True
        )
        if not self.summed_later:
            return (main,)
        if self.gated:
            return main, gradient_launch(self.entry, self.problem)
        grid = Grid(self.tiles * geo.capacity)
        arguments = ("workspace", "out", "accumulate")
        return main, Launch(f"{self.entry}_reduce", grid, REDUCE_THREADS, 0, arguments, dependent=True)

    @property
    def summary(self) -> str:
        """One line: the tiles, the ring, and the splits of N."""
        geo = self.geometry
        return (
            f"wgmma_{geo.math.ptx}, {self.tiles} tiles in bands of {self.height}, {geo.groups} warpgroups of up to "
            f"{geo.units} units of 64 x {geo.block}, {geo.stages} stages of {geo.rows} rows, {geo.panels} panels, "
            f"{self.splits} splits of N{', gated' * self.gated}"
        )


def serves(problem: Problem, target: Target) -> bool:
    """Whether this family can do it: wgmma has no TF32 with contiguous features."""
    served = problem.block_size in BLOCK_SIZES and problem.dtype is not DType.FLOAT32
    return target.arch == "sm_90a" and served and problem.layout.nnz > 0


def geometries(problem: Problem, target: Target) -> Iterator[GradientGeometry]:
    """Every ring that has room for a tile."""
    budget = target.shared_memory - BARRIER_BYTES
    stacked = problem.block_size < WARPGROUP_ROWS
    threads = THROUGH_REGISTERS if problem.feature_first and stacked else FROM_SHARED
    for rows, stages in RINGS:
        geo = GradientGeometry(problem.block_size, math_of(problem), *threads, rows, stages, axis=problem.axis)
        geo = replace(geo, panels=min(MAXIMUM_PANELS, budget // (stages * geo.panel_bytes)))
        if geo.room.longest:
            yield geo


@dataclass(frozen=True, eq=False)
class Draft:
    """A candidate before its tables are encoded."""

    geometry: GradientGeometry
    height: int
    splits: int
    tiles: Sequence[GradientTile]
    cost: Cost


def drafts(problem: Problem, target: Target) -> Iterator[Draft]:
    """Every ring with every number of tiles worth trying, every band, and every split of N."""
    if not serves(problem, target):
        return
    rows = problem.batch or DEFAULT_ROWS
    for geo in geometries(problem, target):
        for units in sizes(problem, target, geo):
            room = replace(geo.room, units=units)
            for height in heights(problem, room):
                tiles = gradient_tiles(problem, room, height)
                counts = tile_counts(tiles, geo)
                ring = _ring(replace(geo, panels=int(counts.panels.max())), target)
                for splits in SPLITS:
                    if splits == 1 or rows // geo.rows >= LEAST_STAGES * splits:
                        cost = gradient_cost(problem, target, ring, counts, splits)
                        yield Draft(ring, height, splits, tiles, cost)


def _ring(geo: GradientGeometry, target: Target) -> GradientGeometry:
    """With as many stages as there is room for."""
    return replace(geo, stages=min(MOST_STAGES, (target.shared_memory - BARRIER_BYTES) // geo.stage_bytes))


def sizes(problem: Problem, target: Target, geo: GradientGeometry) -> list[int]:
    """Units of a tile for which tiles and splits fill whole rounds of SMs, the largest first."""
    columns = np.bincount(problem.layout.blocks[:, 1])
    units = sum(geo.room.units_of(int(count)) for count in columns if count)
    found = {math.ceil(FULL * units / (target.sms * rounds // splits)) for rounds, splits in product(ROUNDS, SPLITS)}
    fitting = sorted((size for size in found if geo.parts <= size <= geo.capacity), reverse=True)
    return (fitting or [geo.capacity])[: 1 if problem.layout.nnz > MANY_BLOCKS else MOST_TARGETS]


def candidates(problem: Problem, target: Target) -> Iterator[HopperWGradPlan]:
    """Plans of all drafts, to measure."""
    for draft in drafts(problem, target) if chosen(problem) else ():
        yield assemble(problem, target, draft)


def shortlist(problem: Problem, target: Target, limit: float = math.inf) -> Iterator[HopperWGradPlan]:
    """The plan of the cheapest draft, if below `limit` seconds."""
    yield from (assemble(problem, target, draft) for draft in cheapest(problem, drafts(problem, target), limit))


def cheapest(problem: Problem, given: Iterable[Draft], limit: float) -> Iterator[Draft]:
    """The cheapest, if there is one below `limit` seconds and these plans take part in the choice."""
    best = min(given if chosen(problem) else (), key=lambda draft: draft.cost.seconds, default=None)
    if best is not None and best.cost.seconds < limit:
        yield best


def assemble(problem: Problem, target: Target, draft: Draft) -> HopperWGradPlan:
    """Encode the tables of a draft."""
    geo = draft.geometry
    encoded = [_encode(tile, geo) for tile in draft.tiles]
    panels = np.zeros((len(encoded), geo.panels), np.int32)
    for row, (tile_panels, _, _) in zip(panels, encoded, strict=True):
        row[: len(tile_panels)] = tile_panels
    return HopperWGradPlan(
        problem, target, geo, draft.height, draft.splits,
        np.array([len(tile_panels) for tile_panels, _, _ in encoded], np.int32), panels,
        np.array([counts for _, counts, _ in encoded], np.int32), np.array([units for _, _, units in encoded], np.int32),
        draft.cost,
    )  # fmt: skip


def _encode(tile: GradientTile, geo: GradientGeometry) -> tuple[list[int], list[int], IntArray]:
    """Panels, units of each warpgroup, and the units of a tile."""
    names = sorted({column.column for column in tile.columns})
    x_place = {int(row): place * geo.parts for place, row in enumerate(tile.rows)}
    y_place = {name: (len(tile.rows) + place) * geo.parts for place, name in enumerate(names)}
    parts = range(0, geo.block, geo.depth)
    panels = [int(row) * geo.block + part for row in tile.rows for part in parts]
    panels += [~(name * geo.block + part) for name in names for part in parts]
    found = [unit for column in tile.columns for unit in _column_units(column, x_place, y_place[column.column], geo)]
    units = np.full((geo.groups, geo.units, 4), NOTHING, np.int32)
    counts = [0] * geo.groups
    for index, unit in enumerate(found):  # to each warpgroup in turn
        group = index % geo.groups
        units[group, counts[group]] = unit
        counts[group] += 1
    return panels, counts, units


def _column_units(
    column: Column, x_place: dict[int, int], y_place: int, geo: GradientGeometry
) -> Iterator[tuple[int, int, int, int]]:
    rows, blocks = column.rows.tolist(), column.blocks.tolist()
    chunk = geo.panel_bytes // CHUNK_BYTES
    right = y_place * chunk | (chunk << 16 if geo.parts > 1 else 0)
    size = geo.block**2 // geo.math.chunk
    for begin in range(0, len(rows), geo.stacked):
        places = [x_place[row] for row in rows[begin : begin + geo.stacked]]
        first = blocks[begin] * size
        if geo.stacked > 1:
            apart = (places[-1] - places[0]) * chunk
            second = blocks[begin + 1] * size if len(places) > 1 else NOTHING
            yield places[0] * chunk | apart << 16, right, first, second
            continue
        for part in range(geo.parts):
            yield (places[0] + part) * chunk, right, first + part * size // geo.parts, NOTHING
