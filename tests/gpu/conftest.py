"""Tests that need a GPU and PyTorch: collected everywhere, skipped with a reason where one is missing."""

from __future__ import annotations

import multiprocessing
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from cases import Case, compile_case, torch

from bsgen.runtime import driver

HERE = Path(__file__).parent
PART = os.environ.get("BSGEN_TEST_PART", "")  # such as 2/4: every fourth test, for processes side by side


def _obstacle() -> str | None:
    reason = driver.why_unavailable()
    if reason is None and torch is None:
        return "PyTorch is not installed"
    if reason is None and not torch.cuda.is_available():
        return "PyTorch finds no GPU"
    return reason


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = [item for item in items if HERE in item.path.parents]
    reason = _obstacle() if here else None
    for item in here:
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
    if PART:
        part, parts = map(int, PART.split("/"))
        others = [item for item in here if zlib.crc32(item.nodeid.encode()) % parts != part % parts]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[None]:
    """Compile what the selected tests need in parallel processes, into a disk cache of this run."""
    with pytest.MonkeyPatch.context() as patch:
        if "BSGEN_CACHE_DIR" not in os.environ:
            patch.setenv("BSGEN_CACHE_DIR", str(tmp_path_factory.mktemp("bsgen-cache")))
        if _obstacle() is None:
            _compile_ahead(request.session.items)
        yield


def _compile_ahead(items: list[pytest.Item]) -> None:
    params = [getattr(item, "callspec", None) for item in items]
    cases = {spec.params["case"] for spec in params if spec and isinstance(spec.params.get("case"), Case)}
    if len(cases) < 4:
        return
    arch = driver.current_device().arch
    spawn = multiprocessing.get_context("spawn")
    workers = -(-(os.cpu_count() or 1) // int(PART.split("/")[1] if PART else 1))
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        for done in [pool.submit(compile_case, case, arch) for case in cases]:
            done.result()
