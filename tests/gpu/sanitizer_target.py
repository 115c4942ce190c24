"""What compute-sanitizer watches: every op at every block size on exact allocations, without PyTorch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np

import bsgen
from bsgen.layout import Layout
from bsgen.plan import Plan, hopper, hopper_narrow, streamed
from bsgen.problem import TARGETS, Activation, DType, Epilogue, Op, Problem, Target
from bsgen.runtime import context, driver
from bsgen.runtime.device_array import DeviceArray

sys.path.insert(0, str(Path(__file__).parent))
from plans import gradients, launch, loaded, narrow, spread

BLOCKS, N = 6, 100


def upload(host: np.ndarray, dtype: str) -> DeviceArray:
    array = DeviceArray(host.shape, dtype, 0, driver.DEFAULT_STREAM)
    context.wait(0, driver.DEFAULT_STREAM)
    with driver.on(0):
        driver.call("cuMemcpyHtoD", array.pointer, np.ascontiguousarray(host).ctypes.data, host.nbytes)
    return array


def run(block: int, dtype: str, precision: str) -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((BLOCKS, BLOCKS + 1)) < 0.3
    mask[:, 0] = True
    mm = bsgen.compile(mask, block, dtype, precision=precision, bias=True, activation="gelu", residual=True)

    def normal(*shape: int) -> DeviceArray:
        return upload(rng.standard_normal(shape).astype(mm.dtype.numpy), dtype)

    x, dy, w = normal(N, mm.in_features), normal(N, mm.out_features), normal(*mm.weight_shape)
    kept = [mm(x, w, normal(mm.out_features), normal(N, mm.out_features)), mm.dgrad(dy, w), mm.wgrad(x, dy)]
    kept += [mm.wgrad(x, dy, out=kept[-1], accumulate=True)]
    gated = bsgen.compile(mask, block, dtype, precision=precision, gate=True)
    gates = rng.standard_normal(mm.nnz).astype(np.float32)
    gates[::2] = 0
    gate = upload(gates, "float32")
    kept += [gated(x, w, gate=gate), gated.dgrad(dy, w, gate=gate), gated.wgrad(x, dy, gate=gate)]
    kept += gated.gate_grad(x, dy, w, gate)
    widened = bsgen.compile(mask, block, dtype, "wgrad", precision=precision, wgrad_dtype="float32")
    kept += [widened.wgrad(x, dy, out=widened.wgrad(x, dy), accumulate=True)]
    first = bsgen.compile(mask, block, dtype, precision=precision, axis=0, bias=True, residual=True)
    for n in (N - 1, N + 4):  # lines that begin anywhere, and at multiples of 16 bytes
        x, dy = normal(mm.in_features, n), normal(mm.out_features, n)
        kept += [
            first(x, w, normal(mm.out_features), normal(mm.out_features, n)),
            first.dgrad(dy, w),
            first.wgrad(x, dy),
        ]
    context.wait(0, driver.DEFAULT_STREAM)
    assert len(kept) == 16


def hopper_plans(problem: Problem, target: Target) -> list[Plan]:
    """Every shape of the Hopper kernels, which the planner would not choose for so small a layout."""
    if problem.op is Op.WGRAD:
        return gradients(problem, target) if problem.dtype is not DType.FLOAT32 else []
    if hopper_narrow.serves(problem, target):
        return list(narrow(problem, target))
    return list(spread(problem, target)) if hopper.serves(problem, target) else []


def joined_plans(problem: Problem, target: Target) -> list[Plan]:
    """Of a dense layout, every third plan whose products are joined: forms take turns at clusters, pairs and whole lines."""
    return [plan for plan in spread(problem, target) if plan.geometry.shape.joined][::3]


def run_hopper(block: int, dtype: str, clusters: bool, axis: int, batch: int | None = None) -> None:
    """All of them, fprop with a residual, on exact allocations; with features first on lines of whole chunks of 16 bytes."""
    mask = np.random.default_rng(1).random((BLOCKS, BLOCKS + 1)) < 0.4
    mask[:, 0] = True
    run_plans(hopper_plans, tuple(Op), mask, block, dtype, clusters, axis, batch)
    if hopper.serves(Problem(Op.FPROP, Layout(mask), block, DType(dtype), axis=axis), TARGETS["sm_90a"]):
        full = np.ones((BLOCKS, 2 * BLOCKS), bool)
        run_plans(joined_plans, (Op.FPROP, Op.DGRAD), full, block, dtype, clusters, axis, batch)


def run_plans(
    made: Callable[[Problem, Target], list[Plan]],
    ops: Sequence[Op],
    mask: np.ndarray,
    block: int,
    dtype: str,
    clusters: bool,
    axis: int,
    batch: int | None,
) -> None:
    """The plans of a layout's ops."""
    rng = np.random.default_rng(1)
    layout, features = Layout(mask), {"x": mask.shape[0] * block, "dy": mask.shape[1] * block}
    n = N if axis else N + 4
    shapes = {name: (n, width) if axis else (width, n) for name, width in features.items()}
    shapes["w"] = (layout.nnz, block, block)
    for op, taken, result in ((Op.FPROP, "x", "dy"), (Op.DGRAD, "dy", "x"), (Op.WGRAD, "x", "w")):
        if op not in ops:
            continue
        finish = Epilogue(activation=Activation.RELU, residual=True) if op is Op.FPROP else Epilogue()
        problem = Problem(op, layout, block, DType(dtype), epilogue=finish, axis=axis, batch=batch)
        names = (taken, "dy" if op is Op.WGRAD else "w")
        like = {**{name: name for name in names}, "residual": result}
        inputs = {
            name: upload(rng.standard_normal(shapes[shape]).astype(problem.dtype.numpy), dtype)
            for name, shape in like.items()
        }
        plans = made(problem, TARGETS["sm_90a"])
        plans = [plan for plan in plans if clusters or plan.launches[0].grid.cluster == 1]
        for plan, kernels in zip(plans, loaded(plans, "sm_90a"), strict=True):
            out = DeviceArray(shapes[result], dtype, 0, driver.DEFAULT_STREAM)
            workspace = DeviceArray((plan.workspace.elements(n),), "float32", 0, driver.DEFAULT_STREAM)
            arrays = {**inputs, "out": out, "workspace": workspace}
            launch(kernels, {name: array.pointer for name, array in arrays.items()}, n)
            context.wait(0, driver.DEFAULT_STREAM)


if __name__ == "__main__":
    tool, dtype, precision = sys.argv[1:4]
    for block in map(int, sys.argv[4:]):
        run(block, dtype, precision)
        if precision == "tensor" and driver.device(0).arch == "sm_90a":
            # racecheck does not follow a barrier that another thread block arrives on.
            for axis in (1, 0):
                run_hopper(block, dtype, tool != "racecheck", axis)
            with patch.multiple(streamed, HELD_BYTES=0, KEPT_BYTES=8 * block**2):  # four blocks
                run_hopper(block, dtype, tool != "racecheck", 1, batch=N)
    print("done")
