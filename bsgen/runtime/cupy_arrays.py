"""CuPy arrays."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np

from bsgen.runtime.arrays import Framework, View

_TYPES = {"bfloat16": ml_dtypes.bfloat16}


class CuPy(Framework):
    """CuPy arrays: memory from its stream-ordered pool, on its current stream."""

    name = "CuPy"

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy

    def view(self, array: Any, argument: str) -> View:
        """Everything is at hand."""
        return View(array.data.ptr, array.shape, array.dtype.name, array.device.id, array.flags.c_contiguous)

    def stream(self, array: Any, device: int) -> int:
        """cupy.cuda.get_current_stream, of the array's device."""
        with self._cupy.cuda.Device(device):
            return int(self._cupy.cuda.get_current_stream().ptr)

    def empty(self, shape: tuple[int, ...], dtype: str, device: int, stream: int) -> Any:
        """cupy.empty, from the pool of the stream that will write it."""
        cuda = self._cupy.cuda
        with cuda.Device(device):
            if stream == cuda.get_current_stream().ptr:
                return self._cupy.empty(shape, _TYPES.get(dtype, dtype))
            with cuda.ExternalStream(stream, device):
                return self._cupy.empty(shape, _TYPES.get(dtype, dtype))

    def zeros(self, shape: tuple[int, ...], like: Any) -> Any:
        """cupy.zeros."""
        return self._cupy.zeros(shape, like.dtype)

    def indices(self, values: np.ndarray[Any, Any], like: Any) -> Any:
        """cupy.asarray."""
        return self._cupy.asarray(values)

    def cast(self, array: Any, dtype: str) -> Any:
        """cupy.ascontiguousarray."""
        return self._cupy.ascontiguousarray(array, _TYPES.get(dtype, dtype))

    def join(self, arrays: Sequence[Any], axis: int) -> Any:
        """cupy.concatenate."""
        return self._cupy.concatenate(list(arrays), axis)


@cache
def _framework() -> CuPy:
    return CuPy(sys.modules["cupy"])


def recognise(array: Any) -> Framework | None:
    """The framework, if `array` is CuPy's."""
    return _framework() if isinstance(array, sys.modules["cupy"].ndarray) else None
