"""`bsgen layout make|show|convert` through click's runner."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import save_file

from bsgen import topology
from bsgen.cli import main
from bsgen.cli.layout import layout
from bsgen.layout import Layout
from bsgen.weights import layout_from_weights


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def invoke(*arguments: object, fails: bool = False, **options: Any) -> Result:
    result = CliRunner(**options).invoke(main, ["layout", *map(str, arguments)])
    if not fails:
        assert result.exit_code == 0, result.output
    return result


MADE = {
    "random --rows 12 --cols 8 --density 0.25 --seed 4": topology.random(12, 8, density=0.25, seed=4),
    "random --rows 12 --fan-in 3": topology.random(12, 12, fan_in=3),
    "bernoulli --rows 12 --cols 8 --density 0.25 --seed 4": topology.bernoulli(12, 8, 0.25, seed=4),
    "banded --rows 12 --cols 8 --width 3": topology.banded(12, 8, 3),
    "block-diagonal --rows 12 --cols 8 --groups 4": topology.block_diagonal(12, 8, 4),
    "watts-strogatz --blocks 20 --k 4 --p 0.2 --seed 4": topology.watts_strogatz(20, 4, 0.2, seed=4),
    "barabasi-albert --blocks 20 --m 3 --seed 4": topology.barabasi_albert(20, 3, seed=4),
}


@pytest.mark.parametrize("command", MADE)
def test_make_writes_what_the_generator_gives(command: str) -> None:
    result = invoke("make", *command.split(), "-o", "made.npy")
    assert Layout.load("made.npy") == MADE[command]
    assert "wrote made.npy" in result.stdout
    assert MADE[command].digest in result.stdout


def test_every_kind_is_tried() -> None:
    make = layout.commands["make"]
    assert isinstance(make, click.Group)
    assert {command.split()[0] for command in MADE} == set(make.commands)


def test_make_prints_json() -> None:
    result = invoke("make", "banded", "--rows", 6, "--width", 1, "-o", "made.npy", "--json")
    facts = json.loads(result.stdout)
    expected = {"file": "made.npy", "digest": topology.banded(6, 6, 1).digest, "nnz": 6, "rows": 6, "cols": 6}
    assert expected.items() <= facts.items()
    assert facts["fan_in"] == {"min": 1, "mean": 1.0, "max": 1, "imbalance": 1.0}


@pytest.mark.parametrize(
    "command",
    [
        "make",
        "make spiral",
        "make random --rows 4 -o made.npy",
        "make random --rows 4 --density 0.5 --fan-in 2 -o made.npy",
        "make random --rows 4 --density 0.5",
        "make random --rows 0 --density 0.5 -o made.npy",
        "make bernoulli --rows 4 --density 1.5 -o made.npy",
        "make bernoulli --rows four --density 0.5 -o made.npy",
        "convert w.npy --density 0.5 --block-size 12 -o made.npy",
        "convert w.npy --density 0.5 --norm l1 -o made.npy",
        "show",
    ],
)
def test_wrong_usage_exits_with_2(command: str, tmp_path: Path) -> None:
    result = invoke(*command.split(), fails=True)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("make watts-strogatz --blocks 20 --k 3 --p 0.2 -o made.npy", "even number"),
        ("make random --rows 4 --fan-in 5 -o made.npy", "fan_in: got 5"),
        ("make banded --rows 4 --width 1 -o none/made.npy", "none/made.npy: cannot be written"),
        ("make banded --rows 4 --width 1 -o made.txt", "ends in .npy"),
        ("show none.npy", "No such file"),
        ("convert none.npy --density 0.5 -o made.npy", "No such file"),
    ],
)
def test_failures_are_one_line_and_leave_nothing(command: str, words: str, tmp_path: Path) -> None:
    result = invoke(*command.split(), fails=True)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_show_draws_and_measures() -> None:
    shown = topology.banded(6, 6, 3)
    shown.save("band.npy")
    lines = invoke("show", "band.npy").stdout.splitlines()
    assert lines[:6] == shown.text().splitlines()
    assert lines[6].startswith(f"layout   6 x 6 blocks, 16 stored, density 44.44 %, digest {shown.digest}")
    assert lines[7] == "fan-in   2 to 3 blocks a column, mean 2.667, imbalance 1.12, 0 empty"
    assert lines[8] == "fan-out  2 to 3 blocks a row, mean 2.667, imbalance 1.12, 0 empty"
    assert lines[9] == "mixing   44.44 %, 66.67 %, 83.33 %, 94.44 % of outputs reached after 1, 2, ... layers"
    assert len(lines) == 10


def test_show_in_ascii_on_demand_and_where_the_terminal_needs_it() -> None:
    topology.bernoulli(300, 300, 0.1).save("layout.npy")
    on_demand = invoke("show", "layout.npy", "--ascii").stdout
    assert on_demand.isascii()
    assert "|" in on_demand
    assert invoke("show", "layout.npy", charset="latin-1").stdout == on_demand
    assert "░" in invoke("show", "layout.npy").stdout


def test_show_keeps_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    topology.bernoulli(300, 300, 0.1).save("layout.npy")
    for columns in (30, 80, 500):
        monkeypatch.setenv("COLUMNS", str(columns))
        picture = invoke("show", "layout.npy").stdout.split("a character is")[0]
        assert max(map(len, picture.splitlines())) <= min(columns, 98)


def test_show_prints_json_and_writes_png() -> None:
    shown = topology.banded(6, 6, 3)
    shown.save("band.npy")
    facts = json.loads(invoke("show", "band.npy", "--json", "--png", "band.png").stdout)
    assert facts["mixing"] == pytest.approx([topology.mixing(shown, k) for k in (1, 2, 3, 4)])
    assert facts["nnz"] == 16
    assert facts["png"] == "band.png"
    assert Path("band.png").read_bytes().startswith(b"\x89PNG")
    assert "wrote band.png" in invoke("show", "band.npy", "--png", "band.png").stdout


def test_show_of_a_rectangle_mixes_one_layer() -> None:
    topology.block_diagonal(2, 4, 2).save("layout.npy")
    assert json.loads(invoke("show", "layout.npy", "--json").stdout)["mixing"] == [0.5]


def test_convert_keeps_the_largest_blocks() -> None:
    dense = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32)
    save_file({"up.weight": dense, "down.weight": dense.T.copy()}, "m.safetensors")
    np.save("w.npy", dense)
    expected = layout_from_weights(dense, 16, 0.25)
    assert expected.nnz == 6
    named = ("convert", "m.safetensors", "--block-size", 16, "--density", 0.25, "-o", "made.npy")

    result = invoke(*named, "--tensor", "up.weight")
    assert Layout.load("made.npy") == expected
    assert expected.digest in result.stdout
    invoke(*named, "--tensor", "down.weight", "--transpose")
    assert Layout.load("made.npy") == expected
    invoke("convert", "w.npy", "--density", 0.5, "--norm", "max", "-o", "made.npy")
    assert Layout.load("made.npy") == layout_from_weights(dense, 32, 0.5, "max")

    facts = json.loads(invoke(*named, "--tensor", "up.weight", "--json").stdout)
    assert (facts["nnz"], facts["digest"]) == (6, expected.digest)

    missing = invoke(*named, "--tensor", "up.weigth", fails=True)
    assert missing.exit_code == 1
    assert "did you mean 'up.weight'?" in missing.stderr
