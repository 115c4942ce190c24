"""Shapes of Hopper's wgrad for blocks of 32 and wider: warpgroups, their units, and the panels of a stage."""

from __future__ import annotations

from dataclasses import dataclass

from bsgen.plan.gradient_tiles import Room
from bsgen.plan.occupancy import REGISTERS
from bsgen.plan.registers import SharedRegisters
from bsgen.plan.tile import CHUNK_BYTES, Math
from bsgen.plan.warpgroup import ATOM_ROWS, LINE_BYTES, WARPGROUP_ROWS, descriptor_high


@dataclass(frozen=True)
class GradientGeometry(SharedRegisters):
    """Sizes that follow from a problem and a ring; the template uses these names as its constants."""

    block: int
    math: Math
    groups: int
    accumulators: int
    rows: int
    stages: int
    panels: int = 0
    axis: int = 1

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return CHUNK_BYTES // self.math.chunk

    @property
    def depth(self) -> int:
        """Features of a panel: a block's, or what of them fits a swizzle line."""
        return min(self.block, LINE_BYTES // self.itemsize)

    @property
    def multiply_columns(self) -> int:
        """Columns of a multiply step: a block's outputs."""
        return self.block

    @property
    def parts(self) -> int:
        """Panels side by side that hold a block's features."""
        return self.block // self.depth

    @property
    def stacked(self) -> int:
        """Blocks of a unit."""
        return max(1, WARPGROUP_ROWS // self.block)

    @property
    def line_bytes(self) -> int:
        """Bytes of a line of a panel: the width of the swizzle."""
        return (self.depth if self.axis else self.rows) * self.itemsize

    @property
    def panel_bytes(self) -> int:
        """Bytes of a panel."""
        return self.rows * self.depth * self.itemsize

    @property
    def stage_bytes(self) -> int:
        """Bytes of a stage."""
        return self.panels * self.panel_bytes

    @property
    def units(self) -> int:
        """Units of a warpgroup."""
        return self.accumulators // (self.block // 2)

    @property
    def capacity(self) -> int:
        """Units of a tile."""
        return self.groups * self.units

    @property
    def step(self) -> int:
        """Rows of a multiply step."""
        return self.math.depth

    @property
    def steps(self) -> int:
        """Multiply steps of a stage."""
        return self.rows // self.step

    @property
    def step_chunks(self) -> int:
        """Chunks from a multiply step to the next: rows of a panel, or along its lines."""
        return self.step * (self.line_bytes if self.axis else self.itemsize) // CHUNK_BYTES

    @property
    def consumer_groups(self) -> int:
        """Warpgroups that multiply."""
        return self.groups

    @property
    def most_launch_registers(self) -> int:
        """All there are: accumulators want them."""
        return REGISTERS

    @property
    def high(self) -> int:
        """High word of the matrix descriptors (PTX: wgmma): bytes between groups of 8 lines, and the swizzle."""
        return descriptor_high(self.line_bytes)

    @property
    def in_registers(self) -> bool:
        """Whether x passes through registers: where blocks are stacked whose lines lie along the rows."""
        return not self.axis and self.stacked > 1

    @property
    def panel_transposed(self) -> int:
        """Whether features, not rows of x, are contiguous in what becomes the left operand, as wgmma's immediate."""
        return self.axis

    @property
    def weights_transposed(self) -> int:
        """And in the right one."""
        return self.axis

    @property
    def store_chunks(self) -> int:
        """Chunks of a row of dW that are stored together: a line, or a block's row."""
        return min(self.block, LINE_BYTES // self.itemsize) // self.math.chunk

    @property
    def scratch_bytes(self) -> int:
        """Shared memory of a warp through which it stores ATOM_ROWS such rows."""
        return ATOM_ROWS * self.store_chunks * CHUNK_BYTES

    @property
    def unit_elements(self) -> int:
        """Sums of a unit."""
        return WARPGROUP_ROWS * self.block

    @property
    def room(self) -> Room:
        """What a tile holds."""
        return Room(self.capacity, self.panels, self.stacked, self.parts)
