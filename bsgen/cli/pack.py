"""`bsgen pack`: kernels ahead of time, in one file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bsgen.cli import Group
from bsgen.cli.output import console, json_option, progress, readable, show_json, table
from bsgen.errors import BsgenError, PackError
from bsgen.packs import load_pack
from bsgen.packs.format import FORMAT

if TYPE_CHECKING:
    from bsgen.packs import Pack

BUILD_HELP = """Compile the modules of SPEC, a TOML file, into one pack; no GPU is needed.

An interrupted build goes on where it stopped, out of the disk cache. The same modules give the same bytes. SPEC:

\b
    arch = ["sm_90a", "sm_80"]      # of all modules; default sm_90a
    rows = [1, 64, 4096]            # N to compile for, each serves its range of N; default 64, 4096, 16384

\b
    [[module]]                      # one for each callable
    name = "ffn.0"
    layout = "ffn0.npy"             # relative to SPEC; or model, tensor, density, norm, transpose
    block_size = 32                 # default 32
    dtype = "bfloat16"              # default bfloat16
    ops = ["fprop"]                 # default fprop
    bias = true                     # also activation, residual, precision; default none
    activation = "gelu"
"""

existing = click.Path(exists=True, dir_okay=False)


@click.group(
    cls=Group,
    epilog="""
