"""Features first, x [C, N]: kernels, calls, packs, and what refuses them."""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulator import COMPILER
from emulator import run as run_on_host
from problems import ARITHMETIC, BIG, bernoulli, cheapest, hub, sample, some_of
from test_emulated import check as check_kernels
from test_hopper import check as check_hopper
from test_hopper_narrow import check as check_hopper_narrow
from test_hopper_wgrad import check as check_gradients
from test_kernels_compile import EPILOGUES, check_instructions, compiled_plan, named
from test_reference import check as check_tables
from test_reference import expected, operands

import bsgen
from bsgen import compiled, ranges
from bsgen.errors import ArgumentError
from bsgen.packs import building, c_export, load_pack
from bsgen.packs.spec import read_spec
from bsgen.plan import Plan, choose, hopper, hopper_narrow, hopper_narrow_wgrad, hopper_wgrad, matmul, wgrad
from bsgen.problem import BLOCK_SIZES, TARGETS, DType, Epilogue, Op, Precision, Problem

MATRIX = list(product(Op, BLOCK_SIZES, ARITHMETIC))
LAYOUT = bernoulli(5, 6, 0.5, seed=2)
ROWS = (37, 1, 64, 8, 3, 150, 16, 33)  # multiples of 8, of 4, of 2, and none


def plans(problem: Problem, count: int) -> list[Plan]:
    """Portable plans of turning shapes."""
    if problem.op is Op.WGRAD:
        return sample(list(wgrad.candidates(problem, BIG)), count)
    drafts = sample(list(matmul.drafts(problem, BIG)), 2 * count)
    return [plan for draft in drafts if (plan := matmul.assemble(problem, BIG, draft))][:count]


@pytest.mark.skipif(COMPILER is None, reason="there is no g++")
@pytest.mark.parametrize(("op", "block", "kind"), some_of(MATRIX, 7), ids=named)
def test_kernels_on_the_host(op: Op, block: int, kind: tuple[DType, Precision]) -> None:
    layouts = bernoulli(5, 6, 0.5), hub(70, 3) if block < 64 else hub(9, 3)
    for turn, layout in enumerate(layouts):
        problem = Problem(op, layout, block, *kind, batch=200, axis=0)
        for plan in some_of(plans(problem, 2)[turn:], 2):
            n = ROWS[(MATRIX.index((op, block, kind)) + 3 * turn) % len(ROWS)]
            check_tables(plan, n)
            check_kernels(plan, n)


@pytest.mark.skipif(COMPILER is None, reason="there is no g++")
@pytest.mark.parametrize("kind", [(DType.BFLOAT16, Precision.TENSOR), (DType.FLOAT32, Precision.TENSOR)], ids=named)
def test_epilogues_of_whole_and_split_outputs_on_the_host(kind: tuple[DType, Precision]) -> None:
    for n, layout in zip((21, 40), (bernoulli(6, 5, 0.5), hub(150, 3)), strict=True):
        problem = Problem(Op.FPROP, layout, 16, *kind, EPILOGUES[0], axis=0)
        plan = next(plan for plan in matmul.candidates(problem, BIG) if bool(plan.reductions) == (n == 40))
        check_tables(plan, n)
        check_kernels(plan, n)


@pytest.mark.skipif(COMPILER is None, reason="there is no g++")
def test_gates_on_the_host() -> None:
    for op, block in product(Op, (16, 32)):
        problem = Problem(op, bernoulli(6, 5, 0.5), block, DType.FLOAT16, gate=True, axis=0)
        check_kernels(choose(problem, BIG), 24)
    for op, block in ((Op.FPROP, 8), (Op.DGRAD, 16)):
        problem = Problem(op, bernoulli(6, 5, 0.5), block, DType.FLOAT16, gate=True, axis=0)
        check_kernels(cheapest(hopper_narrow, problem, BIG), 24)


@pytest.mark.parametrize(("op", "block", "kind"), some_of(MATRIX, 5), ids=named)
def test_kernels_compile(op: Op, block: int, kind: tuple[DType, Precision]) -> None:
    """Nothing spills, for one architecture or another, with splits and without."""
    arches = ("sm_80", "sm_90a", "sm_120a")
    for turn, layout in enumerate((LAYOUT, bernoulli(64, 64, 0.1), hub(300, 5))):
        target = TARGETS[arches[(turn + block.bit_length()) % 3]]
        compiled_plan(choose(Problem(op, layout, block, *kind, axis=0), target))


