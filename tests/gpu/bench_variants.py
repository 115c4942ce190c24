"""Times plans that are not in the planner's choice yet beside the one that it takes, cuBLAS and Blocked-ELL.

    PYTHONPATH=. python3 tests/gpu/bench_variants.py [narrow] [wgrad] [staged] [axis] [small] [--json FILE]

*narrow*, *wgrad*: the Hopper kernels for blocks of 8 and 16. *staged*: results that TMA stores. *axis*: features first, for which
the cost model has not been fitted. *small*: few rows, with inputs that warpgroups share out.
Each plan is checked before it is timed; one that is wrong is said and left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from bsgen import topology
from bsgen.bench.contenders import PEERS, compiled_plan
from bsgen.bench.operands import Operands
from bsgen.bench.timing import Clock
from bsgen.compiled import Compiled, assemble
from bsgen.plan import FAMILIES, Plan, choose, hopper, hopper_narrow, hopper_narrow_wgrad
from bsgen.problem import TARGETS, DType, Op, Problem

TARGET, CLOCK, SIZE = TARGETS["sm_90a"], Clock(), 4096
MOST = 14  # variants of a case

Case = tuple[str, Problem, list[Plan]]


def narrow() -> Iterator[Case]:
    """Blocks of 8 and 16: for each shape, panel and cluster the cheapest plan by the model, the likeliest first."""
    kinds = [
        (op, b, density, 16384, SIZE) for b in (16, 8) for op in (Op.FPROP,) for density in (0.01, 0.05, 0.1, 0.2, 0.5)
    ]
    kinds += [(Op.DGRAD, b, 0.1, 16384, SIZE) for b in (16, 8)]
    kinds += [(Op.FPROP, b, 0.05, 64, 3 * SIZE) for b in (16, 8)]
    for op, b, density, n, size in kinds:
        layout = topology.random(size // b, size // b, density=density, seed=1)
        problem = Problem(op, layout, b, DType.BFLOAT16, batch=n)
        best: dict[object, hopper_narrow.Draft] = {}
        for draft in sorted(hopper_narrow.drafts(problem, TARGET), key=lambda draft: draft.cost.seconds):
            best.setdefault((replace(draft.geometry.shape, stages=0, stage_bytes=0), draft.grouping), draft)
        plans = [hopper_narrow.assemble(problem, TARGET, draft) for draft in islice(best.values(), MOST)]
        yield f"{op} b{b} {density:.0%} N={n} {size}", problem, list(plans)


def wgrad() -> Iterator[Case]:
    """Gradients of weights of 8 and 16: for each number of warps, band and ring the best split of N by the model."""
    for b, density in ((16, 0.1), (16, 0.01), (16, 0.5), (8, 0.1), (8, 0.02)):
        layout = topology.random(SIZE // b, SIZE // b, density=density, seed=1)
        problem = Problem(Op.WGRAD, layout, b, DType.BFLOAT16, batch=16384)
        best: dict[object, Plan] = {}
        ranked = sorted(hopper_narrow_wgrad.candidates(problem, TARGET), key=lambda plan: plan.cost.seconds)
        for plan in ranked:
            best.setdefault(plan.geometry, plan)
        yield f"wgrad b{b} {density:.0%} N=16384 {SIZE}", problem, list(islice(best.values(), MOST))


def staged() -> Iterator[Case]:
    """Random layouts of several densities, and structure: the cheapest shapes by the model, with 1, 2 and 4 boxes a warp."""
    side = SIZE // 32
    layouts = [
        (f"{density:.0%}", topology.random(side, side, density=density, seed=1)) for density in (0.01, 0.05, 0.1, 0.2)
    ]
    layouts += [("banded", topology.banded(side, side, 13)), ("watts", topology.watts_strogatz(side, 12, 0.2, seed=1))]
    for name, layout in layouts:
        problem = Problem(Op.FPROP, layout, 32, DType.BFLOAT16, batch=16384)
        plans = [plan for boxes in (1, 2, 4) for plan in islice(hopper.staged_plans(problem, TARGET, boxes), MOST // 3)]
        yield f"fprop b32 {name} N=16384 {SIZE}", problem, list(plans)


def axis() -> Iterator[Case]:
    """Features first: the cheapest plans by the model, of each op and of densities where reading no more than a block pays."""
    kinds = [(Op.FPROP, b, density) for b in (8, 16, 32) for density in (0.01, 0.1)]
    kinds += [(op, b, 0.1) for op in (Op.DGRAD, Op.WGRAD) for b in (8, 32)]
    for op, b, density in kinds:
        layout = topology.random(SIZE // b, SIZE // b, density=density, seed=1)
        problem = Problem(op, layout, b, DType.BFLOAT16, batch=16384, axis=0)
        plans = (plan for family in FAMILIES[op] for plan in family.candidates(problem, TARGET))
        ranked = sorted(plans, key=lambda plan: plan.cost.seconds)
        yield f"{op} b{b} {density:.0%} N=16384 {SIZE} axis 0", problem, ranked[:MOST]


def small() -> Iterator[Case]:
    """Few rows: for each shape, with inputs shared out among warpgroups or not, the cheapest plan by the model."""
    kinds = [(64, size, density) for size in (SIZE, 3 * SIZE) for density in (0.01, 0.05, 0.1, 0.2)]
    for n, size, density in [*kinds, (32, 3 * SIZE, 0.1), (8, 3 * SIZE, 0.2), (1, 3 * SIZE, 0.2)]:
        layout = topology.random(size // 32, size // 32, density=density, seed=1)
        problem = Problem(Op.FPROP, layout, 32, DType.BFLOAT16, batch=n)
        best: dict[object, hopper.Draft] = {}
        drafts = hopper.drafts(problem, TARGET, hopper.SHAPES + hopper.JOINT_SHAPES)
        for draft in sorted(drafts, key=lambda draft: draft.cost.seconds):
            best.setdefault(replace(draft.geometry.shape, stages=0, stage_bytes=0), draft)
        plans = [hopper.assemble(problem, TARGET, draft) for draft in islice(best.values(), MOST)]
        yield f"fprop b32 {density:.0%} N={n} {size}", problem, list(plans)


def measure(case: Case, peers: Sequence[str]) -> dict[str, Any]:
    """Times of the peers, of the planner's choice, and of the variants."""
    name, problem, plans = case
    operands = Operands(problem, problem.batch or 0)
    print(f"== {name}", flush=True)
    row: dict[str, Any] = {"case": name, "peers": {}, "plans": []}
    for peer in peers:
        with PEERS[peer](operands) as (call, _):
            row["peers"][peer] = CLOCK.time(call).seconds
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(assemble, [choose(problem, TARGET), *plans]))
    for turn, each in enumerate(made):
        row["plans"].append({"chosen": turn == 0, **_timed(operands, each)})
    for peer, seconds in row["peers"].items():
        print(f"  {seconds * 1e6:8.1f} us  {peer}", flush=True)
    for plan in sorted(row["plans"], key=lambda plan: plan["seconds"]):
        mark = "*" if plan["chosen"] else " "
        print(
            f" {mark}{plan['seconds'] * 1e6:8.1f} us  predicted {plan['predicted'] * 1e6:7.1f}  {plan['plan']}",
            flush=True,
        )
    return row


def _timed(operands: Operands, made: Compiled) -> dict[str, Any]:
    outline = made.outline
    said = {"plan": outline.summary, "predicted": outline.seconds, "seconds": float("inf")}
    with compiled_plan(operands, made) as (call, result):
        call()
        torch.cuda.synchronize()
        error = operands.error(result())
        first = result().clone()
        call()
        if not error <= operands.tolerance or not torch.equal(first, result()):
            print(f"  WRONG ({error:.1e}): {outline.summary}", flush=True)
            return said
        return {**said, "seconds": CLOCK.time(call).seconds}


SUITES: dict[str, Callable[[], Iterator[Case]]] = {
    "narrow": narrow,
    "wgrad": wgrad,
    "staged": staged,
    "axis": axis,
    "small": small,
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", default=list(SUITES))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = []
    for suite in given.suites:
        for case in SUITES[suite]():
            no_ell = case[1].block_size == 8 or case[1].op is Op.WGRAD
            rows.append(measure(case, ("dense",) if no_ell else ("dense", "blocked-ell")))
            if given.json:
                given.json.write_text(
                    json.dumps({"gpu": torch.cuda.get_device_name(), "clock": CLOCK.text, "cases": rows}, indent=1)
                )


if __name__ == "__main__":
    main()
