"""`bsgen demo`: a layout, its kernels, and their results beside a dense product, in one command."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from bsgen import demo as steps
from bsgen import topology
from bsgen.cli import Command
from bsgen.cli.kernels import kernel_table, microseconds, plan_lines, warning_lines, written_lines
from bsgen.cli.output import busy, console, json_option, picture, show_json

MIXING_LAYERS = 3


@click.command(
    cls=Command,
    epilog="""
bsgen demo
bsgen demo --blocks 16 -o /tmp/kernels --json
""",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("generated"),
    show_default=True,
    metavar="DIR",
    help="Where the layout and the kernels go; made if need be.",
)
@click.option(
    "--blocks",
    type=click.IntRange(2, 1024),
    default=steps.BLOCKS,
    show_default=True,
    metavar="N",
    help="Rows and columns of the layout, in blocks.",
)
@json_option
@click.pass_context
def demo(ctx: click.Context, output: Path, blocks: int, as_json: bool) -> None:
    """Make a small-world layout, compile it, run it and check it against a dense product.

    The plan is run on the CPU; where there is a GPU, the kernels are launched and timed, too. Exit code 1 if a result
    is wrong.
    """
    if not as_json:
        _show_layout(blocks)
    with busy("planning, compiling, running"):
        outcome = steps.run(output, blocks)
    if as_json:
        show_json(_facts(outcome))
    else:
        _show(outcome, output)
    ctx.exit(0 if outcome.passed else 1)


def _show_layout(blocks: int) -> None:
    layout, size = steps.make_layout(blocks), blocks * steps.BLOCK_SIZE
    click.echo(
        f"A small-world layout for W [{size}, {size}]: {layout.nnz} of {layout.size} blocks of "
        f"{steps.BLOCK_SIZE} x {steps.BLOCK_SIZE}, {100 * layout.density:.3g} %\n"
    )
    click.echo(picture(layout))
    reached = ", ".join(f"{100 * share:.3g} %" for share in topology.mixing_profile(layout, MIXING_LAYERS))
    click.echo(f"an input reaches {reached} of the outputs after 1, 2, ... layers")


def _show(outcome: steps.Outcome, output: Path) -> None:
    out = console()
    out.print(kernel_table(outcome.artefacts, _results(outcome)))
    for line in (*plan_lines(outcome.artefacts), *warning_lines(outcome.artefacts), "", *_verdict(outcome), ""):
        out.print(line, soft_wrap=True)
    for line in (f"wrote {output / steps.LAYOUT_FILE}", *written_lines(outcome.artefacts, output)):
        out.print(line, soft_wrap=True)


def _results(outcome: steps.Outcome) -> dict[str, list[str]]:
    """Columns of what each op gave."""
    columns = {"error, CPU": [f"{error:.1e}" for error in outcome.errors.values()]}
    if outcome.measured:
        columns["error, GPU"] = [f"{op.error:.1e}" for op in outcome.measured.values()]
        columns["measured"] = [microseconds(op.seconds) for op in outcome.measured.values()]
    return columns


def _verdict(outcome: steps.Outcome) -> Iterator[str]:
    word = "good" if outcome.passed else "WRONG"
    yield (
        f"Results: {word}. Errors are relative to dense products in float64 for N = {outcome.rows}, "
        f"expected at most {outcome.tolerance:.0e}."
    )
    if outcome.gpu:
        yield f"Launched on {outcome.gpu}; times are medians, predicted and measured for the N of the plan."
    else:
        yield "Run on the CPU, by the plans' own tables: there is no GPU here that runs these kernels (bsgen doctor)."


def _facts(outcome: steps.Outcome) -> dict[str, Any]:
    layout = outcome.layout
    return {
        "passed": outcome.passed,
        "layout": {"digest": layout.digest, **layout.statistics().as_dict()},
        "rows": outcome.rows,
        "tolerance": outcome.tolerance,
        "errors": outcome.errors,
        "gpu": outcome.gpu,
        "measured": {op: asdict(measured) for op, measured in outcome.measured.items()},
        "files": [str(file) for file in outcome.files],
        "artefacts": [artefact.facts for artefact in outcome.artefacts],
    }
