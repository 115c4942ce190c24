"""The kernels themselves, without a GPU: NVRTC compiles the matrix for every architecture, and nothing spills."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from problems import ARITHMETIC, BIG, HOPPER_KINDS, bernoulli, hub, portable, sample, some_of

from bsgen import disasm, nvrtc
from bsgen.emit import render
from bsgen.layout import Layout
from bsgen.nvrtc import Binary
from bsgen.plan import Plan, choose, hopper, hopper_wgrad
from bsgen.plan.warpgroup import WarpgroupShape
from bsgen.problem import BLOCK_SIZES, TARGETS, Activation, DType, Epilogue, Op, Precision, Problem

SMALL, LARGE = bernoulli(6, 5, 0.4), bernoulli(64, 64, 0.1)
SKEWED = hub(400, 6)
FULL = Layout(np.ones((48, 48), bool))
MATRIX = [(op, block, kind) for op in Op for block in BLOCK_SIZES for kind in ARITHMETIC]
# One of every op, block size and arithmetic for each architecture, another selection for each.
DIAGONALS = [
    (arch, tuple(Op)[(at + i) % 3], BLOCK_SIZES[i % 5], ARITHMETIC[(at + i) % 4])
    for at, arch in enumerate(arch for arch in TARGETS if arch != "sm_90a")
    for i in range(5)
]
# What needs most registers, on every architecture: the most accumulators of a thread, and full-rate pairs of 8-wide blocks.
HEAVIEST = [
    (arch, *case)
    for arch in TARGETS
    for case in ((Op.FPROP, 128, ARITHMETIC[3]), (Op.FPROP, 8, ARITHMETIC[1]))
    if arch != "sm_90a" and (arch, *case) not in DIAGONALS
]
EPILOGUES = [
    Epilogue(True, Activation.GELU, True),
    Epilogue(True, Activation.SILU, False),
    Epilogue(False, Activation.RELU, True),
]


def named(values: object) -> str:
    """A short name of a case."""
    if isinstance(values, Epilogue):
        return "-".join(filter(None, ("bias" * values.bias, values.activation, "residual" * values.residual)))
    return "-".join(map(str, values)) if isinstance(values, tuple) else str(values)


def compiled(problem: Problem, arch: str = "sm_90a") -> tuple[Plan, Binary]:
    """The chosen plan, and its kernels compiled."""
    plan = choose(problem, TARGETS[arch])
    return plan, compiled_plan(plan)


def compiled_plan(plan: Plan) -> Binary:
    """The kernels of a plan, which must be whole, silent and within the registers."""
    problem, arch = plan.problem, plan.target.arch
    binary = nvrtc.compile(render(plan), arch)
    asked = f"{problem.op} b{problem.block_size} {problem.dtype} {problem.precision} {arch}: {plan.summary}"
    assert [kernel.name for kernel in binary.kernels] == [launch.entry for launch in plan.launches]
    assert binary.warnings == (), asked
    assert not re.search(r"C75\d\d", binary.log), asked
    for launch, kernel in zip(plan.launches, binary.kernels, strict=True):
        assert (kernel.spill_stores, kernel.spill_loads, kernel.stack) == (0, 0, 0), f"{asked}: {kernel}"
        assert kernel.registers * launch.threads <= 65536, f"{asked}: {kernel}"
        assert kernel.static_shared == 0
    if binary.kernels:
        main = binary.kernel(plan.entry)
        threads = next(launch.threads for launch in plan.launches if launch.entry == plan.entry)
        assert main.registers * threads * plan.blocks_per_sm <= 65536, f"{asked}: {main}"
    return binary


def test_the_selections_cover_every_architecture() -> None:
    for arch in {arch for arch in TARGETS if arch != "sm_90a"}:
        chosen = [case[1:] for case in DIAGONALS if case[0] == arch]
        assert {case[0] for case in chosen} == set(Op)
        assert {case[1] for case in chosen} == set(BLOCK_SIZES)
        assert {case[2] for case in chosen} == set(ARITHMETIC)


@pytest.mark.parametrize(("op", "block", "kind"), MATRIX, ids=named)
def test_a_small_layout(op: Op, block: int, kind: tuple[DType, Precision]) -> None:
    plan = portable(Problem(op, SMALL, block, *kind), BIG)
    check_instructions(plan, compiled_plan(plan))


@pytest.mark.parametrize(("op", "block", "kind"), MATRIX, ids=named)
def test_a_larger_layout(op: Op, block: int, kind: tuple[DType, Precision]) -> None:
    compiled_plan(portable(Problem(op, LARGE, block, *kind), BIG))


@pytest.mark.parametrize(("arch", "op", "block", "kind"), DIAGONALS + HEAVIEST, ids=named)
def test_every_architecture(arch: str, op: Op, block: int, kind: tuple[DType, Precision]) -> None:
    _, binary = compiled(Problem(op, LARGE, block, *kind), arch)
    assert binary.arch == arch


@pytest.mark.parametrize(("op", "block", "dtype"), HOPPER_KINDS, ids=named)
def test_hopper_kernels_of_every_shape(op: Op, block: int, dtype: DType) -> None:
    """No candidate spills or has its multiplies serialised, whatever the layout: shapes alone make the code."""
    drafts: dict[tuple[WarpgroupShape, bool], tuple[Problem, hopper.Draft]] = {}
    for layout in (SMALL, SKEWED if op is Op.FPROP else SKEWED.transpose()):
        problem = Problem(op, layout, block, dtype)
        for draft in hopper.drafts(problem, BIG):
            shape = replace(draft.geometry.shape, stages=0, stage_bytes=0)
            drafts.setdefault((shape, bool(draft.reductions)), (problem, draft))
    assert {split for _, split in drafts} == {False, True}
    # float16's code differs from bfloat16's in the names of types alone.
    for problem, draft in some_of(list(drafts.values()), 7 if dtype is DType.FLOAT16 else 3):
        plan = hopper.assemble(problem, BIG, draft)
        compiled_plan(plan)
    check_instructions(plan, compiled_plan(plan))


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16], ids=str)
@pytest.mark.parametrize("block", hopper_wgrad.BLOCK_SIZES)
def test_hopper_wgrad_of_every_ring(block: int, dtype: DType) -> None:
    """No ring spills or has its multiplies serialised, with and without splits; the wait at a stage's end is the only one."""
    plans: dict[tuple[int, int, bool], Plan] = {}
    for plan in hopper_wgrad.candidates(Problem(Op.WGRAD, LARGE, block, dtype, batch=16384), BIG):
        plans.setdefault((plan.geometry.rows, plan.geometry.stages, plan.splits > 1), plan)
    assert {(rows, split) for rows, _, split in plans} == set(product(dict(hopper_wgrad.RINGS), (False, True)))
    for plan in plans.values():
        binary = compiled_plan(plan)
    check_instructions(plan, binary)


