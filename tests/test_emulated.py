"""The kernels' own text, run on the host (see emulator/): every sample, and the shapes of kernels, against float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from emulator import COMPILER, run
from problems import BIG, NARROW_KINDS, bernoulli, hub, sample, some_of
from test_reference import TOLERANCE, expected, operands

from bsgen import samples, topology
from bsgen.layout import Layout
from bsgen.plan import Plan, hopper, hopper_narrow, hopper_narrow_wgrad, hopper_wgrad
from bsgen.problem import Activation, DType, Epilogue, Op, Precision, Problem

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no g++")


def check(plan: Plan, n: int, seed: int = 0) -> None:
    """One run of a plan's kernels against the exact result; what is not written stays NaN."""
    problem = plan.problem
    arrays = operands(problem, n, seed)
    exact = expected(problem, arrays)
    if problem.gate and problem.op is Op.WGRAD:
        arrays["dgate"] = np.full(problem.layout.nnz, np.nan, np.float32)
    got = run(plan, arrays, exact.shape, seed, n=n).astype(np.float64)
    error, norm = float(np.linalg.norm(got - exact)), float(np.linalg.norm(exact))
    tolerance = 1e-3 if problem.precision is Precision.TENSOR else TOLERANCE[problem.dtype]
    assert error <= max(tolerance, TOLERANCE[problem.dtype]) * norm, f"{plan.summary}, N = {n}: {error / norm:.2e}"


def check_added(plan: Plan, n: int) -> None:
    """One run of wgrad that adds to what is there."""
    arrays: dict[str, Any] = operands(plan.problem, n)
    exact = expected(plan.problem, arrays)
    out = np.random.default_rng(n).standard_normal(exact.shape).astype(plan.problem.dtype.numpy)
    exact = exact + out.astype(np.float64)
    got = run(plan, {**arrays, "out": out}, exact.shape, n=n, accumulate=1).astype(np.float64)
    assert np.linalg.norm(got - exact) <= TOLERANCE[plan.problem.dtype] * np.linalg.norm(exact), plan.summary


@pytest.mark.parametrize("each", samples.SAMPLES, ids=lambda each: each.name)
def test_samples(each: samples.Sample) -> None:
    lines = each.axis == 0 and each.arch == samples.HOPPER  # which TMA reads: of whole chunks of 16 bytes
    check(each.plan, 40 if lines else 37, seed=1)


@pytest.mark.parametrize(("op", "block", "dtype"), NARROW_KINDS)
def test_narrow_blocks(op: Op, block: int, dtype: DType) -> None:
    layout, batch = (bernoulli(13, 11, 0.3), 100) if dtype is DType.BFLOAT16 else (hub(70, 9), 3)
    problem = Problem(op, layout if op is Op.FPROP else layout.transpose(), block, dtype, batch=batch)
    for axis, rows in ((1, (17, 150)), (0, (16, 152))):
        each = replace(problem, axis=axis)
        for n, draft in zip(rows, sample(list(hopper_narrow.drafts(each, BIG)), 2), strict=True):
            check(hopper_narrow.assemble(each, BIG, draft), n, seed=n)


@pytest.mark.parametrize("op", [Op.FPROP, Op.DGRAD], ids=str)
@pytest.mark.parametrize("block", hopper_narrow.BLOCK_SIZES)
def test_turned_products_of_narrow_blocks(block: int, op: Op) -> None:
    """Of split output blocks, beside which some stages have one operation or none for a warpgroup; features last and first."""
    mask = hub(60, 12).mask | bernoulli(60, 12, 0.15).mask
    axis, layout = int((op is Op.FPROP) == (block == 16)), Layout(mask if op is Op.FPROP else mask.T)
    problem = Problem(op, layout, block, DType.BFLOAT16, batch=1000, axis=axis)
    drafts = [draft for draft in hopper_narrow.drafts(problem, BIG) if draft.geometry.turned]
    split = next(draft for draft in drafts if draft.reductions)
    check(hopper_narrow.assemble(problem, BIG, split), 270 if axis else 272)


