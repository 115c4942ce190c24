"""dW in float32 of 16-bit activations: what sums and micro-batches give before they are rounded."""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from emulator import COMPILER, run
from problems import BIG, SMALL, bernoulli, portable, sample, some_of
from test_kernels_compile import compiled_plan
from test_reference import expected, operands

import bsgen
from bsgen import compiled, reference
from bsgen.cli import main
from bsgen.emit import render
from bsgen.errors import ArgumentError
from bsgen.packs import building, c_export, load_pack
from bsgen.packs.spec import read_spec
from bsgen.plan import Plan, candidates, choose, hopper_wgrad, wgrad
from bsgen.problem import BLOCK_SIZES, TARGETS, DType, Op, Problem
from bsgen.runtime import driver

LAYOUT, LARGE = bernoulli(6, 5, 0.4), bernoulli(64, 64, 0.1)
NARROW = (DType.FLOAT16, DType.BFLOAT16)


def problem(block: int = 32, dtype: DType = DType.BFLOAT16, **options: Any) -> Problem:
    return Problem(Op.WGRAD, options.pop("layout", LAYOUT), block, dtype, wgrad_dtype=DType.FLOAT32, **options)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("block", BLOCK_SIZES)
def test_sums_are_not_rounded(block: int, dtype: DType) -> None:
    for target in (BIG, SMALL):
        for plan in sample(list(candidates(problem(block, dtype), target)), 3):
            arrays = operands(replace(plan.problem, wgrad_dtype=None), 100)
            result = reference.run(plan, arrays)
            assert result.dtype == np.float32
            exact = expected(plan.problem, arrays)
            assert np.linalg.norm(result - exact) <= 1e-6 * np.linalg.norm(exact)


def test_only_wgrad_of_16_bits_has_it() -> None:
    for changes in ({"op": Op.FPROP}, {"op": Op.DGRAD}, {"dtype": DType.FLOAT32}):
        with pytest.raises(ArgumentError, match=r"wgrad_dtype: got float32 for .* expected None"):
            replace(problem(), **changes)


def test_it_is_part_of_the_key_and_of_the_source() -> None:
    wide, plain = problem(), replace(problem(), wgrad_dtype=None)
    assert compiled.key(wide, BIG, "nvrtc") != compiled.key(plain, BIG, "nvrtc")
    for family in (portable, choose):
        text = render(family(wide, BIG)).text
        assert "bfloat16, dW in float32." in text.partition("\n")[0]
        assert text != render(family(plain, BIG)).text


@pytest.mark.parametrize(("block", "dtype", "gate"), some_of(list(product(BLOCK_SIZES, NARROW, (False, True))), 3))
def test_kernels_compile(block: int, dtype: DType, gate: bool) -> None:
    asked = problem(block, dtype, layout=LARGE, gate=gate)
    plans = (choose(asked, BIG), portable(asked, BIG), choose(asked, TARGETS["sm_80"]))
    for plan in {(plan.family, plan.target.arch): plan for plan in plans}.values():
        compiled_plan(plan)


@pytest.mark.parametrize("block", hopper_wgrad.BLOCK_SIZES)
def test_hopper_with_and_without_splits(block: int) -> None:
    plans: dict[tuple[int, bool], Plan] = {}
    for plan in hopper_wgrad.candidates(problem(block, layout=LARGE, batch=16384), BIG):
        plans.setdefault((plan.geometry.rows, plan.splits > 1), plan)
    assert {split for _, split in plans} == {False, True}
    for plan in plans.values():
        compiled_plan(plan)


@pytest.mark.skipif(COMPILER is None, reason="there is no g++")
@pytest.mark.parametrize(
    ("family", "block", "split"),
    [(wgrad, 8, False), (wgrad, 64, True), (hopper_wgrad, 32, True), (hopper_wgrad, 128, False)],
    ids=["portable", "portable-split", "hopper-split", "hopper"],
)
def test_kernels_on_the_host(family: Any, block: int, split: bool) -> None:
    plans = family.candidates(problem(block, batch=100_000 if split else 64), BIG)
    plan = next(plan for plan in plans if (plan.splits > 1) == split)
    arrays = operands(replace(plan.problem, wgrad_dtype=None), 70)
    exact = expected(plan.problem, arrays)
    for accumulate in (0, 1):
        start = np.full(exact.shape, 2 if accumulate else np.nan, np.float32)
        got = run(plan, {**arrays, "out": start}, exact.shape, n=70, accumulate=accumulate)
        assert np.linalg.norm(got - exact - 2 * accumulate) <= 1e-6 * np.linalg.norm(exact)


def make(dtype: str = "bfloat16", **options: Any) -> bsgen.MatMul:
    return bsgen.compile(LAYOUT, 16, dtype, **{"wgrad_dtype": "float32", "arch": "sm_80", **options})