@pytest.mark.parametrize("epilogue", EPILOGUES, ids=named)
@pytest.mark.parametrize("block", hopper.BLOCK_SIZES)
def test_hopper_epilogues(block: int, epilogue: Epilogue) -> None:
    problem = Problem(Op.FPROP, LARGE, block, DType.BFLOAT16, epilogue=epilogue)
    for draft in sample(list(hopper.drafts(problem, BIG)), 4):
        compiled_plan(hopper.assemble(problem, BIG, draft))


@pytest.mark.parametrize("epilogue", [Epilogue(residual=True), Epilogue(True, Activation.RELU, True)], ids=named)
@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16])
def test_hopper_epilogues_of_split_outputs(dtype: DType, epilogue: Epilogue) -> None:
    """Where a thread stores results or partial sums, with all that it holds beside them; most where panels come in pairs and a
    warpgroup has four output blocks, so that there is no room for biases."""
    problem = Problem(Op.FPROP, SKEWED, 32, dtype, epilogue=epilogue, batch=16384)
    kinds: dict[WarpgroupShape, hopper.Draft] = {}
    for draft in hopper.drafts(problem, BIG, rings=(1, 2)):
        shape = replace(draft.geometry.shape, stages=0, stage_bytes=0)
        if draft.reductions and shape.groups * shape.rings == 4:
            kinds.setdefault(shape, draft)
    assert kinds
    fullest = [draft for shape, draft in kinds.items() if (shape.paired, shape.row_groups, shape.slots) == (True, 2, 4)]
    assert bool(fullest) == (dtype is DType.BFLOAT16)
    for draft in (*some_of(list(kinds.values()), 4), *fullest):
        compiled_plan(hopper.assemble(problem, BIG, draft))


@pytest.mark.parametrize("axis", [1, 0])
@pytest.mark.parametrize("epilogue", [Epilogue(), Epilogue(True, Activation.GELU, False)], ids=["plain", "bias-gelu"])
def test_epilogues_beside_most_sums(epilogue: Epilogue, axis: int) -> None:
    """Tiles of 128 x 384: three warpgroups are offered where warps have registers for what follows a product, two for all of it."""
    problem = Problem(Op.FPROP, LARGE, 32, DType.BFLOAT16, epilogue=epilogue, batch=16384, axis=axis)
    kinds: dict[tuple[int, bool], hopper.Draft] = {}
    for draft in hopper.drafts(problem, BIG):
        geo = draft.geometry
        if geo.shape.rows == 128 and geo.shape.tile_slots == 12:
            kinds.setdefault((geo.shape.columns, geo.coupled), draft)
    three = {(3, False), (3, True)} if not epilogue.bias else {(3, False)} if axis else set()
    assert set(kinds) == {kind for kind in {(2, False), (2, True), *three} if axis or not kind[1]}
    for draft in kinds.values():
        compiled_plan(hopper.assemble(problem, BIG, draft))