@pytest.mark.parametrize("op", [Op.FPROP, Op.DGRAD], ids=str)
def test_warpgroups(op: Op) -> None:
    for block, dtype in ((32, DType.FLOAT16),) if op is Op.FPROP else ((64, DType.BFLOAT16),):
        problem = Problem(op, bernoulli(5, 6, 0.4), block, dtype, batch=100)
        for n, draft in zip((1, 80), sample(list(hopper.drafts(problem, BIG)), 2), strict=True):
            check(hopper.assemble(problem, BIG, draft), n, seed=n)


@pytest.mark.parametrize("op", [Op.FPROP, Op.DGRAD], ids=str)
def test_whole_lines(op: Op) -> None:
    """Two panels or output blocks in a line of 128 bytes, with all that follows a product."""
    finish = Epilogue(True, Activation.RELU, True) if op is Op.FPROP else Epilogue()
    problem = Problem(op, bernoulli(8, 20, 0.5), 32, DType.FLOAT16, epilogue=finish, batch=1000)
    kinds: dict[object, hopper.Draft] = {}
    for draft in hopper.drafts(problem, BIG):
        shape = draft.geometry.shape
        kinds.setdefault((shape.cluster, shape.paired, draft.geometry.coupled), draft)
    chosen = [draft for kind, draft in kinds.items() if sum(kind) > 2]
    assert len(chosen) >= 3
    for seed, draft in enumerate(sample(chosen, 3)):
        check(hopper.assemble(problem, BIG, draft), 75, seed=seed)


@pytest.mark.parametrize("op", [Op.FPROP, Op.DGRAD], ids=str)
def test_products_of_panels_where_they_lie(op: Op) -> None:
    """Of blocks of 32, beside more sums than leave registers for fragments: features last, alone and paired, with a residual that
    takes two stages; and first."""
    for axis in (1, 0):
        finish = Epilogue(activation=Activation.RELU, residual=True) if axis and op is Op.FPROP else Epilogue()
        problem = Problem(op, bernoulli(8, 20, 0.5), 32, DType.BFLOAT16, epilogue=finish, batch=1000, axis=axis)
        kinds: dict[object, hopper.Draft] = {}
        for draft in hopper.drafts(problem, BIG):
            if draft.geometry.direct:
                kinds.setdefault((draft.geometry.shape.paired, draft.geometry.shape.cluster), draft)
        assert len(kinds) == (4 if axis else 2)
        for seed, draft in enumerate(sample(list(kinds.values()), 1 + axis)):
            check(hopper.assemble(problem, BIG, draft), 136, seed=seed)


def joined(problem: Problem, kind: Callable[[hopper.Draft], object]) -> list[hopper.Draft]:
    """A draft with joined products of each kind."""
    kinds: dict[object, hopper.Draft] = {}
    for draft in hopper.drafts(problem, BIG):
        if draft.geometry.shape.joined:
            kinds.setdefault(kind(draft), draft)
    return list(kinds.values())


