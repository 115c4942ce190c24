"""The cost model: predicts a plan's time from its own tables, to rank candidates and to tell users what to expect.

A thread block's stage costs the largest of four demands on its SM, in clocks: bytes from L2, multiply steps, issued
instructions, and the latency of its busiest warp (hidden in part by other resident blocks). Blocks fill the SMs as list
scheduling would: the sum over SMs, or the heaviest block if that is longer. Device memory bounds the whole from below.
The constants were fitted to timings on an H200; `bench_portable.py` in tests/gpu prints prediction beside measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bsgen.plan.blocks import IntArray
from bsgen.plan.stages import Stage
from bsgen.plan.tile import CHUNK_BYTES, Geometry
from bsgen.problem import Problem, Target

if TYPE_CHECKING:
    from bsgen.plan.wgrad import WGradGeometry

DEFAULT_ROWS = 4096
LAUNCH_SECONDS = 2.5e-6
L2_BYTES_PER_CLOCK = 26.0  # an SM's share of L2 bandwidth through cp.async
STEP_CLOCKS = {"mma_f16": 7.0, "mma_bf16": 7.0, "mma_tf32": 8.0, "fma_f32": 48.0}  # on one of an SM's four schedulers
OPERATION_INSTRUCTIONS = 14.0  # loop, table read and addresses of an operation
OPERATION_LATENCY = 90.0  # table read, ldmatrix and first multiply in a row
STAGE_LATENCY = 220.0  # barrier, issue of the next loads
BLOCK_LATENCY = 3500.0  # first records and stages from L2, epilogue


@dataclass(frozen=True)
class Cost:
    """Predicted `seconds` for N = `n` rows, what limits it, and the bytes that leave L2."""

    n: int
    seconds: float
    limiter: str
    l2_bytes: float


def makespan(clocks: NDArray[np.float64], repeats: int, slots: int) -> float:
    """Clocks to run every tile `repeats` times on `slots` places: balanced, unless the heaviest tile takes longer."""
    return max(float(clocks.sum()) * repeats / slots, float(clocks.max(initial=0.0)))


def matmul_cost(
    problem: Problem,
    target: Target,
    geo: Geometry,
    stages: Sequence[Stage],
    tile_stages: IntArray,
    resident: int,
) -> Cost:
    """The cost of an fprop or dgrad plan; `resident` thread blocks share an SM."""
    shape, n = geo.shape, problem.batch or DEFAULT_ROWS
    panels = np.array([len(stage.panels) for stage in stages], float)
    operations = np.array([stage.operations for stage in stages], float)
    busiest = np.array([_busiest_warp(stage, geo) for stage in stages], float)

    panel_bytes = shape.rows * shape.panel * problem.dtype.itemsize
    piece_bytes = geo.piece_chunks * CHUNK_BYTES
    loads = panels * panel_bytes + operations * piece_bytes
    warp_steps = shape.m_tiles * (geo.block // 8) * (geo.depth / geo.math.depth)
    fragments = (geo.depth / geo.math.depth) * (shape.m_tiles + max(1, geo.block // 16))
    copies = loads / CHUNK_BYTES / 32 * 5
    demands = {
        "L2": loads / L2_BYTES_PER_CLOCK,
        "math": operations * shape.warps_m * warp_steps * STEP_CLOCKS[geo.math.name] / 4,
        "issue": (operations * shape.warps_m * (OPERATION_INSTRUCTIONS + fragments + warp_steps) + copies) / 4 * 1.3,
        "latency": (busiest * (OPERATION_LATENCY + 8 * warp_steps) + STAGE_LATENCY) / resident,
    }
    clocks = np.maximum.reduce([*demands.values(), np.zeros(len(stages))]) if len(stages) else np.zeros(0)
    sums = np.concatenate([[0.0], np.cumsum(clocks)])
    tiles = sums[tile_stages[1:]] - sums[tile_stages[:-1]] + BLOCK_LATENCY / resident
    row_tiles = -(-n // shape.rows)
    seconds = makespan(tiles, row_tiles, target.sms) / target.clock
    memory = memory_bytes(problem, n) / target.hbm
    limiter = max(demands, key=lambda name: float(demands[name].sum()))
    if memory > seconds:
        seconds, limiter = memory, "device memory"
    return Cost(n, seconds + LAUNCH_SECONDS, limiter, float(loads.sum()) * row_tiles)


def _busiest_warp(stage: Stage, geo: Geometry) -> int:
    per_warp = geo.shape.slots_per_warp
    operations = [len(work) for work in stage.work]
    return max(sum(operations[i : i + per_warp]) for i in range(0, len(operations), per_warp))


def memory_bytes(problem: Problem, n: int) -> float:
    """Bytes that must cross device memory: activations in and out, stored weights, once each."""
    weights = problem.layout.nnz * problem.block_size**2
    return problem.dtype.itemsize * (n * (problem.in_features + problem.out_features) + weights)


def wgrad_cost(
    problem: Problem,
    target: Target,
    geo: WGradGeometry,
    panel_counts: IntArray,
    units: IntArray,
    resident: int,
) -> tuple[Cost, int]:
    """The cost of a wgrad plan, and the number of splits of N that makes it least."""
    shape, n = geo.shape, problem.batch or DEFAULT_ROWS
    steps = -(-n // shape.rows)
    active = (units[:, :, 0] >= 0).reshape(len(units), shape.warps, shape.units).sum(axis=2)
    k_steps = shape.rows // geo.math.depth
    unit_steps = geo.m_tiles * geo.n_tiles * k_steps
    loads = panel_counts * (shape.rows * shape.panel * problem.dtype.itemsize)
    busiest = active.max(axis=1, initial=0)
    fragments = k_steps * (geo.m_tiles + max(1, geo.n_tiles // 2))
    demands = {
        "L2": loads / L2_BYTES_PER_CLOCK,
        "math": active.sum(axis=1) * unit_steps * STEP_CLOCKS[geo.math.name] / 4,
        "issue": active.sum(axis=1) * (8 + fragments + unit_steps) / 4 * 1.3 + loads / CHUNK_BYTES / 32 * 6 / 4,
        "latency": (busiest * k_steps * 40 + busiest * unit_steps * 8 + STAGE_LATENCY) / resident,
    }
    step_clocks = np.maximum.reduce(list(demands.values()))
    elements = problem.layout.nnz * problem.block_size**2
    limiter = max(demands, key=lambda name: float(demands[name].sum()))

    def seconds(splits: int) -> float:
        tiles = step_clocks * -(-steps // splits) + BLOCK_LATENCY / resident
        reduce = 2 * LAUNCH_SECONDS / 2 + splits * elements * 8 / target.hbm if splits > 1 else 0.0
        return makespan(tiles, splits, target.sms) / target.clock + reduce

    splits = min((s for s in (1, 2, 3, 4, 6, 8, 12, 16, 32) if s == 1 or steps >= 4 * s), key=seconds)
    memory = memory_bytes(problem, n) / target.hbm
    total = max(seconds(splits), memory) + LAUNCH_SECONDS
    return Cost(n, total, limiter, float(loads.sum()) * steps), splits
