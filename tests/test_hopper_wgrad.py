"""Hopper's wgrad plans by property: tables read as their docstring describes them, and what TMA and wgmma demand of a plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from problems import BIG, SMALL, bernoulli, hub, small_layouts
from test_plan import check_launches, element_features

from bsgen.layout import Layout
from bsgen.plan import HopperWGradPlan, choose, hopper_wgrad
from bsgen.plan.gradient_tiles import Room, gradient_tiles
from bsgen.problem import DType, Op, Problem
from bsgen.topology import banded, random

NOTHING = -1
WGMMA_ROWS = 64
thorough = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@st.composite
def gradient_problems(draw: st.DrawFn) -> Problem:
    """Problems that the family serves, of every layout that has a block."""
    layout = draw(small_layouts(14).filter(lambda layout: layout.nnz > 0))
    block, dtype = draw(st.sampled_from(hopper_wgrad.BLOCK_SIZES)), draw(st.sampled_from(["float16", "bfloat16"]))
    axis = draw(st.sampled_from([0, 1]))
    return Problem(
        Op.WGRAD, layout, block, DType(dtype), batch=draw(st.sampled_from([None, 1 if axis else 8, 20000])), axis=axis
    )


@thorough
@given(st.data(), gradient_problems())
def test_tables(data: st.DataObject, problem: Problem) -> None:
    plans = list(hopper_wgrad.candidates(problem, BIG))
    places = data.draw(st.lists(st.integers(0, len(plans) - 1), min_size=1, max_size=4, unique=True), "candidates")
    for plan in (next(hopper_wgrad.shortlist(problem, BIG)), *(plans[place] for place in places)):
        check(plan)


@pytest.mark.parametrize("block", hopper_wgrad.BLOCK_SIZES)
@pytest.mark.parametrize("layout", [hub(300, 7), bernoulli(150, 90, 0.2), Layout(np.ones((40, 33), bool))], ids=repr)
def test_tables_of_larger_layouts(layout: Layout, block: int) -> None:
    check(next(hopper_wgrad.shortlist(Problem(Op.WGRAD, layout, block, DType.BFLOAT16, batch=16384), BIG)))


def check(plan: HopperWGradPlan) -> None:
    """Everything that holds for a plan of the family."""
    check_products(plan)
    check_panels(plan)
    check_machine(plan)
    check_grid(plan)


def check_products(plan: HopperWGradPlan) -> None:
    """Every element of dW is the product of its own features of x and dy, and is computed once."""
    rows, columns = element_features(plan.problem)
    uses = np.zeros(len(rows), np.int8)
    for x_features, y_features, elements in products(plan):
        x, dy = np.meshgrid(x_features, y_features, indexing="ij")
        np.testing.assert_array_equal(rows[elements], x)
        np.testing.assert_array_equal(columns[elements], dy)
        uses[elements] += 1
    assert (uses == 1).all()


def products(plan: HopperWGradPlan) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each 64 x b product of a unit, or its half: features of x and dy, and the elements of dW that they make."""
    b, chunk = plan.problem.block_size, 8
    for tile in range(plan.tiles):
        for group in range(plan.unit_counts.shape[1]):
            for left, right, *places in plan.units[tile, group, : plan.unit_counts[tile, group]].tolist():
                x, dy = operand(plan, tile, left, WGMMA_ROWS), operand(plan, tile, right, b)
                assert (x[0] >= 0).all()
                assert (dy[0] < 0).all()
                lying = min(b, WGMMA_ROWS)  # rows of dW that lie together
                for half in range(WGMMA_ROWS // lying):
                    if places[half] == NOTHING:
                        continue
                    inside = np.arange(lying)[:, None] * b + np.arange(b)
                    yield x[1][half * lying : (half + 1) * lying], dy[1], places[half] * chunk + inside


def operand(plan: HopperWGradPlan, tile: int, low: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    """The words and features that a matrix descriptor finds: panels of one swizzle line, a leading dimension apart; of features
    first, where descriptors have none, panels that lie one after the other, or that warps read for themselves."""
    geo = plan.geometry
    line = geo.depth
    words, found = [], []
    if not geo.axis and not (geo.in_registers and features == WGMMA_ROWS):
        assert low >> 16 in (0, geo.panel_bytes // 16)
    for step in range(-(-features // line)):
        at = ((low & 0x3FFF) + step * (low >> 16)) * 16
        assert at % geo.panel_bytes == 0
        word = int(plan.panels[tile, at // geo.panel_bytes])
        assert at // geo.panel_bytes < plan.panel_counts[tile]
        words.append(word)
        found += list(range(~word if word < 0 else word, (~word if word < 0 else word) + line))
    return np.array(words), np.array(found)


def check_panels(plan: HopperWGradPlan) -> None:
    """Tiles load panels that exist, each once, and no more than a stage has room for and the loading warps have lanes."""
    geo, problem = plan.geometry, plan.problem
    line = geo.depth
    assert plan.panels.shape == (plan.tiles, geo.panels)
    assert geo.panels <= 128
    for count, row in zip(plan.panel_counts.tolist(), plan.panels.tolist(), strict=True):
        loaded = row[:count]
        assert 0 < count <= geo.panels
        assert max(Counter(loaded).values()) == 1
        for word in loaded:
            feature, limit = (~word, problem.out_features) if word < 0 else (word, problem.in_features)
            assert feature % line == 0
            assert feature < limit


def check_machine(plan: HopperWGradPlan) -> None:
    """Shared memory, registers, swizzles and boxes are such as the machine has."""
    geo = plan.geometry
    assert plan.shared_memory <= plan.target.shared_memory
    assert geo.threads % 128 == 0
    assert geo.threads <= 1024
    assert geo.panel_bytes % 1024 == 0, "the swizzle repeats every 1024 bytes"
    assert geo.stages * (geo.stage_bytes + 16) <= plan.shared_memory
    more = plan.shared_memory + geo.stage_bytes
    assert geo.stages == hopper_wgrad.MOST_STAGES or more > plan.target.shared_memory, "room for another stage"
    assert geo.scratch_bytes == 8 * min(128, 2 * geo.block), "8 rows of a line, or of a block"
    assert geo.groups * 4 * geo.scratch_bytes <= geo.stages * geo.stage_bytes, "every warp stores through the ring"
    wanted = geo.consumer_registers * geo.groups + geo.producer_registers
    assert wanted <= geo.launch_registers * (geo.groups + 1)
    assert geo.units * geo.block // 2 + 16 < geo.consumer_registers
    assert geo.rows % 16 == 0
    features = [plan.problem.in_features, plan.problem.out_features]
    for tensor_map, width in zip(plan.maps, features, strict=True):
        assert tensor_map.box_columns * 2 == geo.line_bytes
        assert geo.line_bytes in (64, 128)
        assert tensor_map.box_columns * tensor_map.box_rows * 2 == geo.panel_bytes
        assert tensor_map.box_rows <= 256
        if geo.axis:
            assert (tensor_map.box_rows, tensor_map.columns, tensor_map.rows) == (geo.rows, width, 0)
        else:
            assert (tensor_map.box_columns, tensor_map.columns, tensor_map.rows) == (geo.rows, 0, width)


def check_grid(plan: HopperWGradPlan) -> None:
    """A thread block for each tile and split; splits are reduced if there are several, a thread block for each unit."""
    check_launches(plan)
    main, *reduce = plan.launches
    assert {main.grid.size(n, 132) for n in (1, 64, 4097)} == {plan.tiles * plan.splits}
    assert len(reduce) == (plan.splits > 1)
    units = plan.units.shape[0] * plan.units.shape[1] * plan.units.shape[2]
    elements = units * WGMMA_ROWS * plan.problem.block_size
    assert plan.workspace.elements(5) == (plan.splits * elements if plan.splits > 1 else 0)
    assert all(launch.grid.size(1, 132) == units for launch in reduce)
    assert "accumulate" in plan.launches[-1].arguments


def test_serves() -> None:
    layout = bernoulli(8, 8, 0.5)
    for block in (8, 16):
        assert not hopper_wgrad.serves(Problem(Op.WGRAD, layout, block, DType.BFLOAT16), BIG)
    assert not hopper_wgrad.serves(Problem(Op.WGRAD, layout, 32, DType.FLOAT32), BIG), "wgmma has no such TF32"
    assert not hopper_wgrad.serves(Problem(Op.WGRAD, layout, 32, DType.BFLOAT16), SMALL)
    assert hopper_wgrad.serves(Problem(Op.WGRAD, layout, 32, DType.BFLOAT16, axis=0), BIG)
    assert not hopper_wgrad.serves(Problem(Op.WGRAD, Layout(np.zeros((4, 4), bool)), 32, DType.BFLOAT16), BIG)
    assert choose(Problem(Op.WGRAD, random(64, 64, density=0.1, seed=0), 32, DType.BFLOAT16), BIG).family == "hopper"


def test_columns_that_share_rows_share_a_tile() -> None:
    """Columns of two kinds, in turn: a tile that mixed them would need twice the panels."""
    mask = np.zeros((32, 16), bool)
    mask[:16, ::2] = mask[16:, 1::2] = True
    tiles = gradient_tiles(Problem(Op.WGRAD, Layout(mask), 32, DType.BFLOAT16), Room(24, 30, 2, 1), 32)
    assert max(len(tile.rows) for tile in tiles) == 16
    assert {len({column.column % 2 for column in tile.columns}) for tile in tiles} == {1}


def test_structure_needs_fewer_panels() -> None:
    """Neighbouring columns of a band share nearly all their rows."""
    loads = {}
    for name, layout in (("banded", banded(128, 128, 13)), ("random", random(128, 128, fan_in=13, seed=1))):
        plan = choose(Problem(Op.WGRAD, layout, 32, DType.BFLOAT16, batch=16384), BIG)
        assert isinstance(plan, HopperWGradPlan)
        loads[name] = plan.panel_counts.sum()
    assert loads["banded"] < 0.8 * loads["random"]


def test_splits_fill_the_gpu() -> None:
    """Many rows: thread blocks for nearly every SM in each round; few rows are not split."""
    layout = random(128, 128, density=0.1, seed=1)
    many = choose(Problem(Op.WGRAD, layout, 32, DType.BFLOAT16, batch=16384), BIG)
    few = choose(Problem(Op.WGRAD, layout, 32, DType.BFLOAT16, batch=64), BIG)
    assert isinstance(many, HopperWGradPlan)
    assert isinstance(few, HopperWGradPlan)
    blocks = many.tiles * many.splits
    assert blocks / (132 * -(-blocks // 132)) > 0.9
    assert few.splits == 1
