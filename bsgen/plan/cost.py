"""The cost model: predicts a plan's time from its own tables, to rank candidates and to tell users what to expect.

A thread block's stage makes four demands on its SM, in clocks: bytes from L2, multiply steps, issued instructions, and the
latency of its busiest warp (hidden in part by other resident blocks). They overlap, but not wholly: their cost is a p-norm.
Blocks fill the SMs as list scheduling would: the sum over SMs, or the heaviest block if that is longer. Device memory
bounds the whole from below. The constants are a fit to the timings of 92 fprop plans on an H200 (bfloat16, 4096 x 4096,
N = 4096, 10 % of the blocks, b = 8 ... 128); tests/gpu/bench_portable.py --all prints prediction beside measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bsgen.plan.blocks import IntArray
from bsgen.plan.stages import Stage
from bsgen.plan.tile import CHUNK_BYTES, LINE_CHUNKS, Geometry
from bsgen.problem import Problem, Target

if TYPE_CHECKING:
    from bsgen.plan.wgrad import WGradGeometry

DEFAULT_ROWS = 4096
LAUNCH_SECONDS = 2.5e-6
L2_BYTES_PER_CLOCK = 53.0  # an SM's share of L2 bandwidth through cp.async, for rows of 128 bytes
NARROW_ROWS = 1.12  # rows of fewer bytes cost more
STEP_CLOCKS = {
    "mma_f16": 11.0,
    "mma_bf16": 11.0,
    "mma_tf32": 14.0,
    "fma_f32": 60.0,
}  # on one of an SM's four schedulers
ISSUE_CLOCKS = 1.14
OPERATION_INSTRUCTIONS = 5.3  # loop, table read and addresses of an operation
COPY_INSTRUCTIONS = 8.0  # of a warp that copies 512 bytes
SLOT_INSTRUCTIONS = 8.0  # of a warp, each slot of each stage
OPERATION_LATENCY, STEP_LATENCY = 68.0, 8.0  # table read, ldmatrix and first multiply in a row; each further step
STAGE_LATENCY = 27.0  # barrier
BLOCK_LATENCY = 2500.0  # first records and stages from L2
EPILOGUE_CLOCKS = 3.3e-3  # an output element
SPLITS = (1, 2, 3, 4, 6, 8, 12, 16, 32)  # of N, for wgrad
OVERLAP = 1.24  # the norm's exponent: 1 adds the demands up, infinity takes the largest


Demands = dict[str, NDArray[np.floating[Any]]]


@dataclass(frozen=True)
class Cost:
    """Predicted `seconds` for N = `n` rows, what limits it, and the bytes that leave L2."""

    n: int
    seconds: float
    limiter: str
    l2_bytes: float


def makespan(clocks: NDArray[np.float64], repeats: float, slots: int) -> float:
    """Clocks to run every tile `repeats` times on `slots` places: balanced, unless the heaviest tile takes longer."""
    return max(float(clocks.sum()) * repeats / slots, float(clocks.max(initial=0.0)))


def matmul_cost(
    problem: Problem,
    target: Target,
    geo: Geometry,
    stages: Sequence[Stage],
    tile_stages: IntArray,
    resident: int,
    share: float = 1.0,
) -> Cost:
    """The cost of an fprop or dgrad plan; `resident` thread blocks share an SM. The tiles may be a sample, `share` of the work."""
    shape, n = geo.shape, problem.batch or DEFAULT_ROWS
    panels = np.array([len(stage.panels) for stage in stages], float)
    operations = np.array([stage.operations for stage in stages], float)
    busiest = np.array([_busiest_warp(stage, geo) for stage in stages], float)

    rows = NARROW_ROWS if geo.panel_chunks < LINE_CHUNKS else 1.0
    panel_bytes, piece_bytes = geo.panel_size * CHUNK_BYTES, geo.piece_chunks * CHUNK_BYTES
    loads = panels * panel_bytes + operations * piece_bytes
    k_steps = geo.depth / geo.math.depth
    warp_steps = shape.m_tiles * (geo.block // 8) * k_steps
    fragments = k_steps * (shape.m_tiles + max(1, geo.block // 16))
    instructions = (
        operations * shape.warps_m * (OPERATION_INSTRUCTIONS + fragments + warp_steps)
        + loads / (CHUNK_BYTES * 32) * COPY_INSTRUCTIONS
        + shape.threads / 32 * shape.slots_per_warp * SLOT_INSTRUCTIONS
    )
    demands: Demands = {
        "L2": (panels * panel_bytes * rows + operations * piece_bytes) / L2_BYTES_PER_CLOCK,
        "math": operations * shape.warps_m * warp_steps * STEP_CLOCKS[geo.math.name] / 4,
        "issue": instructions * ISSUE_CLOCKS / 4,
        "latency": (busiest * (OPERATION_LATENCY + STEP_LATENCY * warp_steps) + STAGE_LATENCY) / resident,
    }
    sums = np.concatenate([[0.0], np.cumsum(_overlapped(demands))])
    outputs = shape.rows * shape.slots * geo.block
    tiles = sums[tile_stages[1:]] - sums[tile_stages[:-1]] + BLOCK_LATENCY / resident + outputs * EPILOGUE_CLOCKS
    row_tiles = -(-n // shape.rows)
    seconds = makespan(tiles, row_tiles / share, target.sms) / target.clock
    return _bounded(problem, target, n, seconds, demands, float(loads.sum()) * row_tiles / share)


def _overlapped(demands: Demands) -> NDArray[np.float64]:
    """Clocks of each stage: the p-norm of its demands."""
    total = sum((demand**OVERLAP for demand in demands.values()), np.zeros(1))
    return np.asarray(total ** (1 / OVERLAP))


def _bounded(problem: Problem, target: Target, n: int, seconds: float, demands: Demands, l2_bytes: float) -> Cost:
    """The cost, device memory considered, and the name of its largest demand."""
    memory = memory_bytes(problem, n) / target.hbm
    largest = max(demands, key=lambda name: float(demands[name].sum()))
    limiter = "device memory" if memory > seconds else largest
    return Cost(n, max(seconds, memory) + LAUNCH_SECONDS, limiter, l2_bytes)


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
    share: float = 1.0,
) -> tuple[Cost, int]:
    """The cost of a wgrad plan, and the number of splits of N that makes it least. As above, the tiles may be a sample."""
    shape, n = geo.shape, problem.batch or DEFAULT_ROWS
    steps = -(-n // shape.rows)
    active = (units[:, :, 0] >= 0).reshape(len(units), shape.warps, shape.units).sum(axis=2)
    k_steps = shape.rows // geo.math.depth
    unit_steps = geo.m_tiles * geo.n_tiles * k_steps
    rows = NARROW_ROWS if geo.panel_chunks < LINE_CHUNKS else 1.0
    loads = panel_counts.astype(float) * (geo.panel_size * CHUNK_BYTES)
    fragments = k_steps * (geo.m_tiles + max(1, geo.n_tiles // 2))
    all_active, busiest = active.sum(axis=1), active.max(axis=1, initial=0)
    instructions = (
        all_active * (OPERATION_INSTRUCTIONS + fragments + unit_steps)
        + loads / (CHUNK_BYTES * 32) * COPY_INSTRUCTIONS
        + shape.warps * shape.units * SLOT_INSTRUCTIONS
    )
    demands: Demands = {
        "L2": loads * rows / L2_BYTES_PER_CLOCK,
        "math": all_active * unit_steps * STEP_CLOCKS[geo.math.name] / 4,
        "issue": instructions * ISSUE_CLOCKS / 4,
        "latency": (busiest * (OPERATION_LATENCY + STEP_LATENCY * unit_steps) + STAGE_LATENCY) / resident,
    }
    step_clocks = _overlapped(demands)
    elements = problem.layout.nnz * problem.block_size**2

    def seconds(splits: int) -> float:
        tiles = step_clocks * -(-steps // splits) + BLOCK_LATENCY / resident
        reduce = LAUNCH_SECONDS + splits * elements * 8 / target.hbm if splits > 1 else 0.0
        return makespan(tiles, splits / share, target.sms) / target.clock + reduce

    splits = min((s for s in SPLITS if s == 1 or steps >= 4 * s), key=seconds)
    return _bounded(problem, target, n, seconds(splits), demands, float(loads.sum()) * steps / share), splits
