"""Plans for fprop and dgrad on Hopper: TMA rings and warpgroups that multiply (wgmma), for blocks of 32, 64 and 128."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from bsgen.outline import Grid, Launch, TensorMap
from bsgen.plan.blocks import IntArray, OutputBlocks, Part, Reduction, output_blocks
from bsgen.plan.cost import Cost
from bsgen.plan.grouping import Grouping, Tiles, alike, groupings, joinable, neighbours, similar
from bsgen.plan.hopper_cost import Counts, hopper_cost, tile_counts
from bsgen.plan.hopper_shapes import ACROSS, BARRIER_BYTES, MORE_STAGES, few_rows, rings_worth, shapes, stores_fit
from bsgen.plan.product import NO_OUTPUT, ProductPlan
from bsgen.plan.ring_records import (
    COUNT_BITS,
    PRODUCT_PAIRED,
    RingStage,
    encode_loads,
    encode_records,
    record_bytes,
)
from bsgen.plan.rings import pack, tile_items
from bsgen.plan.shared_rings import pack_together
from bsgen.plan.streamed import Kept
from bsgen.plan.warpgroup import (
    HALF_LINE,
    LINE_BYTES,
    WARPGROUP_ROWS,
    WarpgroupGeometry,
    WarpgroupShape,
    residual_panels,
    streamed,
    warpgroup_geometry,
)
from bsgen.problem import DType, Op, Precision, Problem, Target
from bsgen.ranges import DEFAULT_ROWS

BLOCK_SIZES = (32, 64, 128)
FITTING_STAGES = ((1.75, 3), (1.0, 4))  # the most stages where a tile fills the ring so often
# Places of the inputs at which tiles of few rows begin, and the density from which on that was faster than one.
PHASES, PHASED_DENSITY = 4, 0.1
IDLE = 0.05  # the share of inputs that no block uses from which on L2 had better not fetch two of 64 bytes for one
WEIGHTS_BYTES, BAND_BYTES = 12 << 20, 16 << 20  # of W and of a band's activations that stay in the 50 MiB of L2


@dataclass(frozen=True, eq=False)
class HopperPlan(ProductPlan):
    """A plan of fprop or dgrad by wgmma: a stage's loads are a row of `loads`, what follows is a row of `records`.

    Thread blocks work on `band` rows of tiles together, group of output blocks after group. Of `streamed` weights L2 keeps a part.
    """

    geometry: WarpgroupGeometry
    loads: IntArray
    records: IntArray
    band: int
    streamed: Kept | None

    @property
    def family(self) -> str:
        """hopper."""
        return "hopper"

    @property
    def template(self) -> str:
        """The template that renders it."""
        return "hopper/matmul.cu.j2"

    @property
    def loads_a_stage(self) -> int:
        """Words of a stage in `loads`."""
        return int(self.loads.shape[1])

    @property
    def record_bytes(self) -> int:
        """Bytes of a record."""
        return record_bytes(self.geometry)

    @property
    def shared_memory(self) -> int:
        """Dynamic shared memory, bytes."""
        shape = self.geometry.shape
        return shape.rings * shape.stages * shape.stage_bytes + BARRIER_BYTES + shape.scratch_bytes

    @property
    def multiply(self) -> str:
        """The template of a tile's multiplies."""
        geo = self.geometry
        return "multiply_turned" if geo.turned else "multiply_direct" if geo.direct else "multiply"

    @property
    def store(self) -> str:
        """The template of what follows a tile's multiplies."""
        if self.problem.feature_first:
            return "store_features"
        return "store_turned" if self.geometry.turned else "store"

    @property
    def across(self) -> int:
        """As the shape says."""
        return self.geometry.shape.across

    @cached_property
    def pairs(self) -> bool:
        """Whether panels come in pairs anywhere."""
        return self.across == 1 and bool((self.loads[:, 0] >> 16).any())

    @property
    def early_biases(self) -> bool:
        """Whether warps read a tile's biases at its begin, where that leaves them registers enough for split outputs, too."""
        bias = self.problem.epilogue.bias and self.geometry.biases_ahead
        return bias and not (self.reductions and self.pairs)

    @property
    def load_words(self) -> str:
        """What a stage's row of `loads` begins with, for readers of the kernel."""
        if self.across > 1:
            return "copies | boxes << 8 | places for panels << 16 | panels << 24; panel | place << 16 | ranks << 24 of each copy"
        if self.pairs:
            return (
                "copies of panels | boxes << 8 | those of the copies that bring two panels << 16, first feature of each"
            )
        return "panels | boxes << 8, first feature of each"

    @property
    def record_words(self) -> str:
        """What a row of `records` holds, for readers of the kernel."""
        if self.geometry.direct:
            count = "their number" if self.geometry.shape.joined else "counts of each slot << 8 * slot"
            return f"byte of the first product, {count}, for each column of warpgroups; products"
        return "byte of the first visit | visits << 16 for each column of warpgroups; visits"

    @property
    def product_paired(self) -> int:
        """Bit of a product that says that its panel is one of a pair; those below say where the panel is."""
        return PRODUCT_PAIRED

    @property
    def count_bits(self) -> int:
        """Bits of the number of products of a slot."""
        return COUNT_BITS

    @property
    def residual_panels(self) -> int:
        """Panels of the residual that come through the ring at a tile's end."""
        return residual_panels(self.problem, self.geometry)

    @property
    def residual_parts(self) -> int:
        """Stages that bring it; 0 if none does."""
        return self.geometry.residual_parts if self.residual_panels else 0

    @property
    def blocks_per_sm(self) -> int:
        """Persistent thread blocks have an SM each."""
        return 1

    @cached_property
    def maps(self) -> tuple[TensorMap, ...]:
        """How TMA sees the activations and W, and the residual where it comes through the ring."""
        geo, problem, dtype = self.geometry, self.problem, str(self.problem.dtype)
        if problem.feature_first:
            activations = TensorMap(self.activations, 0, self.features[0], WARPGROUP_ROWS, geo.depth, dtype)
        else:
            half = geo.row_bytes == HALF_LINE and output_blocks(problem).idle > IDLE
            fetched = HALF_LINE if half else LINE_BYTES
            activations = TensorMap(
                self.activations, self.features[0], 0, geo.depth, geo.shape.rows, dtype, fetched=fetched
            )
        rows = problem.layout.nnz * problem.block_size
        weights = TensorMap(self.weights, problem.block_size, rows, geo.box_columns, geo.box_rows, dtype)
        residual = TensorMap("residual", self.features[1], 0, geo.store_columns, geo.residual_rows, dtype)
        pairs = replace(activations, box_columns=2 * geo.depth, name=f"{self.activations}_pairs", fetched=LINE_BYTES)
        return (activations, *[pairs] * self.pairs, weights, *[residual] * bool(self.residual_panels))

    @cached_property
    def launches(self) -> tuple[Launch, ...]:
        """The main kernel, after weights are gated, and the reduction of split output blocks when there are any."""
        shape, maps = self.geometry.shape, self.maps
        tail = (name for name in self.tail_arguments if name != "residual" or not self.residual_panels)
        arguments = (*(tensor_map.argument for tensor_map in maps), *tail)
        grid = Grid(self.tile_groups, shape.rows * shape.cluster, persistent=True, cluster=shape.thread_blocks)
        main = Launch(self.entry, grid, shape.threads, self.shared_memory, arguments, maps, dependent=True)
        return *self.gate_launches, main, *self.reduce_launches

    @property
    def summary(self) -> str:
        """One line: the tile, the pipeline and how the outputs are grouped."""
        geo, shape = self.geometry, self.geometry.shape
        return (
            f"wgmma_{geo.math.ptx}{' turned' * geo.turned}, tile {shape.rows} x {shape.tile_slots * geo.block}, "
            f"{shape.row_groups} x {shape.columns} warpgroups of {64 * shape.m_tiles} x {shape.slots * geo.block}, "
            f"{f'clusters of {shape.cluster}, ' * (shape.cluster > 1)}{f'{shape.across} across, ' * (shape.across > 1)}"
            f"{'joined, ' * shape.joined}{'paired, ' * shape.paired}{'coupled, ' * geo.coupled}"
            f"{f'{shape.rings} rings of ' * (shape.rings > 1)}{shape.stages} stages of {shape.stage_bytes // 1024} KiB, "
            f"{self.grouping} groups"
            f"{f' in bands of {self.band}' * (self.band > 1)}{self.streamed.text if self.streamed else ''}"
            f"{self.split_text}{self.gate_text}"
        )


