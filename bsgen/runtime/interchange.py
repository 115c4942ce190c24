"""Arrays of any library, by DLPack or `__cuda_array_interface__`; results are `DeviceArray`s."""

from __future__ import annotations

from typing import Any

import numpy as np

from bsgen.errors import ArgumentError
from bsgen.runtime import context, dlpack, driver
from bsgen.runtime.arrays import CPU, Framework, View
from bsgen.runtime.device_array import DeviceArray


class DLPack(Framework):
    """Anything with `__dlpack__`: the producer itself orders its work before a stream."""

    name = "DLPack"
    ordered = False

    def view(self, array: Any, argument: str) -> View:
        """Read a capsule made without synchronisation."""
        try:
            if array.__dlpack_device__()[0] == dlpack.CPU:
                return View(0, tuple(getattr(array, "shape", ())), str(getattr(array, "dtype", "")), CPU, True)
            found = dlpack.read(_capsule(array, dlpack.NO_SYNCHRONISATION))
        except (BufferError, ValueError) as error:
            raise ArgumentError(f"{argument}: {type(array).__name__} gave no DLPack capsule: {error}") from error
        if found.device_type not in (dlpack.CUDA, dlpack.CUDA_MANAGED):
            raise ArgumentError(f"{argument}: DLPack device type {found.device_type}, expected CUDA: copy it to a GPU")
        return View(found.pointer, found.shape, found.dtype, found.device_id, found.contiguous)

    def arrive(self, array: Any, device: int, stream: int) -> None:
        """The producer does it when asked for a capsule for `stream`."""
        _capsule(array, stream or driver.DEFAULT_STREAM)

    def empty(self, shape: tuple[int, ...], dtype: str, device: int, stream: int) -> Any:
        """A `DeviceArray`."""
        return DeviceArray(shape, dtype, device, stream)


def _capsule(array: Any, stream: int) -> Any:
    try:
        return array.__dlpack__(stream=stream, max_version=(1, 0))
    except TypeError:  # a producer from before DLPack 1.0
        return array.__dlpack__(stream=stream)


class CudaArrayInterface(Framework):
    """Anything with `__cuda_array_interface__`: its "stream" says what to wait for."""

    name = "__cuda_array_interface__"
    ordered = False

    def view(self, array: Any, argument: str) -> View:
        """Read the interface; the driver knows which GPU the pointer belongs to."""
        facts = array.__cuda_array_interface__
        pointer, dtype = facts["data"][0] or 0, np.dtype(facts["typestr"])
        shape, strides = tuple(facts["shape"]), facts.get("strides")
        steps = tuple(step // dtype.itemsize for step in strides) if strides else None
        contiguous = steps is None or dlpack.is_row_major(shape, steps)
        return View(pointer, shape, dtype.name, context.owner(pointer), contiguous)

    def stream(self, array: Any, device: int) -> int:
        """The array's "stream", or the default one where it needs no waiting."""
        return array.__cuda_array_interface__.get("stream") or driver.DEFAULT_STREAM

    def empty(self, shape: tuple[int, ...], dtype: str, device: int, stream: int) -> Any:
        """A `DeviceArray`."""
        return DeviceArray(shape, dtype, device, stream)


_dlpack, _interface = DLPack(), CudaArrayInterface()


def recognise(array: Any) -> Framework | None:
    """DLPack if there is one (it also says how to wait), else the interface."""
    if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
        return _dlpack
    return _interface if hasattr(array, "__cuda_array_interface__") else None
