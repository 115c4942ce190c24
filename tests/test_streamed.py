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
from bsgen.plan.streamed import HELD_BYTES, KEPT_BYTES, PARTS, kept_blocks, kept_bytes
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


def small(op: Op, block: int, monkeypatch: pytest.MonkeyPatch) -> Problem:
    """Few rows of a problem, a third of whose weights L2 is to keep."""
    problem = Problem(op, bernoulli(9, 13, 0.5), block, DType.BFLOAT16, batch=64)
    monkeypatch.setattr(streamed, "HELD_BYTES", 0)
    monkeypatch.setattr(streamed, "KEPT_BYTES", problem.layout.nnz * block**2 * 2 // 3)
    return problem


def test_only_weights_that_do_not_fit_and_few_rows() -> None:
    most = HELD_BYTES // 2048
    assert kept_blocks(large(most)) is None
    assert kept_bytes(large(most)) == 0
    assert kept_blocks(large(most + 1)) == (PARTS * KEPT_BYTES // ((most + 1) * 2048), PARTS)
    assert kept_blocks(large(most + 1, n=256)) is not None
    assert kept_blocks(large(most + 1, n=257)) is None
    assert kept_blocks(large(most + 1, n=None)) is None, "the default is for thousands of rows"


@pytest.mark.parametrize("blocks", [20_000, 29_492, 80_000, 600_000])
def test_the_part_that_is_kept_fits(blocks: int) -> None:
    kept, parts = kept_blocks(large(blocks))  # type: ignore[misc]
    stays = sum(block % parts < kept for block in range(blocks)) * 2048
    assert stays <= KEPT_BYTES + parts * 2048
    assert stays >= KEPT_BYTES - blocks * 2048 / parts
    assert kept_bytes(large(blocks)) <= KEPT_BYTES


def test_the_model_and_the_summary_know(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = replace(large(29_492), batch=1)
    plan = choose(problem, TARGETS["sm_90a"])
    assert "14 of 32 blocks kept in L2" in plan.summary
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
        assert f"kKept = {plan.streamed.kept}, kParts = 32;" in text  # type: ignore[union-attr]
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
