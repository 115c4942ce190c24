"""`Kernels`: a binary loaded where it is called, and its launches enqueued."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

from bsgen.errors import ArgumentError
from bsgen.outline import Launch, Workspace
from bsgen.runtime import context, driver, tensor_maps

MAXIMUM_BLOCKS = 2**31 - 1
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


class Prepared(NamedTuple):
    """A launch with its arguments bound, which may be enqueued any number of times and by any thread."""

    enqueue: Callable[[], tuple[Any]]  # in the current context; gives CUDA's error, 0 for none
    arguments: Any  # the memory that it reads


_MAXIMUM_CONFIGURATIONS = 256


class _Loaded:
    """A launch with its function of one device, taken apart so that enqueuing it is little work."""

    def __init__(self, launch: Launch, function: Any, device: int) -> None:
        grid = launch.grid
        self.blocks, self.rows = grid.blocks * grid.cluster, grid.rows
        self.most = _resident(launch, function, device) if grid.persistent else MAXIMUM_BLOCKS
        self.threads, self.shared_memory = launch.threads, launch.shared_memory
        self.function, self.pick = function, itemgetter(*launch.arguments)
        encoders = [tensor_maps.Encoder(tensor_map) for tensor_map in launch.maps]
        self.maps = [(encoder.spec.argument, encoder.spec.operand, encoder.kept, encoder) for encoder in encoders]
        self.memory = _Memory(launch)
        self.attributes = _attributes(launch)
        # By blocks and stream: making one takes longer than finding it.
        self.configurations: dict[tuple[int, int], Any] = {}
        self.launch = driver.bindings().cuLaunchKernelEx

    def prepare(self, stream: int, operands: dict[str, Any]) -> Iterator[Prepared]:
        """The launch on a stream (a CUstream handle), if there is anything to do; tensor maps are added to `operands`."""
        n = operands["n"]
        blocks = self.blocks * -(-n // self.rows) if self.rows else self.blocks  # as Grid.size
        if blocks > MAXIMUM_BLOCKS:
            raise ArgumentError(f"x: {n} rows need {blocks} thread blocks, CUDA allows {MAXIMUM_BLOCKS}: split x")
        if not blocks:
            return
        for name, operand, kept, encode in self.maps:
            address = operands[operand]
            operands[name] = kept.get((address, n)) or encode(address, n)
        arguments, address = self.memory.hold(self.pick(operands))
        key = (min(blocks, self.most), stream)
        configuration = self.configurations.get(key) or self._configuration(key)
        yield Prepared(partial(self.launch, configuration, self.function, address, 0), arguments)

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


class _Memory:
    """How a kernel's arguments lie in memory: the pointers to them, which the driver reads, and then themselves."""

    def __init__(self, launch: Launch) -> None:
        maps = {tensor_map.argument for tensor_map in launch.maps}
        codes = [_code(name, maps) for name in launch.arguments]
        pointers = "Q" * len(codes)
        self._places = [struct.calcsize("<" + pointers + "".join(codes[:place])) for place in range(len(codes))]
        self._write = struct.Struct("<" + pointers + "".join(codes))
        self._room = ctypes.c_char * self._write.size

    def hold(self, values: tuple[Any, ...]) -> tuple[Any, int]:
        """Memory that holds the arguments, and its address."""
        memory = self._room()
        address = ctypes.addressof(memory)
        self._write.pack_into(memory, 0, *[address + place for place in self._places], *values)
        return memory, address


def _code(name: str, maps: Collection[str]) -> str:
    """How `struct` writes an argument, padded to 8 bytes."""
    if name in INTEGERS:
        return "i4x"
    return f"{tensor_maps.BYTES}s" if name in maps else "Q"


class Kernels:
    """The kernels of one op: loaded once for each device, launched in order on the caller's stream.

    May be called from many threads. A call after the first (or after `load`) on a device loads and allocates nothing,
    so it may be captured into a CUDA graph.
    """

    def __init__(self, binary: Cubin, launches: Sequence[Launch], workspace: Workspace) -> None:
        self.binary = binary
        self.launches = tuple(launches)
        self.workspace = workspace
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

    def prepare(self, device: int, stream: int, operands: dict[str, Any]) -> tuple[Prepared, ...]:
        """Every launch on `stream` (a CUstream handle), in order: `operands` are pointers, n and accumulate, by name; tensor maps
        are added to them."""
        loaded = self._loaded.get(device)
        if loaded is None:
            context.forbid_capture(device, stream)
            loaded = self.load(device)
        with driver.on(device):  # encoding a tensor map needs a context
            return tuple(chain.from_iterable(kernel.prepare(stream, operands) for kernel in loaded))

    @staticmethod
    def enqueue(device: int, prepared: Sequence[Prepared]) -> None:
        """Enqueue what `prepare` gave, in the context of the device."""
        with driver.on(device):
            for launch in prepared:
                (error,) = launch.enqueue()
                if error:
                    raise driver.failure("cuLaunchKernelEx", error)

    def __call__(self, device: int, stream: int, operands: dict[str, Any]) -> None:
        """Prepare and enqueue."""
        self.enqueue(device, self.prepare(device, stream, operands))
