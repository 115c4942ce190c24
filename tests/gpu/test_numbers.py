"""Every op, block size, type, N and kind of layout against float64."""

from __future__ import annotations

import pytest
from cases import (
    ARITHMETIC,
    BATCHES,
    BLOCK_SIZES,
    LAYOUTS,
    Case,
    assert_close,
    compile_case,
    gathered,
    normal,
    poison,
    torch,
)

CASES = [Case(layout, b, *arithmetic) for layout in LAYOUTS for b in BLOCK_SIZES for arithmetic in ARITHMETIC]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_products(case: Case) -> None:
    mm = compile_case(case)
    w = normal(*mm.weight_shape, dtype=case.dtype, seed=1)
    dense = mm.to_dense(w).double()
    for n in BATCHES:
        x = normal(n, mm.in_features, dtype=case.dtype, seed=n)
        dy = normal(n, mm.out_features, dtype=case.dtype, seed=n + 1)
        y, dx = (poison(*a.shape, dtype=case.dtype) for a in (dy, x))
        dw = poison(*mm.weight_shape, dtype=case.dtype)
        assert mm(x, w, out=y) is y
        mm.dgrad(dy, w, out=dx)
        mm.wgrad(x, dy, out=dw)
        assert_close(y, x.double() @ dense, case.tolerance)
        assert_close(dx, dy.double() @ dense.T, case.tolerance)
        assert_close(dw, gathered(mm, x.double().T @ dy.double()), case.tolerance)


@pytest.mark.parametrize(
    "case",
    [Case(name, b, *kind) for name in ("random10", "hub", "holes") for b in BLOCK_SIZES for kind in ARITHMETIC],
    ids=str,
)
def test_features_first(case: Case) -> None:
    """axis=0, on N of whole chunks of 16 bytes and on others, whose lines begin anywhere."""
    mm = compile_case(case, axis=0)
    w = normal(*mm.weight_shape, dtype=case.dtype, seed=1)
    dense = mm.to_dense(w).double()
    for n in (*BATCHES, 2, 1024):
        x = normal(mm.in_features, n, dtype=case.dtype, seed=n)
        dy = normal(mm.out_features, n, dtype=case.dtype, seed=n + 1)
        y, dx = (poison(*a.shape, dtype=case.dtype) for a in (dy, x))
        dw = poison(*mm.weight_shape, dtype=case.dtype)
        mm(x, w, out=y)
        mm.dgrad(dy, w, out=dx)
        mm.wgrad(x, dy, out=dw)
        assert_close(y, dense.T @ x.double(), case.tolerance)
        assert_close(dx, dense @ dy.double(), case.tolerance)
        assert_close(dw, gathered(mm, x.double() @ dy.double().T), case.tolerance)
        again = poison(*y.shape, dtype=case.dtype)
        assert torch.equal(mm(x, w, out=again), y)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("n", [33, 34, 64])
def test_epilogue_with_features_first(dtype: str, n: int) -> None:
    case = Case("hub", 32, dtype, gate=True)
    mm = compile_case(case, axis=0, bias=True, activation="gelu", residual=True, ops="fprop")
    w, bias = normal(*mm.weight_shape, dtype=dtype), normal(mm.out_features, dtype=dtype, seed=2)
    x, residual = (normal(f, n, dtype=dtype, seed=f) for f in (mm.in_features, mm.out_features))
    gate, y = normal(mm.nnz, dtype="float32", seed=4), poison(mm.out_features, n, dtype=dtype)
    mm(x, w, bias, residual, out=y, gate=gate)
    gated = (gate[:, None, None] * w.float()).to(w.dtype)
    product = mm.to_dense(gated).double().T @ x.double() + bias.double()[:, None]
    assert_close(y, torch.nn.functional.gelu(product) + residual.double(), case.tolerance)


@pytest.mark.parametrize("arithmetic", ARITHMETIC, ids="-".join)
@pytest.mark.parametrize("n", [0, 100, 1000])
def test_wgrad_accumulates(arithmetic: tuple[str, str], n: int) -> None:
    case = Case("hub", 16, *arithmetic)
    mm = compile_case(case)
    x, dy = (normal(n, f, dtype=case.dtype, seed=f) for f in (mm.in_features, mm.out_features))
    start = normal(*mm.weight_shape, dtype=case.dtype)
    out = start.clone()
    assert mm.wgrad(x, dy, out=out, accumulate=True) is out
    assert_close(out, start.double() + gathered(mm, x.double().T @ dy.double()), case.tolerance)


@pytest.mark.parametrize("case", [Case(name, 32, "float16") for name in ("hub", "none", "random10")], ids=str)
@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu"])
def test_epilogue(case: Case, activation: str | None) -> None:
    mm = compile_case(case, bias=True, activation=activation, residual=True, ops="fprop")
    w = normal(*mm.weight_shape, dtype=case.dtype)
    bias, x = (normal(*s, dtype=case.dtype, seed=2) for s in ((mm.out_features,), (77, mm.in_features)))
    residual, y = normal(77, mm.out_features, dtype=case.dtype, seed=3), poison(77, mm.out_features, dtype=case.dtype)
    mm(x, w, bias, residual, out=y)
    functions = torch.nn.functional
    function = getattr(functions, activation) if activation else lambda value: value
    product = x.double() @ mm.to_dense(w).double() + bias.double()
    assert_close(y, function(product) + residual.double(), case.tolerance)


def test_leading_dimensions() -> None:
    case = Case("wide", 16, "bfloat16")
    mm = compile_case(case)
    w, x = normal(*mm.weight_shape, dtype=case.dtype), normal(2, 3, 5, mm.in_features, dtype=case.dtype)
    y = mm(x, w)
    assert y.shape == (2, 3, 5, mm.out_features)
    assert torch.equal(y.reshape(30, -1), mm(x.reshape(30, -1), w))
    assert mm.dgrad(y, w).shape == x.shape
    assert torch.equal(mm.wgrad(x, y), mm.wgrad(x.reshape(30, -1), y.reshape(30, -1)))
    assert torch.equal(mm(x[0, 0, 0], w), y[0, 0, 0])


@pytest.mark.parametrize("case", [Case("hub", b, "bfloat16") for b in BLOCK_SIZES], ids=str)
def test_cpu_and_gpu_agree(case: Case) -> None:
    """The reference runs the same plan: NumPy arrays give what the GPU gives."""
    mm = compile_case(case)
    x, w = normal(33, mm.in_features, dtype=case.dtype), normal(*mm.weight_shape, dtype=case.dtype)
    dtype = mm.dtype.numpy
    host = mm(x.float().cpu().numpy().astype(dtype), w.float().cpu().numpy().astype(dtype))
    assert_close(mm(x, w), torch.from_numpy(host.astype("float64")).cuda(), case.tolerance)
