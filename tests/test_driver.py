"""The driver module on a machine without a driver, and its bookkeeping."""

from __future__ import annotations

import multiprocessing
from typing import Any, ClassVar

import pytest

import bsgen
from bsgen.runtime import driver
from bsgen.runtime.driver import Device, architecture


@pytest.fixture
def _absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_process", driver._Process())
    monkeypatch.setattr(driver, "_library_present", lambda: False)


@pytest.mark.usefixtures("_absent")
def test_without_a_driver() -> None:
    assert not driver.available()
    assert "libcuda" in str(driver.why_unavailable())
    assert driver.driver_version() is None
    for use in (driver.devices, driver.current_device, lambda: driver.device(0), lambda: driver.enter(0)):
        with pytest.raises(bsgen.DriverError, match="install the NVIDIA driver"):
            use()


@pytest.mark.usefixtures("_absent")
def test_arrays_on_a_gpu_without_a_driver() -> None:
    class Interface:
        __cuda_array_interface__: ClassVar = {"shape": (4, 8), "typestr": "<f2", "data": (4096, False), "version": 3}

    mm = bsgen.compile([[1]], 8, "float16")
    with pytest.raises(bsgen.DriverError, match="install the NVIDIA driver"):
        mm(Interface(), Interface())
    with pytest.raises(bsgen.DriverError, match="install the NVIDIA driver"):
        mm.warmup()


def _driver(monkeypatch: pytest.MonkeyPatch, **results: Any) -> None:
    def call(name: str, *_: Any) -> Any:
        result = results[name]
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(driver, "_process", driver._Process())
    monkeypatch.setattr(driver, "_library_present", lambda: True)
    monkeypatch.setattr(driver, "call", call)


def test_old_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    _driver(monkeypatch, cuDriverGetVersion=12040)
    assert driver.why_unavailable() == (
        "the driver supports CUDA 12.4, bsgen's kernels need 13.0: install driver 580 or later"
    )


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    _driver(monkeypatch, cuDriverGetVersion=13000, cuInit=None, cuDeviceGetCount=0)
    assert "found no GPU" in str(driver.why_unavailable())


def test_fork_after_another_library_initialised_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = bsgen.DriverError("cuInit: CUDA_ERROR_NOT_INITIALIZED: initialization error")
    _driver(monkeypatch, cuDriverGetVersion=13000, cuInit=failed)
    assert "spawn" in str(driver.why_unavailable())


def _why(queue: Any) -> None:
    queue.put((driver.why_unavailable(), driver.lock().acquire(timeout=1)))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_child_is_told_to_spawn(monkeypatch: pytest.MonkeyPatch) -> None:
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("no fork on this system")
    process = driver._Process()
    process.initialised = True
    monkeypatch.setattr(driver, "_process", process)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    with driver.lock():
        child = context.Process(target=_why, args=(queue,))
        child.start()
        reason, locked = queue.get(timeout=60)
    child.join()
    assert "spawn" in reason
    assert locked


ARCHITECTURES = {
    (8, 0): "sm_80",
    (8, 7): "sm_86",
    (8, 9): "sm_89",
    (9, 0): "sm_90a",
    (10, 3): "sm_103a",
    (12, 0): "sm_120a",
}


@pytest.mark.parametrize(("capability", "arch"), ARCHITECTURES.items())
def test_architectures(capability: tuple[int, int], arch: str) -> None:
    device = Device(0, "a GPU", capability, 1, 1)
    assert device.arch == arch
    assert device.runs(arch)
    assert device.runs("sm_90") == (capability == (9, 0))
    assert not device.runs("sm_100a")


@pytest.mark.parametrize("capability", [(7, 5), (12, 1), (13, 0)])
def test_unknown_architectures(capability: tuple[int, int]) -> None:
    with pytest.raises(bsgen.DriverError, match=r"device 1 \(a GPU\): compute capability .* CUDA_VISIBLE_DEVICES"):
        _ = Device(1, "a GPU", capability, 1, 1).arch
    with pytest.raises(bsgen.DriverError):
        architecture("x", capability)