@pytest.mark.parametrize("kind", ARITHMETIC, ids=named)
def test_epilogues_compile(kind: tuple[DType, Precision]) -> None:
    for layout in (LAYOUT, hub(300, 5)):
        compiled_plan(choose(Problem(Op.FPROP, layout, 16, *kind, EPILOGUES[0], axis=0), BIG))


def test_what_families_serve() -> None:
    """Those that read rows of features step aside; others read lines of N elements, if they are whole chunks of 16 bytes."""
    for op, block in product(Op, BLOCK_SIZES):
        problem = Problem(op, LAYOUT, block, DType.BFLOAT16, axis=0)
        families = (hopper_wgrad, hopper_narrow_wgrad) if op is Op.WGRAD else (hopper, hopper_narrow)
        served_by = families[block < 32]
        for batch, served in ((None, True), (8, True), (20, False), (63, False), (16384, True)):
            wanted = replace(problem, batch=batch)
            assert bool(list(served_by.shortlist(wanted, BIG))) == served
            assert next(served_by.candidates(wanted, BIG), None) is None or served
    for op in Op:
        assert choose(Problem(op, LAYOUT, 32, DType.BFLOAT16, batch=4096, axis=0), BIG).family == "hopper"
        assert choose(Problem(op, LAYOUT, 32, DType.BFLOAT16, batch=4095, axis=0), BIG).family == "portable"
    assert choose(Problem(Op.DGRAD, LAYOUT, 32, DType.FLOAT32, batch=4096, axis=0), BIG).family == "portable"


def hopper_plans(problem: Problem, count: int) -> list[Plan]:
    """Plans of turning shapes, one of them with split outputs if there are any."""
    seen: dict[object, hopper.Draft] = {}
    for draft in hopper.drafts(problem, BIG):
        shape = replace(draft.geometry.shape, stages=0, stage_bytes=0)
        seen.setdefault((shape, bool(draft.reductions)), draft)
    drafts = [draft for (_, split), draft in seen.items() if not split]
    split = [draft for (_, split), draft in seen.items() if split]
    return [hopper.assemble(problem, BIG, draft) for draft in [*sample(drafts, count), *sample(split, 1)]]


@pytest.mark.parametrize(
    ("op", "block"), some_of(list(product((Op.FPROP, Op.DGRAD), hopper.BLOCK_SIZES)), 2), ids=named
)
def test_hopper_kernels(op: Op, block: int) -> None:
    """Tables, no spills, and on the host the exact result; with an epilogue where there is one."""
    finish = EPILOGUES[0] if op is Op.FPROP else Epilogue()
    side = 1 if block == 128 else 2
    for layout in (bernoulli(5 * side, 4 * side, 0.4), hub(60, 5) if op is Op.FPROP else hub(5, 60)):
        problem = Problem(op, layout, block, DType.FLOAT16, epilogue=finish, batch=1000, axis=0)
        for n, plan in zip((8, 136), hopper_plans(problem, 1), strict=False):
            check_hopper(plan)
            compiled_plan(plan)
            check_tables(plan, n)
            if COMPILER:
                check_kernels(plan, n, seed=n)


