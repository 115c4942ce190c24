"""Times what a user waits for outside the kernels: import, cold and warm compilation, and the host side of a call.

    PYTHONPATH=. python3 tests/bench_host.py [--json out.json]

Each compile runs in a fresh process with a cache of its own; the time starts after the import.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

COMPILE = """
import sys, time
import bsgen
layout = bsgen.topology.random({side}, {side}, density={density}, seed=0)
begin = time.perf_counter()
mm = bsgen.compile(layout, block_size={block}, dtype="bfloat16", ops=("{op}",), arch="sm_90a")
mm.binary("{op}")
print(time.perf_counter() - begin, mm.nnz)
"""


def run(code: str, cache: str) -> list[str]:
    """The words that a fresh process prints."""
    environment = {**os.environ, "BSGEN_CACHE_DIR": cache}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    return done.stdout.split()


def compiles(side: int, density: float, block: int, op: str) -> dict[str, Any]:
    """Seconds of a cold compilation and the median of five warm ones."""
    code = COMPILE.format(side=side, density=density, block=block, op=op)
    with tempfile.TemporaryDirectory() as cache:
        cold, nnz = run(code, cache)
        warm = statistics.median(float(run(code, cache)[0]) for _ in range(5))
    return {"op": op, "block": block, "nnz": int(nnz), "cold_s": float(cold), "warm_s": warm}


def imports() -> float:
    """Median seconds of `import bsgen` in a fresh process."""
    code = "import time; begin = time.perf_counter(); import bsgen; print(time.perf_counter() - begin)"
    return statistics.median(float(run(code, "")[0]) for _ in range(7))


def call_microseconds() -> float | None:
    """Median host time of one call with PyTorch tensors, enqueued and not waited for; None without a GPU."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    import bsgen

    mm = bsgen.compile(bsgen.topology.random(16, 16, density=0.1), ops=("fprop",))
    x = torch.randn(8, mm.in_features, device="cuda").bfloat16()
    w = torch.randn(*mm.weight_shape, device="cuda").bfloat16()
    times = []
    for _ in range(40):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(100):
            mm(x, w)
        times.append((time.perf_counter() - begin) / 100 * 1e6)
    return statistics.median(times)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result: dict[str, Any] = {"import_s": imports(), "call_us": call_microseconds(), "compiles": []}
    print(f"import {result['import_s']:.3f} s, call {result['call_us']} us")
    for side, density, block in ((128, 0.1, 32), (576, 0.15, 32), (512, 0.19, 8)):
        for op in ("fprop", "dgrad", "wgrad"):
            result["compiles"].append(compiles(side, density, block, op))
            print(result["compiles"][-1])
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
