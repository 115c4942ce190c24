"""`Pack`: a file of kernels, opened. Opening reads the index; a layout or kernel is read, and checked, when it is used."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bsgen import ranges
from bsgen.compiled import Compiled
from bsgen.errors import ArgumentError, PackError
from bsgen.files import reason
from bsgen.layout import Layout
from bsgen.packs import format as layout_of
from bsgen.packs.format import DIGEST, PREFIX, TRAILER, Blob, Index, Module, PackedKernel
from bsgen.problem import DType, Op, Problem, row_unit
from bsgen.runtime import driver

if TYPE_CHECKING:
    from bsgen.matmul import MatMul

_log = logging.getLogger("bsgen")
OPS = frozenset(map(str, Op))
Loaders = Mapping[int, Callable[[], Compiled]]  # by range of N


def load_pack(path: str | os.PathLike[str], trust: str | os.PathLike[str] | None = None) -> Pack:
    """Open a pack: `load_pack("model.bsp")["ffn.0"]` is a callable as `bsgen.compile` makes, and needs neither NVRTC nor Jinja.

    Args:
        trust: an Ed25519 public key (a .pem file, or 64 hexadecimal characters) that must have signed the pack.

    Raises:
        PackError: not a pack, damaged, of a newer format, or not signed by that key.
    """
    pack = Pack(path)
    if trust is not None:
        from bsgen.packs.signing import check

        check(pack, trust)
    return pack


class Pack(Mapping[str, "MatMul"]):
    """Modules by name. What is damaged, or unknown to this bsgen, is passed over with a word in the log; the rest works."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.index, self.head, self.size = self._open()
        self._made: dict[tuple[str, str | None], MatMul] = {}

    def _open(self) -> tuple[Index, bytes, int]:
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                prefix = file.read(PREFIX.size)
                body = file.read(layout_of.index_size(prefix, size))
                digest = file.read(DIGEST)
        except (OSError, ValueError) as error:
            raise PackError(
                f"{self.path}: cannot be read ({reason(error)}); give the path of a readable pack"
            ) from None
        except PackError as error:
            raise PackError(f"{self.path}: {error}") from None
        with self._named():
            index = layout_of.parse(prefix, body, digest)
            expected = len(prefix) + len(body) + DIGEST + layout_of.blobs_size(index)
            if size not in (expected, expected + TRAILER.size):
                raise PackError(f"is truncated or damaged: {size} bytes, expected {expected}; copy it again")
        return index, prefix + body + digest, size

    def _named(self) -> _Named:
        return _Named(self.path)

    @property
    def digest(self) -> bytes:
        """SHA-256 of the index, which holds those of all blobs: what is signed."""
        return self.head[-DIGEST:]

    @property
    def trailer(self) -> bytes:
        """The signature's bytes; empty if there is none."""
        unsigned = len(self.head) + layout_of.blobs_size(self.index)
        return self._read(unsigned, self.size - unsigned)

    def _read(self, offset: int, size: int) -> bytes:
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise PackError(f"{self.path}: cannot be read ({reason(error)}); check the disk it is on") from None

    def blob(self, blob: Blob) -> bytes:
        """The bytes of a blob; `PackError` if its digest does not match."""
        data = self._read(len(self.head) + blob.offset, blob.size)
        if hashlib.sha256(data).hexdigest() != blob.sha256:
            raise PackError(
                f"{self.path}: is damaged: the digest of {blob.size} bytes at {blob.offset} does not match; copy it again"
            )
        return data

    def layout(self, module: Module) -> Layout:
        """The layout of a module."""
        packed = self.index.layouts[module.layout]
        bits = np.frombuffer(self.blob(packed.blob), np.uint8)
        return Layout(
            np.unpackbits(bits, count=packed.rows * packed.cols).astype(bool).reshape(packed.rows, packed.cols)
        )

    def kernel(self, kernel: PackedKernel) -> Compiled:
        """A kernel, ready to be loaded onto a GPU."""
        data = self.blob(kernel.blob)
        with self._named():
            outline, binary = layout_of.decode_kernel(data)
            if binary.arch != kernel.arch:
                raise PackError(
                    f"has a kernel for {binary.arch} where its index says {kernel.arch}; build the pack again"
                )
        return Compiled(outline, None, binary)

    @cached_property
    def _modules(self) -> dict[str, int]:
        return {module.name: place for place, module in enumerate(self.index.modules)}

    @cached_property
    def _kernels(self) -> dict[tuple[int, str, str], dict[int, PackedKernel]]:
        """By module, op and architecture, then by range of N."""
        found: dict[tuple[int, str, str], dict[int, PackedKernel]] = {}
        for kernel in self.index.kernels:
            if not layout_of.known_arch(kernel.arch) or kernel.op not in OPS:
                _log.info(
                    "%s: passed over a kernel of %s for %s, unknown to this bsgen", self.path, kernel.op, kernel.arch
                )
                continue
            module = self.index.modules[kernel.module]
            index = ranges.place(kernel.rows, row_unit(DType(module.dtype), module.axis))
            found.setdefault((kernel.module, kernel.op, kernel.arch), {})[index] = kernel
        return found

    @cached_property
    def _arches(self) -> dict[int, dict[str, None]]:
        """By module, in the order of the file."""
        found: dict[int, dict[str, None]] = {}
        for module, _, arch in self._kernels:
            found.setdefault(module, {})[arch] = None
        return found

    def arches(self, name: str) -> tuple[str, ...]:
        """The architectures that a module has kernels for."""
        return tuple(self._arches.get(self._modules[name], ()))

    def loaders(self, name: str, op: str, arch: str) -> Loaders:
        """How to get the kernels of an op, by range of N; empty if the pack has none for the architecture."""
        found = self._kernels.get((self._modules[name], op, arch), {})
        return {index: _loader(self, kernel) for index, kernel in sorted(found.items())}

    def __getitem__(self, name: str) -> MatMul:
        return self.get_for(name, None)

    def get_for(self, name: str, arch: str | None) -> MatMul:
        """The callable of a module for an architecture; None: what the current GPU runs, or where there is none, any.

        Raises:
            KeyError: there is no such module. PackError: it has no kernels that this GPU runs.
        """
        if name not in self._modules:
            near = ", ".join(sorted(self._modules)[:8])
            raise KeyError(
                f"{name!r} is not in {self.path}, which has {near or 'nothing'}{', ...' * (len(self._modules) > 8)}"
            )
        chosen = arch or self._arch(name)
        if (name, chosen) not in self._made:
            from bsgen.matmul import MatMul

            self._made[name, chosen] = MatMul.packed(self, self.index.modules[self._modules[name]], chosen)
        return self._made[name, chosen]

    def _arch(self, name: str) -> str:
        known = self.arches(name)
        if not known:
            raise PackError(f"{self.path}: {name!r} has no kernels that this bsgen knows; build the pack again")
        if driver.why_unavailable() is not None:
            return known[0]
        gpu = driver.current_device()
        runnable = [arch for arch in known if gpu.runs(arch)]
        if not runnable:
            raise PackError(
                f"{self.path}: {name!r} has kernels for {', '.join(known)}, this GPU ({gpu.name}) is {gpu.arch}: "
                "build the pack for it, too"
            )
        return gpu.arch if gpu.arch in runnable else runnable[-1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def __repr__(self) -> str:
        return f"Pack({str(self.path)!r}, {len(self)} modules, {len(self.index.kernels)} kernels)"

    def problems(self) -> Iterator[str]:
        """What is wrong in the whole file, in words: reads and checks every blob."""
        for module in self.index.modules:
            try:
                self.layout(module)
            except (PackError, ArgumentError) as error:
                yield f"{module.name}: {error}"
        for kernel in self.index.kernels:
            try:
                self.kernel(kernel)
            except PackError as error:
                yield f"{self.index.modules[kernel.module].name} {kernel.op} {kernel.arch}: {error}"

    def find(self, problem: Problem, arch: str) -> Compiled | None:
        """The kernels of a problem, of any module with the same layout and arithmetic; None if there are none."""
        for place in self._places.get(_content(problem.layout), ()):
            kernels = self._kernels.get((place, str(problem.op), arch), {})
            kernel = kernels.get(ranges.main(problem))
            if kernel and _signature_of(self.index.modules[place], problem.op) == _signature(problem):
                return self.kernel(kernel)
        return None

    @cached_property
    def _places(self) -> dict[tuple[int, int, str], list[int]]:
        """Modules by the content of their layout."""
        found: dict[tuple[int, int, str], list[int]] = {}
        for place, module in enumerate(self.index.modules):
            packed = self.index.layouts[module.layout]
            found.setdefault((packed.rows, packed.cols, packed.blob.sha256), []).append(place)
        return found


def _content(layout: Layout) -> tuple[int, int, str]:
    """What tells a layout from others, as the index has it."""
    return (*layout.shape, hashlib.sha256(np.packbits(layout.mask).tobytes()).hexdigest())


class _Named:
    """Puts the file's name in front of what went wrong."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, PackError) and not str(error).startswith(str(self._path)):
            raise PackError(f"{self._path}: {error}") from None


def _loader(pack: Pack, kernel: PackedKernel) -> Callable[[], Compiled]:
    return lambda: pack.kernel(kernel)


def _signature(problem: Problem) -> tuple[Any, ...]:
    epilogue = problem.epilogue
    activation = str(epilogue.activation) if epilogue.activation else None
    arithmetic = problem.block_size, str(problem.dtype), str(problem.precision)
    return (*arithmetic, epilogue.bias, activation, epilogue.residual, problem.gate, problem.wgrad_dtype, problem.axis)


def _signature_of(module: Module, op: Op) -> tuple[Any, ...]:
    arithmetic = module.block_size, module.dtype, module.precision
    epilogue = (module.bias, module.activation, module.residual) if op is Op.FPROP else (False, None, False)
    return (*arithmetic, *epilogue, module.gate, module.wgrad_dtype if op is Op.WGRAD else None, module.axis)
