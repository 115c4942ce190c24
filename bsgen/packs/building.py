"""Building packs: every kernel compiled in parallel processes, through the disk cache, so that an interrupted build goes on."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np

import bsgen
from bsgen import compiled
from bsgen.errors import PackError
from bsgen.files import require_suffix, write_atomic
from bsgen.layout import Layout
from bsgen.packs import format as layout_of
from bsgen.packs.format import Blob, Index, Module, PackedKernel, PackedLayout
from bsgen.packs.search import SUFFIX
from bsgen.packs.spec import Wanted
from bsgen.problem import Problem, Target


class _Blobs:
    """Blobs laid back to back; the same bytes are kept once."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._known: dict[str, Blob] = {}

    def add(self, data: bytes) -> Blob:
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._known:
            self._known[digest] = Blob(len(self.data), len(data), digest)
            self.data += data
        return self._known[digest]


def build(
    wanted: Sequence[Wanted],
    path: str | os.PathLike[str],
    processes: int | None = None,
    advance: Callable[[], None] | None = None,
) -> Path:
    """Compile modules and write them as one pack, whole or not at all; the same modules give the same bytes.

    Args:
        processes: how many compile at once; None: as many as there are CPUs.
        advance: called after each kernel.

    Raises:
        BsgenError: of the first kernel that cannot be made. LayoutError: `path` cannot be written, or does not end in .bsp.
    """
    place = require_suffix(path, SUFFIX)
    tasks = _tasks(wanted)
    blobs = _compile(list(tasks.values()), processes, advance or (lambda: None))
    write_atomic(place, _encode(wanted, dict(zip(tasks, blobs, strict=True))))
    return place


def count(wanted: Sequence[Wanted]) -> int:
    """How many kernels `build` will make."""
    return len(_tasks(wanted))


def _tasks(wanted: Sequence[Wanted]) -> dict[str, tuple[Problem, Target]]:
    """What is to be compiled, each once."""
    return {_named((problem, target)): (problem, target) for module in wanted for problem, target, _ in module.tasks()}


def _named(task: tuple[Problem, Target]) -> str:
    """What tells a kernel from others."""
    return compiled.key(*task, "")


def _compile(tasks: list[tuple[Problem, Target]], processes: int | None, advance: Callable[[], None]) -> list[bytes]:
    workers = min(len(tasks), processes or os.cpu_count() or 1)
    if workers <= 1:
        found = []
        for task in tasks:
            found.append(_one(*task))
            advance()
        return found
    # Not fork: a child of a process with threads, or with a CUDA context, may hang.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _leave_interrupts) as pool:
        waiting = [pool.submit(_one, *task) for task in tasks]
        try:
            for done in as_completed(waiting):
                done.result()
                advance()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [done.result() for done in waiting]


def _leave_interrupts() -> None:
    """To the parent: a terminal sends Ctrl-C to all, and each worker would show where it was."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _one(problem: Problem, target: Target) -> bytes:
    """The blob of a kernel."""
    made = compiled.built(problem, target)
    return layout_of.encode_kernel(made.outline, made.binary)


def _encode(wanted: Sequence[Wanted], made: dict[str, bytes]) -> bytes:
    blobs, places = _Blobs(), dict[str, int]()
    layouts: list[PackedLayout] = []
    modules: list[Module] = []
    kernels: list[PackedKernel] = []
    for place, module in enumerate(wanted):
        layout = module.problems[0].layout
        if layout.digest not in places:
            places[layout.digest] = len(layouts)
            layouts.append(_packed(layout, blobs))
        modules.append(_module(module, places[layout.digest]))
        for problem, target, rows in module.tasks():
            blob = blobs.add(made[_named((problem, target))])
            kernels.append(PackedKernel(place, str(problem.op), target.arch, rows, blob))
    if len(kernels) > layout_of.MOST_ENTRIES:
        raise PackError(
            f"a pack holds at most {layout_of.MOST_ENTRIES} kernels, these are {len(kernels)}: make several"
        )
    return layout_of.encode(Index(bsgen.__version__, tuple(layouts), tuple(modules), tuple(kernels)), bytes(blobs.data))


def _packed(layout: Layout, blobs: _Blobs) -> PackedLayout:
    rows, cols = layout.shape
    return PackedLayout(rows, cols, blobs.add(np.packbits(layout.mask).tobytes()))


def _module(module: Wanted, layout: int) -> Module:
    first = module.problems[0]
    fprop = next((problem for problem in module.problems if problem.op == "fprop"), first)
    activation = str(fprop.epilogue.activation) if fprop.epilogue.activation else None
    gradients = next((str(problem.wgrad_dtype) for problem in module.problems if problem.wgrad_dtype), None)
    return Module(
        module.name, layout, first.block_size, str(first.dtype), str(first.precision), fprop.epilogue.bias, activation,
        fprop.epilogue.residual, tuple(str(problem.op) for problem in module.problems), first.gate, gradients,
        first.axis,
    )  # fmt: skip
