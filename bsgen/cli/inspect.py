"""`bsgen inspect`: what is in the files that `bsgen compile` wrote."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bsgen import disasm
from bsgen.cli.output import console, json_option, pairs, records, show_json
from bsgen.errors import ArgumentError

if TYPE_CHECKING:
    from rich.console import Console

SUFFIXES = (".cu", ".cubin", ".json")
SHOWN_FAMILIES = 16


@click.command()
@click.argument("artefact", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
def inspect(artefact: Path, as_json: bool) -> None:
    """Show a kernel that `bsgen compile` wrote: its purpose, its facts, its machine code.

    ARTEFACT is NAME.cu, NAME.cubin or NAME.json; what lies beside it under the same name is shown too.
    """
    found = examine(artefact)
    if as_json:
        show_json(found)
    else:
        _show(found)


def examine(artefact: Path) -> dict[str, Any]:
    """What is known of an artefact from its three files; keys are None where a file or a tool is missing."""
    if artefact.suffix not in SUFFIXES:
        raise ArgumentError(f"{artefact}: expected a file that ends in {', '.join(SUFFIXES)}, as bsgen compile writes")
    files = {suffix: artefact.with_suffix(suffix) for suffix in SUFFIXES}
    present = {suffix: str(file) for suffix, file in files.items() if file.is_file()}
    sass = _sass(files[".cubin"]) if ".cubin" in present else None
    return {
        "files": list(present.values()),
        "header": _header(files[".cu"]) if ".cu" in present else None,
        "facts": _facts(files[".json"]) if ".json" in present else None,
        "sass": dataclasses.asdict(sass) if sass else None,
        "sass_missing": None if sass else disasm.why_unavailable() or f"there is no {files['.cubin'].name}",
    }


def _header(file: Path) -> list[str]:
    """The comment that the source opens with, without its slashes."""
    lines = []
    for line in _read(file).decode("utf-8", "replace").splitlines():
        if not line.startswith("//"):
            break
        lines.append(line[2:].removeprefix(" "))
    return lines


def _facts(file: Path) -> dict[str, Any]:
    try:
        facts = json.loads(_read(file))
    except ValueError as error:
        raise ArgumentError(f"{file}: not JSON ({error}); write it again with bsgen compile") from None
    return facts if isinstance(facts, dict) else {"facts": facts}


def _sass(file: Path) -> disasm.Summary | None:
    cubin = _read(file)
    if not cubin.startswith(b"\x7fELF"):
        raise ArgumentError(
            f"{file}: not a cubin (it does not start as an ELF file); write it again with bsgen compile"
        )
    try:
        return disasm.summary(cubin)
    except ArgumentError as error:
        raise ArgumentError(f"{file}: {error}") from None


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ArgumentError(f"{file}: cannot be read ({error.strerror}); check who owns it") from None


def _show(found: dict[str, Any]) -> None:
    out = console()
    for line in found["header"] or ():
        out.print(line)
    if found["facts"]:
        _show_facts(out, found["facts"])
    if found["sass"]:
        _show_sass(out, found["sass"])
    else:
        out.print(f"\nNo machine code shown: {found['sass_missing']}")


def _show_facts(out: Console, facts: dict[str, Any]) -> None:
    """Plain values and small structures as one table, each list of records as its own."""
    lists = {name: value for name, value in facts.items() if _is_records(value)}
    plain = [(name, _cell(value)) for name, value in facts.items() if name not in lists]
    if plain:
        out.print(pairs("Facts", plain))
    for name, rows in lists.items():
        out.print(records(name, [{key: _cell(value) for key, value in row.items()} for row in rows]))


def _is_records(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _cell(value: object) -> str:
    return value.rstrip() if isinstance(value, str) else json.dumps(value)


def _show_sass(out: Console, sass: dict[str, Any]) -> None:
    rows = [
        (kernel["name"], f"{kernel['instructions']} instructions: {_families(kernel['families'])}")
        for kernel in sass["kernels"]
    ]
    out.print(pairs(f"Machine code ({sass['tool']})", rows))


def _families(families: list[tuple[str, int]]) -> str:
    shown = ", ".join(f"{count} {family}" for family, count in families[:SHOWN_FAMILIES])
    rest = sum(count for _, count in families[SHOWN_FAMILIES:])
    return f"{shown}, {rest} others" if rest else shown
