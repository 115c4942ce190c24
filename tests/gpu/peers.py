"""The peers that speed is compared with, called as their makers mean them to be: cuSPARSE Blocked-ELL and dense cuBLAS."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROW_MAJOR, COMPUTE_F32, INDEX_I32, BLOCKED_ELL_ALGORITHM = 2, 0, 2, 13
CUDA_TYPES = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 14}


def median_seconds(call: Callable[[], object], repeats: int = 15, inner: int = 8) -> float:
    """Median time of one call over `repeats` runs of `inner` calls, by events, after a warm-up; L2 stays warm."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(inner):
            call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / inner / 1000)
    return float(np.median(times))


def graph_seconds(call: Callable[[], object], inner: int = 20) -> float:
    """Median time of one call when `inner` of them are replayed as a CUDA graph: no host time, L2 warm."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(inner):
            call()
    return median_seconds(graph.replay, inner=1) / inner


def _cusparse() -> ctypes.CDLL:
    folders = {
        Path(line.split()[-1]).parent for line in Path("/proc/self/maps").read_text().splitlines() if "cusparse" in line
    }
    for folder in folders:
        for file in folder.glob("libcusparse.so*"):
            return ctypes.CDLL(str(file))
    return ctypes.CDLL("libcusparse.so.12")


class BlockedEll:
    """y.T = W.T @ x.T by cusparseSpMM, W.T in Blocked-ELL; activations feature-first [C, N], as cuSPARSE wants them."""

    def __init__(self, mask: np.ndarray, block: int, blocks: torch.Tensor, x_t: torch.Tensor) -> None:
        self._lib = _cusparse()
        fan_in = mask.sum(axis=0)
        width, dtype = int(fan_in.max()), blocks.dtype
        columns = np.full((mask.shape[1], width), -1, np.int32)
        coordinates = np.argwhere(mask)
        order = np.lexsort((coordinates[:, 0], coordinates[:, 1]))
        place = np.concatenate([np.arange(count) for count in fan_in]) if len(order) else np.zeros(0, int)
        outputs = coordinates[order, 1]
        columns[outputs, place] = coordinates[order, 0]
        k, n = mask.shape[1] * block, x_t.shape[1]
        values = torch.zeros(mask.shape[1], block, width, block, dtype=dtype, device="cuda")
        values[torch.as_tensor(outputs), :, torch.as_tensor(place), :] = blocks[torch.as_tensor(order)].transpose(1, 2)
        self.values, self.columns = values, torch.as_tensor(columns).cuda()
        self.x_t, self.y_t = x_t, torch.empty(k, n, dtype=dtype, device="cuda")
        self._describe(k, x_t.shape[0], block, width * block, n, CUDA_TYPES[dtype])

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._lib, name)(*arguments)
        if status:
            raise RuntimeError(f"{name} returned {status}")

    def _describe(self, k: int, c: int, block: int, ell: int, n: int, kind: int) -> None:
        i64, pointer, new = ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p
        self.handle, self.a, self.b, self.c = new(), new(), new(), new()
        self.one, self.zero = ctypes.c_float(1), ctypes.c_float(0)
        self._call("cusparseCreate", ctypes.byref(self.handle))
        self._call("cusparseSetStream", self.handle, pointer(torch.cuda.current_stream().cuda_stream))
        self._call(
            "cusparseCreateBlockedEll", ctypes.byref(self.a), i64(k), i64(c), i64(block), i64(ell),
            pointer(self.columns.data_ptr()), pointer(self.values.data_ptr()), INDEX_I32, 0, kind,
        )  # fmt: skip
        for out, tensor in ((self.b, self.x_t), (self.c, self.y_t)):
            rows = tensor.shape[0]
            self._call(
                "cusparseCreateDnMat",
                ctypes.byref(out),
                i64(rows),
                i64(n),
                i64(n),
                pointer(tensor.data_ptr()),
                kind,
                ROW_MAJOR,
            )
        size = ctypes.c_size_t()
        self._spmm("cusparseSpMM_bufferSize", ctypes.byref(size))
        self.buffer = torch.empty(max(1, size.value), dtype=torch.uint8, device="cuda")

    def _spmm(self, name: str, last: Any) -> None:
        one, zero = ctypes.byref(self.one), ctypes.byref(self.zero)
        self._call(name, self.handle, 0, 0, one, self.a, self.b, zero, self.c, COMPUTE_F32, BLOCKED_ELL_ALGORITHM, last)

    def __call__(self) -> torch.Tensor:
        self._spmm("cusparseSpMM", ctypes.c_void_p(self.buffer.data_ptr()))
        return self.y_t
