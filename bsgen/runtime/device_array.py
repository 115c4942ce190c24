"""`DeviceArray`: the result of an op whose inputs came from a library that bsgen cannot allocate through."""

from __future__ import annotations

import os
import weakref
from typing import Any

from bsgen.errors import DriverError
from bsgen.problem import DType
from bsgen.runtime import context, dlpack, driver

_TYPE_STRINGS = {"float16": "<f2", "float32": "<f4"}


class DeviceArray:
    """A row-major array on a GPU, written and freed in the order of `stream`, a CUstream handle that must outlive it.

    It has no operations: hand it to a library, by `__dlpack__` or `__cuda_array_interface__` (no bfloat16 there).
    """

    def __init__(self, shape: tuple[int, ...], dtype: str, device: int, stream: int) -> None:
        self.shape, self.dtype, self.device, self.stream = shape, dtype, device, stream
        size = DType(dtype).itemsize
        for length in shape:
            size *= length
        self.pointer = context.allocate(device, size, stream)
        self._readers: set[int] = set()
        release = weakref.finalize(self, _release, os.getpid(), device, self.pointer, stream, self._readers)
        release.atexit = False

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self.device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("a bsgen DeviceArray is exported in place: copy it with the importing library")
        if stream != dlpack.NO_SYNCHRONISATION:
            reader = driver.DEFAULT_STREAM if stream is None else stream
            context.order(self.device, self.stream, reader)
            self._readers.add(reader)
        return dlpack.make(self, self.pointer, self.shape, self.dtype, self.device)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.dtype not in _TYPE_STRINGS:
            raise AttributeError(f"__cuda_array_interface__ has no {self.dtype}: use __dlpack__")
        return {
            "shape": self.shape,
            "typestr": _TYPE_STRINGS[self.dtype],
            "data": (self.pointer, False),
            "strides": None,
            "version": 3,
            "stream": self.stream or driver.DEFAULT_STREAM,
        }

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype}, device={self.device})"


def _release(owner: int, device: int, pointer: int, stream: int, readers: set[int]) -> None:
    """Free the memory after its readers, in the process that allocated it."""
    if os.getpid() != owner:
        return
    try:
        for reader in readers:
            context.order(device, reader, stream)
        context.free(device, pointer, stream)
    except DriverError:
        # Nobody can handle it here: the context is gone or already broken, and so is the memory.
        return
