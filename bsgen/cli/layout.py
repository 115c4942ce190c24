"""`bsgen layout`: make layouts, look at them, and take them from trained weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import click

from bsgen import topology
from bsgen.cli import Group
from bsgen.cli.output import json_option, picture, show_json
from bsgen.layout import Layout, Spread
from bsgen.problem import BLOCK_SIZES
from bsgen.weights import NORMS, Norm, layout_from_weights, read_weights

MIXING_LAYERS = 4

Command = TypeVar("Command", bound=Callable[..., None])


def _options(*options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Several click options as one decorator, shown in the order given."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_output = _options(
    click.option("-o", "--output", required=True, metavar="FILE.npy", help="Where to write the layout."), json_option
)
_seed = click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="SEED",
    help="Of the random choices: the same gives the same layout.",
)
_blocks = click.option(
    "--blocks", type=click.IntRange(min=2), required=True, metavar="N", help="Rows and columns, in blocks."
)
_extents = _options(
    click.option("--rows", type=click.IntRange(min=1), required=True, metavar="N", help="Input blocks."),
    click.option("--cols", type=click.IntRange(min=1), metavar="N", help="Output blocks.  [default: as many as rows]"),
)


@click.group(
    cls=Group,
    epilog="""
bsgen layout make barabasi-albert --blocks 48 --m 4 -o layout.npy
bsgen layout show layout.npy
""",
)
def layout() -> None:
    """Make, show and convert block layouts.

    A layout is a 0/1 matrix: rows are input blocks, columns are output blocks, 1 is a stored block of weights.
    """


@layout.group(epilog="bsgen layout make random --rows 64 --density 0.1 -o layout.npy")
def make() -> None:
    """Make a layout to start from and write it as .npy."""


@make.command(
    "random",
    epilog="""
bsgen layout make random --rows 64 --density 0.1 -o layout.npy
bsgen layout make random --rows 64 --cols 256 --fan-in 6 --seed 1 -o layout.npy
""",
)
@_extents
@click.option(
    "--density",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Share of blocks stored, 0 to 1; at least one a column unless 0.",
)
@click.option("--fan-in", type=click.IntRange(min=0), metavar="N", help="Blocks of each column, instead of --density.")
@_seed
@_output
def make_random(
    rows: int, cols: int | None, density: float | None, fan_in: int | None, seed: int, output: str, as_json: bool
) -> None:
    """Make a layout of equally many blocks in each column, in random rows."""
    if (density is None) == (fan_in is None):
        raise click.UsageError("Give exactly one of --density and --fan-in.")
    _write(topology.random(rows, cols or rows, density=density, fan_in=fan_in, seed=seed), output, as_json)


@make.command("bernoulli", epilog="bsgen layout make bernoulli --rows 64 --density 0.1 -o layout.npy")
@_extents
@click.option(
    "--density", type=click.FloatRange(0, 1), required=True, metavar="SHARE", help="Probability of each block, 0 to 1."
)
@_seed
@_output
def make_bernoulli(rows: int, cols: int | None, density: float, seed: int, output: str, as_json: bool) -> None:
    """Make a layout that stores each block with the same probability."""
    _write(topology.bernoulli(rows, cols or rows, density, seed=seed), output, as_json)


@make.command("banded", epilog="bsgen layout make banded --rows 64 --width 6 -o layout.npy")
@_extents
@click.option("--width", type=click.IntRange(min=1), required=True, metavar="N", help="Blocks of each column.")
@_output
def make_banded(rows: int, cols: int | None, width: int, output: str, as_json: bool) -> None:
    """Make a band along the diagonal, from corner to corner."""
    _write(topology.banded(rows, cols or rows, width), output, as_json)


@make.command("block-diagonal", epilog="bsgen layout make block-diagonal --rows 64 --groups 8 -o layout.npy")
@_extents
@click.option(
    "--groups",
    type=click.IntRange(min=1),
    required=True,
    metavar="N",
    help="Dense rectangles; divides rows and columns.",
)
@_output
def make_block_diagonal(rows: int, cols: int | None, groups: int, output: str, as_json: bool) -> None:
    """Make dense rectangles along the diagonal."""
    _write(topology.block_diagonal(rows, cols or rows, groups), output, as_json)


@make.command("watts-strogatz", epilog="bsgen layout make watts-strogatz --blocks 64 --k 6 --p 0.2 -o layout.npy")
@_blocks
@click.option("--k", type=click.IntRange(min=2), required=True, metavar="N", help="Neighbours of each node; even.")
@click.option(
    "--p", type=click.FloatRange(0, 1), required=True, metavar="SHARE", help="Probability of rewiring an edge, 0 to 1."
)
@_seed
@_output
def make_watts_strogatz(blocks: int, k: int, p: float, seed: int, output: str, as_json: bool) -> None:
    """Make a small world: a ring, partly rewired (Watts and Strogatz 1998)."""
    _write(topology.watts_strogatz(blocks, k, p, seed=seed), output, as_json)


@make.command("barabasi-albert", epilog="bsgen layout make barabasi-albert --blocks 576 --m 8 -o layout.npy")
@_blocks
@click.option("--m", type=click.IntRange(min=1), required=True, metavar="N", help="Edges of each new node.")
@_seed
@_output
def make_barabasi_albert(blocks: int, m: int, seed: int, output: str, as_json: bool) -> None:
    """Make a scale-free small world, with a dense corner (Barabasi and Albert 1999)."""
    _write(topology.barabasi_albert(blocks, m, seed=seed), output, as_json)


@layout.command(
    epilog="""
