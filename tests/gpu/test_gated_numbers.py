"""Gates against float64: every op, block size, type and family; switched-off blocks of NaN; the same bits; graphs."""

from __future__ import annotations

from typing import Any

import pytest
from cases import (
    ARITHMETIC,
    BLOCK_SIZES,
    BLOCKS,
    LAYOUTS,
    Case,
    assert_close,
    compile_case,
    gathered,
    normal,
    poison,
    torch,
)
from plans import launch, loaded, spread

import bsgen
from bsgen.layout import Layout
from bsgen.plan import Plan, hopper_narrow, hopper_wgrad
from bsgen.problem import TARGETS, DType, Op, Problem
from bsgen.runtime import driver

NAMES = ("random10", "random50", "one", "holes", "hub", "full", "wide", "none")
CASES = [Case(layout, b, *arithmetic, gate=True) for layout in NAMES for b in BLOCK_SIZES for arithmetic in ARITHMETIC]
BATCHES = (0, 1, 17, 129, 1000, 4097)
RUNS = 20


def gates(nnz: int, seed: int = 0) -> Any:
    """A third are zero."""
    found = normal(nnz, dtype="float32", seed=seed)
    found[::3] = 0
    return found


def switched_off(w: Any, gate: Any) -> Any:
    """Weights that are NaN, or infinite, where the gate is zero."""
    spoilt = w.clone()
    off = torch.nonzero(gate == 0).flatten()
    spoilt[off[::2]], spoilt[off[1::2]] = float("nan"), float("inf")
    return spoilt


def scaled(blocks: Any, gate: Any) -> Any:
    return gate.double()[:, None, None] * blocks.double()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_products(case: Case) -> None:
    mm = compile_case(case)
    w, gate = normal(*mm.weight_shape, dtype=case.dtype, seed=1), gates(mm.nnz)
    spoilt, dense = switched_off(w, gate), mm.to_dense(scaled(w, gate))
    for n in BATCHES:
        x = normal(n, mm.in_features, dtype=case.dtype, seed=n)
        dy = normal(n, mm.out_features, dtype=case.dtype, seed=n + 1)
        y, dx = (poison(*a.shape, dtype=case.dtype) for a in (dy, x))
        dw, both = (poison(*mm.weight_shape, dtype=case.dtype) for _ in range(2))
        dgate = poison(mm.nnz, dtype="float32")
        assert mm(x, spoilt, gate=gate, out=y) is y
        mm.dgrad(dy, spoilt, gate=gate, out=dx)
        mm.wgrad(x, dy, gate=gate, out=dw)
        mm.gate_grad(x, dy, w, gate, out=(both, dgate))
        sums = gathered(mm, x.double().T @ dy.double())
        assert_close(y, x.double() @ dense, case.tolerance)
        assert_close(dx, dy.double() @ dense.T, case.tolerance)
        assert_close(dw, scaled(sums, gate), case.tolerance)
        terms = sums * w.double()  # their sum may be far smaller than they are
        assert (dgate.double() - terms.sum((1, 2))).norm() <= case.tolerance * terms.norm()
        assert torch.equal(both, dw)
        assert not dw[gate == 0].any()


@pytest.mark.parametrize("case", [Case("random50", b, *a, gate=True) for b in BLOCK_SIZES for a in ARITHMETIC], ids=str)
def test_same_bits(case: Case) -> None:
    mm = compile_case(case)
    x, dy = (normal(1000, f, dtype=case.dtype, seed=f) for f in (mm.in_features, mm.out_features))
    w, gate = normal(*mm.weight_shape, dtype=case.dtype), gates(mm.nnz)

    def products() -> list[Any]:
        return [mm(x, w, gate=gate), mm.dgrad(dy, w, gate=gate), *mm.gate_grad(x, dy, w, gate)]

    first = products()
    for _ in range(RUNS - 1):
        assert all(torch.equal(a, b) for a, b in zip(first, products(), strict=True))


