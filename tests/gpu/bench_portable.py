"""Times the portable family's candidates beside cuSPARSE Blocked-ELL and dense cuBLAS, on one data set in one process.

    PYTHONPATH=. python3 tests/gpu/bench_portable.py --block 32 --op fprop --all --json out.json

Every plan's result is checked against the dense product before it is timed. `--all` times all candidates, which is how the
cost model is fitted; without it only the plan that the planner chooses.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bsgen import nvrtc, plan, topology
from bsgen.emit import render
from bsgen.layout import Layout
from bsgen.problem import TARGETS, DType, Op, Precision, Problem
from bsgen.runtime.launch import Kernels

sys.path.insert(0, str(Path(__file__).parent))
from peers import BlockedEll, median_seconds

ARCH = "sm_90a"


class Data:
    """Random operands of one layout, the dense weights, and the dense results."""

    def __init__(self, layout: Layout, block: int, dtype: DType, n: int) -> None:
        kind = getattr(torch, dtype.value)
        rows, columns = layout.shape
        generator = torch.Generator("cuda").manual_seed(7)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, device="cuda", generator=generator).to(kind)

        self.x, self.dy = normal(n, rows * block), normal(n, columns * block)
        self.w = normal(layout.nnz, block, block)
        self.blocks = torch.as_tensor(np.argwhere(layout.mask)).cuda()
        dense = torch.zeros(rows, columns, block, block, dtype=kind, device="cuda")
        dense[self.blocks[:, 0], self.blocks[:, 1]] = self.w
        self.dense = dense.permute(0, 2, 1, 3).reshape(rows * block, columns * block).contiguous()
        self.block = block

    def expected(self, op: Op) -> torch.Tensor:
        """The op in float32 (with no TF32), rounded nowhere else."""
        if op is Op.FPROP:
            return self.x.float() @ self.dense.float()
        if op is Op.DGRAD:
            return self.dy.float() @ self.dense.float().T
        full = self.x.float().T @ self.dy.float()
        b = self.block
        tiles = full.reshape(full.shape[0] // b, b, full.shape[1] // b, b).permute(0, 2, 1, 3)
        return tiles[self.blocks[:, 0], self.blocks[:, 1]].contiguous()

    def dense_call(self, op: Op) -> Any:
        """What cuBLAS does instead."""
        return {
            Op.FPROP: lambda: self.x @ self.dense,
            Op.DGRAD: lambda: self.dy @ self.dense.T,
            Op.WGRAD: lambda: self.x.T @ self.dy,
        }[op]


def compile_plan(candidate: plan.Plan) -> nvrtc.Binary:
    """In a worker process."""
    return nvrtc.compile(render(candidate), ARCH)


def run_plan(candidate: plan.Plan, binary: nvrtc.Binary, data: Data, op: Op, n: int) -> dict[str, Any]:
    """Check one plan, then time it."""
    kernels = Kernels(binary, candidate.launches, candidate.workspace)
    expected = data.expected(op)
    out = torch.full(expected.shape, float("nan"), dtype=data.x.dtype, device="cuda")
    workspace = torch.full((max(1, candidate.workspace.elements(n)),), float("nan"), device="cuda")
    pointers = {"x": data.x, "dy": data.dy, "w": data.w, "out": out, "workspace": workspace}
    operands = {name: tensor.data_ptr() for name, tensor in pointers.items()} | {"n": n, "accumulate": 0}
    stream = torch.cuda.current_stream().cuda_stream

    def call() -> None:
        kernels(0, stream, operands)

    call()
    torch.cuda.synchronize()
    error = float((out.float() - expected).norm() / expected.norm().clamp(min=1e-20))
    facts = binary.kernel(candidate.entry)
    return {
        "summary": candidate.summary,
        "grouping": getattr(candidate, "grouping", ""),
        "error": error,
        "us": median_seconds(call) * 1e6,
        "predicted_us": candidate.cost.seconds * 1e6,
        "limiter": candidate.cost.limiter,
        "registers": facts.registers,
        "spills": facts.spill_stores,
        "blocks_per_sm": candidate.blocks_per_sm,
        "shared_memory": candidate.shared_memory,
    }


def bench(args: argparse.Namespace, block: int, op: Op, density: float, pool: ProcessPoolExecutor) -> dict[str, Any]:
    """One case: all plans asked for, and the peers."""
    side = args.size // block
    layout = topology.random(side, side, density=density, seed=1)
    dtype, n, target = DType(args.dtype), args.n, TARGETS[ARCH]
    precision = Precision(args.precision)
    problem = Problem(op, layout, block, dtype, precision)
    plans = list(plan.candidates(problem, target)) if args.all else [plan.choose(problem, target)]
    chosen = min(range(len(plans)), key=lambda i: plans[i].cost.seconds)
    if args.all > 1:
        ranked = sorted(range(len(plans)), key=lambda i: plans[i].cost.seconds)[: args.all]
        plans, chosen = [plans[i] for i in ranked], 0
    data = Data(layout, block, dtype, n)
    binaries = list(pool.map(compile_plan, plans))
    rows = [run_plan(p, b, data, op, n) for p, b in zip(plans, binaries, strict=True)]
    result: dict[str, Any] = {
        "block": block, "op": str(op), "density": density, "size": args.size, "n": n, "dtype": args.dtype,
        "flops": problem.flops(n), "chosen": rows[chosen], "plans": rows,
        "dense_us": median_seconds(data.dense_call(op)) * 1e6,
    }  # fmt: skip
    if op is Op.FPROP and dtype is not DType.FLOAT32 and layout.nnz:
        ell = BlockedEll(layout.mask, block, data.w, data.x.T.contiguous())
        error = float((ell().T.float() - data.expected(op)).norm() / data.expected(op).norm())
        result["blocked_ell_us"] = median_seconds(ell) * 1e6 if error < 1e-2 else float("nan")
    return result


def show(case: dict[str, Any]) -> None:
    """One case as text."""
    chosen = case["chosen"]
    tflops = case["flops"] / chosen["us"] / 1e6
    print(
        f"b={case['block']} {case['op']} {case['density']:.0%} {case['size']} N={case['n']} {case['dtype']}: "
        f"{chosen['us']:.1f} us ({tflops:.0f} TF, predicted {chosen['predicted_us']:.0f}), dense {case['dense_us']:.1f}, "
        f"Blocked-ELL {case.get('blocked_ell_us', float('nan')):.1f}"
    )
    if len(case["plans"]) > 1:
        for row in sorted(case["plans"], key=lambda row: row["us"]):
            mark = "*" if row is chosen else " "
            print(
                f" {mark} {row['us']:7.1f} us, predicted {row['predicted_us']:6.1f} {row['limiter']:8} err {row['error']:.1e} "
                f"regs {row['registers']} spills {row['spills']} x{row['blocks_per_sm']} {row['summary']}"
            )
    bad = [row for row in case["plans"] if not row["error"] < 5e-3]
    for row in bad:
        print("  WRONG", row["error"], row["summary"])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--block", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--op", nargs="+", default=["fprop", "dgrad", "wgrad"])
    parser.add_argument("--density", type=float, nargs="+", default=[0.1])
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("-n", type=int, default=4096)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--precision", default="tensor")
    parser.add_argument("--all", type=int, nargs="?", const=1, default=0, help="all candidates, or the best ALL")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cases = []
    with ProcessPoolExecutor(mp_context=get_context("forkserver")) as pool:
        for block in args.block:
            for density in args.density:
                for op in args.op:
                    cases.append(bench(args, block, Op(op), density, pool))
                    show(cases[-1])
                    if args.json:
                        args.json.write_text(
                            json.dumps({"gpu": torch.cuda.get_device_name(), "cases": cases}, indent=1)
                        )


if __name__ == "__main__":
    main()
