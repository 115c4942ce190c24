"""What needs no GPU of `bsgen bench`: suites, the bound, verdicts, files and pictures."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from bsgen import topology
from bsgen.bench import SUITES, Case, Measured, Row, Selection, Timing, select
from bsgen.bench.bound import bound
from bsgen.bench.chart import write_png
from bsgen.cli import main
from bsgen.cli.bench import case_table, summary, write_json
from bsgen.cli.output import console
from bsgen.errors import ArgumentError, LayoutError
from bsgen.layout import Layout
from bsgen.problem import DType, Op, Problem


def measured(density: float = 0.1, *rows: Row, **changes: object) -> Measured:
    """A case with rows that somebody might have measured."""
    base = Measured(f"case {density}", "floors", "fprop", "bfloat16", 32, 64, (128, 128), 4, density, 1e-6, "L2", rows)
    return replace(base, **changes)


def row(contender: str, seconds: float, over_dense: float | None = None) -> Row:
    return Row(contender, Timing(seconds, 0.9 * seconds, 1.1 * seconds, 5, "graph"), 1e-3, 100.0, 10.0, 0.5, over_dense)


def test_names_are_unique_and_every_suite_is_there() -> None:
    assert set(SUITES) == {
        "random",
        "small-world",
        "skewed",
        "structure",
        "grouped",
        "paper",
        "floors",
        "small",
        "wgrad",
        "epilogue",
    }
    for name in SUITES:
        cases = select(Selection((name,)))
        assert max(Counter(case.name for case in cases).values()) == 1
        assert {case.suite for case in cases} == {name}
        names = {case.name for case in cases}
        assert {case.balanced for case in cases} <= names | {None}


def test_random_covers_densities_rows_and_sizes() -> None:
    cases = select(Selection(("random",), sizes=(4096,), rows=(64, 16384), block_sizes=(32, 64)))
    assert len(cases) == 2 * 2 * 6
    for case in cases:
        assert case.layout.shape == (4096 // case.block_size,) * 2
        assert len(set(case.layout.mask.sum(axis=0))) == 1
    densities = sorted({case.layout.density for case in cases if case.block_size == 32})
    assert densities == pytest.approx([0.01, 0.05, 0.1, 0.2, 0.5, 1], rel=0.3)


def test_small_world_grows_at_constant_parameters() -> None:
    rings = [case for case in select(Selection(("small-world",))) if "watts" in case.layout_name and case.n == 64]
    assert [case.layout.shape[0] * 32 for case in rings] == [56 * 32 * width for width in range(1, 7)]
    stored = [case.layout.nnz for case in rings]
    assert max(stored) <= 1.1 * min(stored)


def test_skewed_layouts_have_twins_with_as_many_blocks() -> None:
    cases = {case.name: case for case in select(Selection(("skewed",)))}
    followers = [case for case in cases.values() if case.balanced]
    assert len(followers) == 3
    for case in followers:
        twin = cases[str(case.balanced)]
        assert abs(twin.layout.nnz - case.layout.nnz) <= 0.07 * case.layout.nnz
        fan_in, even = case.layout.mask.sum(axis=0), twin.layout.mask.sum(axis=0)
        assert fan_in.max() >= 3 * fan_in.mean()
        assert even.max() == even.min()


def test_structure_has_the_density_of_its_random_twin() -> None:
    for case in select(Selection(("structure",))):
        assert case.layout.density == pytest.approx(0.1, rel=0.05)


def test_groups_are_dense() -> None:
    cases = select(Selection(("grouped",), block_sizes=(8, 128), rows=(4096,)))
    assert [(case.block_size, round(1 / case.layout.density)) for case in cases] == list(product((8, 128), (1, 4, 16)))
    for case in cases:
        width = int(case.layout.density * case.layout.shape[0])
        assert case.layout.mask[:width, :width].all()


def test_epilogues_are_compared_with_the_plain_product() -> None:
    cases = {case.name: case for case in select(Selection(("epilogue",), rows=(16384,)))}
    plain = next(case for case in cases.values() if not case.finish)
    others = [case for case in cases.values() if case.finish]
    assert [case.finish for case in others] == ["bias", "bias gelu", "bias residual", "bias gelu residual"]
    assert {case.balanced for case in others} == {plain.name}
    assert others[-1].problem.epilogue.residual
    assert plain.problem == replace(others[-1].problem, epilogue=plain.problem.epilogue)
    assert [case.finish for case in select(Selection(("epilogue",), rows=(64,), op=Op.DGRAD))] == [""]


def test_paper_falls_by_a_quarter() -> None:
    densities = [case.layout.density for case in select(Selection(("paper",)))]
    assert densities == pytest.approx([0.75**power for power in range(17)], rel=0.05)


def test_an_op_and_dtype_apply_to_cases_and_their_twins() -> None:
    cases = select(Selection(("skewed",), op=Op.DGRAD, dtype=DType.FLOAT16))
    names = {case.name for case in cases}
    assert {case.problem.op for case in cases} == {Op.DGRAD}
    assert {case.problem.dtype for case in cases} == {DType.FLOAT16}
    assert {str(case.balanced) for case in cases if case.balanced} <= names


@pytest.mark.parametrize(
    ("selection", "named"),
    [
        (Selection(("nothing",)), "suite: got 'nothing', expected one of random"),
        (Selection(block_sizes=(12,)), "block_size: got 12"),
        (Selection(rows=(3,)), "filters: no case of random is left"),
    ],
)
def test_errors_name_what_came(selection: Selection, named: str) -> None:
    with pytest.raises(ArgumentError, match=named):
        select(selection)


# TFLOP/s on stored blocks, random layouts, N = 8192: worked out by hand from the model's rates and expected unions.
BOUNDS = {
    (4096, 32, 0.05): 252, (4096, 32, 0.1): 292, (4096, 32, 0.2): 376, (4096, 64, 0.1): 448, (4096, 8, 0.1): 198,
    (12288, 32, 0.01): 222, (12288, 32, 0.1): 308,
}  # fmt: skip


@pytest.mark.parametrize(("size", "block", "density"), BOUNDS)
def test_the_bound(size: int, block: int, density: float) -> None:
    layout = topology.bernoulli(size // block, size // block, density, seed=3)
    problem = Problem(Op.FPROP, layout, block, DType.BFLOAT16)
    rate = problem.flops(8192) / bound(problem, 8192).seconds / 1e12
    assert rate == pytest.approx(BOUNDS[size, block, density], rel=0.04)


def test_the_bound_follows_op_and_structure() -> None:
    banded, ones = topology.banded(128, 128, 13), Layout(np.ones((64, 64), bool))
    random = topology.random(128, 128, density=0.1)
    times = [bound(Problem(Op.FPROP, layout, 32, DType.BFLOAT16), 8192).seconds for layout in (banded, random)]
    assert times[0] < 0.7 * times[1]
    tall = Layout(random.mask[:, :64])
    dgrad = bound(Problem(Op.DGRAD, tall.transpose(), 32, DType.BFLOAT16), 8192)
    assert dgrad == bound(Problem(Op.FPROP, tall, 32, DType.BFLOAT16), 8192)
    assert bound(Problem(Op.FPROP, ones, 128, DType.BFLOAT16), 8192).limiter == "math"
    assert bound(Problem(Op.WGRAD, banded, 32, DType.BFLOAT16), 64).limiter == "device memory"


def test_verdicts() -> None:
    rows = (row("dense", 4e-6), row("blocked-ell", 1.9e-6), row("bsgen", 1e-6))
    case = measured(0.1, *rows, floors={"dense": 3.7, "blocked-ell": 2.1, "csr": 1.0})
    assert case.verdicts == {"dense": True, "blocked-ell": False, "csr": None}
    assert case.as_dict()["speed_up"] == {"dense": pytest.approx(4), "blocked-ell": pytest.approx(1.9), "csr": None}


def test_the_file_holds_what_was_measured_and_names_the_rest(tmp_path: Path) -> None:
    cases = [Case("random", f"layout {i}", lambda: Layout([[1]]), 64) for i in range(3)]
    file = tmp_path / "bench.json"
    for count in (1, 2):
        write_json(str(file), {"gpu": "some"}, [measured(0.1, row("bsgen", 1e-6))] * count, cases)
        document = json.loads(file.read_text())
        assert len(document["cases"]) == count
        assert document["not_run"] == [case.name for case in cases[count:]]
        assert document["cases"][0]["rows"][0]["timing"]["seconds"] == 1e-6
    assert document["machine"] == {"gpu": "some"}
    assert list(tmp_path.iterdir()) == [file]


def test_tables_say_everything(capsys: pytest.CaptureFixture[str]) -> None:
    twin = measured(0.1, row("bsgen", 1e-6), case="twin")
    slow = replace(row("bsgen", 2e-6), tflops=50.0)
    case = measured(0.2, row("dense", 4e-6, 1.0), slow, case="skew", floors={"dense": 2.5}, balanced="twin")
    case = replace(case, left_out={"csr": "too large"})
    console().print(case_table(case))
    for line in summary([twin, case], [Case("random", "left", lambda: Layout([[1]]), 64)] * 3):
        console().print(line)
    text = capsys.readouterr().out
    for part in ("csr left out: too large", "bound 1.0 us (L2)", "2.00", "MISSED", "0.50", "not run", "left b32 N=64"):
        assert part in text


def test_a_picture(tmp_path: Path) -> None:
    cases = [measured(d, row("dense", 4e-6, 1.0), row("bsgen", 1e-6, 4.0), row("bsr", 2e-6, 2.0)) for d in (0.5, 0.1)]
    write_png(cases, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ArgumentError, match="no case was timed beside dense"):
        write_png([measured(0.1, row("bsgen", 1e-6))], tmp_path / "none.png")
    with pytest.raises(LayoutError, match=r"ends in \.png"):
        write_png(cases, tmp_path / "curve.jpg")


def test_the_command_lists_without_a_gpu() -> None:
    result = CliRunner().invoke(main, ["bench", "--suite", "floors", "--rows", "8192", "--list"])
    assert result.exit_code == 0, result.output
    listed = json.loads(result.stdout)
    assert [entry["floors"] for entry in listed] == [{"dense": 0.92}]


@pytest.mark.parametrize(
    "arguments", [["--suite", "nothing"], ["--block-size", "12"], ["--density", "2"], ["--peer", "x"]]
)
def test_wrong_usage(arguments: list[str]) -> None:
    assert CliRunner().invoke(main, ["bench", *arguments]).exit_code == 2


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bsgen.runtime.driver.why_unavailable", lambda: "no CUDA driver")
    result = CliRunner().invoke(main, ["bench", "--suite", "floors"])
    assert result.exit_code == 1
    assert "bench needs a GPU and PyTorch: no CUDA driver" in result.output
