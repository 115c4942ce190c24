"""The kernels of gated problems, run on the host (see emulator/): every family, from gates to gradients, against float64."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from emulator import COMPILER, results
from problems import ARITHMETIC, BIG, bernoulli, cheapest, hub, some_of
from test_gates import gated_operands, scaled
from test_reference import expected

from bsgen.layout import Layout
from bsgen.plan import Plan, hopper, hopper_narrow, hopper_narrow_wgrad, hopper_wgrad, matmul, wgrad
from bsgen.problem import BLOCK_SIZES, DType, Op, Problem

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no g++")
LAYOUT = bernoulli(7, 5, 0.4)
MATRIX = [(op, block, kind) for op in Op for block, kind in zip(BLOCK_SIZES, (*ARITHMETIC, ARITHMETIC[1]), strict=True)]


def check(plan: Plan, n: int, accumulate: int = 0) -> None:
    """Every result against float64, with blocks of NaN and infinity that are switched off; what is not written stays NaN."""
    problem = plan.problem
    plain = replace(problem, gate=False, wgrad_dtype=None)
    arrays: dict[str, Any] = gated_operands(problem, n)
    scale = arrays["gate"].astype(np.float64)[:, None, None]
    if problem.op is not Op.WGRAD:
        shape = (n, plan.features[1])
        arrays["out"] = np.full(shape, np.nan, problem.dtype.numpy)
        exact = expected(plain, {**arrays, "w": scaled(arrays["w"], scale)})
        close(results(plan, arrays, ("out",), seed=n, n=n)["out"], exact, plan)
        return
    sums = expected(plain, {name: arrays[name] for name in ("x", "dy")})
    start = np.float32(2) if accumulate else np.float32(np.nan)
    arrays["out"] = np.full(sums.shape, start, problem.result_dtype.numpy)
    arrays["dgate"] = np.full(problem.layout.nnz, start, np.float32)
    got = results(plan, arrays, ("out", "dgate"), seed=n, n=n, accumulate=accumulate)
    close(got["out"], scale * sums + 2 * accumulate, plan)
    close(got["dgate"], (sums * arrays["w"].astype(np.float64)).sum(axis=(1, 2)) + 2 * accumulate, plan)
    assert (got["out"][arrays["gate"] == 0] == 2 * accumulate).all()
    alone = {name: array for name, array in arrays.items() if name not in ("w", "dgate")}  # as wgrad calls it
    again = results(plan, alone, ("out",), seed=n, n=n, accumulate=accumulate)["out"]
    np.testing.assert_array_equal(again, got["out"])


def close(got: np.ndarray[Any, Any], exact: np.ndarray[Any, Any], plan: Plan) -> None:
    error, norm = np.linalg.norm(got.astype(np.float64) - exact), np.linalg.norm(exact)
    tolerance = 5e-3 if plan.problem.dtype.itemsize == 2 else 1e-3
    if plan.problem.wgrad_dtype:
        tolerance = 1e-5
    assert error <= tolerance * norm, f"{plan.summary}: {error:.2e} beside {norm:.2e}"


@pytest.mark.parametrize(("op", "block", "kind"), some_of(MATRIX, 2), ids=str)
def test_portable(op: Op, block: int, kind: Any) -> None:
    family = wgrad if op is Op.WGRAD else matmul
    check(cheapest(family, Problem(op, LAYOUT, block, *kind, gate=True, batch=64), BIG), 33)


@pytest.mark.parametrize("block", hopper.BLOCK_SIZES)
@pytest.mark.parametrize("op", [Op.FPROP, Op.DGRAD], ids=str)
def test_hopper(op: Op, block: int) -> None:
    check(cheapest(hopper, Problem(op, LAYOUT, block, DType.BFLOAT16, gate=True, batch=64), BIG), 33)


@pytest.mark.parametrize("block", hopper_narrow.BLOCK_SIZES)
@pytest.mark.parametrize("op", [Op.FPROP, Op.DGRAD], ids=str)
def test_hopper_of_narrow_blocks(op: Op, block: int) -> None:
    check(cheapest(hopper_narrow, Problem(op, LAYOUT, block, DType.FLOAT16, gate=True, batch=64), BIG), 33)


@pytest.mark.parametrize(
    ("family", "block"), [(hopper, 32), (hopper_narrow, 16), (matmul, 8)], ids=["hopper", "narrow", "portable"]
)
def test_split_outputs(family: Any, block: int) -> None:
    """Partial sums lie behind the weights in the workspace."""
    problem = Problem(Op.FPROP, hub(70, 5), block, DType.BFLOAT16, gate=True, batch=64)
    check(next(plan for plan in family.candidates(problem, BIG) if plan.reductions), 21)


@pytest.mark.parametrize(
    ("block", "split", "wide"),
    some_of(list(product(hopper_wgrad.BLOCK_SIZES, (False, True), (None, DType.FLOAT32))), 3),
)
def test_gradients_on_hopper(block: int, split: bool, wide: DType | None) -> None:
    problem = Problem(Op.WGRAD, LAYOUT, block, DType.BFLOAT16, gate=True, batch=16384, wgrad_dtype=wide)
    plan = next(plan for plan in hopper_wgrad.candidates(problem, BIG) if (plan.splits > 1) == split)
    check(plan, 100, accumulate=int(split))


def test_gradients_of_many_rows_and_of_one_block() -> None:
    for block, layout in ((8, LAYOUT), (64, Layout([[1]]))):
        plans = wgrad.candidates(Problem(Op.WGRAD, layout, block, DType.FLOAT16, gate=True, batch=100_000), BIG)
        check(next(plan for plan in plans if plan.splits > 1), 70, accumulate=1)


@pytest.mark.parametrize(("block", "wide"), [(8, DType.FLOAT32), (16, None)])
def test_gradients_on_hopper_of_narrow_blocks(block: int, wide: DType | None) -> None:
    problem = Problem(Op.WGRAD, LAYOUT, block, DType.BFLOAT16, gate=True, batch=16384, wgrad_dtype=wide)
    plan = next(plan for plan in hopper_narrow_wgrad.candidates(problem, BIG) if (plan.splits > 1) == (block == 8))
    check(plan, 100, accumulate=1)
