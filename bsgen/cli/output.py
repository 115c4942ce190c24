"""How commands print: facts as JSON for programs, tables for people."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import click

from bsgen.picture import UNICODE

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from bsgen.layout import Layout

PICTURE_WIDTH = 96  # characters; a wider terminal does not make the picture clearer
PIPED_WIDTH = 200  # columns; into a file or pipe nothing is gained by wrapping at 80

json_option = click.option("--json", "as_json", is_flag=True, help="Print facts as JSON.")


def show_json(facts: Any) -> None:
    """Print facts for a program to read."""
    click.echo(json.dumps(facts, indent=2, default=str))


def console() -> Console:
    """Where tables go: standard output, with square brackets in data left alone."""
    from rich.console import Console

    return Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)


def picture(layout: Layout, plain: bool = False) -> str:
    """The layout drawn to fit the terminal, in ASCII if `plain` or if standard output takes nothing else."""
    width = max(8, min(PICTURE_WIDTH, shutil.get_terminal_size().columns - 2))
    return layout.text(width=width, ascii=plain or not _prints_unicode())


def _prints_unicode() -> bool:
    try:
        (UNICODE.frame + UNICODE.glyphs + UNICODE.shades).encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


@contextmanager
def busy(what: str) -> Iterator[None]:
    """A line on standard error that says what takes long; nothing where nobody watches."""
    from rich.console import Console

    watched = Console(stderr=True)
    with watched.status(what) if watched.is_terminal else nullcontext():
        yield


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on standard error that each call of the result advances; nothing where nobody watches."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    watched = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=watched, transient=True, disable=not watched.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


def pairs(title: str, rows: Iterable[tuple[str, object]]) -> Table:
    """A table of names and values."""
    result = table(title, ())
    for name, value in rows:
        result.add_row(name, "" if value is None else str(value))
    return result


def records(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """A table with one row for each record, and a column for each key that any of them has."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    result = table(title, columns)
    for row in rows:
        result.add_row(*("" if row.get(column) is None else str(row[column]) for column in columns))
    return result


def table(title: str, columns: Sequence[str]) -> Table:
    """An empty table in the style of all commands; without columns it has no header, and any number of cells a row."""
    from rich import box
    from rich.table import Table

    result = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_header=bool(columns)
    )
    for column in columns:
        result.add_column(column, overflow="fold")
    return result


def readable(size: float) -> str:
    """Bytes in the unit that people read."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