@pytest.mark.parametrize("block", hopper_wgrad.BLOCK_SIZES)
def test_hopper_gradients(block: int) -> None:
    """Every ring with splits of N and without: tables, no spills, no multiplies in series; half of them on the host, the exact
    result."""
    layout = bernoulli(16, 30, 0.9) if block == 32 else bernoulli(640 // block, 576 // block, 0.7)
    problem = Problem(Op.WGRAD, layout, block, DType.BFLOAT16 if block == 64 else DType.FLOAT16, batch=1024, axis=0)
    few = replace(BIG, sms=16)  # full tiles of a small layout
    plans: dict[object, hopper_wgrad.HopperWGradPlan] = {}
    for plan in hopper_wgrad.candidates(problem, few):
        plans.setdefault((plan.geometry.rows, plan.splits > 1), plan)
    assert len(plans) == 2 * len(hopper_wgrad.RINGS)
    assert any((plan.unit_counts == plan.geometry.units).any() for plan in plans.values())
    for turn, (n, plan) in enumerate(zip((8, 40, 200, 72), plans.values(), strict=True)):
        check_gradients(plan)
        check_instructions(plan, compiled_plan(plan))
        check_tables(plan, n)
        if COMPILER and turn in ((0, 3) if block == 64 else (1, 2)):
            check_kernels(plan, n, seed=n)


@pytest.mark.parametrize("block", hopper_wgrad.BLOCK_SIZES)
def test_hopper_gradients_with_gates_and_in_float32(block: int) -> None:
    problem = Problem(Op.WGRAD, bernoulli(192 // block + 2, 5, 0.5), block, DType.BFLOAT16, batch=512, axis=0)
    for change in ({"gate": True}, {"wgrad_dtype": DType.FLOAT32}):
        plan = next(hopper_wgrad.shortlist(replace(problem, **change), BIG))
        compiled_plan(plan)
        if COMPILER:
            check_kernels(plan, 72)


@pytest.mark.skipif(COMPILER is None, reason="there is no g++")
def test_hopper_gradients_accumulate() -> None:
    problem = Problem(Op.WGRAD, LAYOUT, 32, DType.BFLOAT16, batch=4096, axis=0)
    drafts = list(hopper_wgrad.drafts(problem, BIG))
    for draft in (drafts[0], next(draft for draft in drafts if draft.splits > 1)):
        arrays = operands(problem, 24)
        out = np.full((LAYOUT.nnz, 32, 32), 2, problem.dtype.numpy)
        plan = hopper_wgrad.assemble(problem, BIG, draft)
        got = run_on_host(plan, {**arrays, "out": out}, out.shape, n=24, accumulate=1).astype(np.float64)
        np.testing.assert_allclose(got, expected(problem, arrays) + 2, rtol=1e-2, atol=1e-1)


@pytest.mark.parametrize(("op", "block"), list(product((Op.FPROP, Op.DGRAD), hopper_narrow.BLOCK_SIZES)), ids=named)
def test_hopper_kernels_for_narrow_blocks(op: Op, block: int) -> None:
    """Tables, no spills, and on the host the exact result; with an epilogue where there is one. Turned ones are elsewhere."""
    finish = EPILOGUES[0] if op is Op.FPROP else Epilogue()
    dtype = DType.FLOAT16 if block == 8 else DType.BFLOAT16
    for layout in (bernoulli(13, 11, 0.3), hub(150, 5) if op is Op.FPROP else hub(5, 150)):
        problem = Problem(op, layout, block, dtype, epilogue=finish, batch=1000, axis=0)
        found: dict[object, hopper_narrow.Draft] = {}
        for draft in hopper_narrow.drafts(problem, BIG):
            if not draft.geometry.turned:
                found.setdefault((draft.geometry.shape.rows, bool(draft.reductions)), draft)
        for n, draft in zip((8, 200), sample(list(found.values()), 2), strict=True):
            plan = hopper_narrow.assemble(problem, BIG, draft)
            check_hopper_narrow(plan)
            compiled_plan(plan)
            check_tables(plan, n)
            if COMPILER:
                check_kernels(plan, n, seed=n)


@pytest.mark.skipif(COMPILER is None, reason="there is no g++")
@pytest.mark.parametrize("block", hopper_narrow.BLOCK_SIZES)
def test_panels_of_every_width_and_tiles_of_every_height_on_the_host(block: int) -> None:
    """Lines of 32, 64 and 128 bytes, one box a panel and two; features that no panel divides."""
    problem = Problem(Op.DGRAD, bernoulli(9, 13, 0.4), block, DType.BFLOAT16, axis=0)
    found: dict[object, hopper_narrow.Draft] = {}
    for draft in hopper_narrow.drafts(problem, BIG):
        shape = draft.geometry.shape
        if not shape.turned:
            found.setdefault((shape.m_tiles, shape.panel), draft)
    assert len(found) == 4 * len(hopper_narrow.panels(problem))
    for turn, draft in enumerate(some_of(list(found.values()), 2 + block // 16)):
        plan = hopper_narrow.assemble(problem, BIG, draft)
        check_hopper_narrow(plan)
        check_kernels(plan, (8, 144, 264)[turn % 3], seed=turn)


def test_ranges_of_multiples_and_of_others() -> None:
    for n, unit in product((1, 7, 8, 9, 63, 64, 100, 4096, 4097, 20000), (1, 4, 8)):
        index = ranges.place(n, unit)
        assert index % ranges.SIZES == ranges.place(n)
        assert (index >= ranges.SIZES) == bool(n % unit)
        assert index % ranges.SIZES in {each % ranges.SIZES for each in ranges.alike(n, unit)}
    for unit in (1, 4, 8):
        places = [ranges.place(n, unit) for n in ranges.members(unit)]
        assert places == list(range(len(places)))
    odd = ranges.SIZES + 2  # N of the third range that are no multiples
    assert ranges.nearest([2, 5], odd) is None
    assert ranges.nearest([2, odd], odd) == odd
    assert ranges.nearest([2, odd], 2) == 2
    assert ranges.nearest([odd], 2) == odd
    assert ranges.nearest([1, 3], 2) == 3


def test_calls_go_where_n_is_served() -> None:
    """Each N to kernels for its kind; the plan for any N takes multiples, too."""
    mm = bsgen.compile(LAYOUT, 32, "bfloat16", ("fprop", "wgrad"), "sm_90a", axis=0)
    for op in ("fprop", "wgrad"):
        families = {n: mm.plan(op, n).family for n in (8, 9, 64, 4096, 4097, 10000)}
        assert families == {8: "hopper", 9: "portable", 64: "hopper", 4096: "hopper", 4097: "portable", 10000: "hopper"}
    for n in (9, 16):
        x, w = np.ones((mm.in_features, n), mm.dtype.numpy), np.ones(mm.weight_shape, mm.dtype.numpy)
        exact = np.repeat(32 * LAYOUT.mask.sum(axis=0), 32)[:, None] * np.ones(n)
        np.testing.assert_array_equal(mm(x, w).astype(np.float64), exact)


def test_the_axis_is_part_of_the_key() -> None:
    for op in Op:
        problem = Problem(op, LAYOUT, 32, DType.BFLOAT16)
        keys = {compiled.key(replace(problem, axis=axis), BIG, "nvrtc") for axis in (0, 1)}
        assert len(keys) == 2


def callable_and_arrays(axis: int, n: tuple[int, ...] = (9,), **options: Any) -> tuple[bsgen.MatMul, dict[str, Any]]:
    """A callable for `axis`, and random arrays of features last."""
    mm = bsgen.compile(LAYOUT, 16, "float32", precision="ieee", arch="sm_80", axis=axis, **options)
    rng = np.random.default_rng(3)
    shapes = {"x": (*n, mm.in_features), "dy": (*n, mm.out_features), "w": mm.weight_shape}
    return mm, {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def first(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Features moved to the front."""
    return np.ascontiguousarray(np.moveaxis(array, -1, 0))


def test_products_of_arrays_with_features_first() -> None:
    for n in ((9,), (2, 3, 4), (), (0,)):
        last, a = callable_and_arrays(1, n)
        mm, _ = callable_and_arrays(0, n)
        assert (mm.axis, last.axis) == (0, 1)
        y, dx = mm(first(a["x"]), a["w"]), mm.dgrad(first(a["dy"]), a["w"])
        dw = mm.wgrad(first(a["x"]), first(a["dy"]))
        assert y.shape == (mm.out_features, *n)
        np.testing.assert_allclose(y, first(last(a["x"], a["w"])), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(dx, first(last.dgrad(a["dy"], a["w"])), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(dw, last.wgrad(a["x"], a["dy"]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_call_may_say_another_axis(axis: int) -> None:
    mm, a = callable_and_arrays(axis)
    turned = {name: first(a[name]) for name in ("x", "dy")}
    dy, x, w = a["dy"], a["x"], a["w"]
    np.testing.assert_allclose(mm(turned["x"], w, axis=0), first(mm(x, w, axis=1)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(mm.dgrad(turned["dy"], w, axis=0), first(mm.dgrad(dy, w, axis=1)), rtol=1e-4, atol=1e-4)
    dw = mm.wgrad(x, dy, axis=1)
    np.testing.assert_allclose(mm.wgrad(turned["x"], turned["dy"], axis=0), dw, rtol=1e-4, atol=1e-4)
    lists = (
        [turned["x"][:, :4].copy(), turned["x"][:, 4:].copy()],
        [turned["dy"][:, :4].copy(), turned["dy"][:, 4:].copy()],
    )
    np.testing.assert_allclose(mm.wgrad(*lists, axis=0), dw, rtol=1e-4, atol=1e-4)
    out = np.ones(mm.weight_shape, np.float32)
    assert mm.wgrad(turned["x"], turned["dy"], out=out, accumulate=True, axis=0) is out
    np.testing.assert_allclose(out, dw + 1, rtol=1e-4, atol=1e-4)
    assert mm.operation("fprop", 1 - axis) is mm.operation("fprop", 1 - axis)
    assert mm.operation("fprop", axis) is mm.operation("fprop")


def test_epilogue_and_gates() -> None:
    options: dict[str, Any] = {"bias": True, "activation": "silu", "residual": True, "gate": True}
    mm, a = callable_and_arrays(0, **options)
    last, _ = callable_and_arrays(1, **options)
    rng = np.random.default_rng(4)
    bias, gate = rng.standard_normal(mm.out_features, np.float32), rng.standard_normal(mm.nnz, np.float32)
    residual = rng.standard_normal((9, mm.out_features), np.float32)
    got = mm(first(a["x"]), a["w"], bias, first(residual), gate=gate)
    np.testing.assert_allclose(got, first(last(a["x"], a["w"], bias, residual, gate=gate)), rtol=1e-4, atol=1e-4)
    for one, other in zip(
        mm.gate_grad(first(a["x"]), first(a["dy"]), a["w"], gate),
        last.gate_grad(a["x"], a["dy"], a["w"], gate),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


def test_what_it_says_of_itself() -> None:
    mm, _ = callable_and_arrays(0)
    again = pickle.loads(pickle.dumps(mm))
    assert again.axis == 0
    assert again.source("fprop") == mm.source("fprop")
    assert mm.source("fprop").startswith("// y = W.T @ x ")
    assert mm.source("wgrad").startswith("// dW = x @ dy.T ")


@pytest.mark.parametrize(
    ("axis", "change", "words"),
    [
        (0, lambda a: {"x": a["x"]}, ("x:", "first dimension of 80", "axis=1")),
        (1, lambda a: {"x": first(a["x"])}, ("x:", "last dimension of 80", "axis=0")),
        (0, lambda a: {"x": first(a["x"])[:-1].copy()}, ("x:", "(79, 9)", "first dimension of 80")),
        (0, lambda a: {"x": np.array(1, np.float32)}, ("x:", "rank 0", "[80, ...]")),
        (0, lambda a: {"x": a["x"].T}, ("x:", "not contiguous")),
    ],
    ids=["last for first", "first for last", "too few", "rank 0", "a view"],
)
def test_arrays_that_do_not_fit(axis: int, change: Any, words: tuple[str, ...]) -> None:
    mm, a = callable_and_arrays(axis)
    with pytest.raises(ArgumentError) as caught:
        mm(**{"w": a["w"], **change(a)})
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("axis", [2, -1, True, "0", 0.0])
def test_no_such_axis(axis: Any) -> None:
    with pytest.raises(ArgumentError, match=r"axis: got .*, expected 0 .* or 1"):
        bsgen.compile(LAYOUT, 16, axis=axis, arch="sm_80")
    mm, a = callable_and_arrays(1)
    with pytest.raises(ArgumentError, match=r"axis: got "):
        mm(a["x"], a["w"], axis=axis)


SPEC = """
arch = "sm_80"
rows = [64]
[[module]]
name = "first"
layout = "layout.npy"
block_size = 16
axis = 0
ops = ["fprop", "wgrad"]
"""


def test_in_packs(tmp_path: Path) -> None:
    LAYOUT.save(tmp_path / "layout.npy")
    (tmp_path / "spec.toml").write_text(SPEC)
    building.build(read_spec(tmp_path / "spec.toml"), tmp_path / "a.bsp", processes=1)
    pack = load_pack(tmp_path / "a.bsp")
    mm = pack.get_for("first", "sm_80")
    assert mm.axis == 0
    wanted = Problem(Op.FPROP, LAYOUT, 16, DType.BFLOAT16, batch=64, axis=0)
    assert pack.find(wanted, "sm_80") is not None
    assert pack.find(replace(wanted, axis=1), "sm_80") is None
    x = np.ones((5, mm.in_features), mm.dtype.numpy)
    with pytest.raises(ArgumentError, match="axis: got 1, but the pack has 'first' for axis 0 alone"):
        mm(x, np.ones(mm.weight_shape, mm.dtype.numpy), axis=1)
    c_export.export(pack, tmp_path / "c")
    header = (tmp_path / "c" / "bsgen_kernels.h").read_text()
    assert "y = W.T @ x for layout" in header
    assert f"x [{mm.in_features}, n], w" in header
    (tmp_path / "spec.toml").write_text(SPEC.replace("axis = 0", "axis = 2"))
    with pytest.raises(ArgumentError, match="module 'first': axis: got 2"):
        read_spec(tmp_path / "spec.toml")
