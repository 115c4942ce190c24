"""The Hopper family by property: its tables read on their own terms, and what TMA, wgmma and setmaxnreg demand of a plan."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from itertools import product

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from problems import (
    BIG,
    HOPPER_KINDS,
    ROOT,
    SMALL,
    bernoulli,
    cheapest,
    fingerprint,
    hub,
    sample,
    small_layouts,
    some_of,
)
from ring_tables import ring_terms, ring_uses
from test_plan import check_block, check_launches, check_outputs, check_terms

from bsgen import topology
from bsgen.layout import Layout
from bsgen.outline import Grid, Outline, TensorMap
from bsgen.plan import HopperPlan, candidates, choose, hopper, outline
from bsgen.plan.blocks import output_blocks
from bsgen.plan.cost import DEPENDENT_LAUNCH_SECONDS
from bsgen.plan.hopper_cost import hopper_cost, tile_counts
from bsgen.problem import BLOCK_SIZES, TARGETS, Activation, DType, Epilogue, Op, Precision, Problem, Target

BATCHES = (1, 3, 64, 129, 4097)
BARRIERS = 2 * 8  # bytes, of a stage

pytestmark = pytest.mark.filterwarnings("error")
thorough = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@st.composite
def hopper_problems(draw: st.DrawFn) -> Problem:
    """Problems that the family serves, of every layout that has a block, with epilogues and hints for N."""
    op, block, dtype = draw(st.sampled_from(HOPPER_KINDS))
    layout = draw(small_layouts().filter(lambda layout: layout.nnz > 0))
    epilogue = draw(st.builds(Epilogue, st.booleans(), st.sampled_from([None, *Activation]), st.booleans()))
    batch = draw(st.sampled_from([None, 1, 20000]))
    return Problem(op, layout, block, dtype, epilogue=epilogue if op is Op.FPROP else Epilogue(), batch=batch)


@thorough
@given(st.data(), hopper_problems())
def test_tables(data: st.DataObject, problem: Problem) -> None:
    drafts = list(hopper.drafts(problem, BIG))
    places = data.draw(st.lists(st.integers(0, len(drafts) - 1), min_size=1, max_size=3, unique=True), "candidates")
    check(cheapest(hopper, problem, BIG))
    for place in places:
        check(hopper.assemble(problem, BIG, drafts[place]))


@pytest.mark.parametrize("op", [Op.FPROP, Op.DGRAD], ids=str)
def test_split_outputs_of_a_long_hub(op: Op) -> None:
    mask = hub(200, 4).mask
    problem = Problem(op, Layout(mask if op is Op.FPROP else mask.T), 32, DType.FLOAT16)
    split = [draft for draft in hopper.drafts(problem, BIG) if draft.reductions]
    assert split
    for draft in sample(split, 6):
        check(hopper.assemble(problem, BIG, draft))


@pytest.mark.parametrize("block", hopper.BLOCK_SIZES)
@pytest.mark.parametrize("op", [Op.FPROP, Op.DGRAD], ids=str)
def test_every_candidate_of_a_dense_corner(op: Op, block: int) -> None:
    """Panels with more pieces than a stage has room for among them."""
    mask = bernoulli(9, 13, 0.2).mask.copy()
    mask[:4, :4] = True
    for dtype in (dtype for kind_op, kind_block, dtype in HOPPER_KINDS if (kind_op, kind_block) == (op, block)):
        problem = Problem(op, Layout(mask), block, dtype)
        for draft in some_of(list(hopper.drafts(problem, BIG)), 3):
            check(hopper.assemble(problem, BIG, draft))


@settings(thorough, max_examples=20)
@given(st.data(), hopper_problems())
def test_tables_of_thread_blocks_across(data: st.DataObject, problem: Problem) -> None:
    drafts = [draft for draft in hopper.drafts(problem, BIG, (2, 4)) if draft.geometry.shape.across > 1]
    for place in data.draw(
        st.lists(st.integers(0, len(drafts) - 1), min_size=1, max_size=2, unique=True), "candidates"
    ):
        check(hopper.assemble(problem, BIG, drafts[place]))


def test_tiles_of_few_rows_begin_at_different_panels() -> None:
    """At four places, for thread blocks would else all read the same at a time; with many rows they had better."""
    problem = Problem(Op.FPROP, Layout(np.ones((36, 32), bool)), 32, DType.BFLOAT16, batch=64)
    for batch, firsts in ((64, [0, 8 * 32, 18 * 32, 26 * 32]), (16384, [0])):  # even ones, where pairs begin
        for draft in sample(list(hopper.drafts(replace(problem, batch=batch), BIG, across=(1,), rings=(1,))), 4):
            plan = hopper.assemble(replace(problem, batch=batch), BIG, draft)
            found = sorted(set(plan.loads[plan.tile_stages[:-1], 1].tolist()))
            assert set(found) <= set(firsts)
            assert len(found) == min(len(firsts), plan.tiles)


@pytest.mark.parametrize(("size", "n"), [(12288, 256), (12288, 128), (5120, 512), (3072, 1024)])
def test_tiles_leave_no_sm_without_work(size: int, n: int) -> None:
    """Where there is less than a tile of 128 x 256 for each: those would leave a quarter and more of the SMs idle."""
    target, layout = TARGETS["sm_90a"], topology.random(size // 64, size // 64, density=0.2, seed=1)
    plan = choose(Problem(Op.FPROP, layout, 64, DType.BFLOAT16, batch=n), target)
    assert isinstance(plan, HopperPlan)
    thread_blocks = plan.tiles * -(-n // plan.geometry.shape.rows)
    common = size // 256 * -(-n // 128)
    assert common < 0.75 * target.sms
    assert thread_blocks / (-(-thread_blocks // target.sms) * target.sms) > 0.8


@given(small_layouts(), st.sampled_from([1, 2, 3, 4]), st.sampled_from([Op.FPROP, Op.DGRAD]))
def test_output_blocks_that_are_alike(layout: Layout, repeated: int, op: Op) -> None:
    """The most by which those that have the same inputs, wherever they are, can be counted off."""
    mask = np.tile(layout.mask, repeated)
    view = output_blocks(Problem(op, Layout(mask if op is Op.FPROP else mask.T), 32, DType.BFLOAT16))
    columns = [tuple(column) for column in mask.T.tolist()]
    assert all(len({columns[output] for output in own}) == 1 for own in view.classes)
    assert sorted(output for own in view.classes for output in own) == list(range(mask.shape[1]))
    counts = Counter(columns).values()
    assert len(view.classes) == len(counts)
    assert view.alike == max(count for count in range(1, mask.shape[1] + 1) if not any(n % count for n in counts))


@thorough
@given(
    st.data(),
    st.sampled_from([Op.FPROP, Op.DGRAD]),
    st.sampled_from([32, 64]),
    small_layouts(6),
    st.sampled_from([2, 4, 12]),
)
def test_tables_of_joined_products(data: st.DataObject, op: Op, block: int, layout: Layout, repeated: int) -> None:
    """Where output blocks have the same inputs, one product is of all that a warpgroup has, neighbours or not."""
    mask = np.repeat(layout.mask, repeated, axis=1) if data.draw(st.booleans()) else np.tile(layout.mask, repeated)
    assume(mask.any())
    problem = Problem(op, Layout(mask if op is Op.FPROP else mask.T), block, DType.BFLOAT16, batch=20000)
    drafts = [draft for draft in hopper.drafts(problem, BIG) if draft.geometry.shape.joined]
    assert drafts
    for place in data.draw(
        st.lists(st.integers(0, len(drafts) - 1), min_size=1, max_size=3, unique=True), "candidates"
    ):
        check(hopper.assemble(problem, BIG, drafts[place]))


def test_products_are_joined_where_that_is_faster() -> None:
    """Dense and block-diagonal layouts with many rows; not those whose output blocks have inputs of their own, nor blocks of 128,
    whose products are as wide."""
    target = TARGETS["sm_90a"]
    for block, joined in ((32, True), (64, True), (128, False)):
        for layout in (
            topology.random(4096 // block, 4096 // block, density=1.0),
            topology.block_diagonal(4096 // block, 4096 // block, 4),
        ):
            plan = cheapest(hopper, Problem(Op.FPROP, layout, block, DType.BFLOAT16, batch=16384), target)
            assert isinstance(plan, HopperPlan)
            assert plan.geometry.shape.joined == joined
            assert ("joined" in plan.summary) == joined
    drafts = hopper.drafts(Problem(Op.FPROP, bernoulli(8, 8, 0.5), 32, DType.BFLOAT16, batch=16384), target)
    assert not any(draft.geometry.shape.joined for draft in drafts)


def test_rings_suit_their_tiles() -> None:
    """With few rows: many small stages where a tile is less than a ring, few where it is more."""
    stages = {}
    for inputs in (8, 400):
        layout = topology.random(inputs, 96, density=1.0, seed=1)
        plan = cheapest(hopper, Problem(Op.FPROP, layout, 32, DType.BFLOAT16, batch=64), TARGETS["sm_90a"])
        stages[inputs] = plan.geometry.shape.stages
    assert stages == {8: 8, 400: 3}


def test_two_rings_are_considered_where_they_were_faster() -> None:
    idle, busy = topology.random(128, 128, density=0.01, seed=1), topology.random(128, 128, density=0.05, seed=1)
    for layout, block, rings in ((idle, 32, {1, 2}), (busy, 32, {1}), (busy, 64, {1, 2})):
        problem = Problem(Op.FPROP, layout, block, DType.BFLOAT16, batch=16384)
        for case, expected in ((problem, rings), (replace(problem, batch=4096), {1}), (replace(problem, axis=0), {1})):
            assert {draft.geometry.shape.rings for draft in hopper.drafts(case, TARGETS["sm_90a"])} == expected


def test_partial_sums_have_a_price() -> None:
    """Of a launch more, and of what is written and read again."""
    problem, target = Problem(Op.FPROP, hub(40, 12), 32, DType.BFLOAT16, batch=64), TARGETS["sm_90a"]
    draft = next(draft for draft in hopper.drafts(problem, target) if not draft.reductions)
    counts = tile_counts(draft.tiles, 40, draft.geometry)
    whole, few, many = (hopper_cost(problem, target, draft.geometry, counts, 0.0, n).seconds for n in (0, 1, 1000))
    assert few - whole > DEPENDENT_LAUNCH_SECONDS
    bytes_moved = 999 * 64 * 32 * 4 * 2
    assert bytes_moved / 20e12 < many - few < bytes_moved / 5e12


def test_neighbours_share_activations() -> None:
    """Of a full layout every panel is needed by all, and loaded by one."""
    problem = Problem(Op.FPROP, Layout(np.ones((12, 32), bool)), 32, DType.BFLOAT16, batch=64)
    checked = set()
    for draft in hopper.drafts(problem, BIG, (2, 4)):
        across = draft.geometry.shape.across
        if across > 1 and 32 % (draft.geometry.shape.tile_slots * across) == 0:
            plan = hopper.assemble(problem, BIG, draft)
            copies = (plan.loads[:, 0] & 0xFF).sum()
            assert copies == 12 * plan.tiles / across
            weights = problem.layout.nnz * draft.geometry.piece_bytes
            assert plan.cost.l2_bytes == copies * draft.geometry.panel_bytes + weights
            checked.add(across)
    assert checked == {2, 4}


def check(plan: object) -> None:
    """Everything that holds for a plan of the family."""
    assert isinstance(plan, HopperPlan)
    check_outputs(plan)
    check_terms(plan, ring_terms(plan))
    check_tables(plan)
    check_stages(plan)
    check_shared_memory(plan)
    check_registers(plan)
    check_maps(plan)
    check_stores(plan)
    check_grids(plan)


def check_tables(plan: HopperPlan) -> None:
    """Tiles have consecutive stages, and a target for each slot; the rows of a table are what the kernel takes them for."""
    assert plan.tile_stages[0] == 0
    assert plan.tile_stages[-1] == len(plan.loads) == len(plan.records) > 0
    assert (np.diff(plan.tile_stages) >= 0).all()
    assert len(plan.tile_stages) == plan.tiles + 1
    assert plan.targets.shape == (plan.tiles, plan.geometry.shape.tile_slots)
    assert plan.loads.shape[1] <= 32, "a lane of the loading warp for each word"
    assert plan.records.shape[1] * 4 == plan.record_bytes
    assert plan.record_bytes % 16 == 0, "bulk copies"


def check_stages(plan: HopperPlan) -> None:
    """Loads fit a stage before its record, in places that swizzles allow; each piece is read once, each panel by somebody."""
    geo, shape = plan.geometry, plan.geometry.shape
    for use in ring_uses(plan):
        assert use.data_bytes <= shape.stage_bytes - plan.record_bytes
        assert use.loads <= 31
        assert all(place % (8 * geo.row_bytes) == 0 for place in use.panel_places)
        assert all(place % (8 * geo.row_bytes) == 0 for place in use.piece_places)
        assert len(set(use.panel_places)) == use.panels
        assert len(set(use.piece_places)) == len(use.piece_places) == use.boxes // geo.piece_boxes
        assert use.record_end <= plan.record_bytes, "warps read two visits, or products, past the last"
        assert all(place % (8 * geo.row_bytes) == 0 and place + geo.panel_bytes <= use.data_bytes for place in use.past)


def check_shared_memory(plan: HopperPlan) -> None:
    """The ring, its barriers and the scratch of the warps that store, from a multiple of 1024 on."""
    shape = plan.geometry.shape
    check_block(plan, shape.threads)
    assert shape.stage_bytes % 1024 == 0
    assert shape.stages * BARRIERS % 16 == 0, "scratch is written 16 bytes at a time"
    scratch = 4 * shape.groups * 8 * shape.store_bytes
    assert shape.rings * (shape.stages * (shape.stage_bytes + BARRIERS) + scratch) <= plan.shared_memory


def check_registers(plan: HopperPlan) -> None:
    """setmaxnreg hands out no more registers than the launch took: it would wait for ever."""
    geo, shape = plan.geometry, plan.geometry.shape
    groups = shape.groups * shape.rings
    wanted = shape.consumer_registers * groups + shape.producer_registers
    assert wanted <= shape.launch_registers * (groups + 1)
    assert 128 * (groups + 1) == shape.threads
    assert shape.launch_registers * shape.threads <= 65536
    assert 24 <= shape.producer_registers <= shape.launch_registers <= shape.consumer_registers <= 256
    assert shape.producer_registers % 8 == shape.consumer_registers % 8 == shape.launch_registers % 8 == 0
    assert geo.registers(1 + geo.double_buffered) <= shape.consumer_registers


def check_maps(plan: HopperPlan) -> None:
    """What cuTensorMapEncodeTiled accepts, with rows of one swizzle line, and what the stages' bytes were counted with."""
    problem, geo, item = plan.problem, plan.geometry, plan.problem.dtype.itemsize
    activations, *pairs, w = (tensor_map for tensor_map in plan.maps if tensor_map.operand != "residual")
    residual = plan.maps[2 + len(pairs) :]
    assert len(pairs) == plan.pairs <= geo.shape.paired
    assert activations.fetched == fetched(plan)
    assert all(tensor_map.fetched == 128 for tensor_map in (w, *residual))
    for tensor_map in pairs:
        assert tensor_map == replace(activations, box_columns=64, name=f"{plan.activations}_pairs", fetched=128)
    for tensor_map in plan.maps:
        assert 0 < tensor_map.box_rows <= 256
        assert tensor_map.box_columns * item == line_bytes(plan, tensor_map)
        assert geo.row_bytes in (64, 128)
        assert tensor_map.columns * item % 16 == 0
        assert tensor_map.dtype == str(problem.dtype)
    sizes = (0, plan.features[0]) if problem.feature_first else (plan.features[0], 0)
    assert (activations.operand, activations.columns, activations.rows) == (plan.activations, *sizes)
    assert (w.operand, w.columns, w.rows) == ("w", problem.block_size, problem.layout.nnz * problem.block_size)
    assert activations.box_rows * activations.box_columns * item * geo.panel_boxes == geo.panel_bytes
    assert w.box_rows * geo.row_bytes == geo.box_bytes
    assert len(residual) == (problem.epilogue.residual and not problem.feature_first and item == 2)
    for tensor_map in residual:
        assert (tensor_map.operand, tensor_map.columns, tensor_map.rows) == ("residual", plan.features[1], 0)
        assert tensor_map.box_rows * tensor_map.box_columns * item == geo.residual_bytes
        assert plan.residual_panels * geo.store_columns == geo.shape.tile_slots * geo.block
        assert geo.residual_rows * geo.residual_parts == geo.shape.rows
        assert geo.residual_parts == 1 or (geo.residual_rows, geo.shape.row_groups) == (64, 1), "a 64-row tile each"
        assert plan.residual_panels * geo.residual_bytes <= geo.shape.stage_bytes
        assert plan.residual_panels < 32, "a lane of the loading warps each, beside the first"