@pytest.mark.parametrize("axis", [1, 0])
@pytest.mark.parametrize(("op", "block", "dtype"), HOPPER_KINDS, ids=named)
def test_joined_products(op: Op, block: int, dtype: DType, axis: int) -> None:
    """Of dense layouts, every form, with nothing and with all that follows: no spill, and asynchronous to the stage's end."""
    for epilogue in (Epilogue(), Epilogue(True, Activation.GELU, True)) if op is Op.FPROP else (Epilogue(),):
        if dtype is DType.FLOAT32 and not axis:
            continue
        problem = Problem(op, FULL, block, dtype, epilogue=epilogue, batch=16384, axis=axis)
        drafts: dict[WarpgroupShape, hopper.Draft] = {}
        for draft in hopper.drafts(problem, BIG):
            if draft.geometry.shape.joined:
                drafts.setdefault(replace(draft.geometry.shape, stages=0, stage_bytes=0), draft)
        turned = dtype is DType.FLOAT32 and op is Op.FPROP
        assert bool(drafts) == (block < 128 and not turned)
        for draft in some_of(list(drafts.values()), 9 if dtype is DType.FLOAT16 else 4):
            compiled_plan(hopper.assemble(problem, BIG, draft))


# What loads and what multiplies, as nvdisasm spells it.
LOADS = {"hopper": "UTMALDG", "portable": "LDGSTS", "simt": "LDGSTS"}
MULTIPLIES = {"hopper": "HGMMA", "portable": "HMMA", "simt": "FFMA"}


def check_instructions(plan: Plan, binary: Binary, multiplies: str | None = None) -> None:
    """Asynchronous copies, and tensor cores or none, as the plan says; only where nvdisasm is installed."""
    multiplies = multiplies or MULTIPLIES[plan.family]
    if disasm.find() is None:
        return
    summary = disasm.summary(binary.cubin)
    assert summary is not None
    (main,) = [kernel for kernel in summary.kernels if kernel.name == plan.entry]
    assert main.count(LOADS[plan.family]) > 0
    assert main.count(multiplies) > 0
    assert all(main.count(name) == 0 for name in {"HGMMA", "HMMA"} - {multiplies})
    assert main.count("LDL") == main.count("STL") == 0
    assert not any(kernel.count(atomic) for kernel in summary.kernels for atomic in ("ATOM", "ATOMG", "RED", "REDG"))


@pytest.mark.parametrize("block", BLOCK_SIZES)
@pytest.mark.parametrize("op", Op, ids=str)
def test_16_bit_multiplies_are_full_rate(op: Op, block: int) -> None:
    """Steps of 16 x 8 x 16 at every block size, also where a block is only 8 wide."""
    for kind, name in zip(ARITHMETIC, ("f16", "bf16"), strict=False):
        text = render(portable(Problem(op, SMALL, block, *kind), BIG)).text
        assert f"mma.sync.aligned.m16n8k16.row.col.f32.{name}.{name}.f32" in text


@pytest.mark.parametrize("kind", ARITHMETIC, ids=named)
@pytest.mark.parametrize("op", [Op.FPROP, Op.DGRAD], ids=str)
def test_split_outputs_come_with_their_reduction(op: Op, kind: tuple[DType, Precision]) -> None:
    layout = SKEWED if op is Op.FPROP else SKEWED.transpose()
    plan, binary = compiled(Problem(op, layout, 8, *kind))
    assert [kernel.name for kernel in binary.kernels] == [plan.entry, f"{plan.entry}_reduce"]


@pytest.mark.parametrize("kind", ARITHMETIC, ids=named)
def test_splits_of_the_rows_come_with_their_reduction(kind: tuple[DType, Precision]) -> None:
    plan, binary = compiled(Problem(Op.WGRAD, Layout([[1, 0], [1, 1]]), 16, *kind, batch=100_000))
    assert [kernel.name for kernel in binary.kernels] == [plan.entry, f"{plan.entry}_reduce"]


@pytest.mark.parametrize("epilogue", EPILOGUES, ids=named)
@pytest.mark.parametrize("kind", ARITHMETIC, ids=named)
def test_epilogues(kind: tuple[DType, Precision], epilogue: Epilogue) -> None:
    block = BLOCK_SIZES[ARITHMETIC.index(kind) + EPILOGUES.index(epilogue) - 1]
    compiled(Problem(Op.FPROP, LARGE, block, *kind, epilogue))


@pytest.mark.parametrize("kind", ARITHMETIC[:3], ids=named)
def test_epilogue_of_split_outputs(kind: tuple[DType, Precision]) -> None:
    plan, _ = compiled(Problem(Op.FPROP, SKEWED, 16, *kind, EPILOGUES[0]))
    assert plan.launches[-1].arguments == ("out", "bias", "residual", "workspace", "n")


@pytest.mark.parametrize("op", Op, ids=str)
@pytest.mark.parametrize("layout", [Layout([[1]]), Layout(np.zeros((2, 3), bool))], ids=["one block", "no blocks"])
def test_the_least_layouts(layout: Layout, op: Op) -> None:
    for block, kind in ((8, ARITHMETIC[0]), (128, ARITHMETIC[3])):
        compiled(Problem(op, layout, block, *kind))


@pytest.mark.parametrize("batch", [1, 64, 100_000])
def test_hints_for_n(batch: int) -> None:
    for op in Op:
        compiled(Problem(op, LARGE, 32, DType.BFLOAT16, batch=batch))
