"""What goes into a pack: a TOML file.

    arch = ["sm_90a", "sm_80"]
    rows = [1, 64, 4096, 16384]       # N to compile for; each serves its range of N

    [[module]]
    name = "ffn.0"
    layout = "ffn0.npy"               # or: model = "model.safetensors", tensor = "...", density = 0.25, transpose = true
    block_size = 32
    dtype = "bfloat16"
    ops = ["fprop", "dgrad", "wgrad"]
    bias = true
    activation = "gelu"

`arch` and `rows` may stand in a module, too. Paths are relative to the file.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bsgen import ranges
from bsgen.checks import integer, share
from bsgen.errors import ArgumentError
from bsgen.files import reason
from bsgen.layout import Layout
from bsgen.problem import (
    Epilogue,
    Op,
    Problem,
    Target,
    parse_activation,
    parse_axis,
    parse_block_size,
    parse_dtype,
    parse_op,
    parse_precision,
    parse_target,
    parse_wgrad_dtype,
)
from bsgen.weights import layout_from_weights, read_weights

DEFAULT_ROWS = (64, 4096, 16384)
SHARED = frozenset({"arch", "rows"})
SOURCES = frozenset({"layout", "model", "tensor", "density", "transpose", "norm"})
KEYS = (
    SHARED
    | SOURCES
    | {
        "name",
        "block_size",
        "dtype",
        "precision",
        "ops",
        "bias",
        "activation",
        "residual",
        "gate",
        "wgrad_dtype",
        "axis",
    }
)


@dataclass(frozen=True)
class Wanted:
    """A module to build: its problems without a hint for N, for targets and rows."""

    name: str
    problems: tuple[Problem, ...]
    targets: tuple[Target, ...]
    rows: tuple[int, ...]

    def tasks(self) -> Iterator[tuple[Problem, Target, int]]:
        """A problem for each op, architecture and range of N."""
        for problem in self.problems:
            for target in self.targets:
                wanted = (index for n in self.rows for index in ranges.alike(n, problem.row_unit))
                for index in dict.fromkeys(wanted):
                    member = ranges.member(problem, index)
                    yield member, target, member.batch or ranges.DEFAULT_ROWS


def read_spec(path: str | os.PathLike[str]) -> list[Wanted]:
    """The modules of a spec file.

    Raises:
        ArgumentError: no such file, not TOML, a key or value that there is not. LayoutError: a layout that is none.
    """
    place = Path(path)
    try:
        text = place.read_bytes().decode()
        fields = _toml().loads(text)
    except OSError as error:
        raise ArgumentError(f"{place}: cannot be read ({reason(error)}); give the path of a spec file") from None
    except (ValueError, RecursionError) as error:
        raise ArgumentError(
            f"{place}: is not TOML ({reason(error)}); see `bsgen pack build --help` for an example"
        ) from None
    return _parse(fields, place)


def _toml() -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib


def _parse(fields: Mapping[str, Any], place: Path) -> list[Wanted]:
    _known(fields, SHARED | {"module"}, str(place))
    modules = fields.get("module")
    if not isinstance(modules, list) or not modules or not all(isinstance(module, dict) for module in modules):
        raise ArgumentError(f"{place}: has no [[module]], expected at least one")
    shared = {key: fields[key] for key in SHARED & fields.keys()}
    wanted = [_module({**shared, **module}, place) for module in modules]
    names = [module.name for module in wanted]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ArgumentError(f"{place}: two modules are named {twice!r}: give each a name of its own")
    return wanted


def _module(fields: Mapping[str, Any], place: Path) -> Wanted:
    name = fields.get("name")
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= 200:
        raise ArgumentError(f"{place}: a module has name {name!r}, expected up to 200 printable characters")
    where = f"{place}, module {name!r}"
    _known(fields, KEYS, where)
    try:
        block_size = parse_block_size(fields.get("block_size", 32))
        dtype, precision = (
            parse_dtype(fields.get("dtype", "bfloat16")),
            parse_precision(fields.get("precision", "tensor")),
        )
        epilogue = Epilogue(
            _flag(fields, "bias"), parse_activation(fields.get("activation")), _flag(fields, "residual")
        )
        layout, gate = _layout(fields, place.parent, block_size), _flag(fields, "gate")
        gradients, axis = parse_wgrad_dtype(fields.get("wgrad_dtype"), dtype), parse_axis(fields.get("axis", 1))
        problems = tuple(
            Problem(
                op,
                layout,
                block_size,
                dtype,
                precision,
                epilogue if op is Op.FPROP else Epilogue(),
                gate=gate,
                wgrad_dtype=gradients if op is Op.WGRAD else None,
                axis=axis,
            )
            for op in map(parse_op, _list(fields, "ops", ["fprop"]))
        )
        targets = tuple(map(parse_target, _list(fields, "arch", ["sm_90a"])))
        rows = tuple(integer("rows", n, 1) for n in _list(fields, "rows", list(DEFAULT_ROWS)))
    except ArgumentError as error:
        raise ArgumentError(f"{where}: {error}") from None
    return Wanted(name, problems, targets, rows)


def _layout(fields: Mapping[str, Any], folder: Path, block_size: int) -> Layout:
    """From a file, or the largest blocks of a tensor."""
    if ("layout" in fields) == ("model" in fields):
        raise ArgumentError("layout, model: expected exactly one of the two")
    if "layout" in fields:
        return Layout.load(folder / _path(fields, "layout"))
    weights = read_weights(folder / _path(fields, "model"), fields.get("tensor"))
    density = share("density", fields.get("density"))
    return layout_from_weights(
        weights, block_size, density, fields.get("norm", "l2"), transpose=_flag(fields, "transpose")
    )


def _path(fields: Mapping[str, Any], key: str) -> str:
    if not isinstance(fields[key], str):
        raise ArgumentError(f"{key}: got {fields[key]!r}, expected the path of a file")
    return str(fields[key])


def _flag(fields: Mapping[str, Any], key: str) -> bool:
    value = fields.get(key, False)
    if not isinstance(value, bool):
        raise ArgumentError(f"{key}: got {value!r}, expected true or false")
    return value


def _list(fields: Mapping[str, Any], key: str, default: list[Any]) -> list[Any]:
    value = fields.get(key, default)
    found = value if isinstance(value, list) else [value]
    if not found:
        raise ArgumentError(f"{key}: got an empty list, expected at least one")
    if any(isinstance(each, list | dict) for each in found):
        raise ArgumentError(f"{key}: got {value!r}, expected one or a list of plain values")
    return list(dict.fromkeys(found))


def _known(fields: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    for key in fields:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            meant = f"; did you mean {near[0]!r}?" if near else f", expected some of {', '.join(sorted(known))}"
            raise ArgumentError(f"{where}: has {key!r}{meant}")
