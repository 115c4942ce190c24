"""Shapes of the fprop and dgrad kernels: how a thread block's tile, its loads and its shared memory are laid out.

Shared memory holds everything in *chunk columns*: a chunk is 16 bytes (`Math.chunk` elements) of one row, and the chunks
that share a column lie one after the other, row by row. Eight rows of a chunk column are 128 contiguous bytes, so every
ldmatrix is free of bank conflicts for every block size; the padding of a column keeps the cp.async writes free of them.
"""

from __future__ import annotations

from dataclasses import dataclass

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


def math_of(problem: Problem) -> Math:
    """The multiply step that serves the problem's dtype and precision."""
    if problem.dtype is DType.FLOAT32:
        return Math("fma_f32" if problem.precision is Precision.IEEE else "mma_tf32", 4)
    return Math("mma_bf16" if problem.dtype is DType.BFLOAT16 else "mma_f16", 8)


def conflict_free_padding(chunks: int) -> int:
    """Rows to add to chunk columns (of a multiple of 8 rows) so that rows of `chunks` chunks are written without conflicts."""
    return 1 if chunks >= 8 else 0 if chunks == 1 else 8 // chunks


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

    An *operation* multiplies `depth` inputs by one output block. Its weights are `pieces` pieces: one slice of a stored
    block, or, for blocks narrower than a multiply step, two whole blocks from anywhere in the same block column.
    """

    block: int
    math: Math
    shape: TileShape
    depth: int
    pieces: int
    weight_rows: int
    weight_chunks: int
    weight_pitch: int

    @property
    def chunk(self) -> int:
        """Elements of a chunk."""
        return self.math.chunk

    @property
    def slices(self) -> int:
        """Pieces that a stored block is cut into along its inputs."""
        return max(1, self.block // self.depth)

    @property
    def piece_chunks(self) -> int:
        """Chunks of a piece of weights."""
        return self.weight_rows * self.weight_chunks

    @property
    def operation_chunks(self) -> int:
        """Chunks that the weights of one operation occupy in shared memory."""
        return self.pieces * self.weight_chunks * self.weight_pitch

    @property
    def panel_chunks(self) -> int:
        """Chunk columns of an activation panel."""
        return self.shape.panel // self.chunk

    @property
    def panel_pitch(self) -> int:
        """Rows of a chunk column of a panel, padding included."""
        return self.shape.rows + conflict_free_padding(self.panel_chunks)

    @property
    def panel_size(self) -> int:
        """Chunks that a panel occupies in shared memory."""
        return self.panel_chunks * self.panel_pitch

    @property
    def stage_chunks(self) -> int:
        """Chunks of a pipeline stage."""
        return self.shape.stage_bytes // CHUNK_BYTES

    @property
    def load_rows(self) -> int:
        """Rows of a panel that the thread block loads in one pass."""
        return self.shape.threads // self.panel_chunks

    @property
    def load_passes(self) -> int:
        """Passes to load a panel."""
        return -(-self.shape.rows // self.load_rows)


def geometry(problem: Problem, shape: TileShape) -> Geometry:
    """The geometry of `problem` under `shape`."""
    math, block = math_of(problem), problem.block_size
    depth = max(math.depth, min(block, shape.panel))
    along_inputs, along_outputs = min(depth, block), block
    rows, columns = (along_inputs, along_outputs) if problem.op is Op.FPROP else (along_outputs, along_inputs)
    chunks = columns // math.chunk
    padding = conflict_free_padding(chunks)
    if math.name == "mma_tf32" and problem.op is Op.FPROP:
        padding = 4  # fragments are gathered word by word: lanes 4 columns apart must be 16 banks apart
    return Geometry(block, math, shape, depth, depth // along_inputs, rows, chunks, rows + padding)