@pytest.mark.parametrize("op", [Op.FPROP, Op.DGRAD], ids=str)
def test_joined_products(op: Op) -> None:
    """One of all output blocks of a warpgroup: forms of blocks of 32 and 64, in pairs and alone, with all that follows a product;
    features first; TF32."""
    finish = Epilogue(True, Activation.RELU, True) if op is Op.FPROP else Epilogue()
    grouped = topology.block_diagonal(24, 36, 3) if op is Op.FPROP else topology.block_diagonal(36, 24, 3)

    def form(draft: hopper.Draft) -> object:
        return replace(draft.geometry.shape, cluster=1, stages=0, stage_bytes=0, store_bytes=0)

    problem = Problem(op, grouped, 32, DType.BFLOAT16, epilogue=finish, batch=1000)
    drafts = joined(problem, form)
    assert len(drafts) > 10
    assert {draft.geometry.shape.product_slots for draft in drafts} == {2, 4, 6}
    below = [draft for draft in drafts if draft.geometry.shape.row_groups > 1 and draft.geometry.shape.paired]
    for seed, draft in enumerate([*sample(drafts, 2), below[0]]):
        check(hopper.assemble(problem, BIG, draft), 136, seed=seed)
    for axis, block, dtype in ((0, 32, DType.BFLOAT16), (1, 64, DType.FLOAT16)):
        problem = Problem(
            op, Layout(np.ones((4, 6) if op is Op.FPROP else (6, 4), bool)), block, dtype, batch=1000, axis=axis
        )
        drafts = joined(problem, form)
        check(hopper.assemble(problem, BIG, sample(drafts, 1)[0]), 136)
    strided = Problem(op, Layout(np.equal.outer(np.arange(12) % 2, np.arange(16) % 2)), 32, DType.BFLOAT16, batch=1000)
    alike = next(draft for draft in joined(strided, lambda draft: draft.grouping) if draft.grouping == "alike")
    check(hopper.assemble(strided, BIG, alike), 136)
    if op is Op.DGRAD:
        problem = Problem(op, grouped, 32, DType.FLOAT32, batch=1000)
        check(hopper.assemble(problem, BIG, sample(joined(problem, form), 1)[0]), 70)


def test_a_residual_in_two_stages() -> None:
    """Of blocks of 64, with a bias: of each tile that takes two, one plan."""
    problem = Problem(
        Op.FPROP, bernoulli(5, 9, 0.5), 64, DType.BFLOAT16, epilogue=Epilogue(True, None, True), batch=1000
    )
    kinds: dict[object, hopper.Draft] = {}
    for draft in hopper.drafts(problem, BIG):
        if draft.geometry.residual_parts > 1:
            kinds.setdefault((draft.geometry.shape.columns, draft.geometry.shape.slots), draft)
    assert len(kinds) == 3
    for seed, draft in enumerate(kinds.values()):
        check(hopper.assemble(problem, BIG, draft), 150, seed=seed)


@pytest.mark.parametrize("block", [32, 64, 128])
def test_fprop_in_tf32(block: int) -> None:
    """W^T as the left operand: three of the forms, with all that follows, and two of those of few rows."""
    layout = bernoulli(8, 20, 0.5) if block == 32 else bernoulli(3, 5, 0.6)
    for batch, rows in ((1000, 75), (24, 21)):
        finish = Epilogue(True, Activation.RELU, True) if batch == 1000 else Epilogue()
        problem = Problem(Op.FPROP, layout, block, DType.FLOAT32, epilogue=finish, batch=batch)
        kinds: dict[object, hopper.Draft] = {}
        for draft in hopper.drafts(problem, BIG, rings=(1, 2)):
            shape, split = draft.geometry.shape, bool(draft.reductions)
            kinds.setdefault((shape.groups, shape.m_tiles, shape.thread_blocks, shape.few, shape.rings, split), draft)
        for seed, draft in enumerate(sample(list(kinds.values()), 3 if batch == 1000 else 2)):
            check(hopper.assemble(problem, BIG, draft), rows + seed, seed=seed)


@pytest.mark.parametrize("op", [Op.FPROP, Op.DGRAD], ids=str)
def test_two_rings(op: Op) -> None:
    """Warpgroups of two rings in a thread block, with tiles of their own: more of them than rings, and fewer."""
    finish = Epilogue(True, Activation.RELU, True) if op is Op.FPROP else Epilogue()
    for n, block, axis in ((300, 32, 1), (70, 64, 1) if op is Op.FPROP else (72, 32, 0)):
        problem = Problem(op, bernoulli(8, 20, 0.5), block, DType.BFLOAT16, epilogue=finish, batch=1000, axis=axis)
        drafts = list(hopper.drafts(problem, BIG, rings=(2,)))
        assert len(drafts) >= 2
        check(hopper.assemble(problem, BIG, drafts[0 if op is Op.FPROP else -1]), n)


