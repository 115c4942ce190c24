"""Plans by property: their tables, read on their own terms, against the mask that they were made from."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plan_tables import Term, products, stage_uses, terms
from problems import (
    ARITHMETIC,
    BIG,
    HOPPER_KINDS,
    ROOT,
    SMALL,
    bernoulli,
    cheapest,
    fingerprint,
    hub,
    problems,
    small_layouts,
    targets,
)

from bsgen.errors import PlanError
from bsgen.layout import Layout
from bsgen.plan import HopperPlan, MatMulPlan, Plan, WGradPlan, candidates, choose, matmul, wgrad
from bsgen.problem import BLOCK_SIZES, TARGETS, DType, Op, Precision, Problem, Target

ARGUMENTS = {"x", "dy", "w", "out", "bias", "residual", "workspace", "n", "accumulate"}
BATCHES = (1, 3, 16, 17, 100, 4097)
MATMUL_OPS = (Op.FPROP, Op.DGRAD)

pytestmark = pytest.mark.filterwarnings("error")
thorough = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def some_candidates(
    data: st.DataObject, family: ModuleType, problem: Problem, target: Target, count: int = 3
) -> list[Plan]:
    """The family's best plan, and a few of its candidates."""
    plans = list(family.candidates(problem, target))
    assert plans, f"no plan for {problem} on {target}"
    places = data.draw(st.lists(st.integers(0, len(plans) - 1), min_size=1, max_size=count, unique=True), "candidates")
    return [cheapest(family, problem, target), *(plans[place] for place in places)]


@thorough
@given(st.data(), problems(MATMUL_OPS, small_layouts()), targets())
def test_matmul_tables(data: st.DataObject, problem: Problem, target: Target) -> None:
    for plan in some_candidates(data, matmul, problem, target):
        check_matmul(plan)


@pytest.mark.parametrize("target", [BIG, SMALL], ids=lambda target: target.arch)
@pytest.mark.parametrize("op", MATMUL_OPS, ids=str)
def test_split_outputs_of_a_long_hub(op: Op, target: Target) -> None:
    mask = hub(200, 4).mask
    problem = Problem(op, Layout(mask if op is Op.FPROP else mask.T), 8, DType.FLOAT16)
    plans = list(matmul.candidates(problem, target))
    assert any(plan.reductions for plan in plans)
    for plan in plans:
        check_matmul(plan)


@pytest.mark.parametrize("block", BLOCK_SIZES)
@pytest.mark.parametrize("op", Op, ids=str)
def test_every_candidate_of_a_dense_corner(op: Op, block: int) -> None:
    mask = bernoulli(9, 13, 0.2).mask.copy()
    mask[:4, :4] = True
    for dtype, precision in ARITHMETIC[1:]:
        for plan in candidates(Problem(op, Layout(mask), block, dtype, precision), SMALL):
            if isinstance(plan, WGradPlan):
                check_products(plan)
                check_panels(plan)
            else:
                check_matmul(plan)


def check_matmul(plan: Plan) -> None:
    """Everything that holds for a plan of the portable family."""
    assert isinstance(plan, MatMulPlan)
    check_outputs(plan)
    check_terms(plan, terms(plan))
    check_stages(plan)
    check_matmul_launches(plan)