@pytest.mark.parametrize("block", BLOCK_SIZES)
def test_ones_change_nothing(block: int) -> None:
    """fprop and dgrad run the same kernel on the same weights."""
    gated, plain = (compile_case(Case("random50", block, "bfloat16", gate=gate)) for gate in (True, False))
    x, dy = (normal(500, f, dtype="bfloat16", seed=f) for f in (plain.in_features, plain.out_features))
    w, ones = normal(*plain.weight_shape, dtype="bfloat16"), torch.ones(plain.nnz, device="cuda")
    assert torch.equal(gated(x, w, gate=ones), plain(x, w))
    assert torch.equal(gated.dgrad(dy, w, gate=ones), plain.dgrad(dy, w))
    assert_close(gated.wgrad(x, dy, gate=ones), plain.wgrad(x, dy).double(), 5e-3)


@pytest.mark.parametrize("arithmetic", ARITHMETIC, ids="-".join)
@pytest.mark.parametrize("n", [0, 100, 1000])
def test_accumulates(arithmetic: tuple[str, str], n: int) -> None:
    mm = compile_case(Case("hub", 32, *arithmetic, gate=True))
    x, dy = (normal(n, f, dtype=arithmetic[0], seed=f) for f in (mm.in_features, mm.out_features))
    w, gate = normal(*mm.weight_shape, dtype=arithmetic[0]), gates(mm.nnz)
    start = normal(*mm.weight_shape, dtype=arithmetic[0], seed=3), normal(mm.nnz, dtype="float32", seed=4)
    out = start[0].clone(), start[1].clone()
    sums = gathered(mm, x.double().T @ dy.double())
    assert mm.gate_grad(x, dy, w, gate, out=out, accumulate=True)[1] is out[1]
    assert_close(out[0], start[0].double() + scaled(sums, gate), 5e-3)
    assert_close(out[1], start[1].double() + (sums * w.double()).sum((1, 2)), 5e-3)
    mm.wgrad(x, dy, out=out[0], accumulate=True, gate=gate)
    assert_close(out[0], start[0].double() + 2 * scaled(sums, gate), 1e-2)


def test_epilogue_and_leading_dimensions() -> None:
    mm = compile_case(Case("hub", 32, "float16", gate=True), bias=True, activation="relu", residual=True)
    w, gate = normal(*mm.weight_shape, dtype="float16"), gates(mm.nnz)
    x, bias = normal(2, 33, mm.in_features, dtype="float16"), normal(mm.out_features, dtype="float16", seed=2)
    residual = normal(2, 33, mm.out_features, dtype="float16", seed=3)
    product = x.double() @ mm.to_dense(scaled(w, gate)) + bias.double()
    y = mm(x, switched_off(w, gate), bias, residual, gate=gate)
    assert_close(y, torch.relu(product) + residual.double(), 5e-3)


def test_cuda_graph() -> None:
    """A captured call sees the weights and gates of each replay."""
    mm = compile_case(Case("random10", 32, "float16", gate=True))
    mm.warmup()
    x, dy = (normal(200, f, dtype="float16", seed=f) for f in (mm.in_features, mm.out_features))
    w, gate = normal(*mm.weight_shape, dtype="float16"), torch.ones(mm.nnz, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = [mm(x, w, gate=gate), mm.dgrad(dy, w, gate=gate), *mm.gate_grad(x, dy, w, gate)]
    gate.copy_(gates(mm.nnz, seed=7))
    w.copy_(switched_off(normal(*mm.weight_shape, dtype="float16", seed=8), gate))
    graph.replay()
    w_finite = torch.where((gate != 0)[:, None, None], w, torch.zeros_like(w))
    expected = [mm(x, w_finite, gate=gate), mm.dgrad(dy, w_finite, gate=gate), mm.wgrad(x, dy, gate=gate)]
    for got, want in zip(captured, expected, strict=False):
        assert torch.equal(got, want)
    on = gate != 0
    assert torch.equal(captured[3][on], mm.gate_grad(x, dy, w_finite, gate)[1][on])


def test_many_streams() -> None:
    """Calls on several streams at once have a workspace each."""
    mm = compile_case(Case("random50", 64, "bfloat16", gate=True))
    x, w = normal(300, mm.in_features, dtype="bfloat16"), normal(*mm.weight_shape, dtype="bfloat16")
    many = [gates(mm.nnz, seed=seed) for seed in range(8)]
    expected = [mm(x, w, gate=gate) for gate in many]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in many]
    results = []
    for stream, gate in zip(streams, many, strict=True):
        with torch.cuda.stream(stream):
            results.append([mm(x, w, gate=gate) for _ in range(20)])
    torch.cuda.synchronize()
    for want, got in zip(expected, results, strict=True):
        assert all(torch.equal(each, want) for each in got)