bsgen pack build spec.toml -o model.bsp
bsgen pack inspect model.bsp
BSGEN_PACK_PATH=model.bsp BSGEN_DISABLE_JIT=1 python serve.py
""",
)
def pack() -> None:
    """Build, inspect and verify packs: kernels that run with no compiler.

    A pack is one file. `bsgen.load_pack(FILE)["NAME"]` is a callable as bsgen.compile makes; bsgen.compile itself looks into the
    packs of BSGEN_PACK_PATH, and of installed wheels, before it compiles.
    """


@pack.command(
    help=BUILD_HELP,
    epilog="bsgen pack build spec.toml -o model.bsp\nbsgen pack build spec.toml -o model.bsp -j 4 --json",
)
@click.argument("spec", type=existing)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False),
    metavar="FILE.bsp",
    help="Where to write the pack.",
)
@click.option(
    "-j", "--processes", type=click.IntRange(min=1), metavar="N", help="Compile so many at once.  [default: all CPUs]"
)
@json_option
def build(spec: str, output: str, processes: int | None, as_json: bool) -> None:
    """See the decorator: the help holds an example."""
    from bsgen.packs import building
    from bsgen.packs.spec import read_spec

    wanted = read_spec(spec)
    with progress("compiling", building.count(wanted)) as advance:
        place = building.build(wanted, output, processes, advance)
    made = load_pack(place)
    if as_json:
        show_json(facts(made))
    else:
        click.echo(f"wrote {place}: {len(made)} modules, {len(made.index.kernels)} kernels, {readable(made.size)}")


@pack.command(epilog="bsgen pack inspect model.bsp\nbsgen pack inspect model.bsp --json")
@click.argument("file", type=existing)
@json_option
def inspect(file: str, as_json: bool) -> None:
    """Show what is in FILE: modules, kernels, bytes, registers a thread, compiler, predicted times."""
    found = facts(load_pack(file))
    if as_json:
        show_json(found)
        return
    out = console()
    kernels = found.pop("kernels")
    for name, value in found.items():
        out.print(f"{name}: {value}")
    columns = ("module", "op", "arch", "N", "family", "registers", "bytes", "predicted")
    rows = table("", columns)
    for kernel in kernels:
        cells = (kernel["module"], kernel["op"], kernel["arch"], f"{kernel['rows']}", kernel["family"])
        registers = ", ".join(map(str, kernel["registers"]))
        rows.add_row(*cells, registers, readable(kernel["bytes"]), f"{kernel['predicted_seconds'] * 1e6:.1f} us")
    out.print(rows)


@pack.command(epilog="bsgen pack verify model.bsp\nbsgen pack verify model.bsp --trust key.pub.pem")
@click.argument("file", type=existing)
@click.option(
    "--trust",
    metavar="KEY",
    help="Require the signature of this public key: a .pem file, or 64 hexadecimal characters.  [default: any, or none]",
)
@json_option
@click.pass_context
def verify(ctx: click.Context, file: str, trust: str | None, as_json: bool) -> None:
    """Check every digest and every field of FILE; exit code 1 if something is wrong."""
    problems: list[str] = []
    signed: str | None = None
    try:
        found = load_pack(file, trust)
        problems += found.problems()
        signed = _signer(found)
    except PackError as error:
        problems.append(str(error))
    if as_json:
        show_json({"file": file, "good": not problems, "problems": problems, "signed_by": signed})
    else:
        click.echo("\n".join(problems) or f"{file}: good, {f'signed by {signed}' if signed else 'not signed'}")
    ctx.exit(1 if problems else 0)


def _signer(found: Pack) -> str | None:
    if not found.trailer:
        return None
    from bsgen.packs.signing import signer

    public = signer(found)
    return public.hex() if public else None


@pack.command(epilog="bsgen pack diff old.bsp new.bsp")
@click.argument("first", type=existing)
@click.argument("second", type=existing)
@json_option
@click.pass_context
def diff(ctx: click.Context, first: str, second: str, as_json: bool) -> None:
    """Show what SECOND has, lacks or has otherwise than FIRST; exit code 1 if they differ.

    - is only in FIRST, + only in SECOND, ~ in both but not the same.
    """
    before, after = (contents(load_pack(file)) for file in (first, second))
    found = {
        "only_first": sorted(before.keys() - after.keys()),
        "only_second": sorted(after.keys() - before.keys()),
        "changed": sorted(name for name in before.keys() & after.keys() if before[name] != after[name]),
    }
    if as_json:
        show_json(found)
    else:
        signs = {"only_first": "-", "only_second": "+", "changed": "~"}
        lines = [f"{signs[kind]} {name}" for kind, names in found.items() for name in names]
        click.echo("\n".join(lines) or "the same kernels and modules")
    ctx.exit(1 if any(found.values()) else 0)


@pack.command(epilog="bsgen pack sign model.bsp --key key.pem")
@click.argument("file", type=existing)
@click.option("--key", required=True, type=existing, metavar="KEY.pem", help="Private key, as new-key makes.")
@json_option
def sign(file: str, key: str, as_json: bool) -> None:
    """Sign FILE in place (Ed25519); a signature that it has is replaced.

    Needs the package cryptography: pip install 'bsgen[sign]'.
    """
    from bsgen.packs.signing import sign as sign_pack

    public = sign_pack(load_pack(file), key).hex()
    _say({"file": file, "signed_by": public}, as_json, f"{file}: signed by {public}")


@pack.command("new-key", epilog="bsgen pack new-key key.pem")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@json_option
def new_key(file: Path, as_json: bool) -> None:
    """Make a private key FILE.pem for `sign`, and its public key beside it (.pub.pem) for `--trust`.

    A file that is there is not replaced. Needs the package cryptography: pip install 'bsgen[sign]'.
    """
    from bsgen.packs.signing import new_key as make

    public, beside = make(file).hex(), file.with_suffix(".pub.pem")
    found = {"private": str(file), "public": str(beside), "key": public}
    _say(found, as_json, f"wrote {file} (keep it secret) and {beside}: {public}")


@pack.command(epilog="bsgen pack wheel model.bsp --name my-kernels --version 1.0 -o dist")
@click.argument("file", type=existing)
@click.option("--name", required=True, metavar="NAME", help="Of the distribution, as pip installs it.")
@click.option("--version", required=True, metavar="VERSION", help="Of the distribution, such as 1.0 or 2.1rc1.")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("."),
    show_default=True,
    metavar="DIR",
    help="Where the wheel goes; made if need be.",
)
@json_option
def wheel(file: str, name: str, version: str, output: Path, as_json: bool) -> None:
    """Make a wheel of FILE; once it is installed, bsgen.compile finds its kernels."""
    from bsgen.artefact import make_folder
    from bsgen.packs.wheel import write_wheel

    found = load_pack(file)
    make_folder(output)
    made = write_wheel(found, name, version, output)
    _say({"files": [str(made)]}, as_json, f"wrote {made}")


@pack.command(
    "export-c",
    epilog="bsgen pack export-c model.bsp c\ncd c && cc -O2 -o example example.c bsgen_kernels.c -ldl && ./example",
)
@click.argument("file", type=existing)
@click.argument("folder", type=click.Path(file_okay=False))
@json_option
def export_c(file: str, folder: str, as_json: bool) -> None:
    """Write FILE's kernels as C into FOLDER: a header and a source that need the CUDA driver alone, and an example.

    FOLDER is made if need be.
    """
    from bsgen.packs.c_export import export

    made = export(load_pack(file), folder)
    _say({"files": list(map(str, made))}, as_json, "\n".join(f"wrote {place}" for place in made))


def _say(found: dict[str, Any], as_json: bool, text: str) -> None:
    if as_json:
        show_json(found)
    else:
        click.echo(text)


def facts(found: Pack) -> dict[str, Any]:
    """What a pack holds, as plain data."""
    return {
        "file": str(found.path),
        "format": FORMAT,
        "bytes": found.size,
        "bsgen": found.index.version,
        "modules": len(found),
        "sha256": found.digest.hex(),
        "kernels": list(_kernels(found)),
    }


def _kernels(found: Pack) -> Iterator[dict[str, Any]]:
    for kernel in found.index.kernels:
        shown = {
            "module": found.index.modules[kernel.module].name,
            "op": kernel.op,
            "arch": kernel.arch,
            "rows": kernel.rows,
        }
        try:
            made = found.kernel(kernel)
        except BsgenError as error:
            yield {
                **shown,
                "family": f"DAMAGED: {error}",
                "registers": [],
                "bytes": kernel.blob.size,
                "predicted_seconds": 0.0,
            }
            continue
        yield {
            **shown,
            "family": made.outline.family,
            "plan": made.outline.summary,
            "registers": [facts.registers for facts in made.binary.kernels],
            "bytes": kernel.blob.size,
            "predicted_seconds": made.outline.seconds,
            "compiler": made.binary.compiler,
            "sha256": kernel.blob.sha256,
        }


def contents(found: Pack) -> dict[str, Any]:
    """What `diff` compares: modules by their arguments, kernels by their digests."""
    index = found.index
    layouts = {module.name: index.layouts[module.layout].blob.sha256 for module in index.modules}
    shown: dict[str, Any] = {
        module.name: (
            layouts[module.name],
            module.block_size,
            module.dtype,
            module.precision,
            module.bias,
            module.gate,
            module.axis,
            module.wgrad_dtype,
            module.activation,
        )
        for module in index.modules
    }
    for kernel in index.kernels:
        name = index.modules[kernel.module].name
        shown[f"{name} {kernel.op} {kernel.arch} N={kernel.rows}"] = kernel.blob.sha256
    return shown
