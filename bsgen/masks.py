"""Block masks from what people have: NumPy arrays, lists, scipy sparse, PyTorch tensors, .npy and .npz files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bsgen.errors import LayoutError
from bsgen.files import NPY_MAGIC, PICKLE_MAGIC, ZIP_MAGIC, Arrays, magic, pickle_error, read_npy, read_npz, reason
from bsgen.sparse import Coordinates, from_npz, from_scipy

Mask = npt.NDArray[np.bool_]

# Positions of blocks are 32-bit integers, in plans as in kernels.
MAX_BLOCKS = 2**31 - 1


def as_mask(value: object, name: str = "layout") -> Mask:
    """A new bool array [rows, columns] of `value`; `LayoutError`, which calls it `name`, if it is no block mask."""
    if hasattr(value, "tocoo"):
        return _scatter(from_scipy(value, name), name)
    array = to_numpy(value, name)
    check_shape(array.shape, name)
    return _check_values(array, name)


def read_mask(path: str | os.PathLike[str]) -> Mask:
    """The block mask in a .npy or .npz file, told apart by content; `LayoutError` if there is none."""
    place = Path(path)
    start = magic(place)
    if start.startswith(NPY_MAGIC):
        return as_mask(read_npy(place), str(place))
    if start.startswith(ZIP_MAGIC):
        return _from_npz(read_npz(place), str(place))
    if start.startswith(PICKLE_MAGIC):
        raise pickle_error(place)
    state = "is empty" if not start else "is not a .npy or .npz file"
    hint = "make a layout from weights with 'bsgen layout convert', or " if place.suffix == ".safetensors" else ""
    raise LayoutError(f"{place}: {state}; {hint}save the 0/1 mask with numpy.save or scipy.sparse.save_npz")


def _from_npz(arrays: Arrays, name: str) -> Mask:
    if "format" in arrays and "shape" in arrays:
        return _scatter(from_npz(arrays, name), name)
    matrices = [key for key, array in arrays.items() if array.ndim == 2]
    if len(matrices) != 1:
        held = ", ".join(f"{key} {list(array.shape)}" for key, array in arrays.items()) or "no arrays"
        raise LayoutError(
            f"{name}: holds {held}; expected a scipy sparse matrix or exactly one 2-D array (save it with numpy.save)"
        )
    return as_mask(arrays[matrices[0]], f"{name}[{matrices[0]}]")


def _scatter(entries: Coordinates, name: str) -> Mask:
    """The mask of coordinates. Only stored entries are touched: a small file may claim a large shape."""
    check_shape(entries.shape, name)
    _check_kind(entries.values.dtype, name)
    # Repeated positions add up (bool: or), as in scipy's toarray().
    places, which = np.unique(entries.rows * entries.shape[1] + entries.cols, return_inverse=True)
    values = np.zeros(places.shape, entries.values.dtype)
    np.add.at(values, which.ravel(), entries.values)
    stored = _stored(values, name, lambda i: divmod(int(places[i]), entries.shape[1]))
    mask = np.zeros(entries.shape, np.bool_)
    mask.flat[places[stored]] = True
    return mask


def to_numpy(value: object, name: str) -> npt.NDArray[Any]:
    """`value` as a NumPy array (of any dtype and rank, not copied if it is one); `LayoutError` if it cannot be."""
    if type(value).__module__.partition(".")[0] == "torch":
        value = _from_torch(value, name)
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise LayoutError(
            f"{name}: got {type(value).__name__} that is no plain array ({reason(error)}); "
            "expected a 2-D array in CPU memory"
        ) from None


def _from_torch(tensor: Any, name: str) -> object:
    """The tensor as NumPy can read it: it has no bfloat16 and takes no tensor that needs a gradient."""
    device, kind = str(getattr(tensor, "device", "cpu")), str(getattr(tensor, "layout", "torch.strided"))
    if device != "cpu" or kind != "torch.strided":
        raise LayoutError(
            f"{name}: got a {kind} tensor on {device}, expected a dense one on the CPU: .to_dense().cpu()"
        )
    return tensor.detach().float() if str(tensor.dtype) == "torch.bfloat16" else tensor.detach()


def check_shape(shape: tuple[int, ...], name: str) -> None:
    """Raise `LayoutError` unless `shape` is one that a layout can have."""
    if len(shape) != 2:
        raise LayoutError(f"{name}: got {len(shape)} dimensions {list(shape)}, expected 2: rows and columns of blocks")
    if min(shape) < 1:
        raise LayoutError(f"{name}: got shape {list(shape)}, expected at least one row and one column of blocks")
    if shape[0] * shape[1] > MAX_BLOCKS:
        raise LayoutError(
            f"{name}: got shape {list(shape)}, expected at most {MAX_BLOCKS} blocks; one entry stands for a whole block"
        )


def _check_values(array: npt.NDArray[Any], name: str) -> Mask:
    """A bool copy of `array`, which must hold 0 and 1 only."""
    if array.dtype == np.bool_:
        return np.array(array, dtype=np.bool_, order="C")
    _check_kind(array.dtype, name)
    stored = _stored(np.ascontiguousarray(array).ravel(), name, lambda i: divmod(i, array.shape[1]))
    return stored.reshape(array.shape)


def _check_kind(dtype: np.dtype[Any], name: str) -> None:
    if dtype != np.bool_ and not is_real(dtype):
        raise LayoutError(f"{name}: got values of type {dtype}, expected bool or numbers that are 0 or 1")


def _stored(values: npt.NDArray[Any], name: str, position: Callable[[int], tuple[int, int]]) -> Mask:
    """Which of a vector of values are 1; `LayoutError`, which says where, if one is neither 0 nor 1."""
    stored = np.asarray(values != 0)
    wrong = stored & (values != 1)
    if wrong.any():
        first = int(np.argmax(wrong))
        row, col = position(first)
        raise LayoutError(
            f"{name}: got {values[first]} at [{row}, {col}], expected only 0 and 1 (or bool); "
            "to make a layout from weights use 'bsgen layout convert'"
        )
    return stored


def is_real(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype holds real numbers: integers, floats and those of ml_dtypes."""
    # bfloat16 and the other types of ml_dtypes are of kind V, as raw bytes are, but have a scalar type of their own.
    return dtype.kind in "iuf" or (dtype.kind == "V" and not issubclass(dtype.type, np.void))


def cuts(counts: npt.NDArray[np.int64], parts: int) -> list[int]:
    """Bounds (parts + 1) that cut a row of `counts` into runs, none empty, whose largest sum is as small as can be."""
    length = len(counts)
    if isinstance(parts, bool) or not isinstance(parts, int | np.integer) or not 1 <= parts <= length:
        raise LayoutError(f"parts: got {parts!r}, expected a number from 1 to {length}, the rows or columns there are")
    low, high = int(counts.max()), int(counts.sum())
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_greedy(counts, middle)) <= parts else (middle + 1, high)
    starts = _greedy(counts, low)
    # Fewer runs than parts hold it: cut the longest further, which makes no sum larger.
    while len(starts) < parts:
        bounds = [*starts, length]
        longest = max(range(len(starts)), key=lambda i: bounds[i + 1] - bounds[i])
        starts.insert(longest + 1, (bounds[longest] + bounds[longest + 1]) // 2)
    return [*starts, length]


def _greedy(counts: npt.NDArray[np.int64], most: int) -> list[int]:
    """Where runs begin that each take as much as fits under `most`."""
    starts, total = [0], 0
    for place, count in enumerate(counts.tolist()):
        if total + count > most:
            starts.append(place)
            total = 0
        total += count
    return starts
