"""What a problem was compiled to before: a warm start finds the outline, the source and the binary, and plans nothing.

A request's key covers the problem with every block of its layout, the target, the compiler build, and every file that
planning and rendering depend on, so that a change to any of them is a miss.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bsgen import nvrtc, store
from bsgen.build import build
from bsgen.emit import Source, render, template_folder
from bsgen.errors import CompileError
from bsgen.nvrtc import Binary
from bsgen.outline import Outline
from bsgen.problem import Problem, Target
from bsgen.ranges import DEFAULT_ROWS

if TYPE_CHECKING:
    from bsgen.plan import Plan


_log = logging.getLogger("bsgen")

TUNED = "tuned"  # in place of a compiler: a measured choice holds for any


@dataclass(frozen=True)
class Compiled:
    """A problem's outline, source (None if it came without: out of a pack) and binary."""

    outline: Outline
    source: Source | None
    binary: Binary


def compiled(problem: Problem, target: Target, plan: Plan | None = None) -> Compiled:
    """Out of a pack of BSGEN_PACK_PATH; else from the disk cache; else out of an installed pack; else as `built`.

    Installed packs come after the cache, because to look for them takes longer than to read an entry.
    """
    path = os.environ.get("BSGEN_PACK_PATH", "")
    found = _packed(problem, target, path) if path and plan is None else None
    found = found or _cached(problem, target)
    if found is None and plan is None:
        found = _packed(problem, target, "")
    return found or built(problem, target, plan)


def _packed(problem: Problem, target: Target, path: str) -> Compiled | None:
    from bsgen.packs import search  # it knows this module, and most starts need it not

    return search.find(problem, target.arch, path)


def built(problem: Problem, target: Target, plan: Plan | None = None) -> Compiled:
    """From the disk cache; else planned (unless `plan` is given), rendered, built, and remembered.

    Raises:
        CompileError: it must be compiled, but there is no compiler, or BSGEN_DISABLE_JIT is set.
    """
    found = _cached(problem, target)
    if found is not None:
        return found
    _allow_compiling(problem, target)
    disk = store.default()
    if disk is None:
        return assemble(plan or planned(problem, target))
    request = key(problem, target, nvrtc.version())
    with disk.lock(request):  # of processes that want the same at once, one makes it
        found = _recall(disk, request)
        if found is None:
            begin = time.perf_counter()
            found = assemble(plan or planned(problem, target))
            _remember(disk, request, found)
            seconds = time.perf_counter() - begin
            _log.info(
                "compiled %s for %s in %.2f s: %s", found.binary.name, target.arch, seconds, found.outline.summary
            )
    return found


def _cached(problem: Problem, target: Target) -> Compiled | None:
    """What the disk cache has, of the compiler that is installed."""
    disk = store.default()
    if disk is None:
        return None
    try:
        request = key(problem, target, nvrtc.version())
    except CompileError:  # no compiler: what was compiled by another is no answer for this one
        return None
    return _recall(disk, request)


def _allow_compiling(problem: Problem, target: Target) -> None:
    if os.environ.get("BSGEN_DISABLE_JIT", "") not in ("", "0"):
        raise CompileError(
            f"{problem.op} of layout {problem.layout.digest} for {target.arch} (about {problem.batch or DEFAULT_ROWS} rows) is in "
            "no pack and not in the cache, and BSGEN_DISABLE_JIT is set: add it to a pack, or unset it"
        )


def assemble(plan: Plan) -> Compiled:
    """A plan rendered and built."""
    from bsgen.plan import outline  # most starts are warm and need no planner

    source = render(plan)
    return Compiled(outline(plan), source, build(source, plan.target.arch))


def planned(problem: Problem, target: Target) -> Plan:
    """The plan that `tune` found fastest, else the one that the cost model takes."""
    from bsgen.plan import candidates, choose

    disk = store.default()
    text = disk.get_request(key(problem, target, TUNED)) if disk else None
    if text is None:
        return choose(problem, target)
    wanted = json.loads(text)
    found = (plan for plan in candidates(problem, target) if {"family": plan.family, "plan": plan.summary} == wanted)
    return next(found, None) or choose(problem, target)


def keep(problem: Problem, target: Target, made: Compiled) -> bool:
    """Have `planned` and `compiled` give this from now on; whether there is a cache to keep it."""
    disk = store.default()
    if disk is None:
        return False
    disk.put_request(
        key(problem, target, TUNED), json.dumps({"family": made.outline.family, "plan": made.outline.summary})
    )
    _remember(disk, key(problem, target, nvrtc.version()), made)
    return disk.get_request(key(problem, target, TUNED)) is not None


def key(problem: Problem, target: Target, compiler: str) -> str:
    """The name of a request: a digest of all that its answer depends on."""
    epilogue = {name: str(value) for name, value in dataclasses.asdict(problem.epilogue).items()}
    fields = {
        "op": str(problem.op),
        "shape": problem.layout.shape,
        "blocks": hashlib.sha256(np.packbits(problem.layout.mask).tobytes()).hexdigest(),
        "block size": problem.block_size,
        "dtype": str(problem.dtype),
        "precision": str(problem.precision),
        "epilogue": epilogue,
        "batch": problem.batch,
        "gate": problem.gate,
        "axis": problem.axis,
        "dtype of dW": str(problem.wgrad_dtype),
        "target": dataclasses.asdict(target),
        "compiler": compiler,
        "generator": generator(),
    }
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


@cache
def generator() -> str:
    """A digest of the files that turn a problem into a source."""
    package = Path(__file__).resolve().parent
    files = [
        *sorted(package.glob("plan/*.py")),
        *(package / f"{name}.py" for name in ("problem", "ranges", "emit", "layout", "outline")),
    ]
    files += sorted(path for path in template_folder().rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for file in files:
        data = file.read_bytes()
        digest.update(f"{file.name} {len(data)}\n".encode() + data)
    return digest.hexdigest()


def _recall(disk: store.Store, request: str) -> Compiled | None:
    text = disk.get_request(request)
    if text is None:
        return None
    fields = json.loads(text)
    binary = disk.get(fields["binary"])
    if binary is None:
        return None
    source = fields["source"]
    made = Source(source["name"], source["text"], tuple(source["entries"]), tuple(source["options"]))
    return Compiled(Outline.from_json(fields["outline"]), made, binary)


def _remember(disk: store.Store, request: str, made: Compiled) -> None:
    if made.source is None:  # out of a pack, which is as quick
        return
    binary = store.key(made.source, made.binary.arch, made.binary.compiler)
    fields = {"outline": dataclasses.asdict(made.outline), "source": dataclasses.asdict(made.source), "binary": binary}
    disk.put_request(request, json.dumps(fields))