def serves(problem: Problem, target: Target) -> bool:
    """Whether this family can do it: wgmma takes TF32 only where inputs are contiguous in activations."""
    if target.arch != "sm_90a" or problem.block_size not in BLOCK_SIZES or not problem.layout.nnz:
        return False
    if problem.dtype is DType.FLOAT32:
        return problem.precision is Precision.TENSOR and problem.op is not Op.WGRAD and not problem.feature_first
    return True


@dataclass(frozen=True, eq=False)
class Draft:
    """A candidate before its stages are cut, with its cost."""

    geometry: WarpgroupGeometry
    band: int
    grouping: str
    tiles: Tiles
    reductions: tuple[Reduction, ...]
    cost: Cost


def drafts(
    problem: Problem, target: Target, across: Sequence[int] = ACROSS, rings: Sequence[int] = ()
) -> Iterator[Draft]:
    """Every shape with every grouping; `across`: how many thread blocks may share activations, `rings` how many one may have, those
    worth considering where none are given."""
    if not serves(problem, target):
        return
    view = output_blocks(problem)
    ways: dict[tuple[int, ...], list[Grouping]] = {}
    counted: dict[tuple[int, ...], Counts] = {}
    for shape in shapes(problem, target, across, rings or rings_worth(problem, view.idle), view.alike):
        geo = warpgroup_geometry(problem, shape)
        for width in (1, 2)[: 1 + shape.paired]:
            key = shape.columns, shape.slots, geo.store_slots, width, shape.joined
            if key not in ways:
                found = _groupings(view, geo, target, width)
                ways[key] = [way for way in found if joinable(way[1], shape.product_slots)]
            for index, (grouping, parts, reductions) in enumerate(ways[key]):
                if not stores_fit(problem, geo, bool(reductions)):
                    continue
                tiles, count = _filled_up(parts, shape), (*key, shape.paired, shape.across, index)
                if count not in counted:
                    counted[count] = tile_counts(tiles, view.inputs_total, geo)
                partials = sum(reduction.count for reduction in reductions)
                cost = hopper_cost(problem, target, geo, counted[count], view.idle, partials)
                for band in bands(problem, geo):
                    yield Draft(geo, band, grouping, tiles, reductions, cost)


