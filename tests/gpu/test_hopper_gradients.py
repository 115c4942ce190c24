"""Every ring, tile size and split of Hopper's wgrad kernels against float64."""

from __future__ import annotations

import pytest
from cases import BLOCKS, LAYOUTS, assert_close, normal, poison, torch
from plans import gradients, launch, loaded

from bsgen.layout import Layout
from bsgen.plan import Plan, hopper_narrow_wgrad, hopper_wgrad
from bsgen.problem import TARGETS, DType, Op, Problem
from bsgen.runtime import driver

NAMES = ("random10", "random50", "one", "holes", "hub", "full", "banded", "wide", "tall")
BATCHES = (1, 3, 64, 129, 1000, 4097)
MULTIPLES = (8, 64, 136, 1000, 4104)  # of 8
RUNS = 20
BLOCK_SIZES = (*hopper_narrow_wgrad.BLOCK_SIZES, *hopper_wgrad.BLOCK_SIZES)


@pytest.fixture(autouse=True)
def _only_on_hopper() -> None:
    if driver.current_device().arch != "sm_90a":
        pytest.skip("needs a Hopper GPU")


def spread(problem: Problem) -> list[Plan]:
    """A plan of each ring, with splits and without, of tiles of turning sizes."""
    return list(gradients(problem, TARGETS["sm_90a"]))


def call(plan: Plan, kernels: object, x: object, dy: object, onto: object = None) -> object:
    """The plan's dW, into poisoned memory, or added to what is there."""
    block = plan.problem.block_size
    out = poison(plan.problem.layout.nnz, block, block, dtype=str(plan.problem.dtype)) if onto is None else onto
    n = x.shape[1 - plan.problem.axis]
    workspace = poison(max(1, plan.workspace.elements(n)), dtype="float32")
    arrays = {"x": x, "dy": dy, "out": out, "workspace": workspace}
    stream = torch.cuda.current_stream().cuda_stream
    launch(kernels, {name: array.data_ptr() for name, array in arrays.items()}, n, stream, onto is not None)
    torch.cuda.synchronize()
    return out


def operands(problem: Problem, n: int) -> tuple[object, object]:
    """x and dy, as the problem's axis says."""
    shapes = [(n, width) if problem.axis else (width, n) for width in (problem.in_features, problem.out_features)]
    x, dy = (normal(*shape, dtype=str(problem.dtype), seed=n + turn) for turn, shape in enumerate(shapes))
    return x, dy


def stored(problem: Problem, x: object, dy: object) -> object:
    """The stored blocks of the exact dW."""
    layout, block = problem.layout, problem.block_size
    places = torch.as_tensor(layout.blocks.astype("int64"), device="cuda")
    dense = x.double().T @ dy.double() if problem.axis else x.double() @ dy.double().T
    blocks = dense.reshape(layout.shape[0], block, layout.shape[1], block).permute(0, 2, 1, 3)
    return blocks[places[:, 0], places[:, 1]]


@pytest.mark.parametrize("block", BLOCK_SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_products(name: str, block: int) -> None:
    layout = Layout(LAYOUTS[name](BLOCKS[block]))
    dtype = DType.FLOAT16 if block in (16, 64) else DType.BFLOAT16
    problem = Problem(Op.WGRAD, layout, block, dtype, batch=4096)
    plans = spread(problem)
    assert plans
    for plan, kernels in zip(plans, loaded(plans, "sm_90a"), strict=True):
        for n in BATCHES:
            x, dy = operands(problem, n)
            assert_close(call(plan, kernels, x, dy), stored(problem, x, dy), 5e-3)


@pytest.mark.parametrize("block", BLOCK_SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_features_first(name: str, block: int) -> None:
    """N of whole chunks of 16 bytes."""
    dtype = DType.BFLOAT16 if block in (16, 64) else DType.FLOAT16
    problem = Problem(Op.WGRAD, Layout(LAYOUTS[name](BLOCKS[block])), block, dtype, batch=4096, axis=0)
    plans = spread(problem)
    assert plans
    for plan, kernels in zip(plans, loaded(plans, "sm_90a"), strict=True):
        for n in MULTIPLES:
            x, dy = operands(problem, n)
            assert_close(call(plan, kernels, x, dy), stored(problem, x, dy), 5e-3)


@pytest.mark.parametrize("block", hopper_wgrad.BLOCK_SIZES)
@pytest.mark.parametrize("name", ["random10", "hub"])
def test_accumulates(name: str, block: int) -> None:
    """Into 16 bits, by way of whole lines in shared memory or of a kernel that adds splits."""
    problem = Problem(Op.WGRAD, Layout(LAYOUTS[name](BLOCKS[block])), block, DType.BFLOAT16, batch=4096)
    plans = spread(problem)
    for plan, kernels in zip(plans, loaded(plans, "sm_90a"), strict=True):
        for n in (1, 129, 1000):
            x, dy = operands(problem, n)
            before = normal(problem.layout.nnz, block, block, dtype="bfloat16", seed=n)
            exact = stored(problem, x, dy) + before.double()
            assert_close(call(plan, kernels, x, dy, before), exact, 5e-3)


@pytest.mark.parametrize("axis", [1, 0])
@pytest.mark.parametrize("block", BLOCK_SIZES)
def test_same_bits(block: int, axis: int) -> None:
    layout = Layout(LAYOUTS["random50"](BLOCKS[block]))
    problem = Problem(Op.WGRAD, layout, block, DType.BFLOAT16, batch=16384, axis=axis)
    plans = spread(problem)
    x, dy = operands(problem, 4097 if axis else 4104)
    for plan, kernels in zip(plans, loaded(plans, "sm_90a"), strict=True):
        first = call(plan, kernels, x, dy)
        for _ in range(RUNS - 1):
            assert torch.equal(call(plan, kernels, x, dy), first), plan.summary
