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
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
WARPS, STAGES, MARKS, SMS = 24, 384, 4, 132  # of a thread block that are written down, at most
WAITS, COMES, LEAVES, STORED = range(MARKS)  # what is written down of a stage; the last of a tile's last
MARK = """
__device__ __forceinline__ void mark(int stage, int what) {{
    if (threadIdx.x % 32 == 0 && stage < {stages})
        reinterpret_cast<long long*>({address}ull)
            [((blockIdx.x * {warps} + threadIdx.x / 32) * {stages}ll + stage) * {marks} + what] = clock64();
}}
"""
ALIAS = "using u32 = unsigned int;"


class Unknown(Exception):
    """The text has no such place."""


def changed(text: str, pattern: str, to: str, least: int = 1) -> str:
    """The text with every match replaced, of which there must be some."""
    text, count = re.subn(pattern, to, text)
    if count < least:
        raise Unknown(f"nothing in the kernel looks like {pattern}")
    return text


def without_loads(text: str) -> str:
    """Nothing arrives but the records."""
    if "load.y != 0" in text:  # narrow blocks
        text = changed(text, r"barrier_expect\(barrier, high \* 16\)", "barrier_expect(barrier, low * 16)")
        return changed(text, r"else if \(load\.(y != 0|x >= 0)\)", "else if (load.x == -2)", 2)
    text = changed(
        text, r"barrier_expect\(barrier, panels \* kPanelBytes \+ [^;]*;", "barrier_expect(barrier, kRecordBytes);"
    )
    return changed(text, r"if \(mine && lane > ", "if (load == -2 && lane > ", 2)


def without_multiplies(text: str) -> str:
    """Stages are given back as they come."""
    return changed(text, r"\n\s+multiply_stage\(sums, [^;]*;", "")


def without_stores(text: str) -> str:
    """Results go nowhere."""
    return changed(text, r"(\n +)(store\(sums[^;]*;)", r"\1if (n == -2) \2")


PARTS: dict[str, tuple[Callable[[str], str], ...]] = {
    "whole": (),
    "no loads": (without_loads,),
    "no multiplies": (without_multiplies,),
    "no stores": (without_stores,),
    "multiplies alone": (without_loads, without_stores),
    "loads alone": (without_multiplies, without_stores),
}


def marked(text: str, address: int) -> str:
    """With clocks written down, at an address of the GPU's memory."""
    text = changed(text, r"u32 parity = ([01]);", r"u32 parity = \1; int at = 0;", 2)
    loading = r"(barrier_wait\(empty \+ slot \* 8, parity\);\s+producers_sync(?:<\w+>)?\(\w*\);)"
    text = changed(text, loading, rf"mark(at, {WAITS}); \1 mark(at++, {COMES});")
    waiting = r"(barrier_wait\(full \+ slot \* 8, parity\);)"
    text = changed(text, waiting, rf"mark(at, {WAITS}); \1 mark(at, {COMES});")
    narrow = r"(if \(lane == 0\) barrier_arrive\(empty \+ slot \* 8\);)"
    wide = r"(    give_back\(empty, slot, parity\);)"
    text = changed(text, narrow if re.search(narrow, text) else wide, rf"\1 mark(at++, {LEAVES});")
    text = changed(text, r"(\n +)(store\(sums[^;]*;)", rf"\1{{ \2 mark(at - 1, {STORED}); }}")
    return text.replace(ALIAS, ALIAS + MARK.format(address=address, stages=STAGES, warps=WARPS, marks=MARKS), 1)


def built(plan: Plan, text: str) -> Compiled:
    """A plan whose kernels have another text."""
    source = render(plan)
    made = Source(source.name, text, source.entries, source.options)
    return Compiled(outline(plan), made, build(made, plan.target.arch))


def seconds(operands: Operands, made: Compiled) -> float:
    """What a call takes."""
    with compiled_plan(operands, made) as (call, _):
        return CLOCK.time(call).seconds


def stages(operands: Operands, plan: Plan) -> dict[str, float]:
    """Clocks of a thread block, medians over all: of warps that multiply, means over them; of one that loads."""
    clocks = torch.zeros(SMS, WARPS, STAGES, MARKS, dtype=torch.int64, device="cuda")
    with compiled_plan(operands, built(plan, marked(render(plan).text, clocks.data_ptr()))) as (call, _):
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
    operands = Operands(case.problem, case.n)
    times = {}
    for name, cuts in PARTS.items():
        text = render(plan).text
        for cut in cuts:
            text = cut(text)
        times[name] = seconds(operands, built(plan, text))
    return {"case": case.name, "plan": plan.summary, "seconds": times, "clocks": stages(operands, plan)}


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
