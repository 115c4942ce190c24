"""Gates: a float32 for each stored block, in every op and family, against dense float64 products; and what refuses them."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import ARITHMETIC, BIG, SMALL, bernoulli, cheapest, hub, portable, sample, some_of
from test_kernels_compile import compiled_plan
from test_reference import TOLERANCE, dense, expected, operands

import bsgen
from bsgen import compiled, reference
from bsgen.errors import ArgumentError
from bsgen.layout import Layout
from bsgen.packs import building, c_export, load_pack
from bsgen.packs.spec import read_spec
from bsgen.plan import (
    FAMILIES,
    HopperWGradPlan,
    Plan,
    candidates,
    choose,
    hopper,
    hopper_narrow,
    hopper_wgrad,
    matmul,
    wgrad,
)
from bsgen.problem import BLOCK_SIZES, TARGETS, Activation, DType, Epilogue, Op, Precision, Problem
from bsgen.runtime import driver

Array = np.ndarray[Any, Any]
KINDS = [pytest.param(*kind, id=f"{kind[0]}-{kind[1]}") for kind in ARITHMETIC]
LAYOUT = bernoulli(6, 5, 0.4)
LARGE = bernoulli(64, 64, 0.1)
BATCHES = (1, 17, 100)


def gates(nnz: int, seed: int = 5) -> Array:
    """Some zero, among them a negative zero, and some negative."""
    found = np.random.default_rng(seed).standard_normal(nnz).astype(np.float32)
    found[::3] = 0
    found[3:4] = -0.0
    return found


def gated_operands(problem: Problem, n: int) -> dict[str, Array]:
    """Operands of a gated problem; blocks that are switched off hold NaN and infinity, for wgrad all are finite."""
    arrays = operands(replace(problem, gate=False), n)
    arrays["gate"] = gates(problem.layout.nnz)
    if problem.op is Op.WGRAD:
        shape = (problem.layout.nnz, problem.block_size, problem.block_size)
        arrays["w"] = np.random.default_rng(9).standard_normal(shape).astype(problem.dtype.numpy)
    else:
        off = np.flatnonzero(arrays["gate"] == 0)
        arrays["w"][off[::2]] = np.nan
        arrays["w"][off[1::2]] = np.inf
    return arrays


def check(plan: Plan, n: int) -> None:
    """The plan's results against float64."""
    problem = plan.problem
    arrays = gated_operands(problem, n)
    given = {name: array.copy() for name, array in arrays.items()}
    results = reference.results(plan, arrays)
    for name, array in given.items():
        assert arrays[name].tobytes() == array.tobytes(), f"{name} was written"
    scale = arrays["gate"].astype(np.float64)[:, None, None]
    tolerance, plain = TOLERANCE[problem.dtype], replace(problem, gate=False)
    assert results["out"].dtype == problem.dtype.numpy
    if problem.op is not Op.WGRAD:
        arrays["w"] = scaled(arrays["w"], scale)
        assert_close(results["out"], expected(plain, arrays), tolerance, plan)
        return
    sums = expected(plain, {name: arrays[name] for name in ("x", "dy")})
    assert_close(results["out"], scale * sums, tolerance, plan)
    assert results["dgate"].dtype == np.float32
    assert_close(results["dgate"], (sums * arrays["w"].astype(np.float64)).sum(axis=(1, 2)), tolerance, plan)
    assert set(reference.results(plan, {name: arrays[name] for name in ("x", "dy", "gate")})) == {"out"}


def scaled(blocks: Array, scale: Array) -> Array:
    """Exactly, whatever a block that is switched off holds."""
    with np.errstate(invalid="ignore"):
        return np.where(scale == 0, 0, scale * blocks.astype(np.float64))


def assert_close(got: Array, exact: Array, tolerance: float, plan: Plan) -> None:
    assert got.shape == exact.shape
    error, norm = np.linalg.norm(got.astype(np.float64) - exact), np.linalg.norm(exact)
    assert error <= tolerance * norm, f"{plan.summary}: {error:.2e} beside {norm:.2e}"


@pytest.mark.parametrize("block", BLOCK_SIZES)
@pytest.mark.parametrize("op", Op, ids=str)
def test_plans_of_every_family(op: Op, block: int) -> None:
    for dtype, precision in ARITHMETIC:
        problem = Problem(op, LAYOUT, block, dtype, precision, gate=True)
        for target in (BIG, SMALL):
            for n, plan in zip(BATCHES, sample(list(candidates(problem, target)), 3), strict=False):
                check(plan, n)


