"""dW in float32 of 16-bit activations against float64, and micro-batches that add up without rounding."""

from __future__ import annotations

import pytest
from cases import BLOCK_SIZES, Case, assert_close, compile_case, gathered, normal, poison, torch

NAMES = ("random10", "random50", "hub", "one", "wide", "none")
CASES = [(name, block, dtype) for name in NAMES for block in BLOCK_SIZES for dtype in ("float16", "bfloat16")]
TOLERANCE = 1e-4  # rounding to bfloat16 makes 2e-3
RUNS = 20


@pytest.mark.parametrize("gate", [False, True], ids=["plain", "gate"])
@pytest.mark.parametrize(("name", "block", "dtype"), CASES)
def test_sums_are_not_rounded(name: str, block: int, dtype: str, gate: bool) -> None:
    mm = compile_case(Case(name, block, dtype, gate=gate), ops="wgrad", wgrad_dtype="float32")
    gates = normal(mm.nnz, dtype="float32", seed=5) if gate else None
    scale = gates.double()[:, None, None] if gate else 1.0
    for n in (0, 1, 17, 129, 1000, 4097):
        x = normal(n, mm.in_features, dtype=dtype, seed=n)
        dy = normal(n, mm.out_features, dtype=dtype, seed=n + 1)
        dw, exact = poison(*mm.weight_shape, dtype="float32"), gathered(mm, x.double().T @ dy.double())
        assert mm.wgrad(x, dy, out=dw, gate=gates) is dw
        assert_close(dw, scale * exact, TOLERANCE)
        fresh = mm.wgrad(x, dy, gate=gates)
        assert fresh.dtype is torch.float32
        assert torch.equal(fresh, dw)
        for _ in range(RUNS if n == 1000 else 0):
            assert torch.equal(mm.wgrad(x, dy, gate=gates), dw)


@pytest.mark.parametrize("block", BLOCK_SIZES)
def test_micro_batches(block: int) -> None:
    wide, narrow = (
        compile_case(Case("random50", block, "bfloat16"), ops="wgrad", wgrad_dtype=dtype) for dtype in ("float32", None)
    )
    x, dy = (normal(4096, f, dtype="bfloat16", seed=f) for f in (wide.in_features, wide.out_features))
    exact = gathered(wide, x.double().T @ dy.double())
    errors = []
    for mm, dtype in ((wide, torch.float32), (narrow, torch.bfloat16)):
        out = torch.zeros(mm.weight_shape, dtype=dtype, device="cuda")
        for some, gradients in zip(x.split(64), dy.split(64), strict=True):
            mm.wgrad(some, gradients, out=out, accumulate=True)
        errors.append(float((out.double() - exact).norm() / exact.norm()))
    assert errors[0] < TOLERANCE
    assert errors[1] > 10 * errors[0]
