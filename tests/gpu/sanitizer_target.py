"""What compute-sanitizer watches: every op at every block size on exact allocations, without PyTorch."""

from __future__ import annotations

import sys

import numpy as np

import bsgen
from bsgen.runtime import context, driver
from bsgen.runtime.device_array import DeviceArray

BLOCKS, N = 6, 100


def upload(host: np.ndarray, dtype: str) -> DeviceArray:
    array = DeviceArray(host.shape, dtype, 0, driver.DEFAULT_STREAM)
    context.wait(0, driver.DEFAULT_STREAM)
    with driver.on(0):
        driver.call("cuMemcpyHtoD", array.pointer, np.ascontiguousarray(host).ctypes.data, host.nbytes)
    return array


def run(block: int, dtype: str, precision: str) -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((BLOCKS, BLOCKS + 1)) < 0.3
    mask[:, 0] = True
    mm = bsgen.compile(mask, block, dtype, precision=precision, bias=True, activation="gelu", residual=True)

    def normal(*shape: int) -> DeviceArray:
        return upload(rng.standard_normal(shape).astype(mm.dtype.numpy), dtype)

    x, dy, w = normal(N, mm.in_features), normal(N, mm.out_features), normal(*mm.weight_shape)
    kept = [mm(x, w, normal(mm.out_features), normal(N, mm.out_features)), mm.dgrad(dy, w), mm.wgrad(x, dy)]
    context.wait(0, driver.DEFAULT_STREAM)
    assert len(kept) == 3


if __name__ == "__main__":
    dtype, precision = sys.argv[1:3]
    for block in map(int, sys.argv[3:]):
        run(block, dtype, precision)
    print("done")
