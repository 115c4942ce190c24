"""scipy sparse matrices as coordinates, from the object or from the members of a save_npz file, without scipy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bsgen.errors import LayoutError
from bsgen.files import Arrays

Indices = npt.NDArray[np.int64]


class Coordinates(NamedTuple):
    """Stored entries of a sparse matrix: values[i] at (rows[i], cols[i]); positions may repeat."""

    shape: tuple[int, ...]
    rows: Indices
    cols: Indices
    values: npt.NDArray[Any]


def from_scipy(matrix: Any, name: str) -> Coordinates:
    """The entries of a scipy sparse matrix or array of two dimensions."""
    if len(matrix.shape) != 2:
        raise LayoutError(f"{name}: got {len(matrix.shape)} dimensions {list(matrix.shape)}, expected 2")
    coo = matrix.tocoo()
    return Coordinates(tuple(map(int, coo.shape)), coo.row.astype(np.int64), coo.col.astype(np.int64), coo.data)


def from_npz(arrays: Arrays, name: str) -> Coordinates:
    """The entries stored by scipy.sparse.save_npz (csr, csc, bsr, coo, dia); every index is checked."""
    try:
        kind = _kind(arrays)
        shape = tuple(int(extent) for extent in arrays["shape"].tolist())
        _expect(len(shape) == 2, f"shape {list(shape)} is not of two dimensions")
        rows, cols, values = _READERS[kind](arrays, shape)
        _expect(values.shape == rows.shape == cols.shape, "its arrays differ in length")
        _expect(_within(rows, shape[0]) and _within(cols, shape[1]), f"an index lies outside its shape {list(shape)}")
    except KeyError as error:
        raise _broken(name, f"it has no {error.args[0]}") from None
    except (TypeError, ValueError, ArithmeticError, IndexError, AttributeError, MemoryError) as error:
        raise _broken(name, str(error)) from None
    return Coordinates(shape, rows, cols, values)


def _broken(name: str, why: str) -> LayoutError:
    return LayoutError(f"{name}: not a scipy sparse matrix ({why}); write it again with scipy.sparse.save_npz")


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)


def _within(indices: Indices, extent: int) -> bool:
    return not indices.size or (int(np.min(indices)) >= 0 and int(np.max(indices)) < extent)


def _kind(arrays: Arrays) -> str:
    kind = arrays["format"].item()
    kind = kind.decode("ascii", "replace") if isinstance(kind, bytes) else str(kind)
    _expect(kind in _READERS, f"format {kind!r} is not one of {', '.join(_READERS)}")
    return kind


def _indices(arrays: Arrays, key: str) -> Indices:
    array = arrays[key]
    _expect(array.ndim == 1 and array.dtype.kind in "iu", f"{key} is not a vector of integers")
    return array.astype(np.int64)


def _compressed(arrays: Arrays, lines: int) -> tuple[Indices, Indices]:
    """The line and the index within it of each entry, of `lines` compressed lines."""
    indices, indptr = _indices(arrays, "indices"), _indices(arrays, "indptr")
    counts = np.diff(indptr)
    whole = len(indptr) == lines + 1 and indptr[0] == 0 and indptr[-1] == len(indices) and (counts >= 0).all()
    _expect(bool(whole), "indptr does not match its shape and indices")
    return np.repeat(np.arange(lines), counts), indices


def _csr(arrays: Arrays, shape: tuple[int, ...]) -> tuple[Indices, Indices, npt.NDArray[Any]]:
    rows, cols = _compressed(arrays, shape[0])
    return rows, cols, arrays["data"]


def _csc(arrays: Arrays, shape: tuple[int, ...]) -> tuple[Indices, Indices, npt.NDArray[Any]]:
    cols, rows = _compressed(arrays, shape[1])
    return rows, cols, arrays["data"]


def _coo(arrays: Arrays, shape: tuple[int, ...]) -> tuple[Indices, Indices, npt.NDArray[Any]]:
    if "coords" in arrays:
        rows, cols = arrays["coords"]
        arrays = {**arrays, "row": rows, "col": cols}
    return _indices(arrays, "row"), _indices(arrays, "col"), arrays["data"]


def _bsr(arrays: Arrays, shape: tuple[int, ...]) -> tuple[Indices, Indices, npt.NDArray[Any]]:
    data = arrays["data"]
    _expect(data.ndim == 3 and min(data.shape[1:]) > 0, "data is not a list of blocks")
    _, height, width = data.shape
    _expect(shape[0] % height == 0 and shape[1] % width == 0, f"blocks {height} x {width} do not fill its shape")
    block_rows, block_cols = _compressed(arrays, shape[0] // height)
    _expect(len(data) == len(block_rows), "its arrays differ in length")
    rows = np.broadcast_to(block_rows[:, None, None] * height + np.arange(height)[:, None], data.shape)
    cols = np.broadcast_to(block_cols[:, None, None] * width + np.arange(width), data.shape)
    return rows.ravel(), cols.ravel(), data.ravel()


def _dia(arrays: Arrays, shape: tuple[int, ...]) -> tuple[Indices, Indices, npt.NDArray[Any]]:
    data, offsets = arrays["data"], _indices(arrays, "offsets")
    _expect(data.ndim == 2 and len(data) == len(offsets), "data does not match its offsets")
    cols = np.broadcast_to(np.arange(data.shape[1]), data.shape)
    rows = cols - offsets[:, None]
    # The format keeps whole lines; what hangs over the edges is no part of the matrix.
    inside = (rows >= 0) & (rows < shape[0]) & (cols < shape[1])
    return rows[inside], cols[inside], data[inside]


_READERS = {"csr": _csr, "csc": _csc, "bsr": _bsr, "coo": _coo, "dia": _dia}
