"""Between NumPy arrays and `DeviceArray`s, for programs that use no GPU library of their own."""

from __future__ import annotations

from typing import Any

import numpy as np

from bsgen.problem import DType
from bsgen.runtime import context, driver
from bsgen.runtime.device_array import DeviceArray

Array = np.ndarray[Any, Any]


def to_device(array: Array, device: int, stream: int = driver.DEFAULT_STREAM) -> DeviceArray:
    """A copy of a float16, bfloat16 or float32 array on a GPU, in the order of `stream`; complete on return."""
    source = np.asarray(array, order="C")
    result = DeviceArray(source.shape, source.dtype.name, device, stream)
    if source.nbytes:
        with driver.on(device):
            driver.call("cuMemcpyHtoDAsync", result.pointer, source.ctypes.data, source.nbytes, stream)
        context.wait(device, stream)
    return result


def to_host(array: DeviceArray) -> Array:
    """A copy of a GPU array, after the work that its stream has now."""
    result: Array = np.empty(array.shape, DType(array.dtype).numpy)
    if result.nbytes:
        with driver.on(array.device):
            driver.call("cuMemcpyDtoHAsync", result.ctypes.data, array.pointer, result.nbytes, array.stream)
        context.wait(array.device, array.stream)
    return result
