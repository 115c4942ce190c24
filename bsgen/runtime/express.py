"""The common call in as few steps as Python allows: PyTorch tensors, no options, everything as it should be.

It decides nothing that the general way does not: where anything differs it steps aside, and that runs the call
or words the error. It is here because a small kernel takes no longer than the checks of a call.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import Any

from bsgen.operands import ALIGNMENT, MAXIMUM_ROWS, Contract
from bsgen.problem import row_unit
from bsgen.ranges import BOUNDS, SIZES
from bsgen.runtime.launch import Kernels
from bsgen.runtime.torch_arrays import Torch


class Express:
    """One op on PyTorch tensors on a GPU, into a new tensor, on the current stream."""

    def __init__(self, contract: Contract, kernels: Callable[[int], Kernels], framework: Torch) -> None:
        self._kinds = framework.plain_types
        self._dtype = framework.dtypes[contract.dtype.value]
        self._float32 = framework.dtypes["float32"]
        types = {name: framework.dtypes[contract.type_of(name).value] for name in (*contract.fixed, *contract.rows)}
        self._leading, self._width = contract.leading, contract.rows[contract.leading]
        self._axis, self._unit = contract.axis, row_unit(contract.dtype, contract.axis)
        # Name, shape, width and type of the others; one of shape and width is given. What may be left out is, here.
        self._others: list[tuple[str, tuple[int, ...] | None, int, Any]] = [
            (name, shape, 0, types[name]) for name, shape in contract.fixed.items() if name not in contract.optional
        ]
        self._others += [
            (name, None, width, types[name]) for name, width in contract.rows.items() if name != contract.leading
        ]
        self._absent = dict.fromkeys(contract.optional, 0)
        self._result_features, self._result_shape = contract.result_features, contract.result_shape
        self._result_dtype = framework.dtypes[contract.type_of("out").value]
        self._kernels, self._found = kernels, dict[int, Kernels]()  # for N; those of each range, once found
        self._stream = framework.current
        self._fresh, self._current_device = framework.fresh, framework.current_device

    def __call__(self, arrays: Mapping[str, Any]) -> Any | None:
        """The result, or None where this is not the common call."""
        first = arrays[self._leading]
        try:
            device = first.get_device()
            operands = self._operands(first, arrays, device)
        except (AttributeError, RuntimeError):  # no tensor, or a sparse one, which has no address
            return None
        if operands is None:
            return None
        shape, features = self._result_shape, self._result_features
        if shape is None:
            shape = (*first.shape[:-1], features) if self._axis else (features, *first.shape[1:])
        out = self._empty(first, shape, device)
        operands["out"] = out.data_ptr()
        n = operands["n"]
        index = bisect_left(BOUNDS, n) + (SIZES if n % self._unit else 0)  # as ranges.place
        kernels = self._found.get(index)
        if kernels is None:
            kernels = self._found[index] = self._kernels(n)
        if kernels.scratch and (elements := kernels.workspace.elements(n)):
            workspace = first.new_empty(elements, dtype=self._float32)
            operands["workspace"] = workspace.data_ptr()
        kernels(device, self._stream(device), operands)
        return out

    def _operands(self, first: Any, arrays: Mapping[str, Any], device: int) -> dict[str, int] | None:
        """The kernels' arguments but for the result, or None."""
        dtype, kinds = self._dtype, self._kinds
        if type(first) not in kinds or first.dtype is not dtype or device < 0 or not first.is_contiguous():
            return None
        if self._axis:
            *lead, width = first.shape or (0,)
        else:
            width, *lead = first.shape or (0,)
        n = lead[0] if len(lead) == 1 else first.numel() // self._width
        address = first.data_ptr()
        if width != self._width or address % ALIGNMENT or not 0 < n <= MAXIMUM_ROWS:
            return None
        operands = {self._leading: address, "n": n, "accumulate": 0}
        if self._absent:
            operands.update(self._absent)
        for name, fixed, width, kind in self._others:
            array = arrays[name]
            if (
                type(array) not in kinds
                or array.dtype is not kind
                or array.get_device() != device
                or array.shape != (fixed or ((*lead, width) if self._axis else (width, *lead)))
                or not array.is_contiguous()
            ):
                return None
            address = operands[name] = array.data_ptr()
            if address % ALIGNMENT:
                return None
        return operands

    def _empty(self, like: Any, shape: tuple[int, ...], device: int) -> Any:
        """A new tensor; the quick way knows only the current GPU, and here only two dimensions."""
        if self._fresh is None or len(shape) != 2 or self._current_device() != device:
            return like.new_empty(shape, dtype=self._result_dtype)
        return self._fresh(shape, (shape[1], 1), self._result_dtype)