# Hopper's kernels of every shape, also those that the planner would not choose.


def run(plan: Plan, kernels: object, arrays: dict[str, Any], shape: tuple[int, ...], n: int) -> tuple[Any, Any]:
    """Result and gates' gradients of a plan, into poisoned memory, with a poisoned workspace."""
    out, dgate = poison(*shape, dtype=str(plan.problem.dtype)), poison(plan.problem.layout.nnz, dtype="float32")
    workspace = poison(max(1, plan.workspace.elements(n)), dtype="float32")
    given = {**arrays, "out": out, "dgate": dgate, "workspace": workspace}
    stream = torch.cuda.current_stream().cuda_stream
    launch(kernels, {name: array.data_ptr() for name, array in given.items()}, n, stream)
    torch.cuda.synchronize()
    return out, dgate


@pytest.fixture
def _only_on_hopper() -> None:
    if driver.current_device().arch != "sm_90a":
        pytest.skip("needs a Hopper GPU")


def dense_of(layout: Layout, w: Any) -> Any:
    block, (rows, columns) = w.shape[1], layout.shape
    dense = torch.zeros(rows, columns, block, block, dtype=torch.float64, device="cuda")
    places = torch.as_tensor(layout.blocks.astype("int64"), device="cuda")
    dense[places[:, 0], places[:, 1]] = w
    return dense.permute(0, 2, 1, 3).reshape(rows * block, columns * block)


@pytest.mark.usefixtures("_only_on_hopper")
@pytest.mark.parametrize("block", [32, 64, 128])
@pytest.mark.parametrize("op", [Op.FPROP, Op.DGRAD], ids=str)
@pytest.mark.parametrize("name", ["random50", "hub", "wide"])
def test_hopper_shapes(name: str, op: Op, block: int) -> None:
    layout = Layout(LAYOUTS[name](BLOCKS[block]))
    problem = Problem(op, layout, block, DType.BFLOAT16, gate=True)
    w, gate = normal(layout.nnz, block, block, dtype="bfloat16", seed=1), gates(layout.nnz)
    dense = dense_of(layout, scaled(w, gate))
    dense = dense if op is Op.FPROP else dense.T
    plans = spread(problem, TARGETS["sm_90a"])
    for plan, kernels in zip(plans, loaded(plans, "sm_90a"), strict=True):
        for n in (1, 64, 1000):
            x = normal(n, dense.shape[0], dtype="bfloat16", seed=n)
            arrays = {plan.activations: x, "w": switched_off(w, gate), "gate": gate}
            out, _ = run(plan, kernels, arrays, (n, dense.shape[1]), n)
            assert_close(out, x.double() @ dense, 5e-3)


