"""The NumPy twin of the kernels against dense float64 products, for any plan."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from problems import ARITHMETIC, BIG, SMALL, bernoulli, hub, sample

from bsgen import reference
from bsgen.layout import Layout
from bsgen.plan import MatMulPlan, Plan, WGradPlan, candidates, choose
from bsgen.problem import BLOCK_SIZES, Activation, DType, Epilogue, Op, Precision, Problem

Array = np.ndarray[Any, Any]

BATCHES = (0, 1, 3, 17, 64, 100)
TOLERANCE = {DType.FLOAT16: 5e-3, DType.BFLOAT16: 5e-3, DType.FLOAT32: 1e-5}
KINDS = [pytest.param(*kind, id=f"{kind[0]}-{kind[1]}") for kind in ARITHMETIC]
LAYOUTS = {
    "random": bernoulli(5, 7, 0.4),
    "hub": hub(12, 5),
    "empty rows and columns": Layout(np.diag([1, 0, 1, 0, 0])),
    "none": Layout(np.zeros((2, 3), bool)),
    "full": Layout(np.ones((3, 2), bool)),
    "one": Layout([[1]]),
}


def operands(problem: Problem, n: int, seed: int = 0) -> dict[str, Array]:
    """Random operands of a problem, in its dtype."""
    rng, epilogue = np.random.default_rng(seed), problem.epilogue
    shapes: dict[str, tuple[int, ...]] = {
        "x": activations(problem, n, problem.in_features),
        "dy": activations(problem, n, problem.out_features),
        "w": (problem.layout.nnz, problem.block_size, problem.block_size),
        "bias": (problem.out_features,),
        "residual": activations(problem, n, problem.out_features),
    }
    fprop = ("x", "w", *["bias"] * epilogue.bias, *["residual"] * epilogue.residual)
    names = {Op.FPROP: fprop, Op.DGRAD: ("dy", "w"), Op.WGRAD: ("x", "dy")}[problem.op]
    found = {name: rng.standard_normal(shapes[name]).astype(problem.dtype.numpy) for name in names}
    return found | (gates(problem, rng) if problem.gate else {})


def activations(problem: Problem, n: int, features: int) -> tuple[int, int]:
    """The shape of activations."""
    return (features, n) if problem.feature_first else (n, features)


def gates(problem: Problem, rng: np.random.Generator) -> dict[str, Array]:
    """Gates, a third of them zero, and what wgrad needs for their gradients."""
    gate = rng.standard_normal(problem.layout.nnz).astype(np.float32)
    gate[::3] = 0
    shape = (problem.layout.nnz, problem.block_size, problem.block_size)
    weights = {"w": rng.standard_normal(shape).astype(problem.dtype.numpy)} if problem.op is Op.WGRAD else {}
    return {"gate": gate, **weights}


def dense(problem: Problem, w: Array) -> Array:
    """W [C, K] in float64."""
    rows, columns = problem.layout.shape
    b = problem.block_size
    blocks = np.zeros((rows, columns, b, b))
    blocks[problem.layout.mask] = w
    return blocks.transpose(0, 2, 1, 3).reshape(rows * b, columns * b)


def expected(problem: Problem, arrays: dict[str, Array]) -> Array:
    """The exact result, in float64."""
    wide = {name: array.astype(np.float64) for name, array in arrays.items()}
    if problem.feature_first:
        turned = {name: array.T for name, array in arrays.items() if name in ("x", "dy", "residual")}
        exact = expected(replace(problem, axis=1), {**arrays, **turned})
        return exact if problem.op is Op.WGRAD else exact.T
    scale = wide["gate"][:, None, None] if problem.gate else 1.0
    if problem.op is Op.WGRAD:
        product = wide["x"].T @ wide["dy"]
        b, (rows, columns) = problem.block_size, problem.layout.shape
        return product.reshape(rows, b, columns, b).transpose(0, 2, 1, 3)[problem.layout.mask] * scale
    weights = dense(problem, wide["w"] * scale)
    if problem.op is Op.DGRAD:
        return wide["dy"] @ weights.T
    return finished(problem.epilogue, wide["x"] @ weights, wide)


def finished(epilogue: Epilogue, product: Array, wide: dict[str, Array]) -> Array:
    functions = {
        None: lambda v: v,
        Activation.RELU: lambda v: np.maximum(v, 0),
        Activation.GELU: lambda v: v * 0.5 * (1 + np.vectorize(math.erf, otypes=[float])(v / math.sqrt(2))),
        Activation.SILU: lambda v: v / (1 + np.exp(-v)),
    }
    value = product + wide["bias"] if epilogue.bias else product
    value = functions[epilogue.activation](value)
    return value + wide["residual"] if epilogue.residual else value


def check(plan: Plan, n: int) -> None:
    """One run of a plan against the exact result."""
    problem = plan.problem
    arrays = operands(problem, n)
    got, exact = reference.run(plan, arrays), expected(problem, arrays)
    assert got.shape == exact.shape
    assert got.dtype == problem.dtype.numpy
    norm = float(np.linalg.norm(exact))
    error = float(np.linalg.norm(got.astype(np.float64) - exact))
    assert error <= TOLERANCE[problem.dtype] * norm, f"{plan.summary}, N = {n}: {error:.2e} beside {norm:.2e}"


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.parametrize(("dtype", "precision"), KINDS)
@pytest.mark.parametrize("op", Op, ids=str)
def test_every_op_and_type(op: Op, dtype: DType, precision: Precision, layout: Layout) -> None:
    for block in (8, 32):
        for n in BATCHES:
            check(choose(Problem(op, layout, block, dtype, precision), BIG), n)


@pytest.mark.parametrize("block", BLOCK_SIZES)
@pytest.mark.parametrize("op", Op, ids=str)
def test_every_block_size_on_several_plans(op: Op, block: int) -> None:
    for dtype, precision in ARITHMETIC:
        problem = Problem(op, bernoulli(6, 5, 0.4), block, dtype, precision)
        for target in (BIG, SMALL):
            for plan in sample(list(candidates(problem, target)), 5):
                check(plan, 17)


@pytest.mark.parametrize(("dtype", "precision"), KINDS)
@pytest.mark.parametrize("op", [Op.FPROP, Op.DGRAD], ids=str)
def test_split_outputs(op: Op, dtype: DType, precision: Precision) -> None:
    mask = hub(150, 4).mask
    layout = Layout(mask if op is Op.FPROP else mask.T)
    epilogue = Epilogue(True, Activation.SILU, True) if op is Op.FPROP else Epilogue()
    plans = [
        p for p in candidates(Problem(op, layout, 8, dtype, precision, epilogue), BIG) if isinstance(p, MatMulPlan)
    ]
    split = [plan for plan in plans if plan.reductions]
    assert split
    for plan in sample(split, 3):
        for n in BATCHES:
            check(plan, n)


@pytest.mark.parametrize(("dtype", "precision"), KINDS)
def test_splits_of_the_rows(dtype: DType, precision: Precision) -> None:
    problem = Problem(Op.WGRAD, Layout([[1, 0], [1, 1]]), 16, dtype, precision, batch=100_000)
    plan = choose(problem, BIG)
    assert isinstance(plan, WGradPlan)
    assert plan.splits > 1
    for n in (*BATCHES, 1000):
        check(plan, n)


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("activation", [None, *Activation], ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_epilogues(bias: bool, activation: Activation | None, residual: bool) -> None:
    for dtype, layout in ((DType.BFLOAT16, LAYOUTS["none"]), (DType.FLOAT32, LAYOUTS["random"])):
        problem = Problem(Op.FPROP, layout, 8, dtype, epilogue=Epilogue(bias, activation, residual))
        for n in (0, 17):
            check(choose(problem, BIG), n)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_wgrad_of_no_rows_is_zeros(layout: Layout) -> None:
    plan = choose(Problem(Op.WGRAD, layout, 8, DType.FLOAT16), BIG)
    result = reference.run(plan, {"x": np.zeros((0, layout.shape[0] * 8)), "dy": np.zeros((0, layout.shape[1] * 8))})
    assert result.shape == (layout.nnz, 8, 8)
    assert not result.any()


@pytest.mark.parametrize("op", Op, ids=str)
def test_the_tables_decide(op: Op) -> None:
    """A plan with its outputs exchanged gives them exchanged: nothing is read from the mask."""
    plan = choose(Problem(op, Layout([[1, 1]] if op is Op.FPROP else [[1], [1]]), 8, DType.FLOAT32), BIG)
    arrays = operands(plan.problem, 5)
    right = reference.run(plan, arrays)
    if isinstance(plan, WGradPlan):
        units = plan.units.copy()
        places = units[0, 0, 3:]
        assert sorted(places.tolist()) == [0, 16], "one unit of two blocks"
        units[0, 0, 3:] = places[::-1]
        wrong = reference.run(replace(plan, units=units), arrays)
        np.testing.assert_array_equal(wrong, right[::-1])
        return
    used = plan.targets != plan.no_output
    targets = plan.targets.copy()
    targets[used] = plan.targets[used][::-1]
    wrong = reference.run(replace(plan, targets=targets), arrays)
    np.testing.assert_array_equal(wrong, np.roll(right, 8, axis=1))


def test_float16_overflows_to_infinity_without_a_warning() -> None:
    plan = choose(Problem(Op.FPROP, Layout([[1]]), 8, DType.FLOAT16), BIG)
    x, w = np.full((1, 8), 60000, np.float16), np.full((1, 8, 8), 2, np.float16)
    assert np.isposinf(reference.run(plan, {"x": x, "w": w})).all()
