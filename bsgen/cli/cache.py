"""`bsgen cache`: the disk cache of binaries."""

from __future__ import annotations

from typing import Any

import click

from bsgen import cache_place, store
from bsgen.cli import Group
from bsgen.cli.output import json_option, readable, show_json
from bsgen.errors import CacheError


@click.group(
    cls=Group,
    epilog="""
bsgen cache show
BSGEN_CACHE_DIR=/shared/bsgen:$HOME/.cache/bsgen bsgen cache verify
""",
)
def cache() -> None:
    """Show, prune, clear and verify the disk cache of compiled kernels.

    It is in ~/.cache/bsgen, or where BSGEN_CACHE_DIR says. Of several folders, these commands look after the last one, which is
    written. To remove entries is safe at any time: what is needed again is compiled again.
    """


@cache.command(epilog="bsgen cache show\nbsgen cache show --json")
@json_option
def show(as_json: bool) -> None:
    """Show where the cache is, how many entries it has and how many bytes they take."""
    place = located()
    facts: dict[str, Any] = {
        "path": str(place.root),
        "enabled": not cache_place.disabled(),
        "entries": len(place.entries()),
        "bytes": place.size(),
    }
    if place.read_only:
        facts["read_only"] = [str(root) for root in place.read_only]
    _print(facts, as_json, _sentence(facts))


@cache.command(epilog="bsgen cache clear")
@json_option
def clear(as_json: bool) -> None:
    """Remove every entry, and what interrupted writers left behind."""
    place = located()
    size = place.size()
    removed = place.clear()
    facts = {"path": str(place.root), "removed": removed, "bytes": size}
    _print(facts, as_json, f"{place.root}: removed {counted(removed)}, {readable(size)}")


@cache.command(epilog="bsgen cache prune --size 500M")
@click.option(
    "--size",
    default="0",
    show_default=True,
    metavar="SIZE",
    help="Bytes that may be left, such as 500M or 4G; 0 for none.",
)
@json_option
def prune(size: str, as_json: bool) -> None:
    """Remove the entries that were not used for longest, until SIZE is left."""
    place = located()
    try:
        limit = cache_place.parse_size(size)
    except ValueError as error:
        raise CacheError(f"--size: {error}") from None
    removed, gone = place.prune(limit)
    left = place.size()
    facts = {"path": str(place.root), "removed": removed, "bytes": gone, "left": left}
    _print(facts, as_json, f"{place.root}: removed {counted(removed)}, {readable(gone)}; {readable(left)} left")


@cache.command(epilog="bsgen cache verify\nbsgen cache verify --json")
@json_option
@click.pass_context
def verify(ctx: click.Context, as_json: bool) -> None:
    """Read and check every entry; exit code 1 if one is broken.

    Nothing is removed: a broken entry is dropped, and compiled again, when it is next needed.
    """
    place = located()
    found = place.verify()
    bad = [str(entry.path) for entry in found.bad]
    facts = {"path": str(place.root), "good": len(found.good), "bad": bad}
    lines = [f"{place.root}: {counted(len(found.good))} good, {len(bad)} broken", *bad]
    if bad:
        lines.append("A broken entry is compiled anew when it is next needed; `bsgen cache clear` removes all entries.")
    _print(facts, as_json, "\n".join(lines))
    ctx.exit(1 if bad else 0)


def located() -> store.Store:
    """The user's store, disabled or not; `CacheError` if it has no place."""
    roots = cache_place.roots()
    root = roots[-1] if roots else None
    if root is None:
        raise CacheError("the cache has no place, because there is no home folder; set BSGEN_CACHE_DIR to a folder")
    return store.Store(root, roots[:-1])


def counted(entries: int) -> str:
    """A number of entries in words."""
    return f"{entries} {'entry' if entries == 1 else 'entries'}"


def _sentence(facts: dict[str, Any]) -> str:
    state = "" if facts["enabled"] else " (not in use: BSGEN_DISABLE_CACHE is set)"
    return f"{facts['path']}: {counted(facts['entries'])}, {readable(facts['bytes'])}{state}"


def _print(facts: dict[str, Any], as_json: bool, text: str) -> None:
    if as_json:
        show_json(facts)
    else:
        click.echo(text)
