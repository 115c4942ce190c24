"""Shapes of the Hopper kernels: warpgroups and their accumulators, and how TMA and wgmma lay matrices out in shared memory.

A *panel* is the activations of one input block, or of a slice of it, for all rows of a tile; a *piece* is what of a stored block
multiplies it. Both arrive by TMA in boxes of one swizzle line (64 or 128 bytes) a row. Where features come first, a line of a panel
is 64 rows of one feature, and a box as many lines as the panel has features. Matrix descriptors and fragments are
those of the PTX ISA, section "Asynchronous warpgroup level matrix multiply-accumulate instructions".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from bsgen.plan.registers import WARPGROUP_WARPS, SharedRegisters
from bsgen.plan.streamed import Kept, kept_blocks
from bsgen.plan.tile import CHUNK_BYTES, Math, math_of
from bsgen.problem import Op, Problem

LINE_BYTES, HALF_LINE = 128, 64  # of L2
ATOM_ROWS = 8
WARPGROUP_ROWS = 64
NARROW = 32
OTHER_REGISTERS = 28  # of a multiplying thread, beside accumulators and fragments
ALL_REGISTERS, LEAST_REGISTERS = 168, 24  # of a thread of three warpgroups; with which one can load
MOST_BESIDE_BIASES = 64  # accumulators, beside which it has registers for the biases of its outputs


@dataclass(frozen=True)
class WarpgroupShape(SharedRegisters):
    """What a candidate decides: warpgroups down and across a tile, 64-row tiles and output blocks of each, and the ring.

    Thread blocks of a cluster have the same output blocks and neighbouring rows: each piece of W is loaded once for all. Or they
    lie `across`, with the same rows and output blocks of their own: a panel is loaded once for those that need it.
    A tile of `few` rows (a multiple of 8, 0: none) loads no more of the 64 that are multiplied; the others are never stored.
    Where panels are `paired`, two neighbours that a tile needs come as one, in lines of 128 bytes: L2 looks up a line no faster for
    half of it. Results are stored in pieces of rows of `store_bytes`, of one output block or of two neighbours.
    A thread block may have several `rings`, each with warpgroups and stages (all these numbers are of one ring) and tiles of its
    own: while those of one store results, those of the other multiply.
    Where it is `crowded`, two warpgroups hold so many sums that they need all registers that there are.
    Where all output blocks of each warpgroup have the same inputs, products may be `joined`: one multiplies a panel by all of them.
    """

    row_groups: int
    columns: int
    m_tiles: int
    slots: int
    cluster: int = 1
    few: int = 0
    paired: bool = False
    store_bytes: int = 64
    across: int = 1
    rings: int = 1
    stages: int = 0
    stage_bytes: int = 0
    crowded: bool = False
    joined: bool = False

    @property
    def groups(self) -> int:
        """Warpgroups that multiply a tile."""
        return self.row_groups * self.columns

    @property
    def most_launch_registers(self) -> int:
        """The most registers of a thread at launch: all, where two warpgroups are to hold many sums."""
        return ALL_REGISTERS if self.crowded else super().most_launch_registers

    @property
    def producer_registers(self) -> int:
        """Registers of a thread that loads."""
        return LEAST_REGISTERS if self.crowded else super().producer_registers

    @property
    def thread_blocks(self) -> int:
        """Thread blocks of a cluster."""
        return self.cluster * self.across

    @property
    def scratch_bytes(self) -> int:
        """Shared memory through which results are stored."""
        return ATOM_ROWS * self.store_bytes * WARPGROUP_WARPS * self.groups * self.rings

    @property
    def rows(self) -> int:
        """Rows of a tile."""
        return self.few or self.multiplied_rows

    @property
    def multiplied_rows(self) -> int:
        """Rows that the warpgroups multiply."""
        return WARPGROUP_ROWS * self.m_tiles * self.row_groups

    @property
    def tile_slots(self) -> int:
        """Output blocks of a tile."""
        return self.columns * self.slots

    @property
    def product_slots(self) -> int:
        """Output blocks that one product is of, where panels are multiplied where they lie."""
        return self.slots if self.joined else 1

    @property
    def consumer_groups(self) -> int:
        """Warpgroups that multiply, of all rings; those that load are shared among them."""
        return self.groups * self.rings


@dataclass(frozen=True)
class WarpgroupGeometry:
    """Sizes that follow from a problem and a shape; the template uses these names as its constants."""

    op: Op
    block: int
    math: Math
    shape: WarpgroupShape
    axis: int = 1

    @cached_property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return 16 // self.math.chunk

    @cached_property
    def depth(self) -> int:
        """Inputs of a panel: a block, or what of it fits a swizzle line."""
        return min(self.block, LINE_BYTES // self.itemsize)

    @cached_property
    def slices(self) -> int:
        """Panels of an input block."""
        return self.block // self.depth

    @cached_property
    def step(self) -> int:
        """Inputs of a multiply step."""
        return self.math.depth

    @cached_property
    def steps(self) -> int:
        """Multiply steps of a panel."""
        return self.depth // self.step

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of a row of a panel, and of a box of W: the width of the swizzle."""
        return self.depth * self.itemsize

    @cached_property
    def panel_bytes(self) -> int:
        """Bytes of a panel."""
        return self.row_bytes * self.shape.rows

    @cached_property
    def coupled(self) -> bool:
        """Whether results of two neighbouring output blocks are stored together, as a line of L2: it costs as much as half of one,
        but such blocks may share fewer inputs than others would."""
        return self.store_slots > 1

    @cached_property
    def store_columns(self) -> int:
        """Outputs of a row that are stored together."""
        return self.shape.store_bytes // self.itemsize

    @cached_property
    def store_chunks(self) -> int:
        """And their chunks of 16 bytes."""
        return self.shape.store_bytes // CHUNK_BYTES

    @cached_property
    def store_slots(self) -> int:
        """Output blocks whose results are stored together."""
        return max(1, self.store_columns // self.block)

    @cached_property
    def residual_parts(self) -> int:
        """Stages that bring a tile's residual: one, or where it does not fit one for each 64-row tile."""
        whole = self.shape.tile_slots * self.block * self.itemsize * self.shape.rows
        return 1 if whole <= self.shape.stage_bytes or self.shape.row_groups > 1 else self.shape.m_tiles

    @cached_property
    def residual_rows(self) -> int:
        """Rows of a panel of the residual."""
        return self.shape.rows // self.residual_parts

    @cached_property
    def residual_bytes(self) -> int:
        """Bytes of a panel of the residual."""
        return self.shape.store_bytes * self.residual_rows

    @cached_property
    def panel_boxes(self) -> int:
        """Boxes of a panel."""
        return 1 if self.axis else self.shape.rows // WARPGROUP_ROWS

    @cached_property
    def panel_box_rows(self) -> int:
        """Rows of a box of a panel."""
        return self.shape.rows // self.panel_boxes

    @cached_property
    def panel_line_bytes(self) -> int:
        """Bytes of a line of a panel: a row of its features, or where features come first 64 rows of one."""
        return self.row_bytes if self.axis else LINE_BYTES

    @cached_property
    def panel_box_bytes(self) -> int:
        """Bytes of a box of a panel."""
        return self.panel_bytes // self.panel_boxes

    @cached_property
    def panel_step_bytes(self) -> int:
        """From one multiply step to the next in a panel: along its rows, or to further features."""
        return self.step * (self.itemsize if self.axis else self.panel_line_bytes)

    @cached_property
    def box_columns(self) -> int:
        """Elements of a row of a box of W."""
        return self.depth

    @cached_property
    def box_rows(self) -> int:
        """Rows of a box of W: the inputs of a piece for fprop, its outputs for dgrad."""
        return self.depth if self.op is Op.FPROP else self.block

    @cached_property
    def box_bytes(self) -> int:
        """Bytes of a box."""
        return self.row_bytes * self.box_rows

    @cached_property
    def boxes_across(self) -> int:
        """Boxes side by side in a stored block."""
        return self.block // self.box_columns

    @cached_property
    def piece_boxes(self) -> int:
        """Boxes of a piece: for fprop all that lie side by side, for dgrad one of them."""
        return self.boxes_across if self.op is Op.FPROP else 1

    @cached_property
    def piece_bytes(self) -> int:
        """Bytes of a piece."""
        return self.piece_boxes * self.box_bytes

    @cached_property
    def weights_transposed(self) -> int:
        """Whether outputs are contiguous in a piece (MN-major), as wgmma's immediate: fprop's are, dgrad's inputs are."""
        return int(self.op is Op.FPROP)

    @cached_property
    def panel_transposed(self) -> int:
        """Whether rows, not inputs, are contiguous in a panel (MN-major), as wgmma's immediate."""
        return 1 - self.axis

    @cached_property
    def weights_high(self) -> int:
        """High word of a piece's matrix descriptor: bytes between groups of 8 rows, and the swizzle."""
        return descriptor_high(self.row_bytes)

    @cached_property
    def panel_high(self) -> int:
        """High word of a panel's matrix descriptor, where panels are not loaded into registers."""
        return descriptor_high(self.panel_line_bytes)

    @cached_property
    def pair_high(self) -> int:
        """And of a panel in lines that it shares with another."""
        return descriptor_high(LINE_BYTES)

    @cached_property
    def tile_step(self) -> int:
        """From a 64-row tile to the next in a panel, in 16 bytes; twice as far in one of a pair."""
        return WARPGROUP_ROWS * self.row_bytes >> 4

    @cached_property
    def weights_low(self) -> int:
        """Low word of the descriptor without the address: bytes between boxes that lie side by side."""
        return self.box_bytes >> 4 << 16

    @cached_property
    def weights_step(self) -> int:
        """From one multiply step to the next in a piece, in 16 bytes: rows for fprop, along them for dgrad."""
        return (self.step * self.row_bytes if self.op is Op.FPROP else self.step * self.itemsize) >> 4

    @cached_property
    def accumulators(self) -> int:
        """float32 accumulators of a thread."""
        return self.shape.m_tiles * self.shape.slots * self.block // 2

    @cached_property
    def in_registers(self) -> bool:
        """Whether activations pass through registers: where blocks are narrow, so that shared memory is read once for all slots of
        a warpgroup, if sums leave registers for them."""
        if self.turned or self.shape.joined:
            return False
        left = self.shape.consumer_registers - self.accumulators - OTHER_REGISTERS
        return self.block <= NARROW and 4 * self.steps * self.shape.m_tiles <= left

    @cached_property
    def direct(self) -> bool:
        """Whether both operands of wgmma are where TMA wrote them, for product after product of each slot, or of all joined."""
        return not self.turned and not self.in_registers

    @cached_property
    def turned(self) -> bool:
        """Whether products are turned."""
        return is_turned(self.op, self.math)

    @cached_property
    def step_products(self) -> int:
        """Products of a multiply step: one for each 64-row tile, or where they are turned one for all rows."""
        return 1 if self.turned else self.shape.m_tiles

    @cached_property
    def fragments(self) -> int:
        """Registers of a visit's fragments: of the panel's rows, or where products are turned of its pieces."""
        return 4 * self.steps * self.step_products if self.in_registers or self.turned else 0

    @cached_property
    def halves(self) -> int:
        """Parts of 64 outputs of a warpgroup whose products are turned, which one multiply step has; else one."""
        return self.shape.slots * self.block // WARPGROUP_ROWS if self.turned else 1

    @cached_property
    def multiply_columns(self) -> int:
        """Columns of a multiply step: outputs, or where products are turned rows."""
        return WARPGROUP_ROWS * self.shape.m_tiles if self.turned else self.shape.product_slots * self.block

    @cached_property
    def double_buffered(self) -> bool:
        """Whether fragments of two visits fit the registers; where a visit's pieces are several halves, they take turns."""
        return self.fragments > 0 and self.halves == 1 and self.registers(2) <= self.shape.consumer_registers

    @cached_property
    def biases_ahead(self) -> bool:
        """Whether a tile's biases, two to a register, are read at its begin: in time, where its sums leave them room. Features
        first and turned products read them as they are stored."""
        return self.accumulators <= MOST_BESIDE_BIASES and bool(self.axis) and not self.turned

    def registers(self, buffers: int) -> int:
        """Registers of a multiplying thread with fragments of so many visits."""
        return self.accumulators + buffers * self.fragments + OTHER_REGISTERS


def descriptor_high(line_bytes: int) -> int:
    """High word of the matrix descriptor of swizzled lines of 64 or 128 bytes: bytes between groups of 8, and the swizzle."""
    return ATOM_ROWS * line_bytes >> 4 | (1 if line_bytes == LINE_BYTES else 2) << 30


def is_turned(op: Op, math: Math) -> bool:
    """Whether products are y^T = W^T x^T: a warpgroup's outputs are what wgmma has as rows, its rows of x are columns. TF32 has no
    operand in shared memory whose outputs are contiguous, as those of fprop are; W^T passes through registers, zeros for slots
    that a visit does not use, and x is as wgmma wants it."""
    return math.chunk == 4 and op is Op.FPROP


def warpgroup_geometry(problem: Problem, shape: WarpgroupShape) -> WarpgroupGeometry:
    """The geometry of `problem` under `shape`."""
    return WarpgroupGeometry(problem.op, problem.block_size, math_of(problem), shape, problem.axis)


def streamed(problem: Problem, geo: WarpgroupGeometry) -> Kept | None:
    """Which blocks of W L2 is to keep; those that a cluster shares come without a hint."""
    return kept_blocks(problem) if geo.shape.cluster == 1 else None


def residual_panels(problem: Problem, geo: WarpgroupGeometry) -> int:
    """Panels of a tile's residual, as wide as what is stored together, which stages of their own bring after the tile's others;
    none with features first, nor where products are turned, whose warps read it themselves."""
    if not problem.epilogue.residual or problem.feature_first or geo.turned:
        return 0
    return geo.shape.tile_slots * geo.block * geo.itemsize // geo.shape.store_bytes
