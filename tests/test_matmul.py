"""The callable on the CPU: NumPy arrays against dense products, checks and errors, what it tells of itself."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bsgen
from bsgen.runtime import driver

MASK = np.random.default_rng(0).random((5, 7)) < 0.4
MASK[2], MASK[:, 3] = False, False
B = 16
C, K = 5 * B, 7 * B
TOLERANCE = {"float16": 5e-3, "bfloat16": 5e-3, "float32": 1e-3}


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """arch=None means the same on every machine here."""
    monkeypatch.setattr(driver, "why_unavailable", lambda: "no CUDA driver on this machine")


def make(dtype: str = "float16", **options: Any) -> bsgen.MatMul:
    return bsgen.compile(options.pop("mask", MASK), block_size=B, dtype=dtype, **options)


def normal(mm: bsgen.MatMul, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(mm.dtype.numpy)


def error(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got.astype(np.float64) - expected) / np.linalg.norm(expected))


def blocks_of(mm: bsgen.MatMul, dense: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(mm.layout.mask)
    return np.stack([dense[r * B : (r + 1) * B, c * B : (c + 1) * B] for r, c in zip(rows, columns, strict=True)])


@pytest.mark.parametrize(("dtype", "precision"), [*((d, "tensor") for d in TOLERANCE), ("float32", "ieee")])
def test_products(dtype: str, precision: str) -> None:
    mm = make(dtype, precision=precision)
    x, dy, w = normal(mm, 33, C), normal(mm, 33, K, seed=1), normal(mm, *mm.weight_shape, seed=2)
    dense, tolerance = mm.to_dense(w).astype(np.float64), TOLERANCE[dtype]
    y, dx, dw = mm(x, w), mm.dgrad(dy, w), mm.wgrad(x, dy)
    assert {a.dtype for a in (y, dx, dw)} == {x.dtype}
    assert error(y, x.astype(np.float64) @ dense) < tolerance
    assert error(dx, dy.astype(np.float64) @ dense.T) < tolerance
    assert error(dw, blocks_of(mm, x.astype(np.float64).T @ dy.astype(np.float64))) < tolerance


def test_outputs_without_blocks_are_zero() -> None:
    mm = make()
    x, dy, w = normal(mm, 9, C), normal(mm, 9, K), normal(mm, *mm.weight_shape)
    assert not mm(x, w)[:, 3 * B : 4 * B].any()
    assert not mm.dgrad(dy, w)[:, 2 * B : 3 * B].any()


def test_leading_dimensions() -> None:
    mm = make()
    x, dy, w = normal(mm, 2, 3, C), normal(mm, 2, 3, K), normal(mm, *mm.weight_shape)
    y = mm(x, w)
    assert y.shape == (2, 3, K)
    np.testing.assert_array_equal(y.reshape(6, K), mm(x.reshape(6, C), w))
    assert mm.dgrad(dy, w).shape == x.shape
    np.testing.assert_array_equal(mm.wgrad(x, dy), mm.wgrad(x.reshape(6, C), dy.reshape(6, K)))
    assert mm(x[0, 0], w).shape == (K,)


def test_epilogue() -> None:
    mm = make("float32", precision="ieee", bias=True, activation="silu", residual=True, ops="fprop")
    x, w, bias, residual = (normal(mm, *s) for s in ((4, C), mm.weight_shape, (K,), (4, K)))
    product = x.astype(np.float64) @ mm.to_dense(w) + bias
    assert error(mm(x, w, bias, residual), product / (1 + np.exp(-product)) + residual) < 1e-5


def test_out_and_accumulate() -> None:
    mm = make("float32")
    x, dy, w = normal(mm, 8, C), normal(mm, 8, K), normal(mm, *mm.weight_shape)
    y, dw = np.full((8, K), np.nan, np.float32), np.ones(mm.weight_shape, np.float32)
    assert mm(x, w, out=y) is y
    np.testing.assert_array_equal(y, mm(x, w))
    assert mm.wgrad(x, dy, out=dw, accumulate=True) is dw
    np.testing.assert_allclose(dw, 1 + mm.wgrad(x, dy), rtol=1e-5, atol=1e-5)
    mm.wgrad(x, dy, out=dw)
    np.testing.assert_array_equal(dw, mm.wgrad(x, dy))


def test_no_rows() -> None:
    mm = make()
    x, dy, w = normal(mm, 0, C), normal(mm, 0, K), normal(mm, *mm.weight_shape)
    assert mm(x, w).shape == (0, K)
    assert mm.dgrad(dy, w).shape == (0, C)
    assert not mm.wgrad(x, dy).any()
    kept = np.ones(mm.weight_shape, np.float16)
    assert mm.wgrad(x, dy, out=kept, accumulate=True).all()
    assert not mm.wgrad(x, dy, out=kept).any()


def test_no_blocks() -> None:
    mm = make(mask=np.zeros((2, 3)), bias=True, activation="relu")
    x, dy, w, bias = (normal(mm, *s) for s in ((4, 2 * B), (4, 3 * B), (0, B, B), (3 * B,)))
    np.testing.assert_array_equal(mm(x, w, bias), np.broadcast_to(np.maximum(bias, 0), (4, 3 * B)))
    assert not mm.dgrad(dy, w).any()
    assert mm.wgrad(x, dy).shape == (0, B, B)
    assert not mm.to_dense(w).any()


def test_dense_and_back() -> None:
    mm = make("bfloat16")
    dense = np.random.default_rng(0).standard_normal((C, K))
    w = mm.from_dense(dense)
    assert (w.shape, w.dtype, w.flags.c_contiguous) == (mm.weight_shape, mm.dtype.numpy, True)
    np.testing.assert_array_equal(w, blocks_of(mm, dense.astype(mm.dtype.numpy)))
    full = mm.to_dense(w)
    assert (full.shape, full.dtype) == ((C, K), w.dtype)
    np.testing.assert_array_equal(mm.from_dense(full), w)
    np.testing.assert_array_equal(full.astype(bool), np.kron(MASK, np.ones((B, B), bool)))


def test_facts() -> None:
    mm = make("bfloat16", ops=("wgrad", "fprop", "wgrad"), batch=64)
    assert (mm.layout, mm.block_size, str(mm.dtype)) == (bsgen.Layout(MASK), B, "bfloat16")
    assert (mm.in_features, mm.out_features, mm.nnz) == (C, K, int(MASK.sum()))
    assert mm.weight_shape == (mm.nnz, B, B)
    assert mm.ops == ("wgrad", "fprop")
    assert mm.plan("fprop").problem.batch == 64


@pytest.mark.parametrize("where", ["path", "array", "layout"])
def test_layout_argument(tmp_path: Path, where: str) -> None:
    np.save(tmp_path / "layout.npy", MASK)
    given = {"path": tmp_path / "layout.npy", "array": MASK.astype(int), "layout": bsgen.Layout(MASK)}[where]
    assert bsgen.compile(given, B, ops="fprop").layout == bsgen.Layout(MASK)


def test_source_binary_and_report() -> None:
    mm = make("float16", arch="sm_80")
    report = mm.report()
    assert [op.op for op in report.ops] == ["fprop", "dgrad", "wgrad"]
    for op in report.ops:
        assert op.arch == mm.binary(op.op).arch == "sm_80"
        assert op.predicted_seconds > 0
        for kernel in op.kernels:
            assert kernel.name in mm.source(op.op)
            assert kernel.name in str(report)
            assert kernel.registers > 0
            assert kernel.spill_stores == kernel.spill_loads == 0
    assert report.as_dict()["ops"][0]["kernels"]


def test_explicit_arch_runs_on_the_cpu() -> None:
    mm = make(arch="sm_86", ops="fprop")
    assert mm(normal(mm, 2, C), normal(mm, *mm.weight_shape)).shape == (2, K)


def test_no_gpu_is_logged_and_compiles_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bsgen.compiled.build", lambda *_: pytest.fail("compiled"))
    with caplog.at_level(logging.INFO, logger="bsgen"):
        mm = make()
    assert "sm_90a" in caplog.text
    assert "no CUDA driver" in caplog.text
    assert mm.target.arch == "sm_90a"
    mm(normal(mm, 2, C), normal(mm, *mm.weight_shape))


def test_pickle() -> None:
    mm = make("bfloat16", ops="fprop", bias=True, activation="gelu", batch=8)
    again = pickle.loads(pickle.dumps(mm))
    assert repr(again) == repr(mm)
    assert (again.epilogue, again.batch, again.precision) == (mm.epilogue, mm.batch, mm.precision)


def test_threads() -> None:
    mm = make()
    x, w = normal(mm, 20, C), normal(mm, *mm.weight_shape)
    expected = mm(x, w)
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: mm(x, w), range(8)):
            np.testing.assert_array_equal(result, expected)


BAD_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("block_size: got 12", {"block_size": 12}),
    ("dtype: got 'int8'", {"dtype": "int8"}),
    ("op: got 'forward'", {"ops": ("forward",)}),
    ("op: got 'forward'", {"ops": "forward"}),
    ("ops: got none", {"ops": ()}),
    ("arch: got 'sm_70'", {"arch": "sm_70"}),
    ("activation: got 'tanh'", {"activation": "tanh"}),
    ("precision: got 'fast'", {"precision": "fast"}),
    ("batch: got 0", {"batch": 0}),
    ("batch: got 'many'", {"batch": "many"}),
    ("belong to fprop", {"ops": "dgrad", "bias": True}),
]


@pytest.mark.parametrize(("text", "options"), BAD_OPTIONS, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_options(text: str, options: dict[str, Any]) -> None:
    with pytest.raises(bsgen.ArgumentError, match=text):
        bsgen.compile(MASK, **options)


@pytest.mark.parametrize("layout", [[[0, 2]], [1, 0], np.zeros((0, 3)), "no such file.npy"])
def test_bad_layouts(layout: object) -> None:
    with pytest.raises(bsgen.LayoutError):
        bsgen.compile(layout)


class FakeOnGpu:
    """The part of a DLPack producer that says where it is."""

    shape, dtype = (4, C), "float16"

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self, **_: object) -> object:
        raise AssertionError("a CPU array is not read by DLPack")


Call = Callable[[bsgen.MatMul, dict[str, np.ndarray]], object]
BAD_CALLS: list[tuple[str, Call]] = [
    ("x: got list, expected an array", lambda mm, a: mm([1.0], a["w"])),
    ("x: got NoneType", lambda mm, a: mm(None, a["w"])),
    ("x: got an array of rank 0", lambda mm, a: mm(np.zeros((), np.float16), a["w"])),
    (r"x: got shape \(4, 79\), expected a last dimension of 80", lambda mm, a: mm(a["x"][:, :-1].copy(), a["w"])),
    ("x: got float32, expected float16", lambda mm, a: mm(a["x"].astype(np.float32), a["w"])),
    ("x: got >f2", lambda mm, a: mm(a["x"].astype(">f2"), a["w"])),
    ("x: is not contiguous", lambda mm, a: mm(np.asfortranarray(a["x"]), a["w"])),
    ("w: got shape .* another layout", lambda mm, a: mm(a["x"], a["w"][1:])),
    ("w: got shape .* another layout", lambda mm, a: mm(a["x"], a["w"].reshape(-1, 8, 32))),
    ("w: got shape", lambda mm, a: mm(a["x"], mm.to_dense(a["w"]))),
    ("w: got float64, expected float16", lambda mm, a: mm.dgrad(a["dy"], a["w"].astype(np.float64))),
    ("dy: got shape .* last dimension of 112", lambda mm, a: mm.dgrad(a["x"], a["w"])),
    (r"dy: got shape \(3, 112\), expected \(4, 112\), the rows of x", lambda mm, a: mm.wgrad(a["x"], a["dy"][:3])),
    ("out: got shape", lambda mm, a: mm(a["x"], a["w"], out=a["x"])),
    ("out: got float32, expected float16", lambda mm, a: mm.dgrad(a["dy"], a["w"], out=np.zeros((4, C), np.float32))),
    ("out: got float32", lambda mm, a: mm.wgrad(a["x"], a["dy"], out=np.zeros(mm.weight_shape, np.float32))),
    ("out: is not contiguous", lambda mm, a: mm(a["x"], a["w"], out=np.zeros((K, 4), np.float16).T)),
    ("out: is read-only", lambda mm, a: mm(a["x"], a["w"], out=np.broadcast_to(a["dy"], (1, 4, K))[0])),
    ("accumulate: got True without out", lambda mm, a: mm.wgrad(a["x"], a["dy"], accumulate=True)),
    ("bias: got an array, .* compiled without", lambda mm, a: mm(a["x"], a["w"], bias=a["dy"][0])),
    ("residual: got an array, .* compiled without", lambda mm, a: mm(a["x"], a["w"], residual=a["dy"])),
    ("stream: NumPy arrays", lambda mm, a: mm(a["x"], a["w"], stream=0)),
    ("x: got a DLPack array on the CPU", lambda mm, a: mm(FakeOnGpu(), a["w"])),
    ("dense: got shape", lambda mm, a: mm.from_dense(a["x"])),
    ("dense: got list", lambda mm, a: mm.from_dense([1.0])),
    ("w: got shape", lambda mm, a: mm.to_dense(a["x"])),
    ("op: got 'backward'", lambda mm, a: mm.source("backward")),
]


@pytest.mark.parametrize(("text", "call"), BAD_CALLS, ids=[text for text, _ in BAD_CALLS])
def test_bad_calls(text: str, call: Call) -> None:
    mm = make()
    arrays = {"x": normal(mm, 4, C), "dy": normal(mm, 4, K), "w": normal(mm, *mm.weight_shape)}
    with pytest.raises(bsgen.ArgumentError, match=text):
        call(mm, arrays)


def test_out_must_not_alias() -> None:
    mm = bsgen.compile(np.eye(2), 8, "float32", residual=True)
    x, w = np.ones((4, 16), np.float32), np.ones((2, 8, 8), np.float32)
    with pytest.raises(bsgen.ArgumentError, match="out: shares memory with x"):
        mm(x, w, residual=x.copy(), out=x)
    with pytest.raises(bsgen.ArgumentError, match="out: shares memory with residual"):
        mm(x, w, residual=(shared := x.copy()), out=shared)


def test_missing_epilogue_operands() -> None:
    mm = make(bias=True, residual=True)
    x, w, bias = normal(mm, 4, C), normal(mm, *mm.weight_shape), normal(mm, K)
    with pytest.raises(bsgen.ArgumentError, match="bias: got None"):
        mm(x, w)
    with pytest.raises(bsgen.ArgumentError, match="residual: got None"):
        mm(x, w, bias)
    with pytest.raises(bsgen.ArgumentError, match=r"bias: got shape \(1, 112\), expected \(112,\)"):
        mm(x, w, bias[None], normal(mm, 4, K))


def test_op_not_compiled() -> None:
    mm = make(ops="fprop")
    with pytest.raises(bsgen.ArgumentError, match="wgrad was not compiled, only fprop"):
        mm.wgrad(normal(mm, 4, C), normal(mm, 4, K))


def test_import_is_light() -> None:
    code = (
        "import sys, bsgen; heavy = [m for m in sys.modules if m.split('.')[0] in "
        "('cuda', 'networkx', 'jinja2', 'torch', 'scipy')]; assert not heavy, heavy; "
        "assert bsgen.topology.random; assert 'compile' in dir(bsgen)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = bsgen.nothing


def test_a_plan_for_each_range_of_n() -> None:
    """The plan of few rows differs from that of many; N in one range have one; a hint holds in its own range only."""
    layout = bsgen.topology.random(64, 64, density=0.1, seed=1)
    mm = bsgen.compile(layout, 32, "float16", ops="fprop", arch="sm_90a")
    assert mm.plan("fprop", 3000) is mm.plan("fprop")
    assert mm.plan("fprop", 5000) is mm.plan("fprop", 100_000)
    assert mm.plan("fprop", 9) is mm.plan("fprop", 32)
    assert [mm.plan("fprop", n).problem.batch for n in (0, 1, 8, 9, 64, 65, 129, 1024, 4097)] == [
        8, 8, 8, 32, 64, 128, 256, 1024, 16384,
    ]  # fmt: skip
    assert mm.plan("fprop", 1).summary != mm.plan("fprop").summary
    hinted = bsgen.compile(layout, 32, "float16", ops="fprop", arch="sm_90a", batch=100)
    assert hinted.plan("fprop", 70) is hinted.plan("fprop")
    assert hinted.plan("fprop").problem.batch == 100
    assert hinted.plan("fprop", 3000).problem.batch == 4096
    with pytest.raises(bsgen.ArgumentError, match="n: got -1"):
        mm.plan("fprop", -1)


@pytest.mark.parametrize(("level", "shown"), [("info", True), ("debug", True), ("warning", False), ("loud", True)])
def test_log_on_standard_error(level: str, shown: bool, tmp_path: Path) -> None:
    code = "import bsgen; bsgen.compile([[1]], 8, 'float16', 'fprop', 'sm_80')"
    environment = {"BSGEN_LOG": level, "BSGEN_CACHE_DIR": str(tmp_path), "PATH": "/usr/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        cwd=Path(__file__).parent.parent,
    )
    assert ("INFO" in done.stderr and "compiled bsgen_fprop" in done.stderr) == shown
    assert ("BSGEN_LOG: got 'loud', expected one of debug" in done.stderr) == (level == "loud")


def test_nvtx_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """A range with the kernel's name around a call; without the package a word in the log."""
    import types
    from contextlib import contextmanager

    from bsgen.runtime import annotate, launch

    seen: list[str] = []

    @contextmanager
    def note(name: str, domain: str) -> object:
        seen.append(f"{domain} {name}")
        yield

    monkeypatch.setenv("BSGEN_NVTX", "1")
    monkeypatch.setitem(sys.modules, "nvtx", types.SimpleNamespace(annotate=note))
    once = launch.Prepared(lambda: (seen.append("launched"), 0)[1:], None)
    monkeypatch.setattr(launch.Kernels, "prepare", lambda *_: (once, once))
    annotate._nvtx.cache_clear()
    mm = bsgen.compile([[1]], 8, "float16", "fprop", "sm_80")
    (prepared,) = mm.operation("fprop").kernels.prepare(0, 0, {})
    assert prepared.enqueue() == (0,)
    assert seen == [f"bsgen {mm.operation('fprop').outline.launches[0].entry}", "launched", "launched"]
    monkeypatch.setitem(sys.modules, "nvtx", None)
    annotate._nvtx.cache_clear()
    assert type(bsgen.compile([[1]], 8, "float16", "fprop", "sm_80").operation("fprop").kernels) is launch.Kernels
    annotate._nvtx.cache_clear()


