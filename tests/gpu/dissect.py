"""Where the time of the chosen kernels for fprop and dgrad on Hopper goes: with parts of them taken out, and stage by stage.

    PYTHONPATH=. python3 tests/gpu/dissect.py "4096 10.00% b32 N=16384" "12288 5.00% b8 N=64" [--json FILE]

An argument selects the cases of every suite of `bsgen bench` whose names hold it. Taken out are the loads of activations and
weights (records still come), the multiplies, and the stores; what is left computes nothing, but in the time that it takes. For the
stages, every warp writes down clocks as it waits, multiplies and stores, and those that load as they wait and have issued
copies; the kernel takes some 5 % longer then. All is done to the emitted text, which must have the places that are looked for.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cuts import COMES, LEAVES, MARKS, PARTS, STAGES, WAITS, WARPS, marked
from profile_cases import matching

from bsgen.bench.cases import Case
from bsgen.bench.contenders import compiled_plan
from bsgen.bench.operands import Operands
from bsgen.bench.timing import Clock
from bsgen.build import build
from bsgen.compiled import Compiled
from bsgen.emit import Source, render
from bsgen.plan import HopperNarrowPlan, HopperPlan, Plan, choose, outline
from bsgen.problem import TARGETS

TARGET, CLOCK = TARGETS["sm_90a"], Clock()


def built(plan: Plan, source: Source, text: str) -> Compiled:
    """A plan whose kernels have another text."""
    made = replace(source, text=text)
    return Compiled(outline(plan), made, build(made, plan.target.arch))


def seconds(operands: Operands, made: Compiled) -> float:
    """What a call takes."""
    with compiled_plan(operands, made) as (call, _):
        return CLOCK.time(call).seconds


def stages(operands: Operands, plan: Plan, source: Source) -> dict[str, float]:
    """Clocks of a thread block, medians over all: of warps that multiply, means over them; of one that loads."""
    clocks = torch.zeros(plan.target.sms, WARPS, STAGES, MARKS, dtype=torch.int64, device="cuda")
    with compiled_plan(operands, built(plan, source, marked(source.text, clocks.data_ptr()))) as (call, _):
        for _ in range(8):
            call()
        torch.cuda.synchronize()
    blocks = [clocked for block in clocks.cpu().numpy() for clocked in _clocks(block)]
    return {name: float(np.median([block[name] for block in blocks])) for name in blocks[0]}


def _clocks(block: np.ndarray) -> Iterator[dict[str, float]]:
    """Of one thread block, if it had stages enough to tell."""
    multiply = [warp for warp in block if warp[0, LEAVES]]
    load = next((warp for warp in block if warp[0, COMES] and not warp[0, LEAVES]), None)
    if not multiply or load is None or not load[1, COMES]:
        return
    count = min(int((warp[:, COMES] > 0).sum()) for warp in (*multiply, load))
    waits, comes, leaves, stored = np.moveaxis(np.stack(multiply)[:, :count], 2, 0)
    issued, free = load[:count, COMES], load[:count, COMES] - load[:count, WAITS]
    ends = stored[0] > 0
    yield {
        "stages": count,
        "tiles": int(ends.sum()),
        "first load": float(comes[:, 0].min() - issued[0]),
        "wait of a stage": float((comes - waits).mean()),
        "multiply of a stage": float((leaves - comes).mean()),
        "slowest warp of a stage": float((leaves - comes).max(axis=0).mean()),
        "store of a tile": float((stored - leaves)[:, ends].mean()),
        "from copies issued to all there": float(np.median(comes.min(axis=0) - issued)),
        "wait of the loading warps for a free stage": float(free.mean()),
        "copies of a stage": float((np.diff(issued) - free[1:]).mean()),
    }


def dissect(case: Case) -> dict[str, Any]:
    """All of it for one case."""
    plan = choose(case.problem, TARGET)
    if not isinstance(plan, HopperPlan | HopperNarrowPlan):
        raise SystemExit(f"{case.name}: {plan.family} is none of the kernels that this takes apart")
    operands, source = Operands(case.problem, case.n), render(plan)
    times = {}
    for name, cuts in PARTS.items():
        text = source.text
        for cut in cuts:
            text = cut(text)
        times[name] = seconds(operands, built(plan, source, text))
    return {"case": case.name, "plan": plan.summary, "seconds": times, "clocks": stages(operands, plan, source)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = []
    for case in matching(args.words):
        found.append(dissect(case))
        print(f"== {case.name}\n   {found[-1]['plan']}")
        print("   us:", ", ".join(f"{name} {time * 1e6:.1f}" for name, time in found[-1]["seconds"].items()))
        print(
            "   clocks:", ", ".join(f"{name} {clocks:.0f}" for name, clocks in found[-1]["clocks"].items()), flush=True
        )
        if args.json:
            document = {"gpu": torch.cuda.get_device_name(), "clock": CLOCK.text, "cases": found}
            args.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
