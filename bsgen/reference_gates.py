"""What the kernels do with gates, in NumPy: weights times their gates, and the gradients of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsgen.problem import DType

Array = NDArray[Any]


def gated(weights: Array, gate: Array, dtype: DType) -> Array:
    """gate * W, rounded to `dtype`, as float32; a block whose gate is zero is zeros, whatever it holds."""
    with np.errstate(over="ignore"):  # to infinity, as on the GPU
        return _scaled(weights, gate).astype(dtype.numpy).astype(np.float32)


def gate_gradients(sums: Array, operands: Mapping[str, Array]) -> dict[str, Array]:
    """Of sums G [nnz, b, b]: out is gate * G, and dgate, where w is given, the sum of G * W over each block."""
    found = {"out": _scaled(sums, operands["gate"])}
    if "w" in operands:
        with np.errstate(over="ignore", invalid="ignore"):
            found["dgate"] = (sums * operands["w"]).sum(axis=(1, 2), dtype=np.float32)
    return found


def _scaled(blocks: Array, gate: Array) -> Array:
    scale = gate[:, None, None]
    with np.errstate(over="ignore", invalid="ignore"):
        return np.where(scale == 0, np.float32(0), scale * blocks)
