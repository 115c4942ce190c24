"""Tensor maps: how the copy engine of Hopper reads an operand, encoded by the driver for an address and a number of rows."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from bsgen.outline import TensorMap
from bsgen.runtime import driver

BYTES = 128
_ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4}
# float32 is rounded to TF32 on the way, to nearest: tensor cores alone would cut the bits off, which draws all sums to zero.
KINDS = {"float16": "FLOAT16", "bfloat16": "BFLOAT16", "float32": "TFLOAT32"}
_MAXIMUM_KEPT = 4096


class Encoder:
    """Encodes one map of a launch; remembers what it encoded, as programs call with the same tensors again and again."""

    def __init__(self, spec: TensorMap) -> None:
        self.spec = spec
        self.kept: dict[tuple[int, int], bytes] = {}  # of (address, n)

    def __call__(self, address: int, n: int) -> bytes:
        """The 128 bytes of the kernel's argument, for an operand at `address` in a call with N = `n`, which are kept."""
        if len(self.kept) >= _MAXIMUM_KEPT:
            self.kept.clear()
        made = self.kept[address, n] = self._encode(address, self.spec.columns or n, self.spec.rows or n)
        return made

    def _encode(self, address: int, columns: int, rows: int) -> bytes:
        spec, item, cuda = self.spec, _ITEMSIZE[self.spec.dtype], driver.bindings()
        swizzle, kind = _enumerations(item * spec.box_columns, spec.dtype)
        size, stride, box, one = (
            [cuda.cuuint64_t(columns), cuda.cuuint64_t(rows)],
            [cuda.cuuint64_t(columns * item)],
            [cuda.cuuint32_t(spec.box_columns), cuda.cuuint32_t(spec.box_rows)],
            [cuda.cuuint32_t(1), cuda.cuuint32_t(1)],
        )
        interleave, fill = _defaults()
        encoded = driver.call(
            "cuTensorMapEncodeTiled",
            kind, 2, address, size, stride, box, one, interleave, swizzle, _promotion(spec.fetched), fill,
        )  # fmt: skip
        return ctypes.string_at(encoded.getPtr(), BYTES)


@cache
def _enumerations(row_bytes: int, dtype: str) -> tuple[Any, Any]:
    cuda = driver.bindings()
    swizzle = getattr(cuda.CUtensorMapSwizzle, f"CU_TENSOR_MAP_SWIZZLE_{row_bytes}B")
    return swizzle, getattr(cuda.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{KINDS[dtype]}")


@cache
def _promotion(fetched: int) -> Any:
    return getattr(driver.bindings().CUtensorMapL2promotion, f"CU_TENSOR_MAP_L2_PROMOTION_L2_{fetched}B")


@cache
def _defaults() -> tuple[Any, Any]:
    cuda = driver.bindings()
    return (
        cuda.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        cuda.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
