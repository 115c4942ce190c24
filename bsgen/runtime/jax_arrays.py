"""JAX arrays, eagerly: inside jax.jit an array has no address, and an op needs a custom call instead.

JAX runs its work on streams of its own and has no call to make them wait for another. So inputs are waited for on the
launching stream (DLPack's `stream`), the result is an array that JAX allocated and the kernel wrote in place before
anyone has seen it, and a call returns once the kernel is done.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from bsgen.errors import ArgumentError
from bsgen.runtime import context
from bsgen.runtime.arrays import CPU, Framework, View


class Jax(Framework):
    """JAX arrays on one device. They are immutable, so there is no `out`."""

    name = "JAX"
    mutable = False
    ordered = False

    def __init__(self, jax: Any) -> None:
        self._jax = jax

    def view(self, array: Any, argument: str) -> View:
        """A concrete array on one device; always row-major."""
        if isinstance(array, self._jax.core.Tracer):
            raise ArgumentError(f"{argument}: got a traced JAX array, expected a concrete one: call it outside jax.jit")
        places = array.devices()
        if len(places) != 1:
            raise ArgumentError(f"{argument}: got a JAX array sharded over {len(places)} devices, expected one device")
        (place,) = places
        device = place.local_hardware_id if place.platform == "gpu" else CPU
        pointer = array.unsafe_buffer_pointer() if array.size else 0
        return View(pointer, array.shape, array.dtype.name, device, True)

    def arrive(self, array: Any, device: int, stream: int) -> None:
        """DLPack's `stream` makes it wait for the array; the capsule itself is not needed."""
        if array.size:
            array.__dlpack__(stream=stream)

    def empty(self, shape: tuple[int, ...], dtype: str, device: int, stream: int) -> Any:
        """jax.numpy.empty, waited for: it is filled by a computation on a stream of JAX's."""
        place = next(d for d in self._jax.local_devices(backend="gpu") if d.local_hardware_id == device)
        return self._jax.numpy.empty(shape, dtype, device=place).block_until_ready()

    def finished(self, device: int, stream: int) -> None:
        """JAX cannot be told to wait for the stream, so the thread does."""
        context.wait(device, stream)

    def zeros(self, shape: tuple[int, ...], like: Any) -> Any:
        """jax.numpy.zeros."""
        return self._jax.numpy.zeros(shape, like.dtype, device=like.sharding)

    def indices(self, values: np.ndarray[Any, Any], like: Any) -> Any:
        """JAX indexes by NumPy arrays."""
        return values

    def put(self, array: Any, where: tuple[Any, Any], values: Any) -> Any:
        """Out of place."""
        return array.at[where].set(values)

    def cast(self, array: Any, dtype: str) -> Any:
        """astype."""
        return array.astype(dtype)

    def join(self, arrays: Sequence[Any], axis: int) -> Any:
        """jax.numpy.concatenate."""
        return self._jax.numpy.concatenate(arrays, axis)


@cache
def _framework() -> Jax:
    return Jax(sys.modules["jax"])


def recognise(array: Any) -> Framework | None:
    """The framework, if `array` is a JAX array or tracer."""
    return _framework() if isinstance(array, sys.modules["jax"].Array) else None
