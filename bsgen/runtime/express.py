"""The common call in as few steps as Python allows: PyTorch tensors, no options, everything as it should be.

It decides nothing that the general way does not: where anything differs it steps aside, and that runs the call
or words the error. It is here because a small kernel takes no longer than the checks of a call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bsgen.operands import ALIGNMENT, MAXIMUM_ROWS, Contract
from bsgen.plan.launch import Workspace
from bsgen.runtime.launch import Kernels
from bsgen.runtime.torch_arrays import Torch


class Express:
    """One op on PyTorch tensors on a GPU, into a new tensor, on the current stream."""

    def __init__(self, contract: Contract, kernels: Kernels, workspace: Workspace, framework: Torch) -> None:
        self._kinds = framework.plain_types
        self._dtype = framework.dtypes[contract.dtype.value]
        self._float32 = framework.dtypes["float32"]
        self._leading, self._width = contract.leading, contract.rows[contract.leading]
        self._rows, self._fixed = contract.rows, contract.fixed
        self._result_features, self._result_shape = contract.result_features, contract.result_shape
        self._workspace, self._kernels, self._stream = workspace, kernels, framework.current
        self._scratch = workspace != Workspace()
        self._fresh, self._current_device = framework.fresh, framework.current_device

    def __call__(self, arrays: Mapping[str, Any]) -> Any | None:
        """The result, or None where this is not the common call."""
        first = arrays[self._leading]
        if type(first) not in self._kinds or not first.is_cuda:
            return None
        shape = first.shape
        if not shape:
            return None
        *lead, _ = shape
        device, n = first.get_device(), first.numel() // self._width
        operands = self._addresses(arrays, lead, device)
        if operands is None or not 0 < n <= MAXIMUM_ROWS:
            return None
        out = self._empty(first, self._result_shape or (*lead, self._result_features), device)
        operands["out"], operands["n"], operands["accumulate"] = out.data_ptr(), n, 0
        scratch = self._scratch and self._workspace.elements(n)
        if scratch:
            workspace = first.new_empty(scratch, dtype=self._float32)
            operands["workspace"] = workspace.data_ptr()
        self._kernels(device, self._stream(device), operands)
        return out

    def _empty(self, like: Any, shape: tuple[int, ...], device: int) -> Any:
        """A new tensor; the quick way knows only the current GPU, and here only two dimensions."""
        if self._fresh is None or len(shape) != 2 or self._current_device() != device:
            return like.new_empty(shape)
        return self._fresh(shape, (shape[1], 1), self._dtype)

    def _addresses(self, arrays: Mapping[str, Any], lead: list[int], device: int) -> dict[str, int] | None:
        addresses: dict[str, int] = {}
        for name, array in arrays.items():
            shape = self._fixed.get(name) or (*lead, self._rows[name])
            if (
                type(array) not in self._kinds
                or array.shape != shape
                or array.dtype is not self._dtype
                or not array.is_cuda
                or array.get_device() != device
                or not array.is_contiguous()
            ):
                return None
            pointer = addresses[name] = array.data_ptr()
            if pointer % ALIGNMENT:
                return None
        return addresses
