"""Gates: a float32 for each stored block that multiplies it, and how the kernels that know of them are laid out.

fprop and dgrad multiply by gate * W, rounded to W's type, which a kernel of its own writes ahead of them: the products read
weights as they lie in memory. That is a pass over the stored blocks, whatever N is. wgrad leaves sums G in float32, and the kernel
that adds those of its splits multiplies them by the gates; where it is given W it also sums G * W over each block, the gates'
gradients, in a fixed order.
"""

from __future__ import annotations

from bsgen.outline import Grid, Launch
from bsgen.plan.tile import CHUNK_BYTES
from bsgen.problem import Problem

GATE_THREADS = 256
GATE_CHUNKS = 4 * GATE_THREADS  # that a thread block multiplies
VECTOR = 4  # sums that a thread adds at once
FLOAT_BYTES = 4


def weight_chunks(problem: Problem) -> int:
    """Chunks of 16 bytes of all weights."""
    return problem.layout.nnz * problem.block_size**2 * problem.dtype.itemsize // CHUNK_BYTES


def gated_floats(problem: Problem) -> int:
    """float32 elements of the workspace that gated weights take: a multiple of 128 bytes, as the least block has so many."""
    return weight_chunks(problem) * CHUNK_BYTES // FLOAT_BYTES


def gate_launch(entry: str, problem: Problem) -> Launch:
    """The kernel before that of fprop or dgrad: gate * W, into the workspace."""
    grid = Grid(-(-weight_chunks(problem) // GATE_CHUNKS))
    return Launch(f"{entry}_gate", grid, GATE_THREADS, 0, ("w", "gate", "workspace"))


def gradient_lanes(problem: Problem) -> int:
    """Threads that a block's sums are spread over."""
    return min(GATE_THREADS, problem.block_size**2 // VECTOR)


def gradient_launch(entry: str, problem: Problem) -> Launch:
    """The kernel after wgrad's main one: splits added, gates applied, their gradients summed, by way of a float for each warp."""
    grid = Grid(-(-problem.layout.nnz * gradient_lanes(problem) // GATE_THREADS))
    shared_memory = GATE_THREADS // 32 * FLOAT_BYTES if gradient_lanes(problem) > 32 else 0
    arguments = ("workspace", "gate", "w", "out", "dgate", "accumulate")
    return Launch(f"{entry}_reduce", grid, GATE_THREADS, shared_memory, arguments)
