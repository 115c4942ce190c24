"""What `compile` and `demo` share: artefacts made with progress shown, and the table of what they became."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsgen.artefact import Artefact
from bsgen.cli.output import progress, table
from bsgen.operation import Operation
from bsgen.problem import Problem, Target
from bsgen.report import dense_advice

if TYPE_CHECKING:
    from rich.table import Table

THREADS = 4  # NVRTC compiles outside Python's lock; planning does not, so more threads bring nothing


def make_operations(wanted: Sequence[tuple[Problem, Target]], compiled: bool) -> list[Operation]:
    """Plan every problem for its target and, if `compiled`, compile it: in the order given, one failure fails all."""

    def make(problem: Problem, target: Target) -> Operation:
        operation = Operation(problem, target)
        if compiled:
            operation.prepare()
        return operation

    with progress("compiling" if compiled else "planning", len(wanted)) as advance, ThreadPoolExecutor(THREADS) as pool:
        waiting = [pool.submit(make, *pair) for pair in wanted]
        try:
            for done in as_completed(waiting):
                done.result()
                advance()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [done.result() for done in waiting]


def kernel_table(artefacts: Sequence[Artefact], extra: Mapping[str, Sequence[str]] | None = None) -> Table:
    """A row for each op and architecture; `extra` columns have a cell for each artefact."""
    more = extra or {}
    columns = ("op", "arch", "family", "registers", "spills", "shared memory", "predicted", *more)
    result = table("", columns)
    for column in result.columns[3:]:
        column.justify = "right"
    for artefact, *cells in zip(artefacts, *more.values(), strict=True):
        result.add_row(*_cells(artefact.facts), *cells)
    return result


def plan_lines(artefacts: Iterable[Artefact]) -> Iterable[str]:
    """The plan of each artefact in a line, and the rows that its predicted time is for."""
    for facts in (artefact.facts for artefact in artefacts):
        rows = facts["predicted"]["rows"]
        yield f"{facts['problem']['op']:5}  {facts['arch']:7}  {facts['plan']['summary']}; predicted for N = {rows}"
        seconds, dense = facts["predicted"]["seconds"], facts["predicted"]["dense_seconds"]
        if dense < seconds:
            yield f"{facts['problem']['op']:5}  {facts['arch']:7}  {dense_advice(seconds, dense, rows)}"


def warning_lines(artefacts: Iterable[Artefact]) -> list[str]:
    """What the compiler warned of."""
    return [f"{artefact.name}: {line}" for artefact in artefacts for line in artefact.facts.get("warnings", ())]


def written_lines(artefacts: Iterable[Artefact], folder: Path) -> Iterable[str]:
    """The files of each artefact in a line, as a shell would take them."""
    for artefact in artefacts:
        suffixes = ",".join(Path(name).suffix[1:] for name in artefact.files)
        yield f"wrote {folder / artefact.name}.{{{suffixes}}}"


def _cells(facts: Mapping[str, Any]) -> Iterable[str]:
    kernels = facts.get("kernels", [])
    yield facts["problem"]["op"]
    yield facts["arch"]
    yield facts["plan"]["family"]
    # An op of several kernels: one number for each, in the order of their launches.
    yield ", ".join(str(kernel["registers"]) for kernel in kernels)
    yield f"{sum(kernel['spill_stores'] + kernel['spill_loads'] for kernel in kernels)} B" if kernels else ""
    yield f"{max(_shared_memory(facts)) / 1024:.1f} KiB"
    yield microseconds(facts["predicted"]["seconds"])


def _shared_memory(facts: Mapping[str, Any]) -> list[int]:
    static = [kernel["static_shared"] for kernel in facts.get("kernels", [])]
    dynamic = [launch["shared_memory"] for launch in facts["launches"]]
    return [a + b for a, b in zip(dynamic, static or [0] * len(dynamic), strict=True)]


def microseconds(seconds: float) -> str:
    """A time as people read it."""
    return f"{seconds * 1e6:.1f} us"