def _filled_up(tiles: Tiles, shape: WarpgroupShape) -> Tiles:
    """With tiles of nothing, so that those of clusters have neighbours."""
    empty: list[Part | None] = [None] * shape.tile_slots
    return [*tiles, *[empty] * (-len(tiles) % shape.across)]


def _groupings(view: OutputBlocks, geo: WarpgroupGeometry, target: Target, width: int) -> Iterator[Grouping]:
    """Ways to fill tiles where inputs come one at a time; or `width` at a time, those that this adds."""
    shape = geo.shape
    if width == 1 and shape.joined:
        yield from alike(view, shape.tile_slots, geo.store_slots)
    if width == 1 and geo.coupled:
        yield from neighbours(view, shape.columns, shape.slots)
    elif width == 1:
        yield from groupings(view, shape.columns, shape.slots, target)
    yield from similar(view, shape.tile_slots, width, geo.store_slots)


def candidates(problem: Problem, target: Target) -> Iterator[HopperPlan]:
    """Plans of all drafts, to measure."""
    for draft in drafts(problem, target) if chosen(problem) else ():
        yield assemble(problem, target, draft)


def chosen(problem: Problem) -> bool:
    """Whether plans take part in the choice: TMA can read lines of N elements only where they are whole chunks of 16 bytes."""
    return (problem.batch or DEFAULT_ROWS) % problem.row_unit == 0


def shortlist(problem: Problem, target: Target, limit: float = math.inf) -> Iterator[HopperPlan]:
    """The plan of the cheapest draft, if below `limit` seconds; of rings, which are alike in cost, the one that suits its tiles."""
    ranked = sorted(drafts(problem, target) if chosen(problem) else (), key=lambda draft: draft.cost.seconds)
    if ranked and ranked[0].cost.seconds < limit:
        yield assemble(problem, target, suited(problem, ranked))


