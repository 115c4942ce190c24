"""Times packs: building with two processes against one, the first call against a warm disk cache, opening one of many kernels.

    PYTHONPATH=. python3 tests/bench_packs.py [build] [load] [open] [--layouts 64] [--rounds 2] [--json out.json]

Needs no GPU: a first call is timed up to where its cubin would be handed to the driver. Every build has a cache of its own, and
builds of one and of two processes take turns, because other work on the machine slows both.
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
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import bsgen
from bsgen import nvrtc
from bsgen.packs import building, format, load_pack
from bsgen.packs.format import Index
from bsgen.packs.pack import Pack
from bsgen.packs.spec import read_spec

PARTS = ("build", "load", "open")
OPS, ARCHES, SIDES = ("fprop", "dgrad", "wgrad"), ("sm_90a", "sm_80"), (32, 48, 64)  # sides in blocks of 32
BUILD = """
import resource, sys
from bsgen.packs.building import build
from bsgen.packs.spec import read_spec
if __name__ == "__main__":
    build(read_spec(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        print(sum(resource.getrusage(who)[:2]))
"""
START = "import time\nimport bsgen\nbegin = time.perf_counter()\n"
END = "\nmm.operation({op!r}).kernels\nprint(time.perf_counter() - begin)"
FIRST_CALLS = {
    "cache": START + "mm = bsgen.compile({layout!r}, 32, 'bfloat16', {op!r}, 'sm_90a')" + END,
    "pack": START + "mm = bsgen.load_pack({pack!r}).get_for('layer.0', 'sm_90a')" + END,
    "compile, out of the pack": START
    + "import os; os.environ['BSGEN_PACK_PATH'] = {pack!r}\n"
    + "mm = bsgen.compile({layout!r}, 32, 'bfloat16', {op!r}, 'sm_90a')"
    + END,
}


def write_spec(folder: Path, layouts: int) -> Path:
    """A spec of so many layouts for three ops, two architectures and one range of N."""
    lines = [f"arch = {json.dumps(ARCHES)}", "rows = [4096]"]
    for i in range(layouts):
        side = SIDES[i % len(SIDES)]
        bsgen.topology.random(side, side, density=0.1, seed=i).save(folder / f"{i}.npy")
        lines += ["[[module]]", f'name = "layer.{i}"', f'layout = "{i}.npy"', f"ops = {json.dumps(OPS)}"]
    place = folder / "spec.toml"
    place.write_text("\n".join(lines))
    return place


def build_once(spec: Path, pack: Path, processes: int, cache: Path) -> dict[str, float]:
    """Seconds of a build in a fresh process with an empty cache, and of CPU time in it and in its workers together."""
    environment = {**os.environ, "BSGEN_CACHE_DIR": str(cache)}
    script = spec.with_name("build.py")
    script.write_text(BUILD)
    command, begin = [sys.executable, script, spec, pack, str(processes)], time.perf_counter()
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - begin
    parent, workers = map(float, done.stdout.split())
    # What the build would take if every process had a CPU to itself.
    alone = parent + workers / processes
    return {"seconds": seconds, "parent_cpu_s": parent, "workers_cpu_s": workers, "cpu_each_s": alone}


def builds(folder: Path, spec: Path, rounds: int) -> dict[str, Any]:
    """Builds by one and two processes in turn; the ratios of their medians, by the clock and by CPU time of each process."""
    found: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    packs = []
    for turn in range(rounds):
        for processes, done in found.items():
            packs.append(folder / f"{processes}.{turn}.bsp")
            done.append(build_once(spec, packs[-1], processes, folder / f"cache.{processes}.{turn}"))
            done[-1]["load_average"] = os.getloadavg()[0]
            print(
                f"build, {processes} processes: " + ", ".join(f"{k} {v:.2f}" for k, v in done[-1].items()), flush=True
            )
    medians = {
        name: [statistics.median(each[name] for each in done) for done in found.values()]
        for name in ("seconds", "cpu_each_s")
    }
    ratios = {name: two / one for name, (one, two) in medians.items()}
    print("two processes take, times as long as one: " + ", ".join(f"{k} {v:.2f}" for k, v in ratios.items()))
    return {
        "kernels": building.count(read_spec(spec)),
        "one": found[1],
        "two": found[2],
        "ratio": ratios,
        "same_bytes": len({pack.read_bytes() for pack in packs}) == 1,
        "pack_bytes": packs[0].stat().st_size,
    }


def first_calls(folder: Path, layouts: int) -> Iterator[dict[str, Any]]:
    """Median milliseconds from `import bsgen` to a kernel ready for the driver, by op and where it comes from."""
    cache, pack = str(folder / "cache.1.0"), str(folder / "1.0.bsp")
    for op in OPS:
        times: dict[str, list[float]] = {name: [] for name in FIRST_CALLS}
        for _ in range(9):
            for name, code in FIRST_CALLS.items():
                words = code.format(op=op, pack=pack, layout=str(folder / "0.npy"))
                environment = {**os.environ, "BSGEN_CACHE_DIR": cache, "BSGEN_DISABLE_JIT": "1"}
                done = subprocess.run(
                    [sys.executable, "-c", words], env=environment, check=True, capture_output=True, text=True
                )
                times[name].append(1e3 * float(done.stdout))
        shown = {name: statistics.median(each) for name, each in times.items()}
        print(f"first {op}: " + ", ".join(f"{name} {each:.1f} ms" for name, each in shown.items()), flush=True)
        yield {"op": op, "pack_of_layouts": layouts, "milliseconds": shown}


def write_large(source: Path, place: Path, kernels: int) -> None:
    """A pack of so many kernels: those of `source` over and over, every module and kernel under another name."""
    small, blobs = load_pack(source), building._Blobs()
    modules, layouts, packed = [], [], []
    decoded = [format.decode_kernel(small.blob(kernel.blob)) for kernel in small.index.kernels]
    masks = [blobs.add(small.blob(layout.blob)) for layout in small.index.layouts]
    copies = -(-kernels // len(decoded))
    for turn in range(copies):
        first = len(modules)
        layouts += [each._replace(blob=mask) for each, mask in zip(small.index.layouts, masks, strict=True)]
        for module in small.index.modules:
            modules.append(module._replace(name=f"{turn}.{module.name}", layout=first + module.layout))
        for kernel, (outline, binary) in zip(small.index.kernels, decoded, strict=True):
            blob = blobs.add(format.encode_kernel(outline, replace(binary, name=f"{binary.name}_{turn}")))
            packed.append(kernel._replace(module=first + kernel.module, blob=blob))
    index = Index(bsgen.__version__, tuple(layouts), tuple(modules), tuple(packed[:kernels]))
    kept = max((blob.offset + blob.size for blob in format.blobs(index)), default=0)
    place.write_bytes(format.encode(index, bytes(blobs.data[:kept])))


def opening(folder: Path, kernels: int = 10_000) -> dict[str, Any]:
    """Median milliseconds to open a pack of many kernels, and to a module's first kernel and to find one by its layout then."""
    place = folder / "large.bsp"
    write_large(folder / "1.0.bsp", place, kernels)
    opened, used, found = [], [], []
    problem = read_spec(folder / "spec.toml")[-1].problems[0]
    for _ in range(9):
        begin = time.perf_counter()
        pack = Pack(place)
        opened.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        _ = pack.get_for(list(pack)[len(pack) // 2], "sm_80").operation("fprop").kernels
        used.append(time.perf_counter() - begin)
        pack, begin = Pack(place), time.perf_counter()
        assert pack.find(problem, "sm_80")
        found.append(time.perf_counter() - begin)
    medians = [1e3 * statistics.median(times) for times in (opened, used, found)]
    print("a pack of {} kernels: open {:.1f} ms, a first kernel {:.1f} ms, found {:.1f} ms".format(kernels, *medians))
    names = ("open_ms", "first_kernel_ms", "find_ms")
    return {
        "kernels": len(Pack(place).index.kernels),
        "bytes": place.stat().st_size,
        **dict(zip(names, medians, strict=True)),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all if none is named")
    parser.add_argument("--layouts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2, help="builds of each kind")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    parts = args.parts or PARTS
    result: dict[str, Any] = {"cpus": os.cpu_count(), "load_before": os.getloadavg()[0], "nvrtc": nvrtc.version()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spec = write_spec(folder, args.layouts)
        if "build" in parts:
            result["build"] = builds(folder, spec, args.rounds)
        else:
            build_once(spec, folder / "1.0.bsp", 2, folder / "cache.1.0")
        if "load" in parts:
            result["first_calls"] = list(first_calls(folder, args.layouts))
        if "open" in parts:
            result["open"] = opening(folder)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
