"""`bsgen demo` on a GPU, with bsgen's own arrays: no framework takes part."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner

from bsgen.cli import main
from bsgen.runtime import driver, timing, transfer


def test_demo_launches_and_times_the_kernels(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["demo", "-o", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["gpu"] == driver.current_device().name
    assert set(facts["measured"]) == {"fprop", "dgrad", "wgrad"}
    for op in facts["measured"].values():
        assert op["error"] < facts["tolerance"]
        assert 1e-6 < op["seconds"] < 1e-2


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(), (0, 3), (5, 7)])
def test_arrays_survive_the_way_there_and_back(dtype: type, shape: tuple[int, ...]) -> None:
    array = np.asarray(np.random.default_rng(0).standard_normal(shape)).astype(dtype)
    back = transfer.to_host(transfer.to_device(array, driver.current_device().ordinal))
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()


def test_timing_grows_with_the_work() -> None:
    gpu, stream = driver.current_device().ordinal, driver.DEFAULT_STREAM
    array = transfer.to_device(np.zeros(2**24, np.float32), gpu)

    def clear(times: int) -> None:
        for _ in range(times):
            driver.call("cuMemsetD8Async", array.pointer, 0, 2**26, stream)

    once, often = (timing.median_seconds(lambda times=times: clear(times), gpu, stream) for times in (1, 8))
    assert often > 4 * once
