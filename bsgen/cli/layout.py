"""`bsgen layout`: make layouts, look at them, and take them from trained weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import click

from bsgen import topology
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
_seed = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the random choices.")
_blocks = click.option("--blocks", type=click.IntRange(min=2), required=True, help="Rows and columns of blocks.")
_extents = _options(
    click.option("--rows", type=click.IntRange(min=1), required=True, help="Input blocks."),
    click.option("--cols", type=click.IntRange(min=1), help="Output blocks; as many as rows if left out."),
)


@click.group()
def layout() -> None:
    """Make, show and convert block layouts."""


@layout.group()
def make() -> None:
    """Make a layout to start from and write it as .npy."""


@make.command("random")
@_extents
@click.option("--density", type=click.FloatRange(0, 1), help="Share of blocks stored; at least one a column unless 0.")
@click.option("--fan-in", type=click.IntRange(min=0), help="Blocks of each column, instead of --density.")
@_seed
@_output
def make_random(
    rows: int, cols: int | None, density: float | None, fan_in: int | None, seed: int, output: str, as_json: bool
) -> None:
    """Equally many blocks in each column, in random rows."""
    if (density is None) == (fan_in is None):
        raise click.UsageError("Give exactly one of --density and --fan-in.")
    _write(topology.random(rows, cols or rows, density=density, fan_in=fan_in, seed=seed), output, as_json)


@make.command("bernoulli")
@_extents
@click.option("--density", type=click.FloatRange(0, 1), required=True, help="Probability of each block.")
@_seed
@_output
def make_bernoulli(rows: int, cols: int | None, density: float, seed: int, output: str, as_json: bool) -> None:
    """Each block with the same probability."""
    _write(topology.bernoulli(rows, cols or rows, density, seed=seed), output, as_json)


@make.command("banded")
@_extents
@click.option("--width", type=click.IntRange(min=1), required=True, help="Blocks of each column.")
@_output
def make_banded(rows: int, cols: int | None, width: int, output: str, as_json: bool) -> None:
    """A band along the diagonal from corner to corner."""
    _write(topology.banded(rows, cols or rows, width), output, as_json)


@make.command("block-diagonal")
@_extents
@click.option("--groups", type=click.IntRange(min=1), required=True, help="Dense rectangles; divides rows and columns.")
@_output
def make_block_diagonal(rows: int, cols: int | None, groups: int, output: str, as_json: bool) -> None:
    """Dense rectangles along the diagonal."""
    _write(topology.block_diagonal(rows, cols or rows, groups), output, as_json)


@make.command("watts-strogatz")
@_blocks
@click.option("--k", type=click.IntRange(min=2), required=True, help="Neighbours of each node; even.")
@click.option("--p", type=click.FloatRange(0, 1), required=True, help="Probability of rewiring an edge.")
@_seed
@_output
def make_watts_strogatz(blocks: int, k: int, p: float, seed: int, output: str, as_json: bool) -> None:
    """A small world: a ring, partly rewired."""
    _write(topology.watts_strogatz(blocks, k, p, seed=seed), output, as_json)


@make.command("barabasi-albert")
@_blocks
@click.option("--m", type=click.IntRange(min=1), required=True, help="Edges of each new node.")
@_seed
@_output
def make_barabasi_albert(blocks: int, m: int, seed: int, output: str, as_json: bool) -> None:
    """A scale-free small world, with a dense corner."""
    _write(topology.barabasi_albert(blocks, m, seed=seed), output, as_json)


@layout.command()
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


@layout.command()
@click.argument("file")
@click.option("--tensor", metavar="NAME", help="Which tensor of a .safetensors file; the only matrix if left out.")
@click.option("--block-size", type=click.Choice([str(size) for size in BLOCK_SIZES]), default="32", show_default=True)
@click.option("--density", type=click.FloatRange(0, 1), required=True, help="Share of blocks to keep.")
@click.option("--norm", type=click.Choice(NORMS), default="l2", show_default=True, help="What ranks the blocks.")
@click.option("--transpose", is_flag=True, help="The weights are stored [out, in], as by PyTorch's Linear.")
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
