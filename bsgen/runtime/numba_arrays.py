"""Numba device arrays, through `__cuda_array_interface__`: float16 and float32, since that has no bfloat16."""

from __future__ import annotations

import sys
from typing import Any

from bsgen.runtime import driver
from bsgen.runtime.interchange import CudaArrayInterface


class Numba(CudaArrayInterface):
    """numba.cuda device arrays."""

    name = "Numba"

    def empty(self, shape: tuple[int, ...], dtype: str, device: int, stream: int) -> Any:
        """numba.cuda.device_array: not ordered by stream, and not for captured graphs."""
        with driver.on(device):
            cuda = sys.modules["numba.cuda"]
            written_on = 0 if stream == driver.DEFAULT_STREAM else cuda.external_stream(stream)
            return cuda.device_array(shape, dtype, stream=written_on)


_numba = Numba()


def recognise(array: Any) -> Numba | None:
    """The framework, if `array` is a device array of Numba's."""
    cuda = sys.modules.get("numba.cuda")
    return _numba if cuda is not None and cuda.is_cuda_array(array) and "numba" in type(array).__module__ else None