def suited(problem: Problem, drafts: Sequence[Draft]) -> Draft:
    """Of the cheapest, which are alike but for their rings, the one that suits its tiles."""
    least = min(draft.cost.seconds for draft in drafts)
    alike = [draft for draft in drafts if draft.cost.seconds <= least]
    return max(alike, key=partial(suitable, few=few_rows(problem)))


def suitable(draft: Draft, few: bool) -> float:
    """How well a ring suits the tile with most work (and its neighbours across): by the bytes that it holds when full. Where rows
    are few, by its stages: many small ones where a tile fills less than the ring, for the first has come the earlier, few large
    ones where it is more, for each has a price. The numbers are those that were fastest for 14 layouts (tests/gpu/README.md)."""
    geo, shape = draft.geometry, draft.geometry.shape
    work = [sum(part.work for part in tile if part is not None) for tile in draft.tiles]
    first = work.index(max(work)) // shape.across * shape.across
    stages, _ = cut(draft.tiles[first : first + shape.across], geo)
    used = sum(len(stage.panels) * geo.panel_bytes + stage.piece_count * geo.piece_bytes for stage in stages)
    if not few or shape.multiplied_rows > WARPGROUP_ROWS:
        return used / max(1, len(stages)) * shape.stages
    fills = used / shape.across / (shape.stages * shape.stage_bytes)
    most = next((most for least, most in FITTING_STAGES if fills >= least), max(MORE_STAGES))
    return shape.stages if shape.stages <= most else -shape.stages


def bands(problem: Problem, geo: WarpgroupGeometry) -> tuple[int, ...]:
    """Rows of tiles in a band. W passes through L2 once for each band, so where it does not stay there, higher bands, with as many
    activations as L2 has room for, are worth timing; the model does not tell them apart, and the choice is one row."""
    if problem.layout.nnz * problem.block_size**2 * geo.itemsize <= WEIGHTS_BYTES:
        return (1,)
    features = problem.in_features if problem.op is Op.FPROP else problem.out_features
    room_for = BAND_BYTES // (features * geo.itemsize * geo.shape.rows * geo.shape.cluster)
    return (1, room_for) if room_for > 1 else (1,)


def cut(
    tiles: Sequence[Sequence[Part | None]], geo: WarpgroupGeometry, panels: int = 0
) -> tuple[list[RingStage], IntArray]:
    """The stages of all tiles, one after the other, and where each tile's begin. Tiles of `panels` begin at PHASES of them, not all
    at the first."""
    stages: list[RingStage] = []
    starts = [0]
    for place in range(0, len(tiles), geo.shape.across):
        phase = place * PHASES // len(tiles)
        first = phase * panels // PHASES // 2 * 2  # an even one, where pairs begin
        items = [tile_items(tile, geo, first) for tile in tiles[place : place + geo.shape.across]]
        for own in pack_together(items, geo, first) if len(items) > 1 else [list(pack(items[0], geo))]:
            stages += own
            starts.append(len(stages))
    return stages, np.array(starts, np.int32)


def _panels_in_phases(problem: Problem, geo: WarpgroupGeometry) -> int:
    """The panels of a row of tiles, if thread blocks had better not all read the same at a time: where rows are few, so that they
    stay in L2, and each is read by many. With many rows it is device memory that they should read together."""
    rows, columns = problem.layout.shape
    phased = few_rows(problem) and problem.layout.density >= PHASED_DENSITY
    return geo.slices * (rows if problem.op is Op.FPROP else columns) if phased else 0


def assemble(problem: Problem, target: Target, draft: Draft) -> HopperPlan:
    """Cut the tiles into stages and encode them."""
    geo = draft.geometry
    stages, starts = cut(draft.tiles, geo, _panels_in_phases(problem, geo))
    targets = [[NO_OUTPUT if part is None else part.target for part in tile] for tile in draft.tiles]
    return HopperPlan(
        problem, target, draft.grouping, starts, np.array(targets, np.int32), draft.reductions, draft.cost,
        geo, encode_loads(stages, geo), encode_records(stages, geo), draft.band, streamed(problem, geo),
    )  # fmt: skip
