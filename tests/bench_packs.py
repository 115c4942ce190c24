"""Times packs: building one with one process and with two, opening one of ten thousand kernels, and starting from one.

    PYTHONPATH=. python3 tests/bench_packs.py [--json out.json]

No GPU is needed. Building starts from an empty cache each time, one process and two in turn. Starting is up to the moment where a
kernel's cubin would go to the driver, in a fresh process, out of a pack and out of a warm cache.
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
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bsgen import topology
from bsgen.packs import building, load_pack
from bsgen.packs import format as layout_of
from bsgen.packs.spec import Wanted
from bsgen.problem import DType, Op, Problem, parse_target

LAYOUTS, SIDE, BLOCK, ARCHES = 64, 48, 32, ("sm_90a", "sm_80")
KERNELS = 10_000

BUILD = """
import sys, time
sys.path.insert(0, {tests!r})
import bench_packs
begin = time.perf_counter()
bench_packs.build({path!r}, {processes})
print(time.perf_counter() - begin)
"""
FROM_PACK = """
import time
begin = time.perf_counter()
import bsgen
mm = bsgen.load_pack({path!r})["layout 3"]
mm.binary("fprop").cubin
print(time.perf_counter() - begin)
"""
FROM_CACHE = """
import sys, time
import bsgen
layout = bsgen.Layout.load({layout!r})
begin = time.perf_counter()
import bsgen
mm = bsgen.compile(layout, {block}, ops=("fprop",), arch="sm_90a")
mm.binary("fprop").cubin
print(time.perf_counter() - begin)
"""


def wanted() -> list[Wanted]:
    """64 layouts, for three ops and two architectures, with one range of N."""
    layouts = [topology.random(SIDE, SIDE, density=0.1 + 0.002 * i, seed=i) for i in range(LAYOUTS)]
    targets = tuple(map(parse_target, ARCHES))
    return [
        Wanted(f"layout {i}", tuple(Problem(op, layout, BLOCK, DType.BFLOAT16) for op in Op), targets, (4096 * 4,))
        for i, layout in enumerate(layouts)
    ]


def build(path: str, processes: int) -> None:
    """The pack of all of them."""
    building.build(wanted(), path, processes)


def run(code: str, cache: str) -> float:
    """Seconds that a fresh process prints."""
    environment = {**os.environ, "BSGEN_CACHE_DIR": cache}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def building_times(folder: Path, repeats: int) -> dict[str, Any]:
    """Seconds with one process and with two."""
    times: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(repeats):
        for processes, found in times.items():
            path = str(folder / f"{processes}.bsp")
            code = BUILD.format(tests=str(Path(__file__).parent), path=path, processes=processes)
            with tempfile.TemporaryDirectory() as cache:
                found.append(run(code, cache))
            print(f"  build {turn}: {processes} process(es) {found[-1]:.1f} s", file=sys.stderr)
    same = (folder / "1.bsp").read_bytes() == (folder / "2.bsp").read_bytes()
    one, two = (statistics.median(found) for found in times.values())
    return {"kernels": LAYOUTS * 6, "one_s": one, "two_s": two, "ratio": two / one, "same bytes": same}


def starting_times(folder: Path) -> dict[str, float]:
    """Seconds of a start out of a pack, import included, and out of a warm cache, likewise."""
    layout = folder / "layout.npy"
    wanted()[3].problems[0].layout.save(layout)
    with tempfile.TemporaryDirectory() as cache:
        pack = FROM_PACK.format(path=str(folder / "1.bsp"))
        warm = FROM_CACHE.format(layout=str(layout), block=BLOCK).replace("import bsgen\nlayout", "begin = 0\nlayout", 1)
        warm = f"import time\nbegin = time.perf_counter()\nimport bsgen\nmm = bsgen.compile({str(layout)!r}, {BLOCK}, ops=('fprop',), arch='sm_90a')\nmm.binary('fprop').cubin\nprint(time.perf_counter() - begin)"
        run(warm, cache)
        from_pack, from_cache = (statistics.median(run(code, cache) for _ in range(9)) for code in (pack, warm))
    return {"pack_s": from_pack, "cache_s": from_cache, "more_s": from_pack - from_cache}


def opening_time(folder: Path) -> dict[str, Any]:
    """Seconds to open a pack of ten thousand kernels, each with bytes of its own."""
    small = load_pack(folder / "1.bsp")
    index, blob = small.index, small.blob(small.index.kernels[0].blob)
    blobs, kernels, modules = bytearray(), [], []
    for layout in index.layouts:
        blobs += small.blob(layout.blob)
    for i in range(KERNELS):
        if i % 6 == 0:
            modules.append(replace(index.modules[i // 6 % LAYOUTS], name=f"module {i // 6}"))
        place = index.kernels[i % 6]
        data = blob[:64] + i.to_bytes(8, "little")  # nobody reads it here
        kernels.append(replace(place, module=i // 6, blob=building._Blobs().add(data)))
        kernels[-1] = replace(kernels[-1], blob=replace(kernels[-1].blob, offset=len(blobs)))
        blobs += data
    path = folder / "many.bsp"
    layouts, end = [], 0
    for layout in index.layouts:
        layouts.append(replace(layout, blob=replace(layout.blob, offset=end)))
        end += layout.blob.size
    made = replace(index, layouts=tuple(layouts), modules=tuple(modules), kernels=tuple(kernels))
    path.write_bytes(layout_of.encode(made, bytes(blobs)))
    return {"kernels": KERNELS, "open_s": _median(lambda: load_pack(path), 9), "bytes": path.stat().st_size}


def _median(call: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = {"build": building_times(folder, given.repeats)}
        found |= {"start": starting_times(folder), "open": opening_time(folder)}
    print(json.dumps(found, indent=1))
    if given.json:
        given.json.write_text(json.dumps({"cpus": os.cpu_count(), **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
