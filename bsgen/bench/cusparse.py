"""cuSPARSE's products of a block-sparse matrix, called through the library that PyTorch ships: C = A @ B, row-major.

Formats are NVIDIA's: Blocked-ELL, BSR and CSR (cuSPARSE documentation, "Generic API").
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch

from bsgen.bench.operands import BlockRows, Tensor

ROW_MAJOR, COMPUTE_FLOAT32, INDEX_32, ZERO_BASED = 2, 0, 2, 0
CUDA_TYPES = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 14}
CSR_ALGORITHM, BLOCKED_ELL_ALGORITHM, BSR_ALGORITHM = 6, 13, 14  # CSR: algorithm 2, made for row-major B


class Refused(Exception):
    """cuSPARSE is missing, or returned an error."""


def library() -> ctypes.CDLL:
    """The cuSPARSE in this process, which PyTorch has loaded."""
    maps = Path("/proc/self/maps").read_text().splitlines() if Path("/proc/self/maps").exists() else []
    folders = {Path(line.split()[-1]).parent for line in maps if "cusparse" in line}
    try:
        return ctypes.CDLL(
            str(next((file for f in folders for file in f.glob("libcusparse.so*")), "libcusparse.so.12"))
        )
    except OSError as error:
        raise Refused(f"no cuSPARSE: {error}") from None


class Product:
    """out = A @ b for one A, described once; `b` and `out` are row-major [features, N]."""

    def __init__(self, format_name: str, a: BlockRows, b: Tensor) -> None:
        self._lib = library()
        self.out = torch.empty(a.shape[0] * a.block, b.shape[1], dtype=b.dtype, device="cuda")
        self._kept: list[Tensor] = [b]  # what descriptors point to
        self._handle, self._a, self._b, self._out = (ctypes.c_void_p() for _ in range(4))
        self._one, self._zero = ctypes.c_float(1), ctypes.c_float(0)
        self._call("cusparseCreate", ctypes.byref(self._handle))
        self._algorithm = {"blocked-ell": self._blocked_ell, "bsr": self._bsr, "csr": self._csr}[format_name](a)
        self._matrix(self._b, b)
        self._matrix(self._out, self.out)
        size = ctypes.c_size_t()
        self._spmm("cusparseSpMM_bufferSize", ctypes.byref(size))
        self._buffer = torch.empty(max(1, size.value), dtype=torch.uint8, device="cuda")

    def __call__(self) -> None:
        """Enqueue it on PyTorch's current stream."""
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        self._call("cusparseSetStream", self._handle, stream)
        self._spmm("cusparseSpMM", ctypes.c_void_p(self._buffer.data_ptr()))

    def close(self) -> None:
        """Give descriptors and handle back."""
        for name, descriptor in (("SpMat", self._a), ("DnMat", self._b), ("DnMat", self._out), ("", self._handle)):
            self._call(f"cusparseDestroy{name}", descriptor)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._lib, name)(*arguments)
        if status:
            raise Refused(f"{name} returned {status}")

    def _address(self, values: Any, dtype: torch.dtype | None = None) -> ctypes.c_void_p:
        tensor = torch.as_tensor(values).to("cuda", dtype).contiguous()
        self._kept.append(tensor)
        return ctypes.c_void_p(tensor.data_ptr())

    def _matrix(self, descriptor: ctypes.c_void_p, tensor: Tensor) -> None:
        rows, columns = map(ctypes.c_int64, tensor.shape)
        pointer, kind = ctypes.c_void_p(tensor.data_ptr()), CUDA_TYPES[tensor.dtype]
        self._call("cusparseCreateDnMat", ctypes.byref(descriptor), rows, columns, columns, pointer, kind, ROW_MAJOR)

    def _spmm(self, name: str, last: Any) -> None:
        one, zero = ctypes.byref(self._one), ctypes.byref(self._zero)
        tail = (self._a, self._b, zero, self._out, COMPUTE_FLOAT32, self._algorithm, last)
        self._call(name, self._handle, 0, 0, one, *tail)

    def _blocked_ell(self, a: BlockRows) -> int:
        """Every block row has as many blocks as the longest: the rest is padding (-1)."""
        width, b, places = int(a.places.max(initial=0)) + 1, a.block, a.places
        columns = torch.full((a.shape[0], width), -1, dtype=torch.int32)
        columns[a.rows, places] = torch.as_tensor(a.columns, dtype=torch.int32)
        values = torch.zeros(a.shape[0], b, width, b, dtype=a.values.dtype, device="cuda")
        values[torch.as_tensor(a.rows).cuda(), :, torch.as_tensor(places).cuda(), :] = a.values
        self._call(
            "cusparseCreateBlockedEll", ctypes.byref(self._a), *self._extent(a), ctypes.c_int64(b),
            ctypes.c_int64(width * b), self._address(columns), self._address(values), INDEX_32, ZERO_BASED,
            CUDA_TYPES[a.values.dtype],
        )  # fmt: skip
        return BLOCKED_ELL_ALGORITHM

    def _bsr(self, a: BlockRows) -> int:
        i64 = ctypes.c_int64
        self._call(
            "cusparseCreateBsr", ctypes.byref(self._a), i64(a.shape[0]), i64(a.shape[1]), i64(len(a.rows)),
            i64(a.block), i64(a.block), self._address(a.starts, torch.int32), self._address(a.columns, torch.int32),
            self._address(a.values), INDEX_32, INDEX_32, ZERO_BASED, CUDA_TYPES[a.values.dtype], ROW_MAJOR,
        )  # fmt: skip
        return BSR_ALGORITHM

    def _csr(self, a: BlockRows) -> int:
        """Rows of elements: those of a block row interleave its blocks."""
        b, counts = a.block, a.starts[1:] - a.starts[:-1]
        order = torch.arange(len(a.rows) * b * b, device="cuda").reshape(-1, b, b)
        rows = (torch.as_tensor(a.rows).cuda()[:, None, None] * b + torch.arange(b, device="cuda")[:, None]).expand_as(
            order
        )
        columns = (torch.as_tensor(a.columns).cuda()[:, None, None] * b + torch.arange(b, device="cuda")).expand_as(
            order
        )
        key = (rows * (a.shape[1] * b) + columns).reshape(-1).argsort()
        lengths = torch.as_tensor(counts * b).repeat_interleave(b)
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        self._call(
            "cusparseCreateCsr", ctypes.byref(self._a), *self._extent(a), ctypes.c_int64(order.numel()),
            self._address(starts, torch.int32), self._address(columns.reshape(-1)[key], torch.int32),
            self._address(a.values.reshape(-1)[key]), INDEX_32, INDEX_32, ZERO_BASED, CUDA_TYPES[a.values.dtype],
        )  # fmt: skip
        return CSR_ALGORITHM

    @staticmethod
    def _extent(a: BlockRows) -> tuple[ctypes.c_int64, ctypes.c_int64]:
        return ctypes.c_int64(a.shape[0] * a.block), ctypes.c_int64(a.shape[1] * a.block)
