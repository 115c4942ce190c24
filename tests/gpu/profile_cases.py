"""Nsight Compute's counters for the kernels that the planner takes: how busy each unit is, and what warps wait for.

    PYTHONPATH=. python3 tests/gpu/profile_cases.py "4096 10.00% b32 N=16384" "12288 5.00% b8 N=64" [--json FILE]

An argument selects the cases of every suite of `bsgen bench` whose names hold it. Clocks and caches are left as they are: a
kernel runs twice before it is profiled, so that few rows find their weights in L2, as they do in the benchmark.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bsgen.bench.cases import SUITES, Case, Selection, select
from bsgen.bench.contenders import compiled_plan
from bsgen.bench.operands import Operands
from bsgen.compiled import compiled
from bsgen.problem import TARGETS

SECTIONS = (
    "SpeedOfLight",
    "MemoryWorkloadAnalysis",
    "MemoryWorkloadAnalysis_Tables",
    "WarpStateStats",
    "SchedulerStats",
    "LaunchStats",
)
# What is printed and kept; units as Nsight Compute gives them.
COUNTERS = {
    "time_us": "gpu__time_duration.sum",
    "sm_pct": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "l1_pct": "l1tex__throughput.avg.pct_of_peak_sustained_active",
    "l2_pct": "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "dram_pct": "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "l2_hit_pct": "lts__t_sector_hit_rate.pct",
    "issue_pct": "smsp__issue_active.avg.pct_of_peak_sustained_active",
}
STALL = "smsp__average_warps_issue_stalled_"


def matching(words: Sequence[str]) -> list[Case]:
    """The cases, each once."""
    cases = {case.name: case for case in select(Selection(tuple(SUITES), block_sizes=(8, 16, 32, 64, 128)))}
    return [case for name, case in cases.items() if any(word in name for word in words)]


def launch(case: Case) -> None:
    """One call inside the profiled range."""
    made = compiled(case.problem, TARGETS["sm_90a"], None)
    with compiled_plan(Operands(case.problem, case.n), made) as (call, _):
        for _ in range(2):
            call()
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        call()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


def profile(words: Sequence[str]) -> list[dict[str, str]]:
    """A row of counters for each kernel launched, in order."""
    ncu = shutil.which("ncu") or "/usr/local/cuda/bin/ncu"
    command = [ncu, "--profile-from-start", "off", "--clock-control", "none", "--cache-control", "none"]
    for section in SECTIONS:
        command += ["--section", section]
    command += ["--csv", "--page", "raw", sys.executable, __file__, "--inside", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    table = done.stdout.partition('"ID"')
    if not table[1]:
        raise SystemExit(f"ncu gave no table: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return list(csv.DictReader(io.StringIO(table[1] + table[2])))[1:]  # the first is of units


def figures(row: dict[str, str]) -> dict[str, Any]:
    """The counters that are kept, and the four reasons that warps wait for most, in warps an issued instruction."""
    kept = {name: _number(row.get(counter, "")) for name, counter in COUNTERS.items()}
    stalls = {
        name.removeprefix(STALL).removesuffix("_per_issue_active.ratio"): _number(value) or 0.0
        for name, value in row.items()
        if name.startswith(STALL) and "not_issued" not in name
    }
    most = sorted(stalls.items(), key=lambda item: -item[1])[:4]
    return {"kernel": row["Kernel Name"], "blocks": row.get("launch__grid_size"), **kept, "stalls": dict(most)}


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--raw", type=Path, help="Every counter, as CSV.")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        for case in matching(args.words):
            launch(case)
        return
    rows = profile(args.words)
    found = [figures(row) for row in rows]
    for each in found:
        print(json.dumps(each))
    if args.raw:
        with args.raw.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    if args.json:
        args.json.write_text(
            json.dumps({"cases": [case.name for case in matching(args.words)], "kernels": found}, indent=1)
        )


if __name__ == "__main__":
    main()
