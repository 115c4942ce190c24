"""The common call in as few steps as Python allows: PyTorch tensors, no options, everything as it should be.

It decides nothing that the general way does not: where anything differs it steps aside, and that runs the call
or words the error. It is here because a small kernel takes no longer than the checks of a call. Programs call with the
same shapes again and again, and PyTorch's allocator gives out the same addresses: what follows from either is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bsgen.operands import ALIGNMENT, MAXIMUM_ROWS, Contract
from bsgen.runtime.launch import Kernels, Prepared
from bsgen.runtime.torch_arrays import Torch

_MAXIMUM_FORMS, _MAXIMUM_PREPARED = 256, 128


class _Form(NamedTuple):
    """What calls with activations of one shape have in common."""

    n: int
    others: tuple[tuple[str, tuple[int, ...], Any], ...]  # name, shape and type
    result: tuple[int, ...]
    strides: tuple[int, ...]
    elements: int  # of the workspace
    kernels: Kernels


class Express:
    """One op on PyTorch tensors on a GPU, into a new tensor, on the current stream."""

    def __init__(self, contract: Contract, kernels: Callable[[int], Kernels], framework: Torch) -> None:
        self._contract, self._kernels, self._kinds = contract, kernels, framework.plain_types
        self._types = {
            name: framework.dtypes[contract.type_of(name).value] for name in (*contract.fixed, *contract.rows, "out")
        }
        self._leading, self._dtype = contract.leading, self._types[contract.leading]
        self._result_dtype, self._float32 = self._types["out"], framework.dtypes["float32"]
        self._absent = dict.fromkeys(contract.optional, 0)
        self._names = [name for name in (*contract.fixed, *contract.rows) if name not in contract.optional]
        self._names.remove(contract.leading)
        self._forms: dict[tuple[int, ...], _Form] = {}  # by the shape of the activations
        self._prepared: dict[tuple[int, ...], tuple[Prepared, ...]] = {}  # by device, stream, N and addresses
        self._stream, self._fresh = framework.current, framework.fresh
        self._current_device = framework.current_device

    def __call__(self, arrays: Mapping[str, Any]) -> Any | None:
        """The result, or None where this is not the common call."""
        first, kinds = arrays[self._leading], self._kinds
        if type(first) not in kinds:
            return None
        try:
            device, shape = first.get_device(), first.shape
            form = self._forms.get(shape) or self._form(shape)
            if form is None or device < 0 or first.dtype is not self._dtype or not first.is_contiguous():
                return None
            addresses = [first.data_ptr()]
            for name, shape, dtype in form.others:
                array = arrays[name]
                if (
                    type(array) not in kinds
                    or array.dtype is not dtype
                    or array.shape != shape
                    or array.get_device() != device
                    or not array.is_contiguous()
                ):
                    return None
                addresses.append(array.data_ptr())
        except RuntimeError:  # a sparse tensor, which has no address
            return None
        here = self._current_device() == device
        if here and self._fresh is not None:
            out = self._fresh(form.result, form.strides, self._result_dtype)
        else:
            out = first.new_empty(form.result, dtype=self._result_dtype)
        addresses.append(out.data_ptr())
        if form.elements:
            workspace = first.new_empty(form.elements, dtype=self._float32)
            addresses.append(workspace.data_ptr())
        key = (device, self._stream(device), form.n, *addresses)
        prepared = self._prepared.get(key) or self._prepare(form, key)
        if prepared is None:
            return None
        if here:
            for launch in prepared:
                (error,) = launch.enqueue()
                if error:  # this thread has no context yet, or another; or what the general way puts in words
                    break
            else:
                return out
        form.kernels.enqueue(device, prepared)
        return out

    def _form(self, shape: tuple[int, ...]) -> _Form | None:
        contract = self._contract
        if not shape:
            return None
        *lead, width = shape if contract.axis else (*shape[1:], shape[0])
        n = math.prod(lead)
        if width != contract.rows[contract.leading] or not 0 < n <= MAXIMUM_ROWS:
            return None
        others = tuple((name, contract.expected(name, tuple(lead)), self._types[name]) for name in self._names)
        result, kernels = contract.result(tuple(lead)), self._kernels(n)
        strides = tuple(math.prod(result[place + 1 :]) for place in range(len(result)))
        if len(self._forms) >= _MAXIMUM_FORMS:
            self._forms.clear()
        made = _Form(n, others, result, strides, kernels.workspace.elements(n), kernels)
        return self._forms.setdefault(shape, made)

    def _prepare(self, form: _Form, key: tuple[int, ...]) -> tuple[Prepared, ...] | None:
        """The launches, which are kept; None where addresses are not as kernels need them."""
        device, stream, n, *addresses = key
        if any(address % ALIGNMENT for address in addresses):
            return None
        names = (self._leading, *self._names, "out", *["workspace"] * bool(form.elements))
        operands = {**self._absent, **dict(zip(names, addresses, strict=True)), "n": n, "accumulate": 0}
        if len(self._prepared) >= _MAXIMUM_PREPARED:
            self._prepared.clear()
        return self._prepared.setdefault(key, form.kernels.prepare(device, stream, operands))
