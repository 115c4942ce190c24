"""`Kernels`: a binary loaded where it is called, and its launches enqueued."""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Protocol

from bsgen.errors import ArgumentError
from bsgen.outline import Launch, Workspace
from bsgen.runtime import context, driver, tensor_maps

MAXIMUM_ARGUMENTS = 16
MAXIMUM_BLOCKS = 2**31 - 1
SLOT_BYTES = tensor_maps.BYTES
INTEGERS = frozenset({"n", "accumulate"})


class Cubin(Protocol):
    """The part of a binary that launching needs."""

    @property
    def arch(self) -> str:
        """What it was compiled for."""
        ...

    @property
    def cubin(self) -> bytes:
        """The ELF image."""
        ...


class _Arguments(threading.local):
    """Room for a kernel's arguments, a slot each, and the pointers to them that the driver reads.

    Made once a thread: the driver copies the arguments before a launch returns.
    """

    def __init__(self) -> None:
        self.slots = (ctypes.c_char * (SLOT_BYTES * MAXIMUM_ARGUMENTS))()
        first, places = ctypes.addressof(self.slots), range(0, SLOT_BYTES * MAXIMUM_ARGUMENTS, SLOT_BYTES)
        self.pointers = (ctypes.c_void_p * MAXIMUM_ARGUMENTS)(*(first + place for place in places))
        self.address = ctypes.addressof(self.pointers)


_arguments = _Arguments()
_MAXIMUM_CONFIGURATIONS = 256


class _Loaded:
    """A launch with its function of one device, taken apart so that enqueuing it is little work."""

    def __init__(self, launch: Launch, function: Any, device: int) -> None:
        grid = launch.grid
        self.blocks, self.rows = grid.blocks * grid.cluster, grid.rows
        self.most = _resident(launch, function, device) if grid.persistent else MAXIMUM_BLOCKS + 1
        self.threads, self.shared_memory = launch.threads, launch.shared_memory
        self.function, self.pick = function, itemgetter(*launch.arguments)
        encoders = [tensor_maps.Encoder(tensor_map) for tensor_map in launch.maps]
        self.maps = [(encoder.spec.argument, encoder.spec.operand, encoder.kept, encoder) for encoder in encoders]
        codes = (_code(name, launch) for name in launch.arguments)
        self.pack = struct.Struct("<" + "".join(codes)).pack_into
        self.attributes = _attributes(launch)
        self.configurations: dict[
            tuple[int, int], Any
        ] = {}  # by blocks and stream: making one takes longer than finding it
        self.enqueue = driver.bindings().cuLaunchKernelEx

    def __call__(self, stream: int, operands: dict[str, Any]) -> None:
        """Enqueue it on a stream (a CUstream handle); tensor maps are added to `operands`."""
        n = operands["n"]
        blocks = self.blocks * -(-n // self.rows) if self.rows else self.blocks  # as Grid.size
        if blocks > self.most:
            blocks = self.most
        for name, operand, kept, encode in self.maps:
            address = operands[operand]
            operands[name] = kept.get((address, n)) or encode(address, n)
        if not 0 < blocks <= MAXIMUM_BLOCKS:
            return _refuse(blocks, n)
        arguments = _arguments
        self.pack(arguments.slots, 0, *self.pick(operands))
        key = (blocks, stream)
        configuration = self.configurations.get(key) or self._configuration(key)
        (error,) = self.enqueue(configuration, self.function, arguments.address, 0)
        if error:
            raise driver.failure("cuLaunchKernelEx", error)
        return None

    def _configuration(self, key: tuple[int, int]) -> Any:
        """How to launch so many thread blocks on a stream; nothing changes it, so threads may share it."""
        cuda = driver.bindings()
        made = cuda.CUlaunchConfig()
        made.gridDimX, made.hStream = key[0], cuda.CUstream(key[1])
        made.gridDimY = made.gridDimZ = made.blockDimY = made.blockDimZ = 1
        made.blockDimX, made.sharedMemBytes = self.threads, self.shared_memory
        made.attrs, made.numAttrs = self.attributes, len(self.attributes)
        if len(self.configurations) >= _MAXIMUM_CONFIGURATIONS:
            self.configurations.clear()
        return self.configurations.setdefault(key, made)


def _attributes(launch: Launch) -> list[Any]:
    """CUDA's launch attributes: whether it may be set up while the kernel ahead still runs."""
    if not launch.dependent:
        return []
    cuda = driver.bindings()
    attribute = cuda.CUlaunchAttribute()
    attribute.id = cuda.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    attribute.value.programmaticStreamSerializationAllowed = 1
    return [attribute]


def _resident(launch: Launch, function: Any, device: int) -> int:
    """Thread blocks of a persistent kernel that run at once: more would wait for the first to end."""
    size = launch.grid.cluster
    if size == 1:
        return driver.device(device).sms
    return size * context.resident_clusters(device, function, size, launch.threads, launch.shared_memory)


def _code(name: str, launch: Launch) -> str:
    """How `struct` writes an argument, padded to a slot."""
    if name in INTEGERS:
        return f"i{SLOT_BYTES - 4}x"
    return f"{SLOT_BYTES}s" if name in {tensor_map.argument for tensor_map in launch.maps} else f"Q{SLOT_BYTES - 8}x"


def _refuse(blocks: int, n: int) -> None:
    """No blocks is nothing to do; too many is an error."""
    if blocks:
        raise ArgumentError(f"x: {n} rows need {blocks} thread blocks, CUDA allows {MAXIMUM_BLOCKS}: split x")


class Kernels:
    """The kernels of one op: loaded once for each device, launched in order on the caller's stream.

    May be called from many threads. A call after the first (or after `load`) on a device loads and allocates nothing,
    so it may be captured into a CUDA graph.
    """

    def __init__(self, binary: Cubin, launches: Sequence[Launch], workspace: Workspace) -> None:
        self.binary = binary
        self.launches = tuple(launches)
        self.workspace, self.scratch = workspace, workspace != Workspace()
        self._loaded: dict[int, tuple[_Loaded, ...]] = {}

    def load(self, device: int) -> tuple[_Loaded, ...]:
        """Load onto a device, unless it was; `ArgumentError` if the binary is for another architecture."""
        with driver.lock():
            if device not in self._loaded:
                self._check_arch(device)
                sizes = {launch.entry: launch.shared_memory for launch in self.launches}
                functions = context.load(device, self.binary.cubin, sizes)
                self._loaded[device] = tuple(
                    _Loaded(launch, functions[launch.entry], device) for launch in self.launches
                )
            return self._loaded[device]

    def _check_arch(self, device: int) -> None:
        gpu = driver.device(device)
        if not gpu.runs(self.binary.arch):
            raise ArgumentError(
                f"arch: compiled for {self.binary.arch}, but GPU {device} ({gpu.name}) is {gpu.arch}: "
                f'compile again with arch="{gpu.arch}"'
            )

    def __call__(self, device: int, stream: int, operands: dict[str, Any]) -> None:
        """Enqueue every launch on `stream` (a CUstream handle): `operands` are pointers, n and accumulate, by name; tensor maps
        are added to them."""
        loaded = self._loaded.get(device)
        if loaded is None:
            context.forbid_capture(device, stream)
            loaded = self.load(device)
        pushed = driver.enter(device)
        try:
            for kernel in loaded:
                kernel(stream, operands)
        finally:
            if pushed:
                driver.leave()
