"""`Products`: the compiled products of one layout in PyTorch, by dtype and epilogue, made when first needed.

Custom operators take tensors, numbers and strings, so they name a layout by its key; `known` finds its products again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
import torch

from bsgen.errors import ArgumentError
from bsgen.layout import Layout
from bsgen.matmul import MatMul, compile
from bsgen.problem import parse_block_size
from bsgen.ranges import DEFAULT_ROWS
from bsgen.runtime import driver

DTYPES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32"}

_known: dict[str, Products] = {}
_lock = threading.Lock()


def float32_precision() -> str:
    """What `torch.set_float32_matmul_precision` asks for, in bsgen's words."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tensor"


class Products:
    """The products of `layout` with blocks of `block_size`; `register` gives the one of each layout in a process."""

    def __init__(self, layout: object, block_size: int = 32) -> None:
        self.layout = Layout.load(layout)
        self.block_size = parse_block_size(block_size)
        self.key = f"{self.layout.digest}-b{self.block_size}"
        self._made: dict[tuple[Any, ...], MatMul] = {}

    @property
    def in_features(self) -> int:
        """C: the last dimension of x."""
        return self.layout.shape[0] * self.block_size

    @property
    def out_features(self) -> int:
        """K: the last dimension of the result."""
        return self.layout.shape[1] * self.block_size

    @property
    def weight_shape(self) -> tuple[int, int, int]:
        """[nnz, b, b]: blocks in the order of `numpy.argwhere(layout)`."""
        return self.layout.nnz, self.block_size, self.block_size

    def matmul(
        self, op: str, dtype: torch.dtype, device: int, precision: str, bias: bool = False, activation: str = ""
    ) -> MatMul:
        """One op compiled for a GPU; `ArgumentError` for a dtype that there are no kernels for. No precision: PyTorch's own."""
        if dtype is not torch.float32:
            precision = "tensor"
        key = (op, dtype, device, precision or float32_precision(), bias, activation)
        found = self._made.get(key)
        return found if found is not None else self._make(*key)

    def _make(self, op: str, dtype: torch.dtype, device: int, precision: str, bias: bool, activation: str) -> MatMul:
        if dtype not in DTYPES:
            known = ", ".join(DTYPES.values())
            raise ArgumentError(f"x: got {dtype}, expected one of {known}: convert it, or use torch.autocast")
        arch = driver.device(device).arch
        made = compile(
            self.layout, self.block_size, DTYPES[dtype], op, arch, None, bias, activation or None, precision=precision
        )
        with _lock:
            return self._made.setdefault((op, dtype, device, precision, bias, activation), made)

    def prepare(
        self, dtype: torch.dtype, device: int, bias: bool, activation: str, rows: Iterable[int] = (DEFAULT_ROWS,)
    ) -> None:
        """Compile and load what a layer calls in training on so many rows, so that the first step, or a captured one, need not."""
        asked = tuple(rows)
        for op, epilogue in (("fprop", (bias, activation)), ("dgrad", (False, "")), ("wgrad", (False, ""))):
            self.matmul(op, dtype, device, "", *epilogue).warmup(device, asked)

    def rows(self) -> tuple[int, ...]:
        """How many rows calls have had: a number in each range of N that kernels were made for."""
        with _lock:
            made = [mm.operation(op) for mm in self._made.values() for op in mm.ops]
        return tuple(sorted({n for operation in made for n in operation.rows})) or (DEFAULT_ROWS,)

    @cached_property
    def _blocks(self) -> dict[torch.device, tuple[torch.Tensor, torch.Tensor]]:
        return {}

    def blocks(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and columns of the stored blocks, as indices on a device."""
        if device not in self._blocks:
            rows, columns = np.argwhere(self.layout.mask).T
            self._blocks[device] = tuple(torch.as_tensor(index.copy(), device=device) for index in (rows, columns))
        return self._blocks[device]

    def scatter(self, w: torch.Tensor) -> torch.Tensor:
        """The dense matrix [C, K] of weights [nnz, b, b]; differentiable."""
        rows, columns = self.layout.shape
        b = self.block_size
        dense = w.new_zeros(rows, columns, b, b).index_put(self.blocks(w.device), w)
        return dense.permute(0, 2, 1, 3).reshape(rows * b, columns * b)

    def gather(self, dense: torch.Tensor) -> torch.Tensor:
        """The stored blocks [nnz, b, b] of a dense matrix [C, K]; differentiable."""
        rows, columns = self.layout.shape
        b = self.block_size
        return dense.reshape(rows, b, columns, b).permute(0, 2, 1, 3)[self.blocks(dense.device)]

    def __reduce__(self) -> tuple[Any, ...]:
        return register, (self.layout, self.block_size)

    def __deepcopy__(self, memo: dict[int, Any]) -> Products:
        return self  # nothing in it changes but what it has made

    def __repr__(self) -> str:
        return f"Products({self.layout!r}, b = {self.block_size})"


def register(layout: object, block_size: int = 32) -> Products:
    """The products of a layout, one object in a process; programs saved by torch.export need it before they run elsewhere."""
    made = Products(layout, block_size)
    with _lock:
        return _known.setdefault(made.key, made)


def forget(products: Products) -> None:
    """Let the kernels of a layout go: nothing may call it from now on."""
    with _lock:
        _known.pop(products.key, None)


def known(key: str) -> Products:
    """The products of a registered layout."""
    found = _known.get(key)
    if found is None:
        raise ArgumentError(
            f"layout: {key!r} is not known in this process, expected one that a layer here has: call "
            "bsgen.torch.register(layout, block_size) before running a saved program"
        )
    return found


def of(mm: MatMul | Products) -> Products:
    """The products of the layout of a `MatMul`."""
    return mm if isinstance(mm, Products) else register(mm.layout, mm.block_size)