def normal(mm: bsgen.MatMul, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, dy = (rng.standard_normal((n, features)) for features in (mm.in_features, mm.out_features))
    return x.astype(mm.dtype.numpy), dy.astype(mm.dtype.numpy)


def test_micro_batches_add_up_in_float32() -> None:
    mm, narrow = make(), make(wgrad_dtype=None)
    x, dy = normal(mm, 512)
    exact = mm.wgrad(x, dy)
    errors = []
    for each in (mm, narrow):
        out = np.zeros(mm.weight_shape, each.wgrad_dtype.numpy)
        for begin in range(0, 512, 8):
            each.wgrad(x[begin : begin + 8], dy[begin : begin + 8], out=out, accumulate=True)
        errors.append(np.linalg.norm(out.astype(np.float64) - exact) / np.linalg.norm(exact))
    assert errors[0] < 1e-6 < 1e-3 < errors[1]


def test_the_callable() -> None:
    mm = make()
    assert mm.wgrad_dtype is DType.FLOAT32
    assert make(wgrad_dtype=None).wgrad_dtype is make(wgrad_dtype="bfloat16").wgrad_dtype is DType.BFLOAT16
    x, dy = normal(mm, 9)
    w = np.ones(mm.weight_shape, mm.dtype.numpy)
    assert mm(x, w).dtype == mm.dgrad(dy, w).dtype == mm.dtype.numpy
    assert mm.wgrad(x, dy).dtype == np.float32
    assert mm.wgrad(x[:0], dy[:0]).dtype == np.float32
    np.testing.assert_array_equal(mm.wgrad(x, dy).astype(mm.dtype.numpy), make(wgrad_dtype=None).wgrad(x, dy))
    assert pickle.loads(pickle.dumps(mm)).wgrad_dtype is DType.FLOAT32
    assert pickle.loads(pickle.dumps(make(wgrad_dtype=None))).wgrad_dtype is DType.BFLOAT16
    for same in ("bfloat16", None):
        assert make(wgrad_dtype=same).source("wgrad") == bsgen.compile(LAYOUT, 16, arch="sm_80").source("wgrad")
    assert mm.source("fprop") == bsgen.compile(LAYOUT, 16, arch="sm_80").source("fprop")
    assert bsgen.compile(LAYOUT, 16, "float32", arch="sm_80", wgrad_dtype="float32").wgrad_dtype is DType.FLOAT32


def test_with_gates() -> None:
    mm = make(gate=True)
    x, dy = normal(mm, 33)
    gate = np.arange(mm.nnz, dtype=np.float32)
    dw, dgate = mm.gate_grad(x, dy, np.ones(mm.weight_shape, mm.dtype.numpy), gate)
    sums = make().wgrad(x, dy)
    assert dw.dtype == dgate.dtype == np.float32
    np.testing.assert_allclose(dw, gate[:, None, None] * sums, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dgate, sums.sum(axis=(1, 2)), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("wgrad_dtype: got 'float16', expected None, 'bfloat16' or 'float32'", {"wgrad_dtype": "float16"}),
        ("wgrad_dtype: got 'int8', expected one of", {"wgrad_dtype": "int8"}),
        ("ops: wgrad_dtype belongs to wgrad", {"ops": "fprop"}),
    ],
)
def test_bad_options(words: str, options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=words):
        make(**options)


def test_bad_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "why_unavailable", lambda: "no CUDA driver on this machine")
    mm, plain = make(), make(wgrad_dtype=None)
    x, dy = normal(mm, 3)
    with pytest.raises(
        ArgumentError, match="out: got bfloat16, expected float32, which this was compiled for: convert"
    ):
        mm.wgrad(x, dy, out=np.zeros(mm.weight_shape, mm.dtype.numpy))
    with pytest.raises(ArgumentError, match=r'expected bfloat16, .*: give bsgen.compile wgrad_dtype="float32"'):
        plain.wgrad(x, dy, out=np.zeros(mm.weight_shape, np.float32))


def test_in_packs(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", LAYOUT.mask)
    module = '[[module]]\nlayout = "a.npy"\narch = "sm_80"\nrows = 64\nblock_size = 16\nops = ["fprop", "wgrad"]\n'
    spec = tmp_path / "spec.toml"
    spec.write_text(f'{module}name = "plain"\n{module}name = "wide"\nwgrad_dtype = "float32"\n')
    pack = load_pack(building.build(read_spec(spec), tmp_path / "one.bsp", processes=1))
    assert list(pack.problems()) == []
    assert [module.wgrad_dtype for module in pack.index.modules] == [None, "float32"]
    assert pack["wide"].wgrad(*normal(pack["wide"], 5)).dtype == np.float32
    assert pack["plain"].binary("fprop").cubin == pack["wide"].binary("fprop").cubin
    asked = problem(16, batch=64)
    found = [pack.find(replace(asked, wgrad_dtype=wide), "sm_80").binary.cubin for wide in (None, DType.FLOAT32)]
    assert found == [pack[name].binary("wgrad").cubin for name in ("plain", "wide")]
    assert found[0] != found[1]
    with pytest.raises(ArgumentError, match="'wide' has a float32 dW"):
        c_export.export(pack, tmp_path / "c")


def test_on_the_command_line(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", LAYOUT.mask)
    command = [
        "compile",
        str(tmp_path / "a.npy"),
        "--wgrad-dtype",
        "float32",
        "--emit-only",
        "-o",
        str(tmp_path / "out"),
    ]
    assert CliRunner().invoke(main, command).exit_code == 0
    assert sum("dw32" in file.name for file in (tmp_path / "out").iterdir()) == 2
    assert CliRunner().invoke(main, [*command, "--op", "fprop"]).exit_code == 2