@pytest.mark.parametrize("family", [hopper, matmul], ids=["hopper", "portable"])
@pytest.mark.parametrize("op", [Op.FPROP, Op.DGRAD], ids=str)
def test_split_outputs(op: Op, family: Any) -> None:
    """Partial sums come after the weights in the workspace."""
    mask = hub(150, 4).mask
    problem = Problem(op, Layout(mask if op is Op.FPROP else mask.T), 32, DType.FLOAT16, gate=True)
    split = [plan for plan in family.candidates(problem, BIG) if plan.reductions]
    for plan in sample(split, 2):
        check(plan, 17)
        gate, main, reduce = plan.launches
        weights = problem.layout.nnz * 32 * 32 * 2
        assert plan.workspace.elements(17) * 4 == weights + plan.partials * 17 * 32 * 4
        assert gate.arguments == ("w", "gate", "workspace")
        assert gate.grid.size(1, 132) == -(-weights // (16 * 4 * gate.threads))
        assert "w" not in {*main.arguments, *(each.operand for each in main.maps)}
        assert reduce.arguments == ("out", "workspace", "n")


def test_an_epilogue_on_top() -> None:
    for dtype in DType:
        check(
            choose(Problem(Op.FPROP, LAYOUT, 32, dtype, epilogue=Epilogue(activation=Activation.RELU), gate=True), BIG),
            9,
        )


@pytest.mark.parametrize("op", Op, ids=str)
def test_every_plan_of_every_family_takes_gates(op: Op) -> None:
    """A family that does not know of them must not serve a problem that has them."""
    for family in {*FAMILIES[op], *((hopper_narrow,) if op is not Op.WGRAD else ())}:
        for block in BLOCK_SIZES:
            for plan in family.candidates(Problem(op, LAYOUT, block, DType.BFLOAT16, gate=True), BIG):
                arguments = {argument for launch in plan.launches for argument in launch.arguments}
                assert {"gate", "w", "workspace"} <= arguments
                assert plan.workspace.elements(1) >= LAYOUT.nnz * block**2 // 2


@pytest.mark.parametrize("block", hopper_wgrad.BLOCK_SIZES)
def test_places_of_sums(block: int) -> None:
    """Each part of each stored block once, where the kernel stores the unit whose part it is."""
    for plan in sample(
        list(hopper_wgrad.candidates(Problem(Op.WGRAD, LARGE, block, DType.FLOAT16, gate=True), BIG)), 4
    ):
        assert isinstance(plan, HopperWGradPlan)
        tiles, groups, units, _ = plan.units.shape
        rows, part_rows = 64, min(64, block)
        found: dict[tuple[int, int], int] = {}
        for tile in range(tiles):
            for group in range(groups):
                for unit in range(plan.unit_counts[tile, group]):
                    for half in range(rows // part_rows):
                        chunk = int(plan.units[tile, group, unit, 2 + half])
                        if chunk >= 0:
                            stored, inside = divmod(chunk * 8, block**2)
                            start = ((tile * groups + group) * units + unit) * rows + half * part_rows
                            assert found.setdefault((stored, inside // (part_rows * block)), start) == start
        assert found == {place: int(row) for place, row in np.ndenumerate(plan.sum_places)}


@pytest.mark.parametrize("block", BLOCK_SIZES)
def test_threads_cover_every_block(block: int) -> None:
    for layout in (Layout([[1]]), LAYOUT, LARGE):
        plan = cheapest(wgrad, Problem(Op.WGRAD, layout, block, DType.BFLOAT16, gate=True), BIG)
        reduce = plan.launches[-1]
        assert block**2 % (4 * plan.gradient_lanes) == 0
        assert reduce.threads % plan.gradient_lanes == 0
        blocks = reduce.threads // plan.gradient_lanes
        assert reduce.grid.size(7, 132) == math.ceil(layout.nnz / blocks)
        assert reduce.shared_memory == (0 if plan.gradient_lanes <= 32 else reduce.threads // 32 * 4)


@pytest.mark.parametrize("op", Op, ids=str)
def test_the_gate_is_part_of_the_key(op: Op) -> None:
    plain = Problem(op, LAYOUT, 32, DType.BFLOAT16)
    assert compiled.key(plain, BIG, "nvrtc") != compiled.key(replace(plain, gate=True), BIG, "nvrtc")
    assert compiled.key(replace(plain, gate=False), BIG, "nvrtc") == compiled.key(plain, BIG, "nvrtc")


def test_what_it_costs_is_predicted() -> None:
    for op in Op:
        for dtype, target in ((DType.BFLOAT16, BIG), (DType.FLOAT32, SMALL)):
            plain = Problem(op, LARGE, 32, dtype, batch=64)
            seconds = [choose(replace(plain, gate=gate), target).cost.seconds for gate in (False, True)]
            assert seconds[0] < seconds[1] < seconds[0] + 2e-5


# Kernels.


@pytest.mark.parametrize(("op", "block", "kind"), some_of(list(product(Op, BLOCK_SIZES, ARITHMETIC)), 3), ids=str)
def test_kernels_compile(op: Op, block: int, kind: tuple[DType, Precision]) -> None:
    problem = Problem(op, LARGE, block, *kind, gate=True)
    for plan in {plan.family: plan for plan in (choose(problem, BIG), portable(problem, BIG))}.values():
        check_entries(plan, "reduce" if op is Op.WGRAD else "gate")
    if (BLOCK_SIZES.index(block) + list(Op).index(op)) % 3 == 0:
        check_entries(choose(problem, TARGETS["sm_80"]), "reduce" if op is Op.WGRAD else "gate")


def check_entries(plan: Plan, name: str) -> None:
    assert f"{plan.entry}_{name}" in {kernel.name for kernel in compiled_plan(plan).kernels}


@pytest.mark.parametrize("block", hopper_wgrad.BLOCK_SIZES)
def test_hopper_wgrad_with_and_without_splits(block: int) -> None:
    plans: dict[tuple[int, bool], Plan] = {}
    for plan in hopper_wgrad.candidates(Problem(Op.WGRAD, LARGE, block, DType.FLOAT16, batch=16384, gate=True), BIG):
        plans.setdefault((plan.geometry.rows, plan.splits > 1), plan)
    assert {split for _, split in plans} == {False, True}
    for plan in plans.values():
        check_entries(plan, "reduce")


@pytest.mark.parametrize("block", hopper_narrow.BLOCK_SIZES)
@pytest.mark.parametrize("op", [Op.FPROP, Op.DGRAD], ids=str)
def test_kernels_for_narrow_blocks_compile(op: Op, block: int) -> None:
    for axis in (1, 0):
        problem = Problem(op, LARGE, block, DType.FLOAT16, gate=True, axis=axis)
        check_entries(cheapest(hopper_narrow, problem, BIG), "gate")


@pytest.mark.parametrize("family", [hopper, matmul], ids=["hopper", "portable"])
def test_split_outputs_compile(family: Any) -> None:
    problem = Problem(
        Op.FPROP, hub(400, 6), 32, DType.BFLOAT16, epilogue=Epilogue(True, Activation.GELU, True), gate=True
    )
    plan = next(plan for plan in family.candidates(problem, BIG) if plan.reductions)
    assert [kernel.name.removeprefix(plan.entry) for kernel in compiled_plan(plan).kernels] == ["_gate", "", "_reduce"]


# The callable, on the CPU.


@pytest.fixture
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "why_unavailable", lambda: "no CUDA driver on this machine")


def make(dtype: str = "float32", block: int = 16, **options: Any) -> bsgen.MatMul:
    return bsgen.compile(options.pop("mask", LAYOUT), block, dtype, **{"gate": True, **options})


def arrays_of(mm: bsgen.MatMul, n: int = 9) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    shapes = {"x": (n, mm.in_features), "dy": (n, mm.out_features), "w": mm.weight_shape}
    made = {name: rng.standard_normal(shape).astype(mm.dtype.numpy) for name, shape in shapes.items()}
    return {**made, "gate": gates(mm.nnz)}


@pytest.mark.usefixtures("_no_gpu")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_products(dtype: str) -> None:
    mm = make(dtype)
    x, dy, w, gate = arrays_of(mm).values()
    w[gate == 0] = np.nan
    full = dense(mm.operation("fprop").problem, scaled(w, gate[:, None, None]))
    tolerance = TOLERANCE[mm.dtype]
    y, dx, dw = mm(x, w, gate=gate), mm.dgrad(dy, w, gate=gate), mm.wgrad(x, dy, gate=gate)
    assert {array.dtype for array in (y, dx, dw)} == {x.dtype}
    np.testing.assert_allclose(y.astype(float), x.astype(float) @ full, atol=tolerance * 40)
    np.testing.assert_allclose(dx.astype(float), dy.astype(float) @ full.T, atol=tolerance * 40)
    assert not dw[gate == 0].any()
    plain = bsgen.compile(LAYOUT, 16, dtype)
    np.testing.assert_allclose(
        dw.astype(float), gate[:, None, None] * plain.wgrad(x, dy).astype(float), rtol=0.02, atol=1e-5
    )
    again, dgate = mm.gate_grad(x, dy, w, gate)
    np.testing.assert_array_equal(again, dw)
    assert np.isnan(dgate[gate == 0]).all(), "as W is there"
    assert np.isfinite(dgate[gate != 0]).all()


@pytest.mark.usefixtures("_no_gpu")
def test_ones_change_nothing() -> None:
    for dtype in ("bfloat16", "float32"):
        mm, plain = make(dtype), bsgen.compile(LAYOUT, 16, dtype)
        x, dy, w, _ = arrays_of(mm).values()
        ones = np.ones(mm.nnz, np.float32)
        np.testing.assert_array_equal(mm(x, w, gate=ones), plain(x, w))
        np.testing.assert_array_equal(mm.dgrad(dy, w, gate=ones), plain.dgrad(dy, w))
        np.testing.assert_array_equal(mm.wgrad(x, dy, gate=ones), plain.wgrad(x, dy))


@pytest.mark.usefixtures("_no_gpu")
def test_gate_gradients_are_derivatives() -> None:
    """By central differences of sum(y * dy), which is linear in each gate."""
    mm = make("float32", precision="ieee")
    x, dy, w, gate = arrays_of(mm).values()
    _, dgate = mm.gate_grad(x, dy, w, gate)
    for place in (0, 1, mm.nnz - 1):
        losses = []
        for step in (-0.5, 0.5):
            moved = gate.copy()
            moved[place] += step
            losses.append(float((mm(x, w, gate=moved).astype(np.float64) * dy).sum()))
        assert losses[1] - losses[0] == pytest.approx(dgate[place], rel=1e-3, abs=1e-3)


@pytest.mark.usefixtures("_no_gpu")
def test_out_and_accumulate() -> None:
    mm = make("float32")
    x, dy, w, gate = arrays_of(mm).values()
    dw, dgate = mm.gate_grad(x, dy, w, gate)
    pair = np.ones_like(dw), np.ones_like(dgate)
    got = mm.gate_grad(x, dy, w, gate, out=pair, accumulate=True)
    assert got[0] is pair[0]
    assert got[1] is pair[1]
    np.testing.assert_allclose(pair[0], 1 + dw, rtol=1e-6)
    np.testing.assert_allclose(pair[1], 1 + dgate, rtol=1e-6)
    mine = np.full_like(dgate, np.nan)
    fresh, same = mm.gate_grad(x, dy, w, gate, out=(None, mine))
    assert same is mine
    np.testing.assert_array_equal(fresh, dw)
    np.testing.assert_array_equal(mine, dgate)
    out = np.ones_like(dw)
    assert mm.wgrad(x, dy, out=out, accumulate=True, gate=gate) is out
    np.testing.assert_allclose(out, 1 + dw, rtol=1e-6)
    lists = mm.gate_grad([x[:4], x[4:]], [dy[:4], dy[4:]], w, gate)
    for joined, whole in zip(lists, (dw, dgate), strict=True):
        np.testing.assert_array_equal(joined, whole)


@pytest.mark.usefixtures("_no_gpu")
def test_no_rows_and_no_blocks() -> None:
    mm = make()
    x, dy, w, gate = arrays_of(mm, 0).values()
    assert mm(x, w, gate=gate).shape == (0, mm.out_features)
    dw, dgate = mm.gate_grad(x, dy, w, gate)
    assert (dw.shape, dgate.shape, dgate.dtype) == (mm.weight_shape, (mm.nnz,), np.float32)
    assert not dw.any()
    assert not dgate.any()
    kept = np.ones_like(dw), np.ones_like(dgate)
    mm.gate_grad(x, dy, w, gate, out=kept, accumulate=True)
    assert kept[0].all()
    assert kept[1].all()
    none = make(mask=np.zeros((2, 3)))
    x, dy, w, gate = arrays_of(none).values()
    assert not none(x, w, gate=gate).any()
    assert [array.shape for array in none.gate_grad(x, dy, w, gate)] == [(0, 16, 16), (0,)]


@pytest.mark.usefixtures("_no_gpu")
@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("gate: got None, but this was compiled with gate=True", lambda mm, x, dy, w, g: mm(x, w)),
        ("gate: got None, but this was compiled with gate=True", lambda mm, x, dy, w, g: mm.dgrad(dy, w)),
        ("gate: got None, but this was compiled with gate=True", lambda mm, x, dy, w, g: mm.wgrad(x, dy)),
        ("gate: got None, but this was compiled with gate=True", lambda mm, x, dy, w, g: mm.gate_grad(x, dy, w, None)),
        (r"gate: got shape \(2,\), expected \(\d+,\) \(nnz,\)", lambda mm, x, dy, w, g: mm(x, w, gate=g[:2])),
        ("gate: got float64, expected float32: convert", lambda mm, x, dy, w, g: mm(x, w, gate=g.astype(np.float64))),
        ("gate: is not contiguous", lambda mm, x, dy, w, g: mm(x, w, gate=np.repeat(g, 2)[::2])),
        ("w: got shape .* another layout", lambda mm, x, dy, w, g: mm.gate_grad(x, dy, w[1:], g)),
        ("w: got NoneType", lambda mm, x, dy, w, g: mm.gate_grad(x, dy, None, g)),
        ("out: got ndarray, expected a pair", lambda mm, x, dy, w, g: mm.gate_grad(x, dy, w, g, out=w)),
        ("out: got 1 arrays, expected a pair", lambda mm, x, dy, w, g: mm.gate_grad(x, dy, w, g, out=(w,))),
        ("out: shares memory with w", lambda mm, x, dy, w, g: mm.gate_grad(x, dy, w, g, out=(w, None))),
        ("dgate: shares memory with gate", lambda mm, x, dy, w, g: mm.gate_grad(x, dy, w, g, out=(None, g))),
        ("dgate: got shape", lambda mm, x, dy, w, g: mm.gate_grad(x, dy, w, g, out=(None, g[:1].copy()))),
        ("accumulate: got True without out", lambda mm, x, dy, w, g: mm.gate_grad(x, dy, w, g, accumulate=True)),
        (
            "accumulate: got True without dgate",
            lambda mm, x, dy, w, g: mm.gate_grad(x, dy, w, g, out=(w.copy(), None), accumulate=True),
        ),
    ],
)
def test_bad_calls(words: str, call: Any) -> None:
    mm = make()
    with pytest.raises(ArgumentError, match=words):
        call(mm, *arrays_of(mm).values())


@pytest.mark.usefixtures("_no_gpu")
def test_without_gates_there_are_none() -> None:
    mm = make(gate=False)
    x, dy, w, gate = arrays_of(mm).values()
    for call in (
        lambda: mm(x, w, gate=gate),
        lambda: mm.dgrad(dy, w, gate=gate),
        lambda: mm.wgrad(x, dy, gate=gate),
        lambda: mm.gate_grad(x, dy, w, gate),
    ):
        with pytest.raises(ArgumentError, match=r"gate: got an array, .* without: give bsgen.compile gate=True"):
            call()


def test_what_it_tells_of_itself(tmp_path: Path) -> None:
    mm = make("bfloat16", 32, arch="sm_90a")
    assert pickle.loads(pickle.dumps(mm)).gate
    assert not pickle.loads(pickle.dumps(make("bfloat16", 32, arch="sm_90a", gate=False))).gate
    kernels = {op.op: [kernel.name.rsplit("_", 1)[-1] for kernel in op.kernels] for op in mm.report().ops}
    assert kernels["fprop"][0] == kernels["dgrad"][0] == "gate"
    assert kernels["wgrad"][-1] == "reduce"
    assert "gated" in str(mm.report())
    assert mm.source("fprop").startswith("// y = x @ (gate * W) for")


def test_in_packs(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", LAYOUT.mask)
    module = '[[module]]\nlayout = "a.npy"\narch = "sm_80"\nrows = 64\nblock_size = 16\nops = ["fprop", "wgrad"]\n'
    spec = tmp_path / "spec.toml"
    spec.write_text(f'{module}name = "plain"\n{module}name = "gated"\ngate = true\n')
    file = building.build(read_spec(spec), tmp_path / "one.bsp", processes=1)
    pack = load_pack(file)
    assert list(pack.problems()) == []
    assert [module.gate for module in pack.index.modules] == [False, True]
    mm = pack["gated"]
    fresh = make("bfloat16", arch="sm_80", ops=("fprop", "wgrad"), batch=64)
    assert mm.binary("fprop").cubin == fresh.binary("fprop").cubin != pack["plain"].binary("fprop").cubin
    x, dy, w, gate = arrays_of(mm, 64).values()
    for packed, made in zip(mm.gate_grad(x, dy, w, gate), fresh.gate_grad(x, dy, w, gate), strict=True):
        np.testing.assert_allclose(packed.astype(float), made.astype(float), rtol=0.01, atol=1e-4)
    plain = Problem(Op.FPROP, LAYOUT, 16, DType.BFLOAT16, batch=64)
    names = [pack.find(replace(plain, gate=gate), "sm_80").outline.launches[0].entry for gate in (False, True)]
    assert [name.endswith("_gate") for name in names] == [False, True]
    with pytest.raises(ArgumentError, match="'gated' has gates"):
        c_export.export(pack, tmp_path / "c")
