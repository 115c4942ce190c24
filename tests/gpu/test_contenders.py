"""`bsgen bench` on the GPU: every contender takes part, with right results, and the files are written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cases import torch
from click.testing import CliRunner

from bsgen.cli import main

if torch is not None:
    from bsgen.bench.cases import Case
    from bsgen.bench.contenders import PEERS
    from bsgen.bench.run import prepare, run
    from bsgen.bench.timing import Clock
from bsgen import topology
from bsgen.problem import DType, Op

UNTUNED = ("dense", "blocked-ell", "bsr", "csr", "torch-bsr")


@pytest.mark.parametrize("dtype", DType, ids=str)
@pytest.mark.parametrize("op", Op, ids=str)
def test_contenders_agree(op: Op, dtype: DType) -> None:
    case = Case("test", "small", lambda: topology.random(24, 16, density=0.2, seed=1), 256, 32, op, dtype)
    plans = prepare([case], True, lambda: None)
    (measured,) = run([case], plans, UNTUNED, Clock())
    names = {row.contender for row in measured.rows}
    assert names >= {"bsgen", "dense"}
    assert not any("WRONG" in reason for reason in measured.left_out.values()), measured.left_out
    if op is not Op.WGRAD and dtype is not DType.FLOAT32:
        assert names >= {"blocked-ell", "csr", "torch-bsr"}, measured.left_out
    for row in measured.rows:
        assert 0 < row.timing.low <= row.timing.seconds <= row.timing.high < 1
    assert set(PEERS) >= set(UNTUNED)


def test_cold_and_files(tmp_path: Path) -> None:
    files = ["--json", str(tmp_path / "b.json"), "--png", str(tmp_path / "b.png")]
    chosen = ["--suite", "random", "--size", "4096", "--rows", "64", "--density", "0.1", "--peer", "dense"]
    result = CliRunner().invoke(main, ["bench", *chosen, "--cold", "--choice-only", *files])
    assert result.exit_code == 0, result.output
    (case,) = json.loads((tmp_path / "b.json").read_text())["cases"]
    assert {row["timing"]["method"] for row in case["rows"]} == {"eager"}
    assert (tmp_path / "b.png").exists()
