"""`bsgen doctor`: what is installed, what will and will not work here, and why."""

from __future__ import annotations

import dataclasses

import click

from bsgen.cli import Command
from bsgen.cli.diagnosis import Cache, Diagnosis, Driver, Pack, Verdict, examine
from bsgen.cli.output import console, json_option, pairs, readable, show_json, table


@click.command(cls=Command, epilog="bsgen doctor\nbsgen doctor --json")
@json_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Show what is installed and what will work here; exit code 1 if kernels cannot be compiled and run on the CPU.

    For everything that does not work, it says what to do. Nothing is changed.
    """
    found = examine()
    if as_json:
        show_json({**dataclasses.asdict(found), "healthy": found.healthy})
    else:
        _show(found)
    ctx.exit(0 if found.healthy else 1)


def _show(found: Diagnosis) -> None:
    out = console()
    out.print(pairs("Installed", [(name, version or "not installed") for name, version in found.packages.items()]))
    out.print(pairs("Tools, GPUs, cache", [*_tools(found), *_driver(found.driver), *_cache(found.cache)]))
    if found.settings:
        out.print(pairs("Environment", list(found.settings.items())))
    if found.packs:
        out.print(pairs("Packs", [(pack.path, _contents(pack)) for pack in found.packs]))
    verdicts = table("What works", ("", "what", "why"))
    for verdict in found.verdicts:
        verdicts.add_row(*_cells(verdict))
    out.print(verdicts)


def _tools(found: Diagnosis) -> list[tuple[str, object]]:
    return [
        ("NVRTC", found.nvrtc or "not found"),
        ("NVRTC file", found.nvrtc_file),
        ("nvdisasm", found.nvdisasm or "not found"),
    ]


def _driver(driver: Driver) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [("driver", f"CUDA {driver.version}" if driver.version else "none")]
    for gpu in driver.gpus:
        arch = gpu.arch or "not supported"
        rows.append((f"GPU {gpu.ordinal}", f"{gpu.name}, {arch}, {gpu.sms} SMs, {readable(gpu.memory)}"))
    return rows


def _cache(cache: Cache) -> list[tuple[str, object]]:
    state = "disabled" if not cache.enabled else "writable" if cache.writable else "not writable"
    return [
        ("cache", cache.path or "no place"),
        ("cache state", f"{state}, {cache.entries} entries, {readable(cache.bytes)}"),
    ]


def _contents(pack: Pack) -> str:
    return (
        "cannot be used"
        if pack.problem
        else f"{pack.modules} modules, {pack.kernels} kernels: {', '.join(pack.arches)}"
    )


def _cells(verdict: Verdict) -> tuple[str, str, str]:
    return ("yes" if verdict.works else "no", verdict.what, verdict.why)
