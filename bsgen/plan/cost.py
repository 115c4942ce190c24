"""The cost model: predicts a plan's time from its own tables, to rank candidates and to tell users what to expect.

A thread block's stage makes four demands on its SM, in clocks: bytes from L2, multiply steps, issued instructions, and the
latency of its busiest warp (hidden in part by other resident blocks). They overlap, but not wholly: their cost is a p-norm.
Blocks fill the SMs as list scheduling would: the sum over SMs, or the heaviest block if that is longer. Device memory
bounds the whole from below. The constants are fits to the timings of 92 fprop and 108 wgrad plans on an H200 (bfloat16,
4096 x 4096, N = 4096, 10 % of the blocks, b = 8 ... 128); `bsgen tune --count` prints prediction beside measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bsgen.plan.blocks import IntArray
from bsgen.plan.gates import FLOAT_BYTES
from bsgen.plan.stages import Stage
from bsgen.plan.tile import CHUNK_BYTES, LINE_CHUNKS, Geometry
from bsgen.problem import Op, Problem, Target
from bsgen.ranges import DEFAULT_ROWS

if TYPE_CHECKING:
    from bsgen.plan.wgrad_geometry import WGradGeometry

LAUNCH_SECONDS = 2.5e-6
DEPENDENT_LAUNCH_SECONDS = 1.3e-6  # of a kernel that is set up while the one ahead ends
BLOCK_LATENCY = 2500.0  # clocks until the first records and stages have come from L2
SHARED_GAIN = 0.96  # two resident blocks fill each other's gaps better than the demands tell
EPILOGUE_CLOCKS = 0.1  # an output element: L2 takes results and loads one after the other
STEP_RATIO = {"mma_f16": 1.0, "mma_bf16": 1.0, "mma_tf32": 1.3, "fma_f32": 5.5}  # clocks of a multiply step, relative
MEMORY_OVERLAP = 8.0
SPLITS = (1, 2, 3, 4, 6, 8, 12, 16, 32)  # of N, for wgrad


@dataclass(frozen=True)
class Fit:
    """Constants of one kernel, in clocks, bytes and instructions; of what a warp issues unless it says otherwise."""

    l2: float  # bytes a clock that an SM gets from L2 through cp.async
    narrow: float  # how much more rows of fewer than 128 bytes cost
    step: float  # clocks of a multiply step on one of an SM's four schedulers
    issue: float  # clocks of an instruction
    operation: float  # instructions of an operation beside fragments and steps: loop, table, addresses
    copy: float  # instructions to copy 512 bytes
    slot: float  # instructions of each slot, each stage
    latency: float  # clocks of an operation alone: table, first fragments, first multiply
    k_latency: float  # and of each of its steps along the reduction
    step_latency: float  # and of each multiply step
    stage: float  # clocks of a barrier
    overlap: float  # the norm's exponent: 1 adds the demands up, infinity takes the largest


MATMUL = Fit(53.0, 1.12, 11.0, 1.14, 5.3, 8.0, 8.0, 68.0, 0.0, 8.0, 27.0, 1.24)
WGRAD = Fit(60.0, 1.05, 14.4, 0.53, 41.6, 0.5, 6.2, 52.0, 55.0, 0.1, 435.0, 1.09)

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

    panel_bytes, piece_bytes = geo.panel_size * CHUNK_BYTES, geo.piece_chunks * CHUNK_BYTES
    k_steps = geo.depth / geo.math.depth
    demands = _demands(
        MATMUL,
        geo.math.name,
        loads=panels * panel_bytes * _width(MATMUL, geo.panel_chunks) + operations * piece_bytes,
        operations=operations * shape.warps_m,
        busiest=busiest / resident,
        steps=shape.m_tiles * (geo.block // 8) * k_steps,
        k_steps=k_steps,
        fragments=k_steps * (shape.m_tiles + max(1, geo.block // 16)),
        slots=shape.threads // 32 * shape.slots_per_warp,
        resident=resident,
    )
    stage_clocks = _overlapped(demands, MATMUL) * (SHARED_GAIN if resident > 1 else 1.0)
    sums = np.concatenate([[0.0], np.cumsum(stage_clocks)])
    outputs = shape.rows * shape.slots * geo.block
    tiles = sums[tile_stages[1:]] - sums[tile_stages[:-1]] + BLOCK_LATENCY / resident + outputs * EPILOGUE_CLOCKS
    row_tiles = -(-n // shape.rows)
    seconds = makespan(tiles, row_tiles / share, target.sms) / target.clock
    l2_bytes = float((panels * panel_bytes + operations * piece_bytes).sum()) * row_tiles / share
    return _bounded(problem, target, n, seconds, demands, l2_bytes)


def _width(fit: Fit, panel_chunks: int) -> float:
    return fit.narrow if panel_chunks < LINE_CHUNKS else 1.0


def _demands(
    fit: Fit,
    math: str,
    *,
    loads: NDArray[np.floating[Any]],
    operations: NDArray[np.floating[Any]],
    busiest: NDArray[np.floating[Any]],
    steps: float,
    k_steps: float,
    fragments: float,
    slots: int,
    resident: int,
) -> Demands:
    """Clocks of each stage by demand: `operations` of all warps and of the `busiest`, each of so many steps and fragments."""
    instructions = (
        operations * (fit.operation + fragments + steps) + loads / (CHUNK_BYTES * 32) * fit.copy + slots * fit.slot
    )
    return {
        "L2": loads / fit.l2,
        "math": operations * steps * fit.step * STEP_RATIO[math] / 4,
        "issue": instructions * fit.issue / 4,
        "latency": busiest * (fit.latency + fit.k_latency * k_steps + fit.step_latency * steps) + fit.stage / resident,
    }


def _overlapped(demands: Demands, fit: Fit) -> NDArray[np.float64]:
    """Clocks of each stage: the p-norm of its demands."""
    total = sum((demand**fit.overlap for demand in demands.values()), np.zeros(1))
    return np.asarray(total ** (1 / fit.overlap))


def _bounded(problem: Problem, target: Target, n: int, seconds: float, demands: Demands, l2_bytes: float) -> Cost:
    """The cost, device memory considered, and the name of its largest demand."""
    memory = memory_bytes(problem, n) / target.hbm
    largest = max(demands, key=lambda name: float(demands[name].sum()))
    limiter = "device memory" if memory > seconds else largest
    return Cost(n, overlapped(seconds, memory) + LAUNCH_SECONDS + gate_seconds(problem, target), limiter, l2_bytes)


def gate_seconds(problem: Problem, target: Target) -> float:
    """Seconds of multiplying the weights of fprop and dgrad by their gates: a pass over the stored blocks."""
    if not problem.gate or problem.op is Op.WGRAD:
        return 0.0
    weights = problem.layout.nnz * problem.block_size**2 * problem.dtype.itemsize
    return LAUNCH_SECONDS + 2 * weights / target.hbm


def partial_seconds(problem: Problem, n: int, partials: int, rate: float) -> float:
    """Seconds of adding so many partial sums of split output blocks in a launch of their own: each is written and read, in float32,
    at `rate` bytes a second."""
    sums = 2 * FLOAT_BYTES * partials * problem.block_size * n
    return DEPENDENT_LAUNCH_SECONDS + sums / rate if partials else 0.0


def overlapped(seconds: float, memory: float, exponent: float = MEMORY_OVERLAP) -> float:
    """Seconds of work and of device memory traffic at once: hardly more than the longer, unless they are about equal."""
    return float((seconds**exponent + memory**exponent) ** (1 / exponent))


def _busiest_warp(stage: Stage, geo: Geometry) -> int:
    per_warp = geo.shape.slots_per_warp
    operations = [len(work) for work in stage.work]
    return max(sum(operations[i : i + per_warp]) for i in range(0, len(operations), per_warp))


def memory_bytes(problem: Problem, n: int, idle: float = 0.0) -> float:
    """Bytes that must cross device memory: activations in and out, stored weights, once each; of fprop's or dgrad's inputs the
    share that is `idle` may stay there."""
    weights = problem.layout.nnz * problem.block_size**2 * (problem.wgrad_dtype or problem.dtype).itemsize
    inputs = problem.in_features if problem.op is Op.FPROP else problem.out_features
    features = problem.in_features + problem.out_features - idle * inputs
    return problem.dtype.itemsize * n * features + weights


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
    loads = panel_counts.astype(float) * (geo.panel_size * CHUNK_BYTES)
    demands = _demands(
        WGRAD,
        geo.math.name,
        loads=loads * _width(WGRAD, geo.panel_chunks),
        operations=active.sum(axis=1).astype(float),
        busiest=active.max(axis=1, initial=0) / resident,
        steps=geo.m_tiles * geo.n_tiles * k_steps,
        k_steps=k_steps,
        fragments=k_steps * (geo.m_tiles + max(1, geo.n_tiles // 2)),
        slots=shape.warps * shape.units,
        resident=resident,
    )
    step_clocks = _overlapped(demands, WGRAD)
    elements = problem.layout.nnz * problem.block_size**2

    def seconds(splits: int) -> float:
        tiles = step_clocks * -(-steps // splits) + BLOCK_LATENCY / resident
        reduced = splits > 1 or problem.gate
        reduce = LAUNCH_SECONDS + splits * elements * 8 / target.hbm if reduced else 0.0
        return makespan(tiles, splits / share, target.sms) / target.clock + reduce

    splits = min((s for s in SPLITS if s == 1 or steps >= 4 * s), key=seconds)
    return _bounded(problem, target, n, seconds(splits), demands, float(loads.sum()) * steps / share), splits
