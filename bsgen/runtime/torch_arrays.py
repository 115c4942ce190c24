"""PyTorch tensors. The common case: nothing here may cost more than a few hundred nanoseconds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bsgen.errors import ArgumentError
from bsgen.runtime.arrays import CPU, Framework, View


class Torch(Framework):
    """PyTorch tensors: memory from its caching allocator, on its current stream, also inside a captured graph."""

    name = "PyTorch"

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._empty = torch.empty
        self.plain_types = frozenset({torch.Tensor, torch.nn.Parameter})
        self.dtypes = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32")}
        self._names = {dtype: name for name, dtype in self.dtypes.items()}
        self.current: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", self._slow_current)

        self.fresh: Callable[..., Any] | None = _fast_allocator(torch)
        self.current_device: Callable[[], int] = getattr(torch._C, "_cuda_getDevice", torch.cuda.current_device)

    def _slow_current(self, device: int) -> int:
        return int(self._torch.cuda.current_stream(device).cuda_stream)

    def view(self, array: Any, argument: str) -> View:
        """No DLPack capsule: the tensor's own methods are ten times cheaper."""
        place, dtype = array.device, array.dtype
        if place.type == "cuda":
            device = place.index
        elif place.type == "cpu":
            device = CPU
        else:
            raise ArgumentError(
                f"{argument}: got a tensor on device {place}, expected a CUDA device: move it with .cuda()"
            )
        if array.layout is not self._torch.strided:
            raise ArgumentError(f"{argument}: got a tensor of layout {array.layout}, expected a dense (strided) one")
        name = self._names.get(dtype) or str(dtype).removeprefix("torch.")
        return View(array.data_ptr(), array.shape, name, device, array.is_contiguous())

    def pointer(self, array: Any) -> int:
        """Tensor.data_ptr."""
        return int(array.data_ptr())

    def stream(self, array: Any, device: int) -> int:
        """torch.cuda.current_stream."""
        return self.current(device)

    def empty(self, shape: tuple[int, ...], dtype: str, device: int, stream: int) -> Any:
        """torch.empty, from the pool of the stream that will write it."""
        kind = self.dtypes[dtype]
        if stream == self.current(device):
            return self._empty(shape, dtype=kind, device=device)
        with self._torch.cuda.stream(self._external(device, stream)):
            return self._empty(shape, dtype=kind, device=device)

    def lent(self, arrays: Sequence[Any], device: int, stream: int) -> None:
        """Memory of `arrays` is not given out again before `stream` is done with them."""
        if stream != self.current(device):
            external = self._external(device, stream)
            for array in arrays:
                array.record_stream(external)

    def _external(self, device: int, stream: int) -> Any:
        return self._torch.cuda.ExternalStream(stream, device=device)

    def zeros(self, shape: tuple[int, ...], like: Any) -> Any:
        """Tensor.new_zeros."""
        return like.new_zeros(shape)

    def indices(self, values: np.ndarray[Any, Any], like: Any) -> Any:
        """On the device of `like`."""
        return self._torch.as_tensor(values, device=like.device)

    def put(self, array: Any, where: tuple[Any, Any], values: Any) -> Any:
        """Out of place, so that gradients flow."""
        return array.index_put(where, values)

    def cast(self, array: Any, dtype: str) -> Any:
        """Tensor.to."""
        return array.to(self.dtypes[dtype]).contiguous()

    def join(self, arrays: Sequence[Any], axis: int) -> Any:
        """torch.cat."""
        return self._torch.cat(list(arrays), axis)


def _fast_allocator(torch: Any) -> Callable[..., Any] | None:
    """What PyTorch's compiled code allocates with: (shape, strides, dtype) on the current GPU, at half the cost."""
    try:
        found: Callable[..., Any] = torch._C._dynamo.guards._empty_strided_cuda
    except AttributeError:
        return None
    return found


_made: dict[str, Torch] = {}


def recognise(array: Any) -> Framework | None:
    """The framework, if `array` is a tensor."""
    torch = sys.modules["torch"]
    if not isinstance(array, torch.Tensor):
        return None
    if "torch" not in _made:
        _made["torch"] = Torch(torch)
    return _made["torch"]