def test_wgrad_of_lists_is_that_of_all_rows() -> None:
    mm = bsgen.compile(
        bsgen.topology.random(4, 5, density=0.5, seed=1), 16, "float32", "wgrad", "sm_80", precision="ieee"
    )
    rng = np.random.default_rng(0)
    shapes = ((3,), (2, 4), (1,))
    x = [rng.standard_normal((*shape, mm.in_features), np.float32) for shape in shapes]
    dy = [rng.standard_normal((*shape, mm.out_features), np.float32) for shape in shapes]
    expected = sum(mm.wgrad(a, b).astype(np.float64) for a, b in zip(x, dy, strict=True))
    np.testing.assert_allclose(mm.wgrad(x, tuple(dy)), expected, rtol=1e-4, atol=1e-5)
    out = np.ones(mm.weight_shape, np.float32)
    np.testing.assert_allclose(mm.wgrad(x, dy, out=out, accumulate=True), expected + 1, rtol=1e-4, atol=1e-5)
    for bad, words in (
        ((x, dy[:2]), "got 3 arrays and 2 arrays"),
        ((x, dy[0]), "got 3 arrays and an array"),
        (([], []), "got 0 arrays and 0 arrays"),
        ((x, [dy[1], dy[0], dy[2]]), "expected the rows of x"),
    ):
        with pytest.raises(bsgen.ArgumentError, match=words):
            mm.wgrad(*bad)
    with pytest.raises(bsgen.ArgumentError, match="joined on the current stream"):
        mm.wgrad(x, dy, stream=5)
