"""`bsgen tune`: candidates of a layout's ops timed on the GPU, the fastest kept for `compile`."""

from __future__ import annotations

from contextlib import ExitStack

import click

from bsgen.cli import Command
from bsgen.cli.kernels import microseconds
from bsgen.cli.output import console, json_option, progress, show_json, table
from bsgen.problem import BLOCK_SIZES, DType, Op, Precision
from bsgen.tune import COUNT, Advance, Tuned
from bsgen.tune import tune as measure


@click.command(
    cls=Command,
    epilog="""
bsgen tune layout.npy --op fprop --batch 4096
bsgen tune layout.npy --block-size 64 --dtype float16 --count 16 --json
""",
)
@click.argument("layout", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--block-size",
    type=click.Choice([str(size) for size in BLOCK_SIZES]),
    default="32",
    show_default=True,
    help="Side of a block, in elements.",
)
@click.option(
    "--dtype",
    type=click.Choice([str(d) for d in DType]),
    default="bfloat16",
    show_default=True,
    help="Of activations and weights.",
)
@click.option(
    "--op",
    "ops",
    type=click.Choice([str(op) for op in Op]),
    multiple=True,
    help="What to tune; repeat for several.  [default: all three]",
)
@click.option(
    "--precision",
    type=click.Choice([str(p) for p in Precision]),
    default="tensor",
    show_default=True,
    help="Of float32 products: TF32 on tensor cores, or full float32.",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="Rows to time with; compile must be given the same hint.  [default: thousands, no hint]",
)
@click.option(
    "--axis",
    type=click.Choice(["0", "1"]),
    default="1",
    show_default=True,
    help="Of features in activations: 1 for x [N, C], 0 for x [C, N].",
)
@click.option(
    "--count",
    type=click.IntRange(min=1),
    default=COUNT,
    show_default=True,
    metavar="COUNT",
    help="Plans to time of each family, the most promising first.",
)
@json_option
def tune(
    layout: str,
    block_size: str,
    dtype: str,
    ops: tuple[str, ...],
    precision: str,
    batch: int | None,
    axis: str,
    count: int,
    as_json: bool,
) -> None:
    """Time candidate plans for LAYOUT (.npy, .npz) on the GPU and keep the fastest in the cache, where compile finds it.

    Needs a GPU; times are medians. `compile` and `bsgen.compile` take the kept plan when given the same arguments.
    """
    with ExitStack() as bars:

        def started(op: str, candidates: int) -> Advance:
            bars.close()  # one bar at a time
            return bars.enter_context(progress(f"tuning {op}", candidates))

        wanted = ops or tuple(map(str, Op))
        tuned = measure(
            layout, int(block_size), dtype, wanted, batch, precision, count, started=started, axis=int(axis)
        )
    if as_json:
        show_json({"ops": [each.as_dict() for each in tuned]})
        return
    for each in tuned:
        _show(each)


def _show(tuned: Tuned) -> None:
    out = console()
    rows = table(f"{tuned.op}, N = {tuned.rows}, {tuned.gpu}", ("", "family", "plan", "predicted", "measured"))
    for trial in tuned.trials:
        mark = "model's choice" if trial.chosen else ""
        rows.add_row(mark, trial.family, trial.plan, microseconds(trial.predicted_seconds), microseconds(trial.seconds))
    out.print(rows)
    kept = "kept for compile" if tuned.kept else "not kept: there is no disk cache"
    out.print(
        f"fastest {microseconds(tuned.trials[0].seconds)}, {kept}; the cost model's choice takes {tuned.gain:.2f} times as long"
    )
