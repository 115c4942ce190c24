"""Wgrad on Hopper for narrow blocks: the tables of plan/wgrad.py with panels that TMA brings, and what the GPU demands."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from problems import BIG, SMALL, bernoulli, cheapest, hub, sample, small_layouts
from test_kernels_compile import check_instructions, compiled_plan
from test_plan import check_block, check_launches, check_products
from test_reference import check as check_numbers

from bsgen.layout import Layout
from bsgen.plan import HopperNarrowWGradPlan, Plan, choose, hopper_narrow_wgrad
from bsgen.problem import DType, Op, Problem

KINDS = [(block, dtype) for block in hopper_narrow_wgrad.BLOCK_SIZES for dtype in (DType.FLOAT16, DType.BFLOAT16)]

pytestmark = pytest.mark.filterwarnings("error")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    st.data(),
    st.sampled_from(KINDS),
    small_layouts(16).filter(lambda layout: layout.nnz > 0),
    st.sampled_from([(1, 1), (700, 1), (20_000, 1), (8, 0), (704, 0), (20_000, 0)]),
)
def test_tables(data: st.DataObject, kind: tuple[int, DType], layout: Layout, rows: tuple[int, int]) -> None:
    batch, axis = rows
    problem = Problem(Op.WGRAD, layout, *kind, batch=batch, axis=axis)
    plans = list(hopper_narrow_wgrad.candidates(problem, BIG))
    places = data.draw(st.lists(st.integers(0, len(plans) - 1), min_size=1, max_size=2, unique=True), "candidates")
    for plan in (cheapest(hopper_narrow_wgrad, problem, BIG), *(plans[place] for place in places)):
        check(plan)


@pytest.mark.parametrize(("block", "dtype"), KINDS)
def test_numbers(block: int, dtype: DType) -> None:
    for layout in (bernoulli(24, 20, 0.3), hub(40, 12), Layout(np.ones((16, 12), bool))):
        problem = Problem(Op.WGRAD, layout, block, dtype, batch=4000)
        for each in (problem, replace(problem, axis=0)):
            for plan in sample(list(hopper_narrow_wgrad.candidates(each, BIG)), 2):
                check(plan)
                check_numbers(plan, 304)


def check(plan: Plan) -> None:
    """Everything that holds for a plan of the family."""
    assert isinstance(plan, HopperNarrowWGradPlan)
    check_products(plan)
    check_launches(plan)
    check_block(plan, plan.threads)
    geo, shape = plan.geometry, plan.geometry.shape
    assert geo.stage_bytes % 1024 == 0, "panels begin with a swizzle atom"
    assert shape.stages * (geo.stage_bytes + 16) <= plan.shared_memory
    assert (plan.panel_counts > 0).all()
    assert plan.panel_counts.max() <= min(128, shape.panels), "a thread of the loading warps for each panel"
    active = plan.units[:, :, 0].reshape(plan.tiles, shape.warps, shape.units) >= 0
    assert (np.diff(active.astype(int), axis=2) <= 0).all(), "a warp's units come first, then none"
    groups = shape.warps // 4
    assert shape.warps % 4 == 0
    assert plan.consumer_registers * groups + plan.producer_registers <= plan.launch_registers * (groups + 1)
    assert plan.launch_registers * plan.threads <= 65536
    assert 24 <= plan.producer_registers <= plan.launch_registers <= plan.consumer_registers <= 240
    for tensor_map, features in zip(plan.maps, plan.features, strict=True):
        if geo.axis:
            assert (tensor_map.columns, tensor_map.rows) == (features, 0)
            assert (tensor_map.box_columns * 2, tensor_map.box_rows) == (128, shape.rows)
        else:
            assert (tensor_map.columns, tensor_map.rows) == (0, features)
            assert (tensor_map.box_columns, tensor_map.box_rows) == (shape.rows, shape.panel)
            assert tensor_map.box_columns * 2 in (64, 128)
    assert geo.panel_size * 16 % 1024 == 0
    assert shape.panel % geo.block == 0


@pytest.mark.parametrize("axis", [1, 0])
@pytest.mark.parametrize(("block", "dtype"), KINDS)
def test_kernels_of_every_shape(block: int, dtype: DType, axis: int) -> None:
    """No candidate spills, with and without splits of N."""
    plans: dict[object, Plan] = {}
    problem = Problem(Op.WGRAD, bernoulli(32, 32, 0.2), block, dtype, batch=16384, axis=axis)
    for plan in hopper_narrow_wgrad.candidates(problem, BIG):
        shape = plan.geometry.shape
        plans.setdefault((shape.warps, shape.units, shape.rows, shape.panel, shape.stages, plan.splits > 1), plan)
    assert {key[-1] for key in plans} == {False, True}
    for plan in sample(list(plans.values()), (6 if axis else 9) if dtype is DType.BFLOAT16 else 2):
        binary = compiled_plan(plan)
    check_instructions(plan, binary, multiplies="HMMA")


def test_gates_and_float32_results() -> None:
    for block, gate in product(hopper_narrow_wgrad.BLOCK_SIZES, (False, True)):
        axis = int(gate == (block == 8))
        problem = Problem(Op.WGRAD, bernoulli(12, 9, 0.4), block, DType.BFLOAT16, gate=gate, batch=16384, axis=axis)
        for each in (problem, replace(problem, wgrad_dtype=DType.FLOAT32)):
            compiled_plan(cheapest(hopper_narrow_wgrad, each, BIG))


def test_what_it_serves() -> None:
    layout = bernoulli(6, 5, 0.5)
    for op, block, dtype, target in product(Op, (8, 16, 32), DType, (BIG, SMALL)):
        problem = Problem(op, layout, block, dtype)
        served = target is BIG and op is Op.WGRAD and (block, dtype) in KINDS
        assert bool(list(hopper_narrow_wgrad.candidates(problem, target))) == served
        assert bool(list(hopper_narrow_wgrad.shortlist(problem, target))) == served
        assert served or not isinstance(choose(problem, target), HopperNarrowWGradPlan)
    for block, target in product((8, 16), (BIG, SMALL)):
        large = Problem(Op.WGRAD, bernoulli(64, 64, 0.2), block, DType.BFLOAT16, batch=16384)
        assert isinstance(choose(large, target), HopperNarrowWGradPlan) == (target is BIG)
    for batch, axis, served in ((20, 1, True), (20, 0, False), (24, 0, True), (None, 0, True)):
        problem = Problem(Op.WGRAD, layout, 16, DType.BFLOAT16, batch=batch, axis=axis)
        assert bool(list(hopper_narrow_wgrad.candidates(problem, BIG))) == served
        assert bool(list(hopper_narrow_wgrad.shortlist(problem, BIG))) == served
    nothing = Problem(Op.WGRAD, Layout(np.zeros((2, 3), bool)), 8, DType.FLOAT16)
    assert list(hopper_narrow_wgrad.candidates(nothing, BIG)) == list(hopper_narrow_wgrad.shortlist(nothing, BIG)) == []
