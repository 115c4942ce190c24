"""Hopper's wgrad where many blocks are stored: what units keep, read on its own terms, and kernels on the host."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from emulator import COMPILER, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from problems import BIG, SMALL, bernoulli, small_layouts
from test_emulated import check as check_on_host
from test_emulated import check_added
from test_hopper_wgrad import NOTHING, WGMMA_ROWS, check_machine, operand
from test_kernels_compile import check_instructions, compiled_plan
from test_plan import check_launches
from test_reference import check as check_numbers
from test_reference import expected, operands

from bsgen.layout import Layout
from bsgen.plan import HopperCoarseWGradPlan, choose, hopper_coarse_wgrad
from bsgen.problem import TARGETS, DType, Op, Problem
from bsgen.topology import block_diagonal

COARSE = 128
thorough = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@st.composite
def dense_problems(draw: st.DrawFn) -> Problem:
    """Problems that the family serves: layouts that may end inside a coarse block, of enough blocks."""
    block, axis = draw(st.sampled_from(hopper_coarse_wgrad.BLOCK_SIZES)), draw(st.sampled_from([0, 1]))
    enough = hopper_coarse_wgrad.FULLNESS
    layout = draw(small_layouts(40).filter(lambda layout: layout.nnz > 0 and layout.density >= enough))
    return Problem(Op.WGRAD, layout, block, DType.BFLOAT16, batch=draw(st.sampled_from([None, 64, 20000])), axis=axis)


@thorough
@given(st.data(), dense_problems())
def test_tables(data: st.DataObject, problem: Problem) -> None:
    drafts = list(hopper_coarse_wgrad.drafts(problem, BIG))
    draft = drafts[data.draw(st.integers(0, len(drafts) - 1), "candidate")]
    for plan in (next(hopper_coarse_wgrad.shortlist(problem, BIG)), hopper_coarse_wgrad.assemble(problem, BIG, draft)):
        check(plan)


def check(plan: HopperCoarseWGradPlan) -> None:
    """Each stored block is kept once, by the unit that has its features; the machine has all that a plan asks for."""
    block, (rows, columns) = plan.problem.block_size, plan.problem.layout.blocks.T
    uses = np.zeros(plan.problem.layout.nnz, np.int8)
    for (tile, group), count in np.ndenumerate(plan.unit_counts):
        for unit in range(count):
            left, right, *_ = plan.units[tile, group, unit].tolist()
            (words, x), (dy_words, dy) = operand(plan, tile, left, WGMMA_ROWS), operand(plan, tile, right, COARSE)
            assert (words >= 0).all()
            assert (dy_words < 0).all()
            for (down, across), kept in np.ndenumerate(plan.kept[tile, group, unit]):
                if kept != NOTHING:
                    assert x[down * block] == rows[kept] * block
                    assert dy[across * block] == columns[kept] * block
                    uses[kept] += 1
        assert (plan.kept[tile, group, count:] == NOTHING).all()
    assert (uses == 1).all()
    check_machine(plan)
    check_launches(plan)


@pytest.mark.parametrize("axis", [1, 0])
@pytest.mark.parametrize("block", hopper_coarse_wgrad.BLOCK_SIZES)
def test_kernels(block: int, axis: int) -> None:
    """Rows of N split and not: no spills, and on the host the exact result."""
    layout = bernoulli(208 // block, 280 // block, 0.5)
    problem = Problem(Op.WGRAD, layout, block, DType.BFLOAT16, batch=1024, axis=axis)
    drafts = list(hopper_coarse_wgrad.drafts(problem, BIG))
    for split in (False, True):
        plan = hopper_coarse_wgrad.assemble(problem, BIG, next(each for each in drafts if (each.splits > 1) == split))
        check(plan)
        check_numbers(plan, 104)
        check_instructions(plan, compiled_plan(plan), multiplies="HGMMA")
        if COMPILER:
            check_on_host(plan, 104)


@pytest.mark.skipif(COMPILER is None, reason="there is no g++")
def test_accumulation_in_float32() -> None:
    problem = Problem(Op.WGRAD, bernoulli(12, 9, 0.5), 16, DType.FLOAT16, batch=1024, wgrad_dtype=DType.FLOAT32)
    arrays: dict[str, Any] = operands(problem, 40)
    exact = expected(problem, arrays) + 2
    drafts = list(hopper_coarse_wgrad.drafts(problem, BIG))
    for draft in (drafts[0], next(draft for draft in drafts if draft.splits > 1)):
        plan = hopper_coarse_wgrad.assemble(problem, BIG, draft)
        out = np.full(exact.shape, 2, np.float32)
        got = run(plan, {**arrays, "out": out}, exact.shape, n=40, accumulate=1)
        np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-4)


def test_what_it_serves() -> None:
    many = Problem(Op.WGRAD, bernoulli(64, 64, 0.5), 16, DType.BFLOAT16, batch=16384)
    assert hopper_coarse_wgrad.serves(many, BIG)
    few, nothing = bernoulli(64, 64, 0.1), Layout(np.zeros((4, 4), bool))
    for change in (
        {"layout": few}, {"layout": nothing}, {"gate": True}, {"dtype": DType.FLOAT32}, {"block_size": 128}, {"op": Op.FPROP},
    ):  # fmt: skip
        assert not hopper_coarse_wgrad.serves(replace(many, **change), BIG)
        assert not list(hopper_coarse_wgrad.shortlist(replace(many, **change), BIG))
    assert not hopper_coarse_wgrad.serves(many, SMALL)
    assert isinstance(choose(replace(many, layout=bernoulli(256, 256, 0.5)), BIG), HopperCoarseWGradPlan)


def test_few_blocks_that_fill_coarse_ones() -> None:
    """What counts is how full coarse blocks are, not the layout: dense groups, in a layout of which they are a tenth and less."""
    for block in hopper_coarse_wgrad.BLOCK_SIZES:
        problem = Problem(Op.WGRAD, block_diagonal(4096 // block, 4096 // block, 16), block, DType.BFLOAT16, batch=2048)
        assert problem.layout.density < hopper_coarse_wgrad.FULLNESS
        assert hopper_coarse_wgrad.fullness(problem) == 1
        assert isinstance(choose(problem, TARGETS["sm_90a"]), HopperCoarseWGradPlan)
    half = Layout(np.kron(np.eye(8, dtype=bool), np.triu(np.ones((8, 8), bool))))
    assert hopper_coarse_wgrad.fullness(replace(problem, layout=half, block_size=16)) == 36 / 64
    alone = replace(problem, layout=Layout([[1]]), block_size=16)  # ends within a coarse block
    assert hopper_coarse_wgrad.fullness(alone) == 1


@pytest.mark.skipif(COMPILER is None, reason="there is no g++")
@pytest.mark.parametrize("block", hopper_coarse_wgrad.BLOCK_SIZES)
def test_accumulation_in_lines(block: int) -> None:
    """dW of 16 bits, to which is added what was there, of blocks that are stored; features last and first."""
    for axis in (1, 0):
        problem = Problem(
            Op.WGRAD, bernoulli(208 // block, 280 // block, 0.5), block, DType.FLOAT16, batch=1024, axis=axis
        )
        draft = next(draft for draft in hopper_coarse_wgrad.drafts(problem, BIG) if draft.splits == 1)
        plan = hopper_coarse_wgrad.assemble(problem, BIG, draft)
        assert plan.stores_lines
        check_added(plan, 40)
