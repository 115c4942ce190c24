"""Shapes of the Hopper kernels for narrow blocks: warps side by side, each with all rows of a tile and a few output blocks.

Warps multiply by themselves (mma.sync), or *turned*, four by four (wgmma): y^T = W^T x^T, where each has 16 outputs as rows of a
product of 64, the rows of x are its columns, and zeros stand for blocks that are not stored. It is the faster way where most are.

A panel of activations arrives by TMA in boxes, a swizzle line a row of the box. A line is a row of the panel's features, or where
features come first up to 64 rows of one feature; taller tiles then have several boxes, one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from bsgen.plan.registers import WARP, WARPGROUP_WARPS, SharedRegisters
from bsgen.plan.tile import CHUNK_BYTES, MMA_COLUMNS, MMA_ROWS, Math, math_of
from bsgen.plan.warpgroup import descriptor_high
from bsgen.problem import Op, Problem

LINE_BYTES = 128  # of the widest swizzle
MOST_AHEAD = 4  # 16-row tiles of a warp that has registers for the residual of all
SCRATCH_BYTES = 512  # of a warp that stores: 16 rows of 16 outputs, or 32 of 8


@dataclass(frozen=True)
class NarrowShape(SharedRegisters):
    """What a candidate decides: 16-row tiles of a warp, warps and output blocks of each, features of a panel,
    warpgroups that load, whether products are turned, and the ring."""

    m_tiles: int
    warps: int
    slots: int
    panel: int
    loading_groups: int = 1
    turned: bool = False
    stages: int = 0
    stage_bytes: int = 0

    @property
    def rows(self) -> int:
        """Rows of a tile."""
        return MMA_ROWS * self.m_tiles

    @property
    def tile_slots(self) -> int:
        """Output blocks of a tile."""
        return self.warps * self.slots

    @property
    def scratch_bytes(self) -> int:
        """Shared memory through which results are stored."""
        return SCRATCH_BYTES * self.warps

    @property
    def loaders(self) -> int:
        """Threads that load, one copy of a stage each."""
        return WARP * WARPGROUP_WARPS * self.loading_groups

    @property
    def consumer_groups(self) -> int:
        """Warps that multiply, by four."""
        return self.warps // WARPGROUP_WARPS


@dataclass(frozen=True)
class NarrowGeometry:
    """Sizes that follow from a problem and a shape; the template uses these names as its constants.

    An *operation* multiplies the inputs of one stored block; two of 8 inputs each make one multiply step.
    """

    op: Op
    block: int
    math: Math
    shape: NarrowShape
    axis: int = 1

    @property
    def chunk(self) -> int:
        """Elements of a chunk."""
        return self.math.chunk

    @property
    def paired(self) -> bool:
        """Whether a multiply step takes two operations."""
        return self.block < self.math.depth

    @property
    def turned(self) -> bool:
        """Whether products are turned."""
        return self.shape.turned

    @property
    def step(self) -> int:
        """Inputs of a multiply step."""
        return self.math.depth

    @property
    def step_blocks(self) -> int:
        """Input blocks of a multiply step, and where products are turned output blocks of a warp."""
        return self.step // self.block

    @property
    def multiply_columns(self) -> int:
        """Columns of a turned product: rows of the tile."""
        return self.shape.rows

    @property
    def panel_transposed(self) -> int:
        """Whether rows, not inputs, are contiguous in a panel (MN-major), as wgmma's immediate."""
        return 1 - self.axis

    @property
    def panel_high(self) -> int:
        """High word of a panel's matrix descriptor: bytes between groups of 8 rows, and the swizzle."""
        return descriptor_high(self.line_bytes)

    @property
    def panel_low(self) -> int:
        """Low word of the descriptor without the address: bytes between boxes of rows, where those are contiguous."""
        return 0 if self.axis else self.box_bytes >> 4 << 16

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return CHUNK_BYTES // self.math.chunk

    @cached_property
    def box_rows(self) -> int:
        """Rows of the activations in a box."""
        return self.shape.rows if self.axis else min(self.shape.rows, LINE_BYTES // self.itemsize)

    @cached_property
    def panel_boxes(self) -> int:
        """Boxes of a panel."""
        return self.shape.rows // self.box_rows

    @cached_property
    def line_bytes(self) -> int:
        """Bytes of a line of a box: the width of the swizzle."""
        return (self.shape.panel if self.axis else self.box_rows) * self.itemsize

    @cached_property
    def feature_bytes(self) -> int:
        """From a feature to the next in row 0 of a panel, not swizzled."""
        return self.itemsize if self.axis else self.line_bytes

    @cached_property
    def box_bytes(self) -> int:
        """Bytes of a box."""
        return self.shape.panel * self.box_rows * self.itemsize

    @cached_property
    def panel_bytes(self) -> int:
        """Bytes of a panel."""
        return self.panel_boxes * self.box_bytes

    @cached_property
    def panel_blocks(self) -> int:
        """Input blocks of a panel."""
        return self.shape.panel // self.block

    @cached_property
    def piece_bytes(self) -> int:
        """Bytes of a stored block."""
        return self.block**2 * self.itemsize

    @cached_property
    def piece_chunks(self) -> int:
        """Chunks of a stored block."""
        return self.piece_bytes // CHUNK_BYTES

    @property
    def n_tiles(self) -> int:
        """Multiply steps along the columns of an output block."""
        return self.block // MMA_COLUMNS

    @property
    def store_tiles(self) -> int:
        """16-row tiles whose results a warp stores together where features come first: 32 rows of 8 outputs, or 16 of 16."""
        return min(2, self.shape.m_tiles)

    @property
    def residuals_ahead(self) -> int:
        """Chunks of the residual that a lane has on their way together where features come first: those of a feature, or one in
        tiles so tall that there are no registers for more."""
        return self.shape.m_tiles // self.store_tiles if self.shape.m_tiles <= MOST_AHEAD else 1

    @property
    def accumulators(self) -> int:
        """float32 accumulators of a thread."""
        return self.shape.m_tiles * self.shape.slots * self.n_tiles * 4


def narrow_geometry(problem: Problem, shape: NarrowShape) -> NarrowGeometry:
    """The geometry of `problem` under `shape`."""
    return NarrowGeometry(problem.op, problem.block_size, math_of(problem), shape, problem.axis)
