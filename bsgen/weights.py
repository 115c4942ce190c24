"""Layouts from trained weights: keep the blocks with the largest norms."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bsgen.checks import share
from bsgen.errors import ArgumentError, LayoutError
from bsgen.files import NPY_MAGIC, PICKLE_MAGIC, ZIP_MAGIC, magic, read_npy
from bsgen.layout import Layout
from bsgen.masks import is_real, to_numpy
from bsgen.problem import BLOCK_SIZES, parse_block_size
from bsgen.safetensors import read_matrix

Norm = Literal["l2", "max"]
NORMS: tuple[Norm, ...] = ("l2", "max")


def read_weights(path: str | os.PathLike[str], tensor: str | None = None) -> npt.NDArray[Any]:
    """A weight matrix as stored, from a .npy file or by name from a .safetensors file (F64, F32, F16, BF16).

    `tensor` may be left out where the .safetensors file has only one matrix. Raises `LayoutError`, which lists the
    matrices of the file, if there is no such tensor; no pickle is ever loaded.
    """
    place = Path(path)
    start = magic(place)
    if start.startswith((ZIP_MAGIC, PICKLE_MAGIC)):
        raise LayoutError(
            f"{place}: a .npz file or a pickle (as torch.save writes); expected .safetensors or .npy: "
            "save it with safetensors.torch.save_file or numpy.save"
        )
    if not start.startswith(NPY_MAGIC):
        return read_matrix(place, tensor)
    if tensor is not None:
        raise LayoutError(f"tensor: got {tensor!r}, but {place} is a .npy file with one array; leave the name out")
    return read_npy(place)


def layout_from_weights(
    dense: object, block_size: int, density: float, norm: Norm = "l2", *, transpose: bool = False
) -> Layout:
    """The layout of the round(density * blocks) blocks of `dense` [C, K] with the largest norm.

    `norm` is "l2" (root of the sum of squares) or "max" (largest magnitude); of equal blocks the first in row-major
    order is kept. Set `transpose` for weights stored [out, in] = [K, C], as those of PyTorch's Linear are. Raises
    `LayoutError` for weights that are not a matrix of finite numbers or that blocks do not fill.
    """
    size, kept_share = parse_block_size(block_size), share("density", density)
    if norm not in NORMS:
        raise ArgumentError(f"norm: got {norm!r}, expected one of {', '.join(map(repr, NORMS))}")
    norms = block_norms(dense, size, norm)
    norms = norms.T if transpose else norms
    kept = np.argsort(-norms, axis=None, kind="stable")[: round(kept_share * norms.size)]
    mask = np.zeros(norms.size, dtype=np.bool_)
    mask[kept] = True
    return Layout(mask.reshape(norms.shape))


def block_norms(dense: object, block_size: int, norm: Norm = "l2") -> npt.NDArray[np.float64]:
    """[C/b, K/b] norms of the blocks of `dense` [C, K]; `LayoutError` as for `layout_from_weights`."""
    weights = _matrix(dense, block_size)
    measure = {"l2": _l2, "max": _peak}[norm]
    # One row of blocks at a time: a double precision copy of all weights may not fit.
    starts = range(0, len(weights), block_size)
    return np.stack([measure(_blocks(weights, start, block_size)) for start in starts])


def _blocks(weights: npt.NDArray[Any], start: int, block_size: int) -> npt.NDArray[np.float64]:
    """[K/b, b, b] magnitudes of a row of blocks, checked to be finite."""
    with np.errstate(invalid="ignore"):  # NaN is told apart below
        rows: npt.NDArray[np.float64] = np.abs(weights[start : start + block_size].astype(np.float64))
    finite = np.isfinite(rows)
    if not finite.all():
        row, col = map(int, np.argwhere(~finite)[0])
        raise LayoutError(
            f"weights: got {weights[start + row, col]} at [{start + row}, {col}], expected finite numbers only; "
            "repair or retrain the weights"
        )
    blocks: npt.NDArray[np.float64] = rows.reshape(block_size, -1, block_size).transpose(1, 0, 2)
    return blocks


def _peak(blocks: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    peaks: npt.NDArray[np.float64] = np.max(blocks, axis=(1, 2))
    return peaks


def _l2(blocks: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    # Squares of very large or small doubles would overflow or vanish; a power of two scales exactly.
    exponents = np.frexp(_peak(blocks))[1]
    squares = np.square(np.ldexp(blocks, -exponents[:, None, None]))
    norms: npt.NDArray[np.float64] = np.ldexp(np.sqrt(squares.sum(axis=(1, 2))), exponents)
    return norms


def _matrix(dense: object, block_size: int) -> npt.NDArray[Any]:
    weights = to_numpy(dense, "weights")
    if not is_real(weights.dtype):
        raise LayoutError(f"weights: got values of type {weights.dtype}, expected real numbers; save them as float32")
    if weights.ndim != 2 or not weights.size:
        raise LayoutError(
            f"weights: got shape {list(weights.shape)}, expected a matrix [C, K] with at least one element"
        )
    if weights.shape[0] % block_size or weights.shape[1] % block_size:
        fitting = [str(size) for size in BLOCK_SIZES if not (weights.shape[0] % size or weights.shape[1] % size)]
        remedy = f"use block size {' or '.join(fitting)}" if fitting else "pad them with zeros"
        raise LayoutError(
            f"weights: got shape {list(weights.shape)}, expected multiples of the block size {block_size}; {remedy}"
        )
    return weights
