"""`bsgen bench`: kernels timed beside their peers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bsgen.bench.cases import SUITES, Case, Selection, select
from bsgen.bench.chart import write_png
from bsgen.bench.records import Measured, Row
from bsgen.cli import Command
from bsgen.cli.output import console, progress, show_json, table
from bsgen.errors import DriverError
from bsgen.files import require_suffix, write_atomic
from bsgen.problem import BLOCK_SIZES, DType, Op
from bsgen.runtime import driver

if TYPE_CHECKING:
    from rich.table import Table

PEERS = ("dense", "blocked-ell", "bsr", "csr", "torch-bsr", "torch-bsr-tuned")
DEFAULT_PEERS = PEERS[:-1]  # tuning takes minutes a case


@click.command(
    cls=Command,
    epilog="""
bsgen bench --list --suite floors
bsgen bench --suite random --size 4096 --rows 4096 --json figures.json --png curve.png
bsgen bench --suite wgrad --block-size 32 --density 0.1 --peer dense --limit 300
""",
)
@click.option(
    "--suite",
    "suites",
    type=click.Choice(list(SUITES)),
    multiple=True,
    help="Which cases; repeat for several.  [default: random]",
)
@click.option(
    "--block-size",
    "blocks",
    type=click.Choice([str(b) for b in BLOCK_SIZES]),
    multiple=True,
    help="Only cases of these.  [default: all]",
)
@click.option(
    "--density",
    "densities",
    type=click.FloatRange(0, 1, min_open=True),
    multiple=True,
    metavar="SHARE",
    help="Only cases within a tenth of these, such as 0.1.  [default: all]",
)
@click.option(
    "--rows", type=click.IntRange(min=1), multiple=True, metavar="N", help="Only cases of so many rows.  [default: all]"
)
@click.option(
    "--size",
    "sizes",
    type=click.IntRange(min=1),
    multiple=True,
    metavar="C",
    help="Only cases of so many input features.  [default: all]",
)
@click.option(
    "--op",
    type=click.Choice([str(op) for op in Op]),
    help="In place of the suite's.  [default: fprop; wgrad of the suite wgrad]",
)
@click.option(
    "--dtype",
    type=click.Choice([str(d) for d in DType]),
    default="bfloat16",
    show_default=True,
    help="Of activations and weights.",
)
@click.option(
    "--peer",
    "peers",
    type=click.Choice(PEERS),
    multiple=True,
    help="Beside what; repeat for several.  [default: all but torch-bsr-tuned]",
)
@click.option("--choice-only", is_flag=True, help="Only the plan that compile takes, not the best of each family.")
@click.option("--cold", is_flag=True, help="Write other data into L2 before each call.")
@click.option(
    "--limit",
    type=click.FloatRange(min=0),
    default=math.inf,
    metavar="SECONDS",
    help="Start no case after so many seconds.  [default: none]",
)
@click.option("--list", "listed", is_flag=True, help="Print the cases as JSON; needs no GPU.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False),
    metavar="FILE.json",
    help="Write the figures to a file, after every case.",
)
@click.option(
    "--png",
    "png_file",
    type=click.Path(dir_okay=False),
    metavar="FILE.png",
    help="Draw speed-up over dense against density.",
)
def bench(
    suites: tuple[str, ...],
    blocks: tuple[str, ...],
    densities: tuple[float, ...],
    rows: tuple[int, ...],
    sizes: tuple[int, ...],
    op: str | None,
    dtype: str,
    peers: tuple[str, ...],
    choice_only: bool,
    cold: bool,
    limit: float,
    listed: bool,
    json_file: str | None,
    png_file: str | None,
) -> None:
    """Time bsgen beside its peers, on the same data, each result checked before it is timed.

    Needs a GPU and PyTorch. Times are medians in microseconds; a bound of a stated model stands beside each rate.
    """
    chosen = Selection(
        suites or ("random",), tuple(map(int, blocks)), densities, rows, sizes, Op(op) if op else None, DType(dtype)
    )
    cases = select(chosen)
    if listed:
        show_json([{"suite": case.suite, "case": case.name, "floors": dict(case.floors)} for case in cases])
        return
    for name, suffix in ((json_file, ".json"), (png_file, ".png")):
        if name:
            require_suffix(name, suffix)
    _require_torch()
    done = _run(cases, peers or DEFAULT_PEERS, choice_only, cold, limit, json_file)
    for line in summary(done, cases):
        console().print(line)
    if png_file:
        write_png(done, png_file)


def _require_torch() -> None:
    reason = driver.why_unavailable()
    if reason is None:
        try:
            import torch
        except ImportError:
            reason = "PyTorch is not installed; pip install 'bsgen[torch]'"
        else:
            reason = None if torch.cuda.is_available() else "PyTorch finds no GPU"
    if reason:
        raise DriverError(f"bench needs a GPU and PyTorch: {reason}")


def _run(
    cases: Sequence[Case], peers: Sequence[str], choice_only: bool, cold: bool, limit: float, json_file: str | None
) -> list[Measured]:
    """Measure, show each case when it is done, and keep the file up to date."""
    from bsgen.bench.run import machine, prepare, run
    from bsgen.bench.timing import Clock

    clock = Clock(cold)
    facts, done, out = machine(clock), list[Measured](), console()
    with progress("compiling", len(cases)) as advance:
        plans = prepare(cases, not choice_only, advance)
    with progress("timing", len(cases)) as advance:
        for measured in run(cases, plans, peers, clock, limit):
            done.append(measured)
            out.print(case_table(measured))
            if json_file:
                write_json(json_file, facts, done, cases)
            advance()
    return done


def write_json(path: str, facts: dict[str, Any], done: Sequence[Measured], cases: Sequence[Case]) -> None:
    """Everything measured so far, and the names of the cases that were not."""
    left = [case.name for case in cases[len(done) :]]
    document = {"machine": facts, "cases": [measured.as_dict() for measured in done], "not_run": left}
    write_atomic(Path(path), json.dumps(document, indent=1).encode())


def case_table(measured: Measured) -> Table:
    """A row for each contender; who was left out, and why, below."""
    title = f"{measured.suite}: {measured.case}, {measured.nnz} blocks ({measured.density:.2%})"
    columns = ("", "time, us", "spread, us", "over dense", "TFLOP/s", "GB/s", "of bound", "error", "plan")
    result = table(title, columns)
    for row in measured.rows:
        result.add_row(*_cells(row))
    notes = [f"bound {measured.bound_seconds * 1e6:.1f} us ({measured.bound_limiter})"]
    notes += [f"{name} left out: {reason}" for name, reason in measured.left_out.items()]
    result.caption, result.caption_justify = "\n".join(notes), "left"
    return result


def _cells(row: Row) -> Iterator[str]:
    timing = row.timing
    yield row.contender
    yield f"{timing.seconds * 1e6:.1f}"
    yield f"{timing.low * 1e6:.1f} - {timing.high * 1e6:.1f}" + (" eager" if timing.method == "eager" else "")
    yield "" if row.over_dense is None else f"{row.over_dense:.2f}"
    yield f"{row.tflops:.0f}"
    yield f"{row.gbytes:.0f}"
    yield f"{row.of_bound:.0%}"
    yield f"{row.error:.0e}"
    yield row.plan


def summary(done: Sequence[Measured], cases: Sequence[Case]) -> Iterator[Any]:
    """The floors and the comparisons that cases ask for, and what was not run."""
    asked = [measured for measured in done if measured.floors]
    if asked:
        yield _floor_table(asked)
    compared = [measured for measured in done if measured.balanced]
    if compared:
        yield _rate_table(compared, {measured.case: measured for measured in done})
    if len(done) < len(cases):
        yield "not run, for lack of time: " + "; ".join(case.name for case in cases[len(done) :])


def _floor_table(asked: Sequence[Measured]) -> Table:
    result = table("least speed-ups", ("case", "peer", "asked", "measured", ""))
    words = {True: "met", False: "MISSED", None: "not measured"}
    for measured in asked:
        for peer, met in measured.verdicts.items():
            found = measured.over(peer)
            cells = (peer, f"{measured.floors[peer]:.2f}", "" if found is None else f"{found:.2f}", words[met])
            result.add_row(measured.case, *cells)
    return result


def _rate_table(compared: Sequence[Measured], by_name: dict[str, Measured]) -> Table:
    result = table("rates beside those of another case", ("case", "TFLOP/s", "beside", "ratio"))
    for measured in compared:
        twin = by_name.get(measured.balanced or "")
        own, other = measured.row("bsgen"), twin.row("bsgen") if twin else None
        ratio = f"{own.tflops / other.tflops:.2f}" if own and other else "not measured"
        result.add_row(measured.case, f"{own.tflops:.0f}" if own else "", measured.balanced, ratio)
    return result
