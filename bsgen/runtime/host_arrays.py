"""NumPy arrays: the CPU side of every op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from bsgen.runtime.arrays import CPU, Framework, View

_TYPES = {"bfloat16": ml_dtypes.bfloat16}


class NumPy(Framework):
    """NumPy arrays, with bfloat16 from ml_dtypes."""

    name = "NumPy"

    def view(self, array: Any, argument: str) -> View:
        """Everything is at hand."""
        dtype = array.dtype.name if array.dtype.isnative else str(array.dtype)
        return View(array.ctypes.data, array.shape, dtype, CPU, array.flags.c_contiguous)

    def writable(self, array: Any) -> bool:
        """By its flag."""
        return bool(array.flags.writeable)

    def zeros(self, shape: tuple[int, ...], like: Any) -> Any:
        """np.zeros."""
        return np.zeros(shape, like.dtype)

    def indices(self, values: np.ndarray[Any, Any], like: Any) -> Any:
        """NumPy indexes by itself."""
        return values

    def cast(self, array: Any, dtype: str) -> Any:
        """np.ascontiguousarray."""
        return np.ascontiguousarray(array, _TYPES.get(dtype, dtype))

    def join(self, arrays: Sequence[Any], axis: int) -> Any:
        """np.concatenate."""
        return np.concatenate(arrays, axis)


_numpy = NumPy()


def recognise(array: Any) -> Framework | None:
    """The framework, if `array` is NumPy's."""
    return _numpy if isinstance(array, np.ndarray) else None
