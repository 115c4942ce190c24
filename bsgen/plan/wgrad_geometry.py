"""Shapes of the portable wgrad, and of Hopper's for narrow blocks: warps and their units, panels, and the pipeline."""

from __future__ import annotations

from dataclasses import dataclass

from bsgen.plan.tile import CHUNK_BYTES, MMA_COLUMNS, MMA_ROWS, Math

MAX_UNIT = 64


@dataclass(frozen=True)
class WGradShape:
    """What a candidate decides: warps, units a warp accumulates, rows a stage reduces, panel width, the pipeline, the band."""

    warps: int
    units: int
    rows: int
    panel: int
    stages: int
    panels: int
    band: int


@dataclass(frozen=True)
class WGradGeometry:
    """Sizes that follow; a *unit* is what a warp accumulates: a block, a 64 x 64 part of one, or two 8 x 8 blocks of a column.

    A line of a panel is a row of `panel` features, or where features come first (`axis` 0) a feature of `rows` rows.
    """

    block: int
    math: Math
    shape: WGradShape
    axis: int = 1

    @property
    def chunk(self) -> int:
        """Elements of a chunk."""
        return self.math.chunk

    @property
    def paired(self) -> bool:
        """Whether a unit stacks two blocks to fill the rows of a multiply step."""
        return self.block < MMA_ROWS

    @property
    def unit(self) -> int:
        """Columns of a unit, and its rows unless paired."""
        return min(self.block, MAX_UNIT)

    @property
    def m_tiles(self) -> int:
        """Multiply steps along a unit's rows."""
        return max(1, self.unit // MMA_ROWS)

    @property
    def n_tiles(self) -> int:
        """Multiply steps along a unit's columns."""
        return self.unit // MMA_COLUMNS

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.shape.warps

    @property
    def capacity(self) -> int:
        """Units of a tile."""
        return self.shape.warps * self.shape.units

    @property
    def accumulators(self) -> int:
        """float32 accumulator registers of a thread."""
        return self.shape.units * self.m_tiles * self.n_tiles * 4

    @property
    def panel_chunks(self) -> int:
        """Chunks of a line of a panel."""
        return (self.shape.panel if self.axis else self.shape.rows) // self.chunk

    @property
    def panel_lines(self) -> int:
        """Lines of a panel."""
        return self.shape.rows if self.axis else self.shape.panel

    @property
    def panel_size(self) -> int:
        """Chunks that a panel occupies in shared memory."""
        return self.panel_chunks * self.panel_lines

    def feature_offset(self, feature: int) -> int:
        """Chunks from a panel's start to row 0 of its `feature`, which begins a chunk."""
        return feature // self.chunk if self.axis else feature * self.panel_chunks

    @property
    def stage_bytes(self) -> int:
        """Bytes of a pipeline stage."""
        return self.shape.panels * self.panel_size * CHUNK_BYTES

    @property
    def load_lines(self) -> int:
        """Lines of a panel that the thread block loads in one pass."""
        return min(self.panel_lines, self.threads // self.panel_chunks)

    @property
    def panels_at_once(self) -> int:
        """Panels that the thread block loads side by side when one does not occupy all its threads."""
        return self.threads // (self.load_lines * self.panel_chunks)