bsgen layout show layout.npy
bsgen layout show layout.npz --png layout.png --json
"""
)
@click.argument("file")
@click.option("--ascii", "plain", is_flag=True, help="Draw with ASCII characters only.")
@click.option("--png", metavar="FILE.png", help="Write the picture as a PNG, too.")
@json_option
def show(file: str, plain: bool, png: str | None, as_json: bool) -> None:
    """Draw the layout in FILE (.npy, .npz) and print its statistics."""
    shown = Layout.load(file)
    if png:
        shown.save_png(png)
    if as_json:
        show_json({"file": file, **_facts(shown), "mixing": _mixing(shown), "png": png})
        return
    click.echo(picture(shown, plain))
    click.echo(_summary(shown))
    click.echo(
        f"mixing   {', '.join(f'{100 * share:.4g} %' for share in _mixing(shown))} of outputs reached "
        "after 1, 2, ... layers"
    )
    if png:
        click.echo(f"wrote {png}")


@layout.command(
    epilog="""
bsgen layout convert model.safetensors --tensor ffn.up.weight --transpose --density 0.25 -o layout.npy
bsgen layout convert weights.npy --block-size 16 --density 0.1 --norm max -o layout.npy
"""
)
@click.argument("file")
@click.option("--tensor", metavar="NAME", help="Which tensor of a .safetensors file.  [default: the only matrix]")
@click.option(
    "--block-size",
    type=click.Choice([str(size) for size in BLOCK_SIZES]),
    default="32",
    show_default=True,
    help="Side of a block, in elements.",
)
@click.option(
    "--density", type=click.FloatRange(0, 1), required=True, metavar="SHARE", help="Share of blocks to keep, 0 to 1."
)
@click.option(
    "--norm",
    type=click.Choice(NORMS),
    default="l2",
    show_default=True,
    help="What ranks the blocks: root of the sum of squares, or largest magnitude.",
)
@click.option("--transpose", is_flag=True, help="Weights are stored [out, in], as by PyTorch's Linear.")
@_output
def convert(
    file: str,
    tensor: str | None,
    block_size: str,
    density: float,
    norm: str,
    transpose: bool,
    output: str,
    as_json: bool,
) -> None:
    """Keep the blocks with the largest norm of the weights in FILE (.safetensors, .npy).

    Weights are read as [in, out], so that rows of the layout are input blocks. PyTorch's Linear stores [out, in]: give
    --transpose for those.
    """
    weights = read_weights(file, tensor)
    kept = layout_from_weights(weights, int(block_size), density, cast(Norm, norm), transpose=transpose)
    _write(kept, output, as_json)


def _write(made: Layout, output: str, as_json: bool) -> None:
    made.save(output)
    if as_json:
        show_json({"file": output, **_facts(made)})
        return
    click.echo(f"wrote {output}")
    click.echo(_summary(made))


def _facts(shown: Layout) -> dict[str, Any]:
    return {"digest": shown.digest, **shown.statistics().as_dict()}


def _mixing(shown: Layout) -> list[float]:
    rows, cols = shown.shape
    return list(topology.mixing_profile(shown, MIXING_LAYERS if rows == cols else 1))


def _summary(shown: Layout) -> str:
    facts = shown.statistics()
    return "\n".join(
        (
            f"layout   {facts.rows} x {facts.cols} blocks, {facts.nnz} stored, density {100 * facts.density:.4g} %, "
            f"digest {shown.digest}",
            f"fan-in   {_spread(facts.fan_in, 'column')}, {facts.empty_columns} empty",
            f"fan-out  {_spread(facts.fan_out, 'row')}, {facts.empty_rows} empty",
        )
    )


def _spread(spread: Spread, line: str) -> str:
    return f"{spread.min} to {spread.max} blocks a {line}, mean {spread.mean:.4g}, imbalance {spread.imbalance:.3g}"
