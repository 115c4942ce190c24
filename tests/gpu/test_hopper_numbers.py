"""Every shape of the Hopper kernels against float64, also those that the planner would not choose."""

from __future__ import annotations

import numpy as np
import pytest
from cases import BLOCKS, LAYOUTS, assert_close, normal, poison, torch
from plans import launch, loaded, narrow, spread

from bsgen.layout import Layout
from bsgen.plan import Plan, hopper, hopper_narrow, streamed
from bsgen.problem import TARGETS, Activation, DType, Epilogue, Op, Problem
from bsgen.runtime import driver

NAMES = ("random1", "random10", "random50", "one", "holes", "hub", "full", "grouped", "banded", "wide", "tall")
BATCHES = (1, 3, 64, 129, 1000, 4097)
KINDS = [(op, block, "bfloat16") for op in ("fprop", "dgrad") for block in hopper.BLOCK_SIZES]
KINDS += [("fprop", 32, "float16"), ("dgrad", 64, "float16")]
KINDS += [("fprop", block, "float32") for block in hopper.BLOCK_SIZES]
KINDS += [("dgrad", 32, "float32"), ("dgrad", 128, "float32")]
KINDS += [(op, block, "bfloat16") for op in ("fprop", "dgrad") for block in hopper_narrow.BLOCK_SIZES]
KINDS += [("fprop", 8, "float16"), ("dgrad", 16, "float16")]
RUNS = 20


def plans_of(problem: Problem) -> list[Plan]:
    """Plans of every shape: for narrow blocks those that are made for them."""
    target = TARGETS["sm_90a"]
    if problem.block_size in hopper_narrow.BLOCK_SIZES:
        return list(narrow(problem, target))
    return list(spread(problem, target))


@pytest.fixture(autouse=True)
def _only_on_hopper() -> None:
    if driver.current_device().arch != "sm_90a":
        pytest.skip("needs a Hopper GPU")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))
@pytest.mark.parametrize("name", NAMES)
def test_products(name: str, kind: tuple[str, int, str]) -> None:
    op, block, dtype = kind
    layout = Layout(LAYOUTS[name](BLOCKS[block]))
    problem = Problem(Op(op), layout, block, DType(dtype))
    plans = plans_of(problem)
    assert plans or not layout.nnz
    w = normal(layout.nnz, block, block, dtype=dtype, seed=1)
    dense = _dense(layout, w)
    dense = dense if op == "fprop" else dense.T
    for plan, kernels in zip(plans, loaded(plans, "sm_90a"), strict=True):
        for n in BATCHES:
            x = normal(n, dense.shape[0], dtype=dtype, seed=n)
            out = _call(plan, kernels, x, w, dense.shape[1], n)
            assert_close(out, x.double() @ dense, 1e-3 if dtype == "float32" else 5e-3)