def fetched(plan: HopperPlan) -> int:
    """Of half lines that no block needs, L2 can leave the other half in device memory."""
    mask, problem = plan.problem.layout.mask, plan.problem
    idle = ~mask.any(axis=1 if problem.op is Op.FPROP else 0)
    half = problem.block_size * problem.dtype.itemsize == 64 and not problem.feature_first
    return 64 if half and idle.sum() / idle.size > 0.05 else 128


def line_bytes(plan: HopperPlan, tensor_map: TensorMap) -> int:
    """Bytes of a row of its boxes, which are those of its swizzle."""
    if tensor_map.operand == "residual":
        return plan.geometry.shape.store_bytes
    return 128 if tensor_map.argument.endswith("_pairs_map") or not tensor_map.columns else plan.geometry.row_bytes


def check_stores(plan: HopperPlan) -> None:
    """Where two output blocks are stored as one, they are neighbours, from an even one on."""
    if plan.geometry.coupled:
        first, second = plan.targets[:, ::2], plan.targets[:, 1::2]
        assert (first[first != plan.no_output] % 2 == 0).all()
        assert (second == np.where(first == plan.no_output, plan.no_output, first + 1)).all()
        assert not plan.reductions


def check_grids(plan: HopperPlan) -> None:
    """Whole clusters, no more thread blocks than multiprocessors, and none for no rows."""
    main, *reduce = plan.launches
    shape, block = plan.geometry.shape, plan.problem.block_size
    check_launches(plan)
    assert main.maps == plan.maps
    assert main.grid.size(0, 132) == 0
    for n, sms in product(BATCHES, (132, 131, 7)):
        size = main.grid.size(n, sms)
        work = plan.tiles * -(-n // (shape.rows * shape.cluster)) * shape.cluster
        assert size == min(work, sms // shape.thread_blocks * shape.thread_blocks) > 0
        assert plan.workspace.elements(n) == plan.partials * n * block
    assert len(reduce) == bool(plan.reductions)
    for launch in reduce:
        rows = 32 if plan.problem.feature_first else launch.threads * 2 // block
        assert [launch.grid.size(n, 132) for n in BATCHES] == [len(plan.reductions) * -(-n // rows) for n in BATCHES]


@pytest.mark.parametrize("cluster", [1, 2])
@pytest.mark.parametrize("n", BATCHES)
def test_grid_sizes(n: int, cluster: int) -> None:
    for blocks, sms in product((1, 5, 1000), (2, 7, 132)):
        size = Grid(blocks, 64 * cluster, persistent=True, cluster=cluster).size(n, sms)
        assert size % cluster == 0
        assert cluster <= size <= sms
    assert Grid(5, 64 * cluster, persistent=True, cluster=cluster).size(n, 10**6) == 5 * cluster * -(
        -n // 64 // cluster
    )


@pytest.mark.parametrize(("op", "block", "dtype"), HOPPER_KINDS)
def test_outlines_survive_json(op: Op, block: int, dtype: DType) -> None:
    plan = cheapest(hopper, Problem(op, bernoulli(6, 5, 0.4), block, dtype), BIG)
    before = outline(plan)
    after = Outline.from_json(json.loads(json.dumps(asdict(before))))
    assert after == before
    assert after.launches[0].maps == plan.launches[0].maps
    assert len(after.launches[0].maps) == 2 + plan.pairs


def fingerprints() -> list[str]:
    """Of two plans of every kind and layout."""
    made: list[HopperPlan] = []
    for (op, block, dtype), layout in product(HOPPER_KINDS, (bernoulli(7, 9, 0.3), hub(40, 6))):
        problem = Problem(op, layout, block, dtype)
        drafts = sample(list(hopper.drafts(problem, BIG)), 2)
        made += [hopper.assemble(problem, BIG, draft) for draft in drafts]
    return [fingerprint(plan) for plan in made]


@pytest.mark.parametrize("seed", ["0", "1"])
def test_the_same_tables_in_every_process(seed: str) -> None:
    script = "import test_hopper; print(*test_hopper.fingerprints(), sep='\\n')"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, check=True, text=True)
    first = fingerprints()
    assert done.stdout.split() == first
    assert len(set(first)) == len(first)


def test_every_kind_is_offered_and_nothing_else() -> None:
    layout = bernoulli(5, 4, 0.5)
    for op, block, dtype, precision in product(Op, BLOCK_SIZES, DType, Precision):
        problem = Problem(op, layout, block, dtype, precision)
        offered = precision is Precision.TENSOR or dtype is not DType.FLOAT32
        offered = offered and (op, block, dtype) in HOPPER_KINDS
        assert any(isinstance(plan, HopperPlan) for plan in candidates(problem, BIG)) == offered
        assert offered or not isinstance(choose(problem, BIG), HopperPlan)


@pytest.mark.parametrize("target", [t for t in TARGETS.values() if t is not BIG], ids=lambda target: target.arch)
def test_no_other_architecture_has_it(target: Target) -> None:
    for op, block, dtype in HOPPER_KINDS:
        problem = Problem(op, bernoulli(5, 4, 0.5), block, dtype)
        assert list(hopper.candidates(problem, target)) == list(hopper.shortlist(problem, target)) == []
        assert not isinstance(choose(problem, target), HopperPlan)


def test_not_for_a_layout_without_blocks() -> None:
    for op, block, dtype in HOPPER_KINDS:
        problem = Problem(op, Layout(np.zeros((2, 3), bool)), block, dtype)
        assert list(hopper.candidates(problem, BIG)) == list(hopper.shortlist(problem, BIG)) == []
        assert not isinstance(choose(problem, BIG), HopperPlan)


def test_too_little_shared_memory_leaves_it_out() -> None:
    little = Target("sm_90a", SMALL.shared_memory // 3, 132, 1.75e9, 4.3e12)
    problem = Problem(Op.FPROP, bernoulli(5, 4, 0.5), 128, DType.FLOAT16)
    assert list(hopper.candidates(problem, little)) == []


@pytest.mark.parametrize(("op", "block", "dtype"), [kind for kind in HOPPER_KINDS if kind[2] is not DType.FLOAT32])
def test_it_is_chosen_where_there_is_work_for_it(op: Op, block: int, dtype: DType) -> None:
    side = 4096 // block
    assert isinstance(choose(Problem(op, bernoulli(side, side, 0.3), block, dtype), BIG), HopperPlan)


def test_bands_are_offered_where_w_does_not_stay_in_l2() -> None:
    """256 x 256 blocks of 32, 10 %: 13 MB of W. One row of tiles comes first: what the planner takes of equals."""
    problem = Problem(Op.FPROP, bernoulli(256, 256, 0.11), 32, DType.BFLOAT16)
    heights = [draft.band for draft in hopper.drafts(problem, BIG)]
    assert heights[0] == 1
    assert set(heights) > {1}
    chosen = choose(problem, BIG)
    assert isinstance(chosen, HopperPlan)
    assert chosen.band == 1
    assert {draft.band for draft in hopper.drafts(replace(problem, layout=bernoulli(128, 128, 0.1)), BIG)} == {1}
