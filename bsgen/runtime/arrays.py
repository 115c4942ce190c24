"""Arrays of other libraries: what bsgen needs to know of one (`View`), and who made it (`Framework`).

A framework is told by the array's type, without importing any library that is not loaded already. Adding one means a
module with a `Framework` subclass and a line in `_known`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from bsgen.errors import ArgumentError
from bsgen.runtime import context, driver

CPU = -1


class View(NamedTuple):
    """What a kernel needs to know of an array: address, shape, name of the element type, GPU number or `CPU`."""

    pointer: int
    shape: tuple[int, ...]
    dtype: str
    device: int
    contiguous: bool


class Framework:
    """How bsgen deals with the arrays of one library. Streams are CUstream handles, as integers."""

    name = "arrays"
    mutable = True
    """Whether a caller may pass `out`."""
    ordered = True
    """Whether work on the library's current stream comes after whatever fills its arrays."""

    def view(self, array: Any, argument: str) -> View:
        """Look at an array, without touching its data; `ArgumentError` names `argument`."""
        raise NotImplementedError

    def writable(self, array: Any) -> bool:
        """Whether `array` may be written, where the library knows of arrays that may not."""
        return True

    def pointer(self, array: Any) -> int:
        """The address of an array that was looked at before, or made by `empty`."""
        return self.view(array, "out").pointer

    def stream(self, array: Any, device: int) -> int:
        """The stream that the library would run its next work on `array` on."""
        return driver.DEFAULT_STREAM

    def arrive(self, array: Any, device: int, stream: int) -> None:
        """Make `stream` wait for the work that fills `array`, where `stream` is not the library's own."""
        context.order(device, self.stream(array, device), stream)

    def empty(self, shape: tuple[int, ...], dtype: str, device: int, stream: int) -> Any:
        """A new array on a GPU, to be written in the order of `stream`."""
        raise NotImplementedError

    def lent(self, arrays: Sequence[Any], device: int, stream: int) -> None:
        """Tell the library's allocator that `stream`, which the caller chose, uses `arrays`."""

    def finished(self, device: int, stream: int) -> None:
        """Called once all work of a call is enqueued: make the library's own later work come after it."""

    def zeros(self, shape: tuple[int, ...], like: Any) -> Any:
        """Zeros of `like`'s kind, type and place."""
        raise ArgumentError(self._unsupported())

    def indices(self, values: np.ndarray[Any, Any], like: Any) -> Any:
        """An index array for arrays like `like`."""
        raise ArgumentError(self._unsupported())

    def put(self, array: Any, where: tuple[Any, Any], values: Any) -> Any:
        """`array` with `array[where] = values`."""
        array[where] = values
        return array

    def cast(self, array: Any, dtype: str) -> Any:
        """`array`, contiguous and of that element type."""
        raise ArgumentError(self._unsupported())

    def join(self, arrays: Sequence[Any], axis: int) -> Any:
        """Matrices one after the other along an axis, in a new array."""
        raise ArgumentError(
            f"x: got a list of {self.name} arrays, expected NumPy, PyTorch, CuPy or JAX: join them yourself"
        )

    def _unsupported(self) -> str:
        return f"dense: got a {self.name} array, expected NumPy, PyTorch, CuPy or JAX: convert it through one of them"


_by_type: dict[type, Framework] = {}


def framework_of(array: Any, argument: str) -> Framework:
    """The framework that an array belongs to; `ArgumentError` if it is no array that bsgen can read."""
    framework = _by_type.get(type(array))
    if framework is None:
        framework = _by_type[type(array)] = _recognise(array, argument)
    return framework


def _recognise(array: Any, argument: str) -> Framework:
    for recognise in _known():
        framework = recognise(array)
        if framework is not None:
            return framework
    raise ArgumentError(
        f"{argument}: got {type(array).__name__}, expected an array: NumPy, or on a GPU "
        "PyTorch, CuPy, JAX, Numba, or anything else with __dlpack__ or __cuda_array_interface__"
    )


def _known() -> Iterator[Callable[[Any], Framework | None]]:
    from bsgen.runtime import cupy_arrays, host_arrays, interchange, jax_arrays, numba_arrays, torch_arrays

    yield host_arrays.recognise
    for library, module in (
        ("torch", torch_arrays),
        ("cupy", cupy_arrays),
        ("jax", jax_arrays),
        ("numba", numba_arrays),
    ):
        if library in sys.modules:
            yield module.recognise
    yield interchange.recognise


def stream_handle(stream: Any) -> int:
    """The CUstream handle of a caller's `stream=`: an integer, a library's stream, or any `__cuda_stream__`."""
    if isinstance(stream, int) and not isinstance(stream, bool):
        return stream
    for attribute in ("cuda_stream", "ptr"):  # PyTorch, CuPy
        handle = getattr(stream, attribute, None)
        if isinstance(handle, int):
            return handle
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    raise ArgumentError(
        f"stream: got {type(stream).__name__}, expected a CUstream handle (int), a PyTorch or CuPy stream, "
        "or an object with __cuda_stream__; None is the current stream of the arrays' library"
    )