@pytest.mark.parametrize("op", [Op.FPROP, Op.DGRAD], ids=str)
def test_thread_blocks_across(op: Op) -> None:
    """They bring panels for each other, in stages in step; the last tiles of a cluster may be empty."""
    finish = Epilogue(True, Activation.RELU, True) if op is Op.FPROP else Epilogue()
    problem = Problem(op, bernoulli(9, 13, 0.4), 32, DType.BFLOAT16, epilogue=finish, batch=64)
    drafts = [draft for draft in hopper.drafts(problem, BIG, (2, 4)) if draft.geometry.shape.across > 1]
    for seed, draft in enumerate(sample(drafts, 3)):
        check(hopper.assemble(problem, BIG, draft), 70, seed=seed)


@pytest.mark.parametrize(("op", "dtype"), [(Op.DGRAD, DType.FLOAT32), (Op.FPROP, DType.BFLOAT16)], ids=str)
def test_neighbours_in_a_cluster_outlive_what_arrives_at_them(op: Op, dtype: DType) -> None:
    """A thread block that ended before its neighbour's last arrival at its barriers would be a fault of the launch."""
    problem = Problem(op, bernoulli(5, 6, 0.4), 32, dtype, batch=1000)
    drafts = [draft for draft in hopper.drafts(problem, BIG) if draft.geometry.shape.cluster > 1]
    for seed, draft in enumerate(sample(drafts, 2)):
        check(hopper.assemble(problem, BIG, draft), 150, seed=seed)


def test_gradients_of_weights() -> None:
    problem = Problem(Op.WGRAD, bernoulli(6, 5, 0.5), 32, DType.FLOAT16, batch=1000)
    for n, plan in zip((5, 200), sample(list(hopper_wgrad.candidates(problem, BIG)), 2), strict=True):
        check(plan, n, seed=n)


@pytest.mark.parametrize("block", hopper_wgrad.BLOCK_SIZES)
def test_gradients_of_weights_are_added_in_whole_lines(block: int) -> None:
    """16 bits, to what is there; features last and first."""
    for axis, n in ((1, 37), (0, 40)):
        problem = Problem(Op.WGRAD, bernoulli(3, 4, 0.6), block, DType.FLOAT16, batch=1000, axis=axis)
        check_added(next(plan for plan in hopper_wgrad.candidates(problem, BIG) if plan.stores_lines), n)


@pytest.mark.parametrize("block", hopper_narrow_wgrad.BLOCK_SIZES)
def test_gradients_of_narrow_weights(block: int) -> None:
    layout, dtype = (bernoulli(13, 11, 0.4), DType.FLOAT16) if block == 8 else (hub(40, 9), DType.BFLOAT16)
    problem = Problem(Op.WGRAD, layout, block, dtype, batch=4000)
    for n, plan in zip((5, 300), sample(list(hopper_narrow_wgrad.candidates(problem, BIG)), 2), strict=True):
        check(plan, n, seed=n)
    problem = Problem(Op.WGRAD, layout, block, dtype, batch=4000, axis=0)
    kinds: dict[object, Plan] = {}
    for plan in hopper_narrow_wgrad.candidates(problem, BIG):
        kinds.setdefault((plan.geometry.shape.rows, plan.geometry.shape.panel, plan.splits > 1), plan)
    for n, plan in zip((8, 304, 72), some_of(list(kinds.values()), 3), strict=False):
        check(plan, n, seed=n)


def test_accumulation() -> None:
    """`accumulate` adds to what is there."""
    for block in (8, 32):
        problem = Problem(Op.WGRAD, Layout([[1, 0], [1, 1]]), block, DType.FLOAT32, Precision.IEEE)
        plan = samples.choose(problem, BIG)
        arrays: dict[str, Any] = operands(problem, 9)
        exact = expected(problem, arrays) + 2
        out = np.full(exact.shape, 2, np.float32)
        got = run(plan, {**arrays, "out": out}, exact.shape, n=9, accumulate=1)
        np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-5)
