"""The CUDA driver: devices, primary contexts, and their errors. Nothing is initialised before the first call.

State belongs to the process that initialised CUDA. A forked child of such a process cannot use the driver, whatever the
library, and is told so.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from bsgen.errors import DriverError

MINIMUM_VERSION = 13000
DEFAULT_STREAM = 1  # CU_STREAM_LEGACY, as a handle; DLPack and __cuda_array_interface__ write it the same way

_ARCHITECTURES = {
    (8, 0): "sm_80",
    (8, 6): "sm_86",
    (8, 7): "sm_86",
    (8, 9): "sm_89",
    (9, 0): "sm_90a",
    (10, 0): "sm_100a",
    (10, 3): "sm_103a",
    (12, 0): "sm_120a",
}
_FORKED = (
    "this process was forked from one that had initialised CUDA, and CUDA does not survive a fork: "
    'start it with multiprocessing.get_context("spawn"), or first use the GPU after the fork'
)


def architecture(name: str, capability: tuple[int, int]) -> str:
    """The architecture that bsgen compiles for on a GPU of this compute capability, or `DriverError`."""
    arch = _ARCHITECTURES.get(capability)
    if arch is None:
        known = ", ".join(f"{major}.{minor}" for major, minor in _ARCHITECTURES)
        raise DriverError(
            f"{name}: compute capability {capability[0]}.{capability[1]} is not one that bsgen compiles for ({known}); "
            "choose another GPU with CUDA_VISIBLE_DEVICES, or a newer bsgen if this GPU is newer"
        )
    return arch


@dataclass(frozen=True)
class Device:
    """A GPU as the driver numbers it; `memory` in bytes."""

    ordinal: int
    name: str
    capability: tuple[int, int]
    memory: int
    sms: int

    @property
    def arch(self) -> str:
        """The architecture to compile for, such as "sm_90a"; `DriverError` where bsgen knows none."""
        return architecture(f"device {self.ordinal} ({self.name})", self.capability)

    def runs(self, arch: str) -> bool:
        """Whether a cubin for `arch` loads here; "sm_90" code also runs where "sm_90a" does."""
        return arch in (self.arch, self.arch.rstrip("a"))


class _Process:
    """What this process knows of the driver: the bindings, the devices, a retained primary context for each in use."""

    def __init__(self, forked: bool = False) -> None:
        self.forked = forked
        self.lock = threading.RLock()
        self.initialised = False
        self.contexts: dict[int, Any] = {}
        self.addresses: dict[int, int] = {}

    @cached_property
    def obstacle(self) -> str | None:
        """Why the driver cannot be used, or None once it is initialised."""
        with self.lock:
            if self.initialised:
                return None
            return _FORKED if self.forked else self._start()

    def _start(self) -> str | None:
        if not _library_present():
            return "no CUDA driver on this machine (libcuda was not found): install the NVIDIA driver, 580 or later"
        try:
            version = call("cuDriverGetVersion")
            if version < MINIMUM_VERSION:
                shown = f"{version // 1000}.{version % 1000 // 10}"
                return f"the driver supports CUDA {shown}, bsgen's kernels need 13.0: install driver 580 or later"
            call("cuInit", 0)
        except (DriverError, ImportError, RuntimeError) as error:
            return _explained(str(error))
        self.initialised = True
        return None if self.devices else "the driver found no GPU: look at nvidia-smi and CUDA_VISIBLE_DEVICES"

    @cached_property
    def devices(self) -> tuple[Device, ...]:
        """The GPUs, in the driver's order."""
        return tuple(_describe(ordinal) for ordinal in range(call("cuDeviceGetCount")))


def _explained(problem: str) -> str:
    return f"{problem} ({_FORKED})" if "CUDA_ERROR_NOT_INITIALIZED" in problem else problem