def check_outputs(plan: HopperPlan | MatMulPlan) -> None:
    """Every output block comes from one slot, or from one reduction whose partial sums come from one slot each."""
    targets = plan.targets[plan.targets != plan.no_output].tolist()
    direct = [target for target in targets if target >= 0]
    reduced = [reduction.output for reduction in plan.reductions]
    assert sorted(direct + reduced) == list(range(plan.features[1] // plan.problem.block_size))
    partials = [p for reduction in plan.reductions for p in range(reduction.first, reduction.first + reduction.count)]
    assert sorted(~target for target in targets if target < 0) == sorted(partials) == list(range(plan.partials))
    assert all(reduction.count > 1 for reduction in plan.reductions)


def check_terms(plan: HopperPlan | MatMulPlan, found: Iterable[Term]) -> None:
    """Every element of W is used once, with the input and for the output of its place in the dense matrix."""
    problem, block = plan.problem, plan.problem.block_size
    partial = {p: r.output for r in plan.reductions for p in range(r.first, r.first + r.count)}
    uses = np.zeros(problem.layout.nnz * block**2, np.int8)
    rows, columns = element_features(problem)
    for term in found:
        target = int(plan.targets[term.tile, term.slot])
        assert target != plan.no_output
        output = partial[~target] if target < 0 else target
        inputs = np.broadcast_to(np.arange(term.begin, term.end)[:, None], term.weights.shape)
        outputs = np.broadcast_to(np.arange(output * block, (output + 1) * block), term.weights.shape)
        expected = (inputs, outputs) if problem.op is Op.FPROP else (outputs, inputs)
        np.testing.assert_array_equal(rows[term.weights], expected[0])
        np.testing.assert_array_equal(columns[term.weights], expected[1])
        uses[term.weights] += 1
    assert (uses == 1).all()


def element_features(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Row and column in the dense W of every element of the stored blocks, in their order: what brute force knows."""
    block, coordinates = problem.block_size, np.argwhere(problem.layout.mask)
    inside = np.arange(block)
    rows = np.broadcast_to((coordinates[:, :1] * block + inside)[:, :, None], (len(coordinates), block, block))
    columns = np.broadcast_to((coordinates[:, 1:] * block + inside)[:, None, :], (len(coordinates), block, block))
    return rows.ravel(), columns.ravel()


def check_stages(plan: MatMulPlan) -> None:
    """Stages fit their share of shared memory, records their format, and everything the target."""
    form, shape = plan.form, plan.geometry.shape
    panels = -(-plan.features[0] // shape.panel)
    assert plan.tile_stages[0] == 0
    assert plan.tile_stages[-1] == len(plan.records)
    assert (np.diff(plan.tile_stages) >= 0).all()
    assert len(plan.tile_stages) == plan.tiles + 1
    assert plan.targets.shape == (plan.tiles, shape.slots)
    assert plan.records.shape[1] == form.words
    assert form.words % 4 == 0
    assert form.piece_starts + form.operations <= form.words
    assert form.operation_inputs + form.operations + 3 <= form.words, "warps read offsets ahead"
    for use in stage_uses(plan):
        assert use.bytes <= shape.stage_bytes
        assert all(0 <= panel < panels for panel in use.panels)
    records = (2 * shape.stages - 1) * form.words * 4
    assert plan.shared_memory >= shape.stages * shape.stage_bytes + records
    check_block(plan, shape.threads)


def check_block(plan: Plan, threads: int) -> None:
    """Shared memory, threads and the pipeline are what hardware and templates can do."""
    assert plan.shared_memory <= plan.target.shared_memory
    assert threads % 32 == 0
    assert threads <= 1024
    assert plan.geometry.shape.stages >= 2
    assert plan.blocks_per_sm >= 1
    assert plan.blocks_per_sm * (plan.shared_memory + 1024) <= plan.target.shared_memory + 1024


def check_matmul_launches(plan: MatMulPlan) -> None:
    """Grids cover every row of every tile and reduction, and nothing for no rows."""
    main, *reduce = plan.launches
    shape, block = plan.geometry.shape, plan.problem.block_size
    check_launches(plan)
    assert shape.rows == shape.warps_m * shape.m_tiles * 16
    assert main.grid.size(0, 132) == 0
    for n in BATCHES:
        assert main.grid.size(n, 132) == plan.tiles * -(-n // shape.rows)
        assert plan.workspace.elements(n) == plan.partials * n * block
    assert len(reduce) == bool(plan.reductions)
    for launch in reduce:
        rows = 32 if plan.problem.feature_first else launch.threads * 2 // block
        assert [launch.grid.size(n, 132) for n in BATCHES] == [len(plan.reductions) * -(-n // rows) for n in BATCHES]


def check_launches(plan: Plan) -> None:
    """What holds for the launches of any plan."""
    assert len({launch.entry for launch in plan.launches}) == len(plan.launches)
    for launch in plan.launches:
        maps = {tensor_map.argument for tensor_map in launch.maps}
        assert maps == {argument for argument in launch.arguments if argument.endswith("_map")}
        assert set(launch.arguments) - maps <= ARGUMENTS
        assert len(set(launch.arguments)) == len(launch.arguments)
        assert launch.shared_memory == (plan.shared_memory if launch is plan.launches[0] else 0)
        assert ("workspace" in launch.arguments) == (plan.workspace.elements(64) > 0)


@thorough
@given(st.data(), problems([Op.WGRAD], small_layouts()), targets())
def test_wgrad_tables(data: st.DataObject, problem: Problem, target: Target) -> None:
    for plan in some_candidates(data, wgrad, problem, target):
        assert isinstance(plan, WGradPlan)
        check_products(plan)
        check_panels(plan)
        check_wgrad_launches(plan)


def check_products(plan: WGradPlan) -> None:
    """Every element of dW is the product of its own features of x and dy, and is computed once."""
    rows, columns = element_features(plan.problem)
    uses = np.zeros(len(rows), np.int8)
    for product in products(plan):
        x, dy = np.meshgrid(product.x, product.dy, indexing="ij")
        np.testing.assert_array_equal(rows[product.elements], x)
        np.testing.assert_array_equal(columns[product.elements], dy)
        uses[product.elements] += 1
    assert (uses == 1).all()


def check_panels(plan: WGradPlan) -> None:
    """Tiles load panels that exist, each once, and no more than a stage has room for."""
    shape, geo = plan.geometry.shape, plan.geometry
    sizes = [-(-features // shape.panel) for features in plan.features]
    assert plan.panels.shape == (plan.tiles, shape.panels)
    assert plan.units.shape == (plan.tiles, shape.warps * shape.units, 5)
    for count, row in zip(plan.panel_counts.tolist(), plan.panels.tolist(), strict=True):
        loaded = row[:count]
        assert 0 < count <= shape.panels
        assert max(Counter(loaded).values()) == 1
        assert all(0 <= panel < sizes[0] if panel >= 0 else ~panel < sizes[1] for panel in loaded)
    if plan.tiles:
        panel_bytes = shape.rows * shape.panel * plan.problem.dtype.itemsize
        tables = 4 * (plan.panels.shape[1] + plan.units[0].size)
        assert plan.shared_memory >= shape.stages * shape.panels * panel_bytes + tables
        check_block(plan, geo.threads)


def check_wgrad_launches(plan: WGradPlan) -> None:
    """The grid is every tile of every split; splits are reduced if there are several; no blocks, no launches."""
    check_launches(plan)
    elements = plan.problem.layout.nnz * plan.problem.block_size**2
    if not elements:
        assert plan.launches == ()
        return
    main, *reduce = plan.launches
    assert {main.grid.size(n, 132) for n in BATCHES} == {plan.tiles * plan.splits}
    assert len(reduce) == (plan.splits > 1)
    assert plan.workspace.elements(5) == (plan.splits * elements if plan.splits > 1 else 0)
    for launch in reduce:
        covered = launch.grid.size(1, 132) * launch.threads * 4
        assert covered - launch.threads * 4 < elements <= covered
    assert all("accumulate" in launch.arguments for launch in plan.launches[-1:])


CASES = [
    Problem(op, layout, block, *kind)
    for layout in (bernoulli(7, 9, 0.3), hub(40, 6))
    for op in Op
    for block, kind in zip(BLOCK_SIZES, (*ARITHMETIC, ARITHMETIC[1]), strict=True)
]


def fingerprints() -> list[str]:
    """Of the plans of `CASES`."""
    return [fingerprint(choose(problem, target)) for problem in CASES for target in (BIG, SMALL)]


@pytest.mark.parametrize("seed", ["0", "1"])
def test_the_same_tables_in_every_process(seed: str) -> None:
    script = "import test_plan; print(*test_plan.fingerprints(), sep='\\n')"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, check=True, text=True)
    first = fingerprints()
    assert first == fingerprints()
    assert done.stdout.split() == first
    assert len(set(first)) == len(first)


@pytest.mark.parametrize("block", [16, 64])
@pytest.mark.parametrize("op", Op, ids=str)
def test_candidates_come_in_one_order(op: Op, block: int) -> None:
    problem = Problem(op, hub(30, 10), block, DType.BFLOAT16)
    first, second = ([fingerprint(plan) for plan in candidates(problem, BIG)] for _ in range(2))
    assert first == second
    assert len(set(first)) > 1


@pytest.mark.parametrize("target", [BIG, TARGETS["sm_90"]], ids=lambda target: target.arch)
@pytest.mark.parametrize("block", BLOCK_SIZES)
@pytest.mark.parametrize("op", Op, ids=str)
def test_costs_and_summaries(op: Op, block: int, target: Target) -> None:
    sparse, denser = bernoulli(16, 16, 0.05), Layout(np.ones((16, 16), bool))
    for dtype, precision in ARITHMETIC[1:]:
        plans = [choose(Problem(op, layout, block, dtype, precision), target) for layout in (sparse, denser)]
        times = [plan.cost.seconds for plan in plans]
        assert all(0 < a < b < 1 for a, b in pairwise(times))
        assert {plan.cost.n for plan in plans} == {4096}
        families = {"simt" if precision is Precision.IEEE else "portable"}
        hopper_serves = dtype.itemsize == 2 or (op, block, dtype) in HOPPER_KINDS
        if target is BIG and precision is Precision.TENSOR and hopper_serves:
            families.add("hopper")
        assert {plan.family for plan in plans} <= families
        assert all("\n" not in plan.summary for plan in plans)


@pytest.mark.parametrize("op", Op, ids=str)
def test_a_hint_for_n_is_what_the_time_is_for(op: Op) -> None:
    few, many = (Problem(op, bernoulli(20, 20, 0.2), 32, DType.BFLOAT16, batch=batch) for batch in (16, 65536))
    few_cost, many_cost = (choose(problem, BIG).cost for problem in (few, many))
    assert (few_cost.n, many_cost.n) == (16, 65536)
    assert few_cost.seconds < many_cost.seconds


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_every_target_has_a_plan_for_everything(target: Target) -> None:
    layout = bernoulli(3, 4, 0.5)
    for op in Op:
        for block in BLOCK_SIZES:
            for kind in ARITHMETIC:
                assert choose(Problem(op, layout, block, *kind), target).shared_memory <= target.shared_memory


@pytest.mark.parametrize("op", Op, ids=str)
def test_a_target_with_too_little_shared_memory(op: Op) -> None:
    tiny = Target("sm_90a", 4 * 1024, 132, 1.75e9, 4.3e12)
    with pytest.raises(PlanError, match=rf"no plan fits {op} with block size 128 .* 4 KiB .* smaller block size"):
        choose(Problem(op, bernoulli(3, 3, 1.0), 128, DType.FLOAT32), tiny)
