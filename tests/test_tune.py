"""What needs no GPU of tuning: a kept plan is found again, and advice where dense products would be faster."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from problems import bernoulli

import bsgen
from bsgen import compiled, plan
from bsgen.build import build
from bsgen.cli import main
from bsgen.compiled import Compiled
from bsgen.emit import render
from bsgen.operation import Operation
from bsgen.plan.dense_cost import dense_seconds
from bsgen.problem import TARGETS, DType, Op, Precision, Problem
from bsgen.runtime import driver

TARGET = TARGETS["sm_90a"]
LAYOUT = bernoulli(12, 12, 0.3)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BSGEN_CACHE_DIR", str(tmp_path / "cache"))


def test_a_kept_plan_is_planned_compiled_and_reported() -> None:
    problem = Problem(Op.FPROP, LAYOUT, 32, DType.BFLOAT16)
    own = plan.choose(problem, TARGET)
    other = next(c for c in plan.candidates(problem, TARGET) if c.summary != own.summary)
    assert compiled.planned(problem, TARGET).summary == own.summary
    source = render(other)
    assert compiled.keep(problem, TARGET, Compiled(plan.outline(other), source, build(source, TARGET.arch)))
    assert compiled.planned(problem, TARGET).summary == other.summary
    operation = Operation(problem, TARGET)
    assert operation.outline.summary == operation.plan.summary == other.summary
    assert operation.source.text == source.text
    mm = bsgen.compile(LAYOUT, ops="fprop", arch="sm_90a")
    assert mm.report().ops[0].plan == other.summary


def test_another_hint_for_n_is_another_problem() -> None:
    problem = Problem(Op.FPROP, LAYOUT, 32, DType.BFLOAT16, batch=64)
    own = plan.choose(problem, TARGET)
    other = next(c for c in plan.candidates(problem, TARGET) if c.summary != own.summary)
    source = render(other)
    compiled.keep(problem, TARGET, Compiled(plan.outline(other), source, build(source, TARGET.arch)))
    assert compiled.planned(Problem(Op.FPROP, LAYOUT, 32, DType.BFLOAT16), TARGET).summary != other.summary


def test_without_a_cache_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BSGEN_DISABLE_CACHE", "1")
    problem = Problem(Op.FPROP, LAYOUT, 32, DType.BFLOAT16)
    own = plan.choose(problem, TARGET)
    source = render(own)
    assert not compiled.keep(problem, TARGET, Compiled(plan.outline(own), source, build(source, TARGET.arch)))


def test_a_kept_plan_that_no_longer_exists_is_passed_over() -> None:
    problem = Problem(Op.FPROP, LAYOUT, 32, DType.BFLOAT16)
    own = plan.choose(problem, TARGET)
    source = render(own)
    outline = plan.outline(own)
    gone = type(outline)(outline.family, "a plan of long ago", outline.launches, outline.workspace, 1.0, 1)
    compiled.keep(problem, TARGET, Compiled(gone, source, build(source, TARGET.arch)))
    assert compiled.planned(problem, TARGET).summary == own.summary


def test_tune_needs_a_gpu(tmp_path: Path) -> None:
    if driver.available():
        pytest.skip("there is a GPU")
    np.save(tmp_path / "layout.npy", LAYOUT.mask)
    result = CliRunner().invoke(main, ["tune", str(tmp_path / "layout.npy")])
    assert result.exit_code == 1
    assert result.output.startswith("error: no CUDA driver")
    assert len(result.output.splitlines()) == 1


@pytest.mark.parametrize(("density", "advised"), [(1.0, True), (0.05, False)])
def test_advice_where_dense_is_faster(density: float, advised: bool) -> None:
    layout = bernoulli(128, 128, density)
    mm = bsgen.compile(layout, 16, ops="fprop", arch="sm_90a")
    (op,) = mm.report().ops
    assert (op.dense_seconds < op.predicted_seconds) == advised
    assert ("a dense product would be faster" in str(mm.report())) == advised


def test_dense_time_is_bounded_by_arithmetic_and_by_memory() -> None:
    layout = bernoulli(128, 128, 0.1)
    problem = Problem(Op.FPROP, layout, 32, DType.BFLOAT16)
    many, one = dense_seconds(problem, TARGET, 16384), dense_seconds(problem, TARGET, 1)
    assert many == pytest.approx(2 * 16384 * 4096 * 4096 / 740e12, rel=0.05)
    assert one == pytest.approx(4096 * 4096 * 2 / 4.3e12 + 2.5e-6, rel=0.05)
    tf32 = Problem(Op.FPROP, layout, 32, DType.FLOAT32)
    ieee = Problem(Op.FPROP, layout, 32, DType.FLOAT32, Precision.IEEE)
    assert many < dense_seconds(tf32, TARGET, 16384) < dense_seconds(ieee, TARGET, 16384)
