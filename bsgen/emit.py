"""Plan -> Source: one self-contained CUDA translation unit, rendered by Jinja; the same plan gives the same bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import jinja2

    from bsgen.plan import Plan

WORDS_A_LINE = 16
END = re.compile(r"^(\};?)\n(?=[^\n])", re.MULTILINE)  # of a function, struct or table, with something right behind it


@dataclass(frozen=True)
class Source:
    """CUDA text with no #include, its kernels' names, and the options it must be compiled with."""

    name: str
    text: str
    entries: tuple[str, ...]
    options: tuple[str, ...] = ()


def render(plan: Plan) -> Source:
    """The source of a plan."""
    text = environment().get_template(plan.template).render(plan=plan, geo=plan.geometry, problem=plan.problem)
    entries = tuple(launch.entry for launch in plan.launches)
    return Source(plan.entry, END.sub("\\1\n\n", text), entries)


def template_folder() -> Path:
    """Where the templates are: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "_templates"
    return installed if installed.is_dir() else package.parent / "templates"


@cache
def environment() -> jinja2.Environment:
    """The one Jinja environment: `//%` starts a control line, undefined names are errors."""
    import jinja2

    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template_folder()),
        undefined=jinja2.StrictUndefined,
        line_statement_prefix="//%",
        block_start_string="<%",  # the usual {% is PTX operand syntax
        block_end_string="%>",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    env.filters["words"] = words
    return env


def words(array: np.ndarray[Any, Any]) -> Iterator[str]:
    """Lines of a table's initialiser; an empty table still needs one word."""
    flat = array.ravel().tolist() or [0]
    for i in range(0, len(flat), WORDS_A_LINE):
        yield ",".join(map(str, flat[i : i + WORDS_A_LINE])) + ","
