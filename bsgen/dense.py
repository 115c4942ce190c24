"""Between a dense matrix [C, K] and the stored blocks [nnz, b, b], in the caller's kind of array."""

from __future__ import annotations

from typing import Any

from bsgen.errors import ArgumentError
from bsgen.layout import Layout
from bsgen.problem import DType
from bsgen.runtime.arrays import Framework, framework_of


def gather(dense: Any, layout: Layout, block: int, dtype: DType) -> Any:
    """The stored blocks of `dense` [C, K], converted to `dtype`; values outside the layout are dropped."""
    rows, columns = layout.shape
    framework = framework_of(dense, "dense")
    _check_shape("dense", dense, (rows * block, columns * block))
    blocks = dense.reshape(rows, block, columns, block).swapaxes(1, 2)
    return framework.cast(blocks[_where(framework, layout, dense)], dtype.value)


def scatter(w: Any, layout: Layout, block: int) -> Any:
    """The dense matrix [C, K] of weights `w` [nnz, b, b], zero outside the layout, in the type of `w`."""
    rows, columns = layout.shape
    framework = framework_of(w, "w")
    _check_shape("w", w, (layout.nnz, block, block))
    blocks = framework.zeros((rows, columns, block, block), w)
    blocks = framework.put(blocks, _where(framework, layout, w), w)
    return blocks.swapaxes(1, 2).reshape(rows * block, columns * block)


def _where(framework: Framework, layout: Layout, like: Any) -> tuple[Any, Any]:
    places = layout.blocks.astype("int64")
    return framework.indices(places[:, 0], like), framework.indices(places[:, 1], like)


def _check_shape(argument: str, array: Any, expected: tuple[int, ...]) -> None:
    got = tuple(getattr(array, "shape", ()))
    if got != expected:
        raise ArgumentError(f"{argument}: got shape {got}, expected {expected}")