def _library_present() -> bool:
    """Look for the driver first: with none installed, some calls of the bindings hang or raise."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


@cache
def bindings() -> Any:
    """The module cuda.bindings.driver."""
    import cuda.bindings.driver

    return cuda.bindings.driver


def call(name: str, *arguments: Any) -> Any:
    """Call a driver function: its result, or results as a tuple; `DriverError` with CUDA's name and text for it."""
    error, *results = getattr(bindings(), name)(*arguments)
    if error:
        raise failure(name, error)
    return results[0] if len(results) == 1 else tuple(results)


def failure(name: str, error: Any) -> DriverError:
    """The error that says which driver function failed, and how."""
    driver = bindings()
    code, title = driver.cuGetErrorName(error)
    if code:
        return DriverError(f"{name}: unknown CUDA error {int(error)}")
    text = driver.cuGetErrorString(error)[1]
    return DriverError(f"{name}: {title.decode()}: {text.decode()}")


def _describe(ordinal: int) -> Device:
    attributes = bindings().CUdevice_attribute
    device = call("cuDeviceGet", ordinal)
    major, minor, sms = (
        call("cuDeviceGetAttribute", attribute, device)
        for attribute in (
            attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            attributes.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
        )
    )
    name = call("cuDeviceGetName", 256, device).split(b"\0")[0].decode()
    return Device(ordinal, name, (major, minor), call("cuDeviceTotalMem", device), sms)


_process = _Process()


def _after_fork() -> None:
    global _process
    _process = _Process(forked=_process.initialised or _process.forked)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def lock() -> threading.RLock:
    """The lock that changes of this process's driver state are made under; a forked child gets its own."""
    return _process.lock


def why_unavailable() -> str | None:
    """Why no GPU can be used, with the way out; None if one can."""
    return _process.obstacle


def available() -> bool:
    """Whether the driver is there and found a GPU."""
    return why_unavailable() is None


def require() -> None:
    """Raise `DriverError` unless the driver can be used."""
    obstacle = why_unavailable()
    if obstacle is not None:
        raise DriverError(obstacle)


def driver_version() -> int | None:
    """The CUDA version that the driver supports, as 13000 for 13.0; None without a driver."""
    return int(call("cuDriverGetVersion")) if _library_present() else None


def devices() -> tuple[Device, ...]:
    """The GPUs of this machine; `DriverError` if none can be used."""
    require()
    return _process.devices


def device(ordinal: int) -> Device:
    """The GPU of that number."""
    known = devices()
    if not 0 <= ordinal < len(known):
        raise DriverError(f"device: got {ordinal}, this machine has {len(known)} (0 to {len(known) - 1})")
    return known[ordinal]


def current_device() -> Device:
    """The GPU of the calling thread's current context (which PyTorch, CuPy and others set), else the first."""
    require()
    context = call("cuCtxGetCurrent")
    return device(int(call("cuCtxGetDevice")) if int(context) else 0)


def primary_context(ordinal: int) -> Any:
    """The primary context of a device, the one that the frameworks use; retained once, for the life of the process."""
    process = _process
    if ordinal not in process.contexts:
        device(ordinal)
        with process.lock:
            if ordinal not in process.contexts:
                context = call("cuDevicePrimaryCtxRetain", call("cuDeviceGet", ordinal))
                process.addresses[ordinal] = int(context)
                process.contexts[ordinal] = context
    return process.contexts[ordinal]


def enter(ordinal: int) -> bool:
    """Make a device's primary context current; whether `leave` is due (not if it already was)."""
    wanted = _process.addresses.get(ordinal)
    if wanted is not None and int(bindings().cuCtxGetCurrent()[1]) == wanted:
        return False
    call("cuCtxPushCurrent", primary_context(ordinal))
    return True


def leave() -> None:
    """Undo an `enter` that returned True."""
    call("cuCtxPopCurrent")


@contextmanager
def on(ordinal: int) -> Iterator[None]:
    """Run the block in the primary context of a device, and restore the thread's own."""
    pushed = enter(ordinal)
    try:
        yield
    finally:
        if pushed:
            leave()
