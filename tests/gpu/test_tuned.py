"""`tune` measures, keeps the fastest, and compile takes it."""

from __future__ import annotations

import numpy as np
import pytest

import bsgen
from bsgen.tune import tune


def test_the_winner_is_what_compile_gives(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BSGEN_CACHE_DIR", str(tmp_path))
    mask = np.random.default_rng(0).random((16, 16)) < 0.3
    tuned = tune(mask, 32, "float16", batch=512, count=3)
    assert [each.op for each in tuned] == ["fprop", "dgrad", "wgrad"]
    mm = bsgen.compile(mask, 32, "float16", batch=512)
    for each in tuned:
        assert each.kept
        assert each.rows == 512
        assert sum(trial.chosen for trial in each.trials) == 1
        times = [trial.seconds for trial in each.trials]
        assert times == sorted(times)
        assert times[0] > 0
        assert each.gain >= 1
        outline = mm.operation(each.op).outline
        assert (outline.family, outline.summary) == (each.trials[0].family, each.trials[0].plan)
        assert mm.plan(each.op).summary == outline.summary
