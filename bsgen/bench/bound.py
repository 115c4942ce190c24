"""The least time that a product can take on an H200, by a stated model: what measurements are divided by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bsgen.plan.blocks import output_blocks
from bsgen.plan.cost import memory_bytes
from bsgen.problem import DType, Op, Problem

# One NVIDIA H200, measured: cuBLAS bfloat16 8192^3, device copy, TMA from L2 into shared memory.
FLOPS, TF32_FLOPS, HBM, L2 = 790e12, 395e12, 4.3e12, 9.5e12
TILES = ((128, 256), (256, 128))  # rows x output features whose sums fill half of an SM's registers
TEXT = (
    f"the longest of: arithmetic on stored blocks at {FLOPS / 1e12:.0f} TFLOP/s ({TF32_FLOPS / 1e12:.0f} for float32); "
    f"what is used of x, y and the stored weights once through device memory at {HBM / 1e12} TB/s; and, for fprop and dgrad, "
    f"what tiles of 32768 outputs fetch from L2 at {L2 / 1e12} TB/s, each input panel once a tile, neighbouring output blocks "
    "together, no multicast, the better of two tile shapes"
)


@dataclass(frozen=True)
class Bound:
    """Seconds, and what takes them."""

    seconds: float
    limiter: str


def bound(problem: Problem, n: int) -> Bound:
    """The bound of a product with N = `n` rows."""
    rate = TF32_FLOPS if problem.dtype is DType.FLOAT32 else FLOPS
    idle = 0.0 if problem.op is Op.WGRAD else output_blocks(problem).idle
    times = {"math": problem.flops(n) / rate, "device memory": memory_bytes(problem, n, idle) / HBM}
    if problem.op is not Op.WGRAD:
        times["L2"] = min(l2_bytes(problem, n)) / L2
    limiter = max(times, key=lambda name: times[name])
    return Bound(times[limiter], limiter)


def l2_bytes(problem: Problem, n: int) -> Iterator[float]:
    """Bytes between L2 and the SMs, for each shape of tile: panels of inputs, pieces of W, results."""
    block, item = problem.block_size, problem.dtype.itemsize
    mask: NDArray[np.bool_] = problem.layout.mask if problem.op is Op.FPROP else problem.layout.mask.T
    result = n * mask.shape[1] * block * item
    for rows, features in TILES:
        groups = np.arange(0, mask.shape[1], max(1, features // block))
        panels = int(np.count_nonzero(np.logical_or.reduceat(mask, groups, axis=1)))
        weights = problem.layout.nnz * block * block * -(-n // rows)
        yield item * (panels * block * n + weights) + result
