"""The Hopper kernels for narrow blocks by property: their tables read on their own terms, and what TMA and setmaxnreg demand."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from narrow_tables import narrow_terms
from problems import BIG, NARROW_KINDS, SMALL, bernoulli, hub, sample, small_layouts
from test_kernels_compile import EPILOGUES, check_instructions, compiled_plan, named
from test_plan import check_block, check_launches, check_outputs, check_terms
from test_reference import check as check_numbers

from bsgen.layout import Layout
from bsgen.plan import HopperNarrowPlan, Plan, choose, hopper_narrow
from bsgen.plan.narrow_stages import runs
from bsgen.problem import DType, Epilogue, Op, Problem

BATCHES = (1, 3, 64, 129, 4097)

pytestmark = pytest.mark.filterwarnings("error")
thorough = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@st.composite
def narrow_problems(draw: st.DrawFn) -> Problem:
    """Problems that the family serves, of every layout that has a block, features last or first, with hints for N."""
    op, block, dtype = draw(st.sampled_from(NARROW_KINDS))
    layout = draw(small_layouts(16).filter(lambda layout: layout.nnz > 0))
    batch, axis = draw(st.sampled_from([None, 1, 40])), draw(st.sampled_from([1, 0]))
    return Problem(op, layout, block, dtype, batch=batch, axis=axis)


def some(problem: Problem, count: int) -> list[Plan]:
    """A few candidates, spread evenly."""
    drafts = sample(list(hopper_narrow.drafts(problem, BIG)), count)
    return [hopper_narrow.assemble(problem, BIG, draft) for draft in drafts]


@thorough
@given(st.data(), narrow_problems())
def test_tables(data: st.DataObject, problem: Problem) -> None:
    drafts = list(hopper_narrow.drafts(problem, BIG))
    places = data.draw(st.lists(st.integers(0, len(drafts) - 1), min_size=1, max_size=3, unique=True), "candidates")
    for plan in hopper_narrow.shortlist(problem, BIG):
        check(plan)
    for place in places:
        check(hopper_narrow.assemble(problem, BIG, drafts[place]))


@pytest.mark.parametrize("op", [Op.FPROP, Op.DGRAD], ids=str)
@pytest.mark.parametrize("block", hopper_narrow.BLOCK_SIZES)
def test_split_outputs(op: Op, block: int) -> None:
    """A long hub, and a layout of few tiles whose output blocks are all split."""
    mask = hub(400, 6).mask
    for layout in (Layout(mask if op is Op.FPROP else mask.T), bernoulli(70, 40, 0.4)):
        for axis, n in ((1, 17), (0, 24)):
            problem = Problem(op, layout, block, DType.FLOAT16, batch=64, axis=axis)
            split = [draft for draft in hopper_narrow.drafts(problem, BIG) if draft.reductions]
            assert split
            for draft in sample(split, 2):
                plan = hopper_narrow.assemble(problem, BIG, draft)
                check(plan)
                check_numbers(plan, n)


@pytest.mark.parametrize(("op", "block", "dtype"), NARROW_KINDS)
def test_numbers(op: Op, block: int, dtype: DType) -> None:
    for layout in (bernoulli(24, 20, 0.3), Layout(np.diag([1, 0, 1, 0, 0])), Layout(np.ones((20, 24), bool))):
        for axis, n in ((1, 17), (0, 24)):
            for plan in some(Problem(op, layout, block, dtype, axis=axis), 2):
                check_numbers(plan, n)


def test_dense_layouts_have_panels_with_more_blocks_than_a_stage_holds() -> None:
    for block, (op, density) in product(hopper_narrow.BLOCK_SIZES, ((Op.FPROP, 1.0), (Op.DGRAD, 0.8))):
        for axis in (1, 0):
            problem = Problem(op, bernoulli(36, 64, density), block, DType.BFLOAT16, axis=axis)
            for plan in some(problem, 2):
                check(plan)


def check(plan: Plan) -> None:
    """Everything that holds for a plan of the family."""
    assert isinstance(plan, HopperNarrowPlan)
    check_outputs(plan)
    check_terms(plan, narrow_terms(plan))
    shape = plan.geometry.shape
    check_block(plan, shape.threads)
    check_launches(plan)
    assert shape.stage_bytes % 1024 == 0
    assert shape.stages * 16 % 16 == 0, "scratch is written 16 bytes at a time"
    assert shape.stages * (shape.stage_bytes + 16) + 512 * shape.warps <= plan.shared_memory
    check_registers(plan)
    check_maps(plan)
    check_grids(plan)
    assert plan.tile_stages[-1] == len(plan.loads) == len(plan.record_starts) - 1
    assert plan.targets.shape == (plan.tiles, shape.tile_slots)


def check_registers(plan: HopperNarrowPlan) -> None:
    """setmaxnreg hands out no more registers than the launch took: it would wait for ever."""
    shape = plan.geometry.shape
    assert shape.warps % 4 == 0, "setmaxnreg is for a warpgroup"
    groups = shape.warps // 4
    wanted = shape.consumer_registers * groups + shape.producer_registers * shape.loading_groups
    assert wanted <= shape.launch_registers * (groups + shape.loading_groups)
    assert shape.launch_registers * shape.threads <= 65536
    assert 24 <= shape.producer_registers <= shape.launch_registers <= shape.consumer_registers <= 256
    assert shape.producer_registers % 8 == shape.consumer_registers % 8 == shape.launch_registers % 8 == 0


def check_maps(plan: HopperNarrowPlan) -> None:
    """What cuTensorMapEncodeTiled accepts, with rows of one swizzle line."""
    (activations,) = plan.maps
    geo, first = plan.geometry, plan.problem.feature_first
    assert 0 < activations.box_rows <= 256
    assert activations.box_columns * 2 == geo.line_bytes
    assert geo.line_bytes in ((32, 64, 128) if first else (64, 128))
    assert activations.columns * 2 % 16 == 0
    assert activations.operand == plan.activations
    assert (activations.columns, activations.rows) == ((0, plan.features[0]) if first else (plan.features[0], 0))
    assert activations.box_rows * geo.line_bytes == geo.box_bytes
    assert geo.panel_boxes * geo.box_bytes == geo.panel_bytes == geo.shape.rows * geo.shape.panel * 2


def check_grids(plan: HopperNarrowPlan) -> None:
    """No more thread blocks than multiprocessors, and none for no rows."""
    main, shape = plan.launches[0], plan.geometry.shape
    assert main.grid.size(0, 132) == 0
    for n, sms in product(BATCHES, (132, 131, 7)):
        work = plan.tiles * -(-n // shape.rows)
        assert main.grid.size(n, sms) == min(work, sms) > 0


@pytest.mark.parametrize("axis", [1, 0])
@pytest.mark.parametrize("batch", [None, hopper_narrow.FEW_ROWS])  # four warps that load, and eight
@pytest.mark.parametrize(("op", "block", "dtype"), NARROW_KINDS, ids=named)
def test_kernels_of_every_shape(op: Op, block: int, dtype: DType, batch: int | None, axis: int) -> None:
    """No candidate spills, whatever the layout: shapes alone make the code."""
    drafts: dict[object, tuple[Problem, hopper_narrow.Draft]] = {}
    skewed = hub(400, 6)
    for layout in (bernoulli(32, 32, 0.2), skewed if op is Op.FPROP else skewed.transpose()):
        problem = Problem(op, layout, block, dtype, axis=axis, batch=batch)
        for draft in hopper_narrow.drafts(problem, BIG):
            key = replace(draft.geometry.shape, stages=0, stage_bytes=0), bool(draft.reductions)
            drafts.setdefault(key, (problem, draft))
    for problem, draft in sample(list(drafts.values()), (4 if batch else 6) if dtype is DType.BFLOAT16 else 2):
        plan = hopper_narrow.assemble(problem, BIG, draft)
        binary = compiled_plan(plan)
    check_instructions(plan, binary, multiplies="HGMMA" if plan.geometry.turned else "HMMA")


@pytest.mark.parametrize(
    ("axis", "batch"), [(1, None), (1, hopper_narrow.FEW_ROWS), (0, None), (0, hopper_narrow.FEW_ROWS)]
)
@pytest.mark.parametrize("epilogue", EPILOGUES, ids=named)
@pytest.mark.parametrize("block", hopper_narrow.BLOCK_SIZES)
def test_epilogues(block: int, epilogue: Epilogue, axis: int, batch: int | None) -> None:
    problem = Problem(Op.FPROP, hub(400, 6), block, DType.BFLOAT16, epilogue=epilogue, axis=axis, batch=batch)
    for plan in some(problem, 2):
        compiled_plan(plan)


@pytest.mark.parametrize("axis", [1, 0])
@pytest.mark.parametrize("block", hopper_narrow.BLOCK_SIZES)
def test_turned_products_with_all_that_follows(block: int, axis: int) -> None:
    """128 sums of a thread leave few registers; output blocks that are split and not, and weights that are gated."""
    layout = Layout(hub(60, 12).mask | bernoulli(60, 12, 0.15).mask)
    for turn, epilogue in enumerate(EPILOGUES):
        dtype = DType.FLOAT16 if turn % 2 else DType.BFLOAT16
        problem = Problem(Op.FPROP, layout, block, dtype, epilogue=epilogue, axis=axis, batch=1000)
        drafts = [draft for draft in hopper_narrow.drafts(problem, BIG) if draft.geometry.turned]
        for split in (True,) if turn else (False, True):
            draft = next(draft for draft in drafts if bool(draft.reductions) == split)
            plan = hopper_narrow.assemble(problem, BIG, draft)
            check(plan)
            check_instructions(plan, compiled_plan(plan), multiplies="HGMMA")
    compiled_plan(hopper_narrow.assemble(replace(problem, gate=True), BIG, draft))


def test_what_it_serves() -> None:
    layout = bernoulli(6, 5, 0.5)
    for op, block, dtype, target in product(Op, (8, 16, 32), DType, (BIG, SMALL)):
        problem = Problem(op, layout, block, dtype)
        served = target is BIG and (op, block, dtype) in NARROW_KINDS
        assert bool(list(hopper_narrow.candidates(problem, target))) == served
        assert served or not isinstance(choose(problem, target), HopperNarrowPlan)
        if op is not Op.WGRAD and dtype is not DType.FLOAT16:
            large = replace(problem, layout=bernoulli(64, 64, 0.2), batch=16384)
            assert isinstance(choose(large, target), HopperNarrowPlan) == served
    assert list(hopper_narrow.shortlist(Problem(Op.FPROP, layout, 8, DType.FLOAT16, batch=16, axis=0), BIG))
    assert not list(hopper_narrow.shortlist(Problem(Op.FPROP, layout, 8, DType.FLOAT16, batch=17, axis=0), BIG))
    nothing = Problem(Op.FPROP, Layout(np.zeros((2, 3), bool)), 8, DType.FLOAT16)
    assert list(hopper_narrow.candidates(nothing, BIG)) == list(hopper_narrow.shortlist(nothing, BIG)) == []


@given(st.lists(st.integers(0, 60), unique=True))
def test_runs(blocks: list[int]) -> None:
    found = runs(sorted(blocks))
    assert [first + i for first, count in found for i in range(count)] == sorted(blocks)
    assert all(first + count < then for (first, count), (then, _) in pairwise(found))
