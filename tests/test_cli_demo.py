"""`bsgen demo`: what it shows and writes, what its steps check, and the GPU path with a pretended GPU."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from bsgen import artefact, demo
from bsgen.cli import main
from bsgen.errors import DriverError
from bsgen.layout import Layout

BLOCKS = 6


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch, tmp_path):
    """The same on every machine: no GPU, and a folder of its own."""

    def absent():
        raise DriverError("no GPU")

    monkeypatch.setattr("bsgen.runtime.driver.current_device", absent)
    monkeypatch.setenv("BSGEN_CACHE_DIR", str(tmp_path.parent / "demo-cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def mm():
    layout = demo.make_layout(BLOCKS)
    return demo.compile(layout, demo.BLOCK_SIZE, demo.DTYPE, arch="sm_90a")


def run(*arguments, code=0):
    result = CliRunner().invoke(main, ["demo", "--blocks", str(BLOCKS), *arguments], prog_name="bsgen")
    assert result.exit_code == code, result.output
    return result


def test_shows_and_writes_the_whole_job():
    shown = run().stdout
    layout = Layout.load("generated/layout.npy")
    assert layout == demo.make_layout(BLOCKS)
    assert layout.text() in shown
    assert "error, CPU" in shown
    assert "Results: good." in shown
    assert "no GPU here" in shown
    suffixes = sorted(file.suffix for file in Path("generated").iterdir())
    assert suffixes == sorted([".npy", *[".cu", ".cubin", ".json"] * 3])


def test_json():
    facts = json.loads(run("-o", "out", "--json").stdout)
    assert facts["passed"]
    assert set(facts["errors"]) == {"fprop", "dgrad", "wgrad"}
    assert all(0 < error < facts["tolerance"] for error in facts["errors"].values())
    assert facts["gpu"] is None
    assert facts["measured"] == {}
    assert [made["arch"] for made in facts["artefacts"]] == ["sm_90a"] * 3
    assert all(Path(file).is_file() for file in facts["files"])


def test_a_wrong_result_is_exit_code_1(monkeypatch):
    monkeypatch.setattr(demo, "relative_error", lambda got, expected: float("nan"))
    assert "Results: WRONG." in run(code=1).stdout


def test_an_output_that_cannot_be_made_is_one_line():
    Path("file").write_text("")
    result = run("-o", "file/under", code=1)
    assert result.stderr.startswith("error: file/under: cannot be made a folder")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [("--blocks", "1"), ("--blocks", "many"), ("-o",)])
def test_wrong_usage(arguments):
    assert CliRunner().invoke(main, ["demo", *arguments]).exit_code == 2


def test_dense_products_know_nothing_of_blocks(mm):
    operands = demo.make_operands(mm, 5)
    expected = demo.dense_products(mm, operands)
    b = mm.block_size
    row, column = mm.layout.blocks[-1]
    x, dy = operands["x"].astype(float), operands["dy"].astype(float)
    block = x[:, row * b : (row + 1) * b].T @ dy[:, column * b : (column + 1) * b]
    np.testing.assert_allclose(expected["wgrad"][-1], block, atol=1e-12)
    assert {op: array.shape for op, array in expected.items()} == {
        "fprop": (5, mm.out_features),
        "dgrad": (5, mm.in_features),
        "wgrad": mm.weight_shape,
    }


def test_relative_error_sees_wrong_results():
    right = np.array([3.0, 4.0])
    assert demo.relative_error(right, right) == 0
    assert demo.relative_error(-right, right) == 2
    assert np.isnan(demo.relative_error(np.array([np.nan, 4.0]), right))
    assert demo.relative_error(np.zeros(2), np.zeros(2)) == 0


def test_nan_does_not_pass(mm):
    good = demo.Outcome(mm.layout, (), (), 5, 5e-3, {"fprop": 1e-3}, None, {})
    assert good.passed
    assert not replace(good, errors={"fprop": float("nan")}).passed
    assert not replace(good, measured={"fprop": demo.Measured(float("nan"), 1e-5, 4096)}).passed


def test_a_gpu_is_used_only_if_it_runs_the_kernels(mm, monkeypatch):
    assert demo.usable_gpu(mm) is None
    for capability, name in (((9, 0), "H200"), ((8, 0), "A100"), ((7, 5), "T4")):
        gpu = artefact.driver.Device(0, name, capability, 2**34, 100)
        monkeypatch.setattr("bsgen.runtime.driver.current_device", lambda gpu=gpu: gpu)
        assert (demo.usable_gpu(mm) is not None) == (name == "H200")


def test_what_a_gpu_measured_is_shown(monkeypatch):
    gpu = artefact.driver.Device(0, "H200", (9, 0), 2**37, 132)
    measured = {op: demo.Measured(1e-3, 2.5e-5, 4096) for op in ("fprop", "dgrad", "wgrad")}
    monkeypatch.setattr(demo, "usable_gpu", lambda mm: gpu)
    monkeypatch.setattr(demo, "run_on_gpu", lambda *arguments: measured)
    shown = run().stdout
    assert "error, GPU" in shown
    assert "25.0 us" in shown
    assert "Launched on H200" in shown