@pytest.mark.usefixtures("_only_on_hopper")
@pytest.mark.parametrize("block", hopper_narrow.BLOCK_SIZES)
@pytest.mark.parametrize("op", [Op.FPROP, Op.DGRAD], ids=str)
@pytest.mark.parametrize("name", ["random50", "hub", "wide"])
def test_hopper_of_narrow_blocks(name: str, op: Op, block: int) -> None:
    layout = Layout(LAYOUTS[name](BLOCKS[block]))
    w, gate = normal(layout.nnz, block, block, dtype="bfloat16", seed=1), gates(layout.nnz)
    dense = dense_of(layout, scaled(w, gate))
    dense = dense if op is Op.FPROP else dense.T
    problems = [
        Problem(op, layout, block, DType.BFLOAT16, batch=batch, gate=True, axis=axis)
        for batch in (64, 4096)
        for axis in (1, 0)
    ]
    plans = [plan for problem in problems for plan in hopper_narrow.shortlist(problem, TARGETS["sm_90a"])]
    for plan, kernels in zip(plans, loaded(plans, "sm_90a"), strict=True):
        for n in (8, 64, 1000) if plan.problem.feature_first else (1, 64, 1000):
            x = normal(n, dense.shape[0], dtype="bfloat16", seed=n)
            arrays = {plan.activations: x, "w": switched_off(w, gate), "gate": gate}
            if plan.problem.feature_first:
                arrays[plan.activations] = x.T.contiguous()
                out, _ = run(plan, kernels, arrays, (dense.shape[1], n), n)
                out = out.T
            else:
                out, _ = run(plan, kernels, arrays, (n, dense.shape[1]), n)
            assert_close(out, x.double() @ dense, 5e-3)


@pytest.mark.usefixtures("_only_on_hopper")
@pytest.mark.parametrize("block", hopper_wgrad.BLOCK_SIZES)
@pytest.mark.parametrize("name", ["random10", "random50", "one", "hub", "full"])
def test_hopper_wgrad(name: str, block: int) -> None:
    """Every ring, with splits and without, of several sizes of tiles."""
    layout = Layout(LAYOUTS[name](BLOCKS[block]))
    problem = Problem(Op.WGRAD, layout, block, DType.BFLOAT16, batch=4096, gate=True)
    found: dict[tuple[int, int], hopper_wgrad.Draft] = {}
    for draft in hopper_wgrad.drafts(problem, TARGETS["sm_90a"]):
        found[draft.geometry.rows, draft.splits] = draft
    plans = [hopper_wgrad.assemble(problem, TARGETS["sm_90a"], draft) for draft in found.values()]
    w, gate = normal(layout.nnz, block, block, dtype="bfloat16", seed=1), gates(layout.nnz)
    places = torch.as_tensor(layout.blocks.astype("int64"), device="cuda")
    for plan, kernels in zip(plans, loaded(plans, "sm_90a"), strict=True):
        for n in (1, 129, 4097):
            x = normal(n, problem.in_features, dtype="bfloat16", seed=n)
            dy = normal(n, problem.out_features, dtype="bfloat16", seed=n + 1)
            dense = (x.double().T @ dy.double()).reshape(layout.shape[0], block, layout.shape[1], block)
            sums = dense.permute(0, 2, 1, 3)[places[:, 0], places[:, 1]]
            arrays = {"x": x, "dy": dy, "w": w, "gate": gate}
            dw, dgate = run(plan, kernels, arrays, (layout.nnz, block, block), n)
            assert_close(dw, scaled(sums, gate), 5e-3)
            assert_close(dgate, (sums * w.double()).sum((1, 2)), 5e-3)


def test_errors_launch_nothing() -> None:
    mm = compile_case(Case("random10", 32, "float16", gate=True))
    x, w = normal(8, mm.in_features, dtype="float16"), normal(*mm.weight_shape, dtype="float16")
    for gate, words in (
        (None, "gate: got None"),
        (torch.ones(mm.nnz), "gate: is on the CPU"),
        (torch.ones(mm.nnz, device="cuda", dtype=torch.float16), "gate: got float16, expected float32"),
        (torch.ones(mm.nnz + 1, device="cuda"), "gate: got shape"),
        (torch.ones(mm.nnz + 1, device="cuda")[1:], "gate: starts at address"),
    ):
        with pytest.raises(bsgen.ArgumentError, match=words):
            mm(x, w, gate=gate)
