"""Weights that L2 cannot hold: which blocks it is to keep, and kernels that load the others so that it evicts them first."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from emulator import COMPILER
from problems import BIG, bernoulli, sample
from test_emulated import check
from test_kernels_compile import compiled_plan

from bsgen.emit import render
from bsgen.layout import Layout
from bsgen.plan import HopperNarrowPlan, HopperPlan, choose, hopper, hopper_narrow, streamed
from bsgen.plan.streamed import HELD_BYTES, KEPT_BYTES, PARTS, RUN_PARTS, kept_blocks, kept_bytes
from bsgen.problem import TARGETS, DType, Op, Problem

BLOCK_SIZES = (*hopper_narrow.BLOCK_SIZES, *hopper.BLOCK_SIZES)


def large(blocks: int, n: int | None = 64) -> Problem:
    """So many blocks of 2 KiB."""
    side = int(np.ceil(blocks**0.5))
    return Problem(Op.FPROP, Layout(np.arange(side**2).reshape(side, side) < blocks), 32, DType.BFLOAT16, batch=n)


def plans(problem: Problem, count: int) -> list[HopperPlan | HopperNarrowPlan]:
    """Some of those that keep a part of W."""
    family = hopper_narrow if problem.block_size in hopper_narrow.BLOCK_SIZES else hopper
    drafts = [draft for draft in family.drafts(problem, BIG) if getattr(draft.geometry.shape, "cluster", 1) == 1]
    return [family.assemble(problem, BIG, draft) for draft in sample(drafts, count)]


def kept(op: Op, layout: Layout, block: int, share: float, monkeypatch: pytest.MonkeyPatch) -> Problem:
    """Few rows of a problem, so large a share of whose weights L2 is to keep."""
    monkeypatch.setattr(streamed, "HELD_BYTES", 0)
    monkeypatch.setattr(streamed, "KEPT_BYTES", int(layout.nnz * block**2 * 2 * share))
    return Problem(op, layout, block, DType.BFLOAT16, batch=64)


def small(op: Op, block: int, monkeypatch: pytest.MonkeyPatch) -> Problem:
    """Of few blocks, a third."""
    return kept(op, bernoulli(9, 13, 0.5), block, 1 / 3, monkeypatch)


def test_only_weights_that_do_not_fit_and_few_rows() -> None:
    most = HELD_BYTES // 2048
    assert kept_blocks(large(most)) is None
    assert kept_bytes(large(most), None) == 0
    assert kept_blocks(large(most + 1)) == (PARTS * KEPT_BYTES // ((most + 1) * 2048), PARTS)
    assert kept_blocks(large(most + 1, n=65)) is None
    assert kept_blocks(large(most + 1, n=None)) is None, "the default is for thousands of rows"
    assert kept_blocks(replace(large(most + 1), gate=True)) is None, (
        "each call writes the product of weights and gates anew"
    )
    assert kept_blocks(large(PARTS * KEPT_BYTES // 2048 + 1)) is None, "not one part would stay"


@pytest.mark.parametrize("parts", [PARTS, RUN_PARTS])
@pytest.mark.parametrize("blocks", [20_000, 29_492, 80_000, 300_000])
def test_the_part_that_is_kept_fits(blocks: int, parts: int) -> None:
    found = kept_blocks(large(blocks), parts)
    assert found is not None
    stays = sum(block % found.parts < found.kept for block in range(blocks)) * 2048
    assert 0 < KEPT_BYTES - blocks * 2048 / parts <= stays <= KEPT_BYTES + parts * 2048
    assert 0 < kept_bytes(large(blocks), found) <= KEPT_BYTES


@pytest.mark.parametrize("kind", ["random", "full", "coarse"])
@pytest.mark.parametrize("op", [Op.FPROP, Op.DGRAD], ids=str)
@pytest.mark.parametrize("block", BLOCK_SIZES)
def test_as_much_as_was_meant(block: int, op: Op, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the tables of a plan and the expression in its kernel: every block, and as many as L2 has room for without the hint."""
    side = 96 if block < 32 else 64
    mask = {"random": bernoulli(side, side, 0.3).mask, "full": np.ones((side, side), bool)}.get(kind)
    if mask is None:
        mask = np.kron(bernoulli(side // 16, side // 16, 0.5).mask, np.ones((16, 16), bool))
    problem = kept(op, Layout(mask), block, 2 / 5, monkeypatch)
    (plan,) = plans(problem, 1)
    loaded = runs_of(plan) if isinstance(plan, HopperNarrowPlan) else blocks_of(plan)
    assert sorted({at for first, count in loaded for at in range(first, first + count)}) == list(
        range(problem.layout.nnz)
    )
    assert plan.streamed is not None
    found = plan.streamed
    usual = sum(count for first, count in loaded if first % found.parts < found.kept)
    assert abs(usual / sum(count for _, count in loaded) - 2 / 5) < 0.1


def runs_of(plan: HopperNarrowPlan) -> list[tuple[int, int]]:
    """First block and count of each run, where the kernel divides the run's place by the chunks of a block."""
    chunks = plan.problem.block_size**2 * 2 // 16
    assert f"if (load.x / {chunks} % kParts < kKept)" in render(plan).text
    words = plan.loads[:, 1:].reshape(-1, 2)
    found = [(int(place), int(word) >> 16 & 0xFFFF) for place, word in words if word]
    assert all(place % chunks == size % chunks == 0 for place, size in found)
    return [(place // chunks, size // chunks) for place, size in found]


def blocks_of(plan: HopperPlan) -> list[tuple[int, int]]:
    """Each box that is loaded, as one block: where the kernel divides its place by the boxes across and a block's rows."""
    geo = plan.geometry
    text = "load / kBoxesAcross / kBlock" if geo.boxes_across > 1 else "load / kBlock"
    assert f"if ({text} % kParts < kKept)" in render(plan).text
    found = []
    for row in plan.loads:
        head = int(row[0])
        copies, boxes = (head & 255, head >> 8 & 255) if plan.pairs or plan.across > 1 else (head & 255, head >> 8)
        found += [int(place) // geo.boxes_across // geo.block for place in row[1 + copies : 1 + copies + boxes]]
    return [(block, 1) for block in found]


def test_the_model_and_the_summary_know(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = replace(large(29_492), batch=1)
    plan = choose(problem, TARGETS["sm_90a"])
    assert plan.summary.endswith("14 of 32 blocks kept in L2")
    monkeypatch.setattr(streamed, "HELD_BYTES", 1 << 30)
    streams = choose(problem, TARGETS["sm_90a"])
    assert "kept" not in streams.summary
    assert plan.cost.seconds < 0.9 * streams.cost.seconds


@pytest.mark.parametrize("block", BLOCK_SIZES)
def test_kernels(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = small(Op.FPROP, block, monkeypatch)
    for plan in plans(problem, 2):
        text = render(plan).text
        assert re.search(r"% kParts < kKept\)", text)
        assert f"kKept = {plan.streamed.kept}, kParts = {plan.streamed.parts};" in text  # type: ignore[union-attr]
        assert text.count("load_evicted(") == 2, "the function, and its one use"
        compiled_plan(plan)


@pytest.mark.skipif(COMPILER is None, reason="there is no g++")
@pytest.mark.parametrize("op", [Op.FPROP, Op.DGRAD], ids=str)
@pytest.mark.parametrize("block", BLOCK_SIZES)
def test_every_block_is_loaded(op: Op, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = small(op, block, monkeypatch)
    for seed, plan in enumerate(plans(problem, 1)):
        assert plan.streamed is not None
        check(plan, 70, seed=seed)