@pytest.mark.parametrize("op", ["fprop", "dgrad"])
@pytest.mark.parametrize("block", [*hopper.BLOCK_SIZES, *hopper_narrow.BLOCK_SIZES])
@pytest.mark.parametrize("name", ["random10", "random50", "holes", "hub"])
def test_few_rows_and_weights_that_l2_cannot_hold(
    name: str, block: int, op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plans for few rows, with a third of the blocks of W kept in L2 and the others evicted first; the same bits again."""
    layout = Layout(LAYOUTS[name](BLOCKS[block]))
    problem = Problem(Op(op), layout, block, DType.BFLOAT16, batch=64)
    monkeypatch.setattr(streamed, "HELD_BYTES", 0)
    monkeypatch.setattr(streamed, "KEPT_BYTES", layout.nnz * block**2 * 2 // 3)
    plans = [plan for plan in plans_of(problem) if plan.streamed]
    assert plans
    w = normal(layout.nnz, block, block, dtype="bfloat16", seed=1)
    dense = _dense(layout, w)
    dense = dense if op == "fprop" else dense.T
    for plan, kernels in zip(plans, loaded(plans, "sm_90a"), strict=True):
        for n in BATCHES:
            x = normal(n, dense.shape[0], dtype="bfloat16", seed=n)
            out = _call(plan, kernels, x, w, dense.shape[1], n)
            assert_close(out, x.double() @ dense, 5e-3)
            assert torch.equal(out, _call(plan, kernels, x, w, dense.shape[1], n))


@pytest.mark.parametrize("op", ["fprop", "dgrad"])
@pytest.mark.parametrize("block", [32, 128])
@pytest.mark.parametrize("name", ["random10", "random50", "holes", "tall", "full"])
def test_thread_blocks_across(name: str, block: int, op: str) -> None:
    """Thread blocks that bring panels for each other; the same bits again."""
    layout = Layout(LAYOUTS[name](BLOCKS[block]))
    plans = spread(Problem(Op(op), layout, block, DType.BFLOAT16), TARGETS["sm_90a"], (2, 4))
    plans = [plan for plan in plans if plan.across > 1]
    assert plans
    w = normal(layout.nnz, block, block, dtype="bfloat16", seed=1)
    dense = _dense(layout, w)
    dense = dense if op == "fprop" else dense.T
    for plan, kernels in zip(plans, loaded(plans, "sm_90a"), strict=True):
        for n in BATCHES:
            x = normal(n, dense.shape[0], dtype="bfloat16", seed=n)
            out = _call(plan, kernels, x, w, dense.shape[1], n)
            assert_close(out, x.double() @ dense, 5e-3)
            assert torch.equal(_call(plan, kernels, x, w, dense.shape[1], n), out), plan.summary


@pytest.mark.parametrize("block", hopper_narrow.BLOCK_SIZES + hopper.BLOCK_SIZES)
@pytest.mark.parametrize("op", ["fprop", "dgrad"])
@pytest.mark.parametrize("name", ["random10", "random50", "holes", "hub", "tall"])
def test_features_first(name: str, op: str, block: int) -> None:
    """N of whole chunks of 16 bytes; the same bits again."""
    layout = Layout(LAYOUTS[name](BLOCKS[block]))
    plans = plans_of(Problem(Op(op), layout, block, DType.BFLOAT16, axis=0))
    w = normal(layout.nnz, block, block, dtype="bfloat16", seed=1)
    dense = _dense(layout, w)
    dense = dense.T if op == "fprop" else dense
    for plan, kernels in zip(plans, loaded(plans, "sm_90a"), strict=True):
        for n in (8, 64, 136, 1000, 4104):
            x = normal(dense.shape[1], n, dtype="bfloat16", seed=n)
            out = _call(plan, kernels, x, w, dense.shape[0], n)
            assert_close(out, dense @ x.double(), 5e-3)
            assert torch.equal(_call(plan, kernels, x, w, dense.shape[0], n), out), plan.summary


@pytest.mark.parametrize("op", ["fprop", "dgrad"])
@pytest.mark.parametrize("block", hopper.BLOCK_SIZES)
def test_float32_is_rounded_to_tf32_not_cut(block: int, op: str) -> None:
    """Cut operands would draw every sum to zero, by 3.5e-4 of it; rounded ones err either way, by 2.9e-4 in all."""
    layout = Layout(LAYOUTS["random50"](BLOCKS[block]))
    plans = plans_of(Problem(Op(op), layout, block, DType.FLOAT32))
    w = normal(layout.nnz, block, block, dtype="float32", seed=1)
    dense = _dense(layout, w)
    dense = dense if op == "fprop" else dense.T
    x = normal(1000, dense.shape[0], dtype="float32")
    exact = x.double() @ dense
    for plan, kernels in zip(plans, loaded(plans, "sm_90a"), strict=True):
        error = _call(plan, kernels, x, w, dense.shape[1], len(x)).double() - exact
        assert float(error.norm() / exact.norm()) < 3.3e-4, plan.summary
        assert abs(float((error * exact).sum() / exact.square().sum())) < 5e-5, plan.summary


@pytest.mark.parametrize(("block", "dtype"), [(32, "bfloat16"), (32, "float16"), (64, "bfloat16"), (128, "float16")])
@pytest.mark.parametrize("name", ["random10", "random50", "hub"])
def test_all_that_follows_a_product(name: str, block: int, dtype: str) -> None:
    """With a residual, which comes through the ring; the same bits again."""
    layout, finish = Layout(LAYOUTS[name](BLOCKS[block])), Epilogue(True, Activation.RELU, True)
    plans = plans_of(Problem(Op.FPROP, layout, block, DType(dtype), epilogue=finish))
    assert {plan.residual_parts for plan in plans} == ({1, 2} if block < 128 else {1})
    w, bias = (normal(*s, dtype=dtype) for s in ((layout.nnz, block, block), (layout.shape[1] * block,)))
    dense = _dense(layout, w)
    for plan, kernels in zip(plans, loaded(plans, "sm_90a"), strict=True):
        for n in BATCHES:
            x, residual = (normal(n, features, dtype=dtype, seed=n) for features in dense.shape)
            out = _call(plan, kernels, x, w, dense.shape[1], n, bias=bias, residual=residual)
            assert_close(out, torch.relu(x.double() @ dense + bias.double()) + residual.double(), 5e-3)
            again = _call(plan, kernels, x, w, dense.shape[1], n, bias=bias, residual=residual)
            assert torch.equal(again, out), plan.summary


@pytest.mark.parametrize("block", hopper_narrow.BLOCK_SIZES)
@pytest.mark.parametrize("name", ["random10", "hub"])
def test_epilogue_of_narrow_blocks_with_features_first(name: str, block: int) -> None:
    layout, finish = Layout(LAYOUTS[name](BLOCKS[block])), Epilogue(True, Activation.RELU, True)
    plans = plans_of(Problem(Op.FPROP, layout, block, DType.BFLOAT16, epilogue=finish, axis=0))
    w, bias = (normal(*s, dtype="bfloat16") for s in ((layout.nnz, block, block), (layout.shape[1] * block,)))
    dense = _dense(layout, w).T
    for plan, kernels in zip(plans, loaded(plans, "sm_90a"), strict=True):
        for n in (8, 136, 1000):
            x, residual = (normal(features, n, dtype="bfloat16", seed=n) for features in (dense.shape[1], len(dense)))
            out = _call(plan, kernels, x, w, len(dense), n, bias=bias, residual=residual)
            exact = torch.relu(dense @ x.double() + bias.double()[:, None]) + residual.double()
            assert_close(out, exact, 5e-3)


def test_thread_blocks_that_meet_only_empty_groups() -> None:
    """Most groups of output blocks have no block, in more rounds than there are groups."""
    mask = np.zeros((4, 64), bool)
    mask[:, :2] = True
    w = normal(8, 32, 32, dtype="bfloat16", seed=1)
    dense = _dense(Layout(mask), w)
    plans = plans_of(Problem(Op.FPROP, Layout(mask), 32, DType.BFLOAT16))
    x = normal(40_000, 128, dtype="bfloat16")
    for plan, kernels in zip(plans, loaded(plans, "sm_90a"), strict=True):
        assert_close(_call(plan, kernels, x, w, 64 * 32, len(x)), x.double() @ dense, 5e-3)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))
def test_same_bits(kind: tuple[str, int, str]) -> None:
    op, block, dtype = kind
    layout = Layout(LAYOUTS["random50"](BLOCKS[block]))
    plans = plans_of(Problem(Op(op), layout, block, DType(dtype)))
    sizes = layout.shape if op == "fprop" else layout.shape[::-1]
    x, w = normal(1000, sizes[0] * block, dtype=dtype), normal(layout.nnz, block, block, dtype=dtype)
    for plan, kernels in zip(plans, loaded(plans, "sm_90a"), strict=True):
        first = _call(plan, kernels, x, w, sizes[1] * block, 1000)
        for _ in range(RUNS - 1):
            assert torch.equal(_call(plan, kernels, x, w, sizes[1] * block, 1000), first), plan.summary


def _dense(layout: Layout, w: object) -> object:
    block = w.shape[1]
    rows, columns = layout.shape
    dense = torch.zeros(rows, columns, block, block, dtype=torch.float64, device="cuda")
    places = torch.as_tensor(layout.blocks.astype("int64"), device="cuda")
    dense[places[:, 0], places[:, 1]] = w.double()
    return dense.permute(0, 2, 1, 3).reshape(rows * block, columns * block)


def _call(plan: Plan, kernels: object, x: object, w: object, features: int, n: int, **others: object) -> object:
    shape = (features, n) if plan.problem.feature_first else (n, features)
    out = poison(*shape, dtype=str(plan.problem.dtype))
    workspace = poison(max(1, plan.workspace.elements(n)), dtype="float32")
    arrays = {plan.activations: x, "w": w, "out": out, "workspace": workspace, **others}
    stream = torch.cuda.current_stream().cuda_stream
    launch(kernels, {name: array.data_ptr() for name, array in arrays.items()}, n, stream)
    torch.cuda.synchronize()
    return out
