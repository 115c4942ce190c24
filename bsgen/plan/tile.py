"""Shapes of the fprop and dgrad kernels: how a thread block's tile, its loads and its shared memory are laid out.

Shared memory holds matrices of up to 128 bytes a row; a *chunk* is 16 bytes (`Math.chunk` elements) of a row. Rows lie one after
the other, so that what is contiguous in global memory fills whole 128-byte lines (copies that scatter their chunks over lines
ran at a quarter of the speed on an H200). Chunk c of row r is stored at c ^ swizzle(r): eight rows of a chunk then fall into
different banks, for ldmatrix, whatever the width of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bsgen.problem import DType, Op, Precision, Problem

CHUNK_BYTES = 16
MMA_ROWS, MMA_COLUMNS = 16, 8


@dataclass(frozen=True)
class Math:
    """One multiply step of a warp, 16 rows x 8 columns x `depth`: an mma.sync, or the same on CUDA cores."""

    name: str
    chunk: int

    @property
    def depth(self) -> int:
        """Inputs a step reduces over: always two chunks."""
        return 2 * self.chunk

    @property
    def tensor(self) -> bool:
        """Whether tensor cores do it."""
        return self.name != "fma_f32"

    @property
    def ptx(self) -> str:
        """PTX's name for the inputs' type: f16, bf16, tf32 or f32."""
        return self.name.removeprefix("mma_").removeprefix("fma_")


def math_of(problem: Problem) -> Math:
    """The multiply step that serves the problem's dtype and precision."""
    if problem.dtype is DType.FLOAT32:
        return Math("fma_f32" if problem.precision is Precision.IEEE else "mma_tf32", 4)
    return Math("mma_bf16" if problem.dtype is DType.BFLOAT16 else "mma_f16", 8)


LINE_CHUNKS = 8


@dataclass(frozen=True)
class TileShape:
    """What a candidate decides: warps and accumulators of a thread block, the width of activation loads, the pipeline."""

    warps_m: int
    warps_n: int
    m_tiles: int
    slots_per_warp: int
    panel: int
    stages: int
    stage_bytes: int

    @property
    def rows(self) -> int:
        """Rows of the activations that a thread block covers."""
        return self.warps_m * self.m_tiles * MMA_ROWS

    @property
    def slots(self) -> int:
        """Output blocks that a thread block accumulates at once."""
        return self.warps_n * self.slots_per_warp

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.warps_m * self.warps_n

    def accumulators(self, block_size: int) -> int:
        """float32 accumulator registers of a thread."""
        return self.m_tiles * MMA_ROWS * self.slots_per_warp * block_size // 32


@dataclass(frozen=True)
class Geometry:
    """Sizes that follow from a problem and a tile shape; templates use these names as their constants.

    An *operation* multiplies `depth` inputs by one output block. Its weights are a *piece*: a stored block, or a slice of one
    along its inputs. Blocks narrower than a multiply step are multiplied two operations at a time.

    A panel of activations lies in shared memory as in global memory: a line is a row of `panel` features, or where features come
    first (`axis` 0) a feature of `rows` rows.
    """

    block: int
    math: Math
    shape: TileShape
    depth: int
    weight_rows: int
    weight_chunks: int
    axis: int = 1

    @property
    def chunk(self) -> int:
        """Elements of a chunk."""
        return self.math.chunk

    @property
    def paired(self) -> bool:
        """Whether a multiply step takes two operations: 8-wide blocks of 16-bit elements."""
        return self.depth < self.math.depth

    @property
    def slices(self) -> int:
        """Pieces that a stored block is cut into along its inputs."""
        return self.block // self.depth

    @property
    def piece_chunks(self) -> int:
        """Chunks of a piece of weights, in global and in shared memory."""
        return self.weight_rows * self.weight_chunks

    @property
    def piece_passes(self) -> int:
        """Chunks of a piece that each thread loads."""
        return -(-self.piece_chunks // self.shape.threads)

    @property
    def pieces_at_once(self) -> int:
        """Pieces that the thread block loads in one pass."""
        return max(1, self.shape.threads // self.piece_chunks)

    @property
    def n_tiles(self) -> int:
        """Multiply steps along the columns of an output block."""
        return self.block // MMA_COLUMNS

    @property
    def weight_line(self) -> int:
        """Chunks of a row of weights that lie together; wider rows are stored as several matrices of one line each."""
        return min(LINE_CHUNKS, self.weight_chunks)

    @property
    def panel_chunks(self) -> int:
        """Chunks of a line of an activation panel."""
        return (self.shape.panel if self.axis else self.shape.rows) // self.chunk

    @property
    def panel_lines(self) -> int:
        """Lines of an activation panel."""
        return self.shape.rows if self.axis else self.shape.panel

    @property
    def panel_size(self) -> int:
        """Chunks that a panel occupies in shared memory."""
        return self.panel_chunks * self.panel_lines

    def feature_offset(self, features: NDArray[np.int64]) -> NDArray[np.int64]:
        """Chunks from a panel's start to row 0 of its `features`, each of which begins a chunk."""
        return features // self.chunk if self.axis else features * self.panel_chunks

    @property
    def stage_chunks(self) -> int:
        """Chunks of a pipeline stage."""
        return self.shape.stage_bytes // CHUNK_BYTES

    @property
    def load_lines(self) -> int:
        """Lines of a panel that the thread block loads in one pass."""
        return self.shape.threads // self.panel_chunks

    @property
    def load_passes(self) -> int:
        """Passes to load a panel."""
        return -(-self.panel_lines // self.load_lines)

    @property
    def panels_at_once(self) -> int:
        """Panels that the thread block loads in one pass where one does not occupy all its threads."""
        return max(1, self.load_lines // self.panel_lines)


def geometry(problem: Problem, shape: TileShape) -> Geometry:
    """The geometry of `problem` under `shape`."""
    math, block = math_of(problem), problem.block_size
    depth = min(block, shape.panel)
    rows, columns = (depth, block) if problem.op is Op.FPROP else (block, depth)
    return Geometry(block, math, shape, depth, rows, columns // math.chunk, problem.axis)
