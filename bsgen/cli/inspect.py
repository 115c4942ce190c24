"""`bsgen inspect`: what is in a compiled kernel: files that `bsgen compile` wrote, and entries of the disk cache."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bsgen import disasm, store
from bsgen.cli import Command
from bsgen.cli.output import console, json_option, pairs, records, show_json
from bsgen.errors import ArgumentError
from bsgen.nvrtc import Binary

if TYPE_CHECKING:
    from rich.console import Console

SUFFIXES = (".cu", ".cubin", ".json")
SHOWN_FAMILIES = 16


@click.command(
    cls=Command,
    epilog="""
bsgen inspect kernels/fprop_b32_bfloat16_sm_90a_67bdd95ade816eaa.cubin
bsgen inspect kernels/fprop_b32_bfloat16_sm_90a_67bdd95ade816eaa.cu --source
bsgen inspect ~/.cache/bsgen/binaries/KEY.bin --json
""",
)
@click.argument("artefact", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--source", is_flag=True, help="Show all of the CUDA text, not its first comment alone.")
@json_option
def inspect(artefact: Path, source: bool, as_json: bool) -> None:
    """Show a compiled kernel: its purpose, plan, registers, shared memory, occupancy, and what its machine code is made of.

    ARTEFACT is NAME.cu, NAME.cubin or NAME.json of `bsgen compile`, and what lies beside it under the same name is shown, too; or
    an entry of the disk cache. Machine code is read by nvdisasm (pip install nvidia-cuda-nvdisasm). Packs have an inspect of their
    own: `bsgen pack inspect`.
    """
    try:
        found = examine(artefact)
    except (KeyError, TypeError, AttributeError) as error:  # JSON of another kind
        raise ArgumentError(f"{artefact}: not what bsgen writes ({type(error).__name__}: {error})") from None
    if not source:
        del found["source"]
    if as_json:
        show_json(found)
    else:
        _show(found)


def examine(artefact: Path) -> dict[str, Any]:
    """What is known of an artefact or an entry of the cache; keys are None where a file or a tool is missing."""
    if artefact.suffix == ".bsp":
        raise ArgumentError(f"{artefact}: is a pack of many kernels: show them with `bsgen pack inspect {artefact}`")
    if artefact.suffix == store.BINARY:
        return _entry(artefact)
    if artefact.suffix not in SUFFIXES:
        known = ", ".join((*SUFFIXES, store.BINARY))
        raise ArgumentError(
            f"{artefact}: expected a file that ends in {known}, as bsgen compile writes and the cache keeps"
        )
    if artefact.suffix == ".json" and (text := store.request_text(_read(artefact))) is not None:
        return _request(artefact, text)
    return _written(artefact)


def _written(artefact: Path) -> dict[str, Any]:
    """The three files that `bsgen compile` writes."""
    files = {suffix: artefact.with_suffix(suffix) for suffix in SUFFIXES}
    present = {suffix: str(file) for suffix, file in files.items() if file.is_file()}
    source = _read(files[".cu"]).decode("utf-8", "replace") if ".cu" in present else None
    facts = _facts(files[".json"]) if ".json" in present else None
    sass = _sass(files[".cubin"], _read(files[".cubin"])) if ".cubin" in present else None
    missing = "" if ".cubin" in present else f"there is no {files['.cubin'].name}"
    return _found(list(present.values()), source, facts, sass, missing)


def _entry(file: Path) -> dict[str, Any]:
    """A binary of the cache; with its source, if the request that it was compiled for is there."""
    try:
        binary = store.decode(file.stem, _read(file))
    except ValueError as error:
        raise ArgumentError(f"{file}: not a good entry of the cache ({error}); see `bsgen cache verify`") from None
    for request in sorted(file.parent.glob("*.json")):
        text = store.request_text(_read(request))
        if text is not None and file.stem in text:
            return _compiled([str(file), str(request)], json.loads(text), binary)
    return _found([str(file)], None, _binary_facts(binary), _sass(file, binary.cubin), "")


def _request(file: Path, text: str) -> dict[str, Any]:
    """What a problem was compiled to, as the cache has it, with its binary if that is there."""
    fields = json.loads(text)
    if "source" not in fields:
        return _found([str(file)], None, fields, None, "this entry is a plan that `bsgen tune` chose")
    binary = file.with_name(f"{fields['binary']}{store.BINARY}")
    return _entry(binary) if binary.is_file() else _compiled([str(file)], fields, None)


def _compiled(files: list[str], request: dict[str, Any], binary: Binary | None) -> dict[str, Any]:
    outline = request["outline"]
    facts = {"name": request["source"]["name"], "plan": {key: outline[key] for key in ("family", "summary")}}
    facts |= {"predicted": {"seconds": outline["seconds"], "rows": outline["n"]}, "workspace": outline["workspace"]}
    facts["launches"] = [_launch(launch) for launch in outline["launches"]]
    sass = None
    if binary:
        facts |= _binary_facts(binary)
        sass = _sass(Path(files[0]), binary.cubin)
    return _found(
        files, request["source"]["text"], facts, sass, "" if binary else "its binary is no longer in the cache"
    )


def _launch(launch: dict[str, Any]) -> dict[str, Any]:
    """As `bsgen compile` writes it."""
    grid = launch["grid"]
    plain = {key: value for key, value in launch.items() if key not in ("maps", "grid")}
    return {**plain, **grid, "blocks": grid["blocks"] * grid["cluster"]}


def _binary_facts(binary: Binary) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": binary.name, "arch": binary.arch, "compiler": binary.compiler}
    return facts | {"kernels": [dataclasses.asdict(kernel) for kernel in binary.kernels], "warnings": binary.warnings}


def _found(
    files: list[str], source: str | None, facts: dict[str, Any] | None, sass: disasm.Summary | None, missing: str
) -> dict[str, Any]:
    """`missing`: why there is no binary to disassemble, or ""."""
    return {
        "files": files,
        "header": None if source is None else _header(source),
        "source": source,
        "facts": facts,
        "occupancy": _occupancy(facts or {}),
        "sass": dataclasses.asdict(sass) if sass else None,
        "sass_missing": None if sass else missing or disasm.why_unavailable(),
    }


def _header(source: str) -> list[str]:
    """The comment that the source opens with, without its slashes."""
    lines = []
    for line in source.splitlines():
        if not line.startswith("//"):
            break
        lines.append(line[2:].removeprefix(" "))
    return lines


def _occupancy(facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Of each kernel whose launch, registers and architecture are known."""
    from bsgen.cli.residency import residency

    kernels = {kernel["name"]: kernel for kernel in facts.get("kernels", ()) if "static_shared" in kernel}
    found = {}
    for launch in facts.get("launches", ()):
        kernel = kernels.get(launch.get("entry"))
        if kernel:
            shared_memory = launch["shared_memory"] + kernel["static_shared"]
            held = residency(facts.get("arch", ""), launch["threads"], kernel["registers"], shared_memory)
            if held:
                found[launch["entry"]] = dataclasses.asdict(held) | {"text": str(held)}
    return found


def _facts(file: Path) -> dict[str, Any]:
    try:
        facts = json.loads(_read(file))
    except ValueError as error:
        raise ArgumentError(f"{file}: not JSON ({error}); write it again with bsgen compile") from None
    return facts if isinstance(facts, dict) else {"facts": facts}


def _sass(file: Path, cubin: bytes) -> disasm.Summary | None:
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
    for line in found["source"].splitlines() if found.get("source") else found["header"] or ():
        out.print(line, soft_wrap=True)
    if found["facts"]:
        _show_facts(out, found["facts"])
    if found["occupancy"]:
        out.print(pairs("Occupancy", [(name, held["text"]) for name, held in found["occupancy"].items()]))
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
    """Those on tensor cores first (HGMMA is wgmma, HMMA is mma.sync), then by number."""
    ordered = sorted(families, key=lambda family: "MMA" not in family[0])
    shown = ", ".join(f"{count} {family}" for family, count in ordered[:SHOWN_FAMILIES])
    rest = sum(count for _, count in ordered[SHOWN_FAMILIES:])
    return f"{shown}, {rest} others" if rest else shown
