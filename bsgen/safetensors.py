"""A reader of .safetensors files: one tensor at a time, every length and offset of the file checked before use.

The format (https://huggingface.co/docs/safetensors): the length of the header as a 64-bit little-endian integer, a
JSON header {name: {"dtype", "shape", "data_offsets": [begin, end]}}, then the bytes of the tensors, where offset 0 is.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import numpy.typing as npt

from bsgen.errors import LayoutError
from bsgen.files import reason

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
MAX_HEADER = 100_000_000  # bytes; the limit of the reference implementation
LISTED = 12  # names in an error message


@dataclass(frozen=True)
class Entry:
    """One tensor of the file: its type by the format's name, its shape, and where its bytes are in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, Entry]:
    """Every tensor of the file by name, nothing loaded; `LayoutError` if the file is not a whole .safetensors file."""
    try:
        with path.open("rb") as file:
            return _header(file, path.stat().st_size)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else reason(error)
        raise LayoutError(f"{path}: cannot be read as a .safetensors file ({why}); save or download it again") from None


def read_matrix(path: Path, name: str | None = None) -> npt.NDArray[Any]:
    """The 2-D tensor `name` of floats, or the only one for None; `LayoutError`, which lists them, if there is none."""
    entries = read_header(path)
    entry = entries[_chosen(entries, name, path)]
    try:
        with path.open("rb") as file:
            file.seek(entry.begin)
            data = file.read(entry.end - entry.begin)
    except OSError as error:
        raise LayoutError(f"{path}: cannot be read ({reason(error)}); give the path of a readable file") from None
    return np.frombuffer(data, dtype=DTYPES[entry.dtype]).reshape(entry.shape)


def _header(file: BinaryIO, size: int) -> dict[str, Entry]:
    length = int.from_bytes(_exactly(file, 8), "little")
    _expect(length <= min(MAX_HEADER, size - 8), f"its header should have {length} bytes, the file has {size}")
    header = json.loads(_exactly(file, length).decode("utf-8"), object_pairs_hook=_unique)
    _expect(isinstance(header, dict), "its header is not a table of tensors")
    start = 8 + length
    return {name: _entry(name, facts, start, size) for name, facts in header.items() if name != "__metadata__"}


def _entry(name: str, facts: dict[str, Any], start: int, size: int) -> Entry:
    _expect(isinstance(facts, dict), f"tensor {name!r} is not described by a table")
    dtype, shape, offsets = facts["dtype"], facts["shape"], facts["data_offsets"]
    _expect(isinstance(dtype, str), f"the dtype of tensor {name!r} is not a name")
    _expect(_are_sizes(shape), f"the shape of tensor {name!r} is not a list of sizes")
    _expect(_are_sizes(offsets) and len(offsets) == 2, f"the offsets of tensor {name!r} are not two positions")
    begin, end = offsets
    _expect(begin <= end <= size - start, f"tensor {name!r} ends after the file does, or before it starts")
    if dtype in DTYPES:
        expected = math.prod(shape) * DTYPES[dtype].itemsize
        _expect(end - begin == expected, f"tensor {name!r} should have {expected} bytes, it has {end - begin}")
    return Entry(dtype, tuple(shape), start + begin, start + end)


def _chosen(entries: dict[str, Entry], name: str | None, path: Path) -> str:
    """`name`, if it is a matrix of floats in the file, or the only one for None."""
    matrices = [key for key, entry in entries.items() if len(entry.shape) == 2 and entry.dtype in DTYPES]
    if name is None and len(matrices) == 1:
        return matrices[0]
    if name is None:
        raise LayoutError(f"{path}: no tensor was named and it holds {_listed(matrices)}; name one (--tensor NAME)")
    if name not in entries:
        close = difflib.get_close_matches(name, matrices, n=1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        raise LayoutError(f"{path}: has no tensor {name!r}; {meant}it holds {_listed(matrices)}")
    if name not in matrices:
        entry = entries[name]
        raise LayoutError(
            f"{path}: tensor {name!r} is {entry.dtype} {list(entry.shape)}, expected 2-D of {', '.join(DTYPES)}; "
            f"it holds {_listed(matrices)}"
        )
    return name


def _listed(names: list[str]) -> str:
    if not names:
        return f"no 2-D tensors of {', '.join(DTYPES)}"
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return "the 2-D tensors " + ", ".join(map(repr, sorted(names)[:LISTED])) + more


def _are_sizes(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        _expect(key not in result, f"its header has {key!r} twice")
        result[key] = value
    return result


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    _expect(len(data) == count, f"it is truncated: {count} bytes expected, {len(data)} left")
    return data


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)
