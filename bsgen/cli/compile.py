"""`bsgen compile`: a layout file in; CUDA source, cubin and facts of each op and architecture out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click

from bsgen.artefact import Artefact, default_arch, write
from bsgen.cli import Command
from bsgen.cli.kernels import kernel_table, make_operations, plan_lines, warning_lines, written_lines
from bsgen.cli.output import console, json_option, show_json
from bsgen.layout import Layout
from bsgen.problem import (
    BLOCK_SIZES,
    TARGETS,
    Activation,
    DType,
    Epilogue,
    Op,
    Precision,
    Problem,
    Target,
    parse_activation,
    parse_dtype,
    parse_op,
    parse_precision,
    parse_target,
    parse_wgrad_dtype,
)


def _names(kind: type[Op] | type[DType] | type[Precision] | type[Activation]) -> click.Choice[str]:
    return click.Choice([str(member) for member in kind])


@click.command(
    cls=Command,
    epilog="""
bsgen compile layout.npy --arch sm_90a -o kernels
bsgen compile layout.npy --op fprop --bias --activation gelu --batch 64
bsgen compile layout.npy --dtype float32 --precision ieee --emit-only --json
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
@click.option("--dtype", type=_names(DType), default="bfloat16", show_default=True, help="Of activations and weights.")
@click.option(
    "--op", "ops", type=_names(Op), multiple=True, help="What to compile; repeat for several.  [default: all three]"
)
@click.option(
    "--arch",
    "arches",
    type=click.Choice(list(TARGETS)),
    multiple=True,
    help="What to compile for; repeat for several.  [default: the current GPU's, sm_90a where there is none]",
)
@click.option(
    "--precision",
    type=_names(Precision),
    default="tensor",
    show_default=True,
    help="Of float32 products: TF32 on tensor cores, or full float32.",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="About how many rows calls will have; any number works.  [default: thousands]",
)
@click.option("--bias", is_flag=True, help="fprop adds a bias [K].")
@click.option("--activation", type=_names(Activation), help="What fprop applies after the bias.  [default: nothing]")
@click.option("--residual", is_flag=True, help="fprop adds a residual [N, K] after the activation.")
@click.option(
    "--axis",
    type=click.Choice(["0", "1"]),
    default="1",
    show_default=True,
    help="Of features in activations: 1 for x [N, C], 0 for x [C, N].",
)
@click.option("--gate", is_flag=True, help="A float32 for each stored block, [nnz], multiplies it.")
@click.option(
    "--wgrad-dtype",
    type=_names(DType),
    help="Of dW: float32, or that of --dtype.  [default: that of --dtype]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("generated"),
    show_default=True,
    metavar="DIR",
    help="Where the files go; made if need be.",
)
@click.option("--emit-only", is_flag=True, help="Write CUDA source and facts; do not call the compiler.")
@json_option
def compile(
    layout: str,
    block_size: str,
    dtype: str,
    ops: tuple[str, ...],
    arches: tuple[str, ...],
    precision: str,
    batch: int | None,
    bias: bool,
    activation: str | None,
    residual: bool,
    axis: str,
    gate: bool,
    wgrad_dtype: str | None,
    output: Path,
    emit_only: bool,
    as_json: bool,
) -> None:
    """Compile the products of LAYOUT (.npy, .npz): NAME.cu, NAME.cubin and NAME.json of each op and architecture.

    The JSON holds what a launcher needs: the grid as a function of N, threads, shared memory in bytes, arguments in order. No GPU
    is needed. Nothing is written unless everything compiles.
    """
    epilogue = Epilogue(bias, parse_activation(activation), residual)
    if epilogue != Epilogue() and ops and "fprop" not in ops:
        raise click.UsageError("--bias, --activation and --residual belong to fprop: add --op fprop.")
    if wgrad_dtype and ops and "wgrad" not in ops:
        raise click.UsageError("--wgrad-dtype belongs to wgrad: add --op wgrad.")
    asked = Problem(
        Op.FPROP,
        Layout.load(layout),
        int(block_size),
        parse_dtype(dtype),
        parse_precision(precision),
        epilogue,
        batch,
        gate,
        axis=int(axis),
    )
    gradients = parse_wgrad_dtype(wgrad_dtype, asked.dtype)
    wanted = list(_wanted(asked, ops or tuple(Op), arches or (default_arch(),), gradients))
    made = [Artefact.of(operation, not emit_only) for operation in make_operations(wanted, not emit_only)]
    written = write(made, output)
    if as_json:
        show_json({"files": list(map(str, written)), "artefacts": [artefact.facts for artefact in made]})
    else:
        _show(made, output)


def _wanted(
    asked: Problem, ops: tuple[str, ...], arches: tuple[str, ...], gradients: DType | None
) -> Iterator[tuple[Problem, Target]]:
    """Each op for each architecture, once."""
    for op in dict.fromkeys(map(parse_op, ops)):
        for arch in dict.fromkeys(arches):
            epilogue = asked.epilogue if op is Op.FPROP else Epilogue()
            own = gradients if op is Op.WGRAD else None
            yield replace(asked, op=op, epilogue=epilogue, wgrad_dtype=own), parse_target(arch)


def _show(made: list[Artefact], output: Path) -> None:
    out = console()
    out.print(kernel_table(made))
    for line in (*plan_lines(made), *warning_lines(made), "", *written_lines(made, output)):
        out.print(line, soft_wrap=True)
