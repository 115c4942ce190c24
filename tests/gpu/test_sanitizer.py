"""compute-sanitizer finds nothing: no access out of bounds, no race in shared memory."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cases import ARITHMETIC, BLOCK_SIZES

TARGET = Path(__file__).with_name("sanitizer_target.py")
TOOL = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")


@pytest.mark.skipif(TOOL is None, reason="compute-sanitizer is not installed")
@pytest.mark.parametrize("arithmetic", ARITHMETIC, ids="-".join)
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_clean(tool: str, arithmetic: tuple[str, str]) -> None:
    sizes = map(str, BLOCK_SIZES)
    command = [
        str(TOOL),
        "--tool",
        tool,
        "--error-exitcode",
        "9",
        sys.executable,
        str(TARGET),
        tool,
        *arithmetic,
        *sizes,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "done" in done.stdout
