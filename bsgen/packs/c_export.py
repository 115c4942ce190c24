"""A pack as C: a header and a source that load its kernels through the driver alone, and an example program."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bsgen
from bsgen import ranges
from bsgen.artefact import make_folder
from bsgen.compiled import Compiled
from bsgen.emit import environment
from bsgen.errors import ArgumentError
from bsgen.files import write_together
from bsgen.matmul import MatMul
from bsgen.operands import contract_of
from bsgen.outline import Launch, TensorMap
from bsgen.packs.pack import Pack
from bsgen.problem import TARGETS, Op

POINTERS = {
    "x": "X",
    "dy": "DY",
    "w": "W",
    "out": "OUT",
    "bias": "BIAS",
    "residual": "RESIDUAL",
    "workspace": "WORKSPACE",
}
TYPES = {"float16": 6, "bfloat16": 9, "float32": 11}  # CUtensorMapDataType, as runtime/tensor_maps.py has them
BYTES_A_LINE = 32
MOST_ROWS = 2**31 - 1
RESULTS = {Op.FPROP: "y", Op.DGRAD: "dx", Op.WGRAD: "dw"}
FORMULAS = (  # by axis
    {Op.FPROP: "y = W.T @ x", Op.DGRAD: "dx = W @ dy", Op.WGRAD: "dw = x @ dy.T at the stored blocks"},
    {Op.FPROP: "y = x @ W", Op.DGRAD: "dx = dy @ W.T", Op.WGRAD: "dw = x.T @ dy at the stored blocks"},
)


def export(pack: Pack, folder: str | os.PathLike[str]) -> list[Path]:
    """Write bsgen_kernels.h, bsgen_kernels.c and example.c: one function for each op of each module, for every GPU of the pack.

    Raises:
        PackError: a kernel is damaged. ArgumentError: two modules with one name in C, a module with gates or a dW of another type,
            or a folder that cannot be written.
    """
    place = Path(folder)
    for module in pack.index.modules:
        if module.gate or module.wgrad_dtype:
            what = "gates" if module.gate else f"a {module.wgrad_dtype} dW"
            raise ArgumentError(
                f"{pack.path}: {module.name!r} has {what}, which the C interface has not: leave it out of the pack"
            )
    ops, blobs = _ops(pack)
    names = [op.symbol for op in ops]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ArgumentError(f"{pack.path}: two modules are {twice} in C: rename one of them")
    facts = {"name": pack.path.stem, "version": bsgen.__version__, "ops": ops, "blobs": blobs}
    templates = {"bsgen_kernels.h": facts, "bsgen_kernels.c": facts, "example.c": {"op": ops[0]}}
    make_folder(place)
    files = {
        place / name: environment().get_template(f"c/{name}.j2").render(values).encode()
        for name, values in templates.items()
    }
    write_together(files)
    return list(files)


@dataclass(frozen=True)
class CArray:
    """A cubin as a C array."""

    name: str
    data: bytes

    @property
    def lines(self) -> Iterator[str]:
        """Lines of its initialiser."""
        for at in range(0, len(self.data), BYTES_A_LINE):
            yield "".join(f"{byte}," for byte in self.data[at : at + BYTES_A_LINE])


@dataclass(frozen=True)
class COp:
    """An op of a module as templates see it."""

    module: str
    mm: MatMul
    op: Op
    variants: tuple[str, ...]

    @property
    def symbol(self) -> str:
        """Its function."""
        return f"bsgen_{re.sub(r'[^A-Za-z0-9]', '_', self.module)}_{self.op}"

    @property
    def formula(self) -> str:
        """What it computes."""
        epilogue = self.mm.epilogue if self.op is Op.FPROP else None
        text = FORMULAS[self.mm.axis][self.op] + (" + bias" if epilogue and epilogue.bias else "")
        if epilogue and epilogue.activation:
            text = f"y = {epilogue.activation}({text[4:]})"
        return text + (" + residual" if epilogue and epilogue.residual else "")

    @property
    def digest(self) -> str:
        """Of the layout."""
        return self.mm.layout.digest

    @property
    def nnz(self) -> int:
        """Stored blocks."""
        return self.mm.nnz

    @property
    def size(self) -> int:
        """All blocks."""
        return self.mm.layout.size

    @property
    def block(self) -> int:
        """The side of a block."""
        return self.mm.block_size

    @property
    def dtype(self) -> str:
        """Of every operand."""
        return str(self.mm.dtype)

    @property
    def count(self) -> int:
        """Variants; none where there is nothing to launch."""
        return len(self.variants) if self.nnz or self.op is not Op.WGRAD else 0

    @property
    def inputs(self) -> tuple[str, ...]:
        """Operands in the order of the function's parameters."""
        contract = contract_of(self.mm.operation(str(self.op)).problem)
        return tuple(name for name in ("x", "dy", "w", "bias", "residual") if name in (*contract.rows, *contract.fixed))

    @property
    def result(self) -> str:
        """The result's name."""
        return RESULTS[self.op]

    @property
    def shapes(self) -> str:
        """Every operand with its shape."""
        b, c, k = self.block, self.mm.in_features, self.mm.out_features
        rows = "[n, {}]" if self.mm.axis else "[{}, n]"
        known = {
            "x": rows.format(c),
            "dy": rows.format(k),
            "w": f"[{self.nnz}, {b}, {b}]",
            "bias": f"[{k}]",
            "residual": rows.format(k),
        }
        results = {
            "y": rows.format(k),
            "dx": rows.format(c),
            "dw": f"[{self.nnz}, {b}, {b}], added into if accumulate is not 0",
        }
        return ", ".join([f"{name} {known[name]}" for name in self.inputs] + [f"{self.result} {results[self.result]}"])

    @property
    def parameters(self) -> str:
        """Of the function."""
        inputs = ", ".join(f"const void* {name}" for name in self.inputs)
        return f"{inputs}, void* {self.result}" + (", int accumulate" if self.op is Op.WGRAD else "")

    @property
    def initialisers(self) -> str:
        """Of the pointers, by their number."""
        inputs = ", ".join(f"[{POINTERS[name]}] = (void*){name}" for name in self.inputs)
        return f"{inputs}, [OUT] = {self.result}"

    @property
    def checks(self) -> str:
        """Whether a pointer is not what a kernel needs."""
        rows = contract_of(self.mm.operation(str(self.op)).problem).rows
        needed = {name: "some" if name in rows else "1" for name in self.inputs if self.nnz or name != "w"}
        needed[self.result] = "some" if self.op is not Op.WGRAD else str(int(self.nnz > 0))
        return " || ".join(f"!usable({name}, {when})" for name, when in needed.items())

    @property
    def accumulate(self) -> str:
        """The argument of that name."""
        return "accumulate" if self.op is Op.WGRAD else "0"

    @property
    def item(self) -> int:
        """Bytes of an element."""
        return self.mm.dtype.itemsize

    @property
    def out_bytes(self) -> str:
        """Bytes of the result, where there are no rows to sum."""
        return f"{self.out_fixed_elements * self.item}ll" if self.op is Op.WGRAD else "0"

    @property
    def out_row_elements(self) -> int:
        """Elements of the result for each row."""
        return {Op.FPROP: self.mm.out_features, Op.DGRAD: self.mm.in_features, Op.WGRAD: 0}[self.op]

    @property
    def out_fixed_elements(self) -> int:
        """And beside."""
        return self.nnz * self.block**2 if self.op is Op.WGRAD else 0

    @property
    def row_elements(self) -> list[int]:
        """Elements of each input for each row."""
        features = {"x": self.mm.in_features, "dy": self.mm.out_features, "residual": self.mm.out_features}
        return [features.get(name, 0) for name in self.inputs]

    @property
    def fixed_elements(self) -> list[int]:
        """And beside."""
        fixed = {"w": self.nnz * self.block**2, "bias": self.mm.out_features}
        return [fixed.get(name, 0) for name in self.inputs]

    @property
    def example_arguments(self) -> str:
        """How the example calls it."""
        inputs = ", ".join(f"(void*)(uintptr_t)inputs[{i}]" for i in range(len(self.inputs)))
        return f"{inputs}, (void*)(uintptr_t)out" + (", 0" if self.op is Op.WGRAD else "")


def _ops(pack: Pack) -> tuple[list[COp], list[CArray]]:
    """Every op of every module, and the cubins, each once."""
    cubins: dict[bytes, CArray] = {}
    ops = []
    for module in pack.index.modules:
        mm = pack.get_for(module.name, pack.arches(module.name)[0])
        for op in mm.ops:
            variants = [
                _variant(made, arch, index, mm.operation(op).problem.row_unit, cubins)
                for arch in pack.arches(module.name)
                for index, made in _made(pack, module.name, op, arch).items()
            ]
            ops.append(COp(module.name, mm, Op(op), tuple(variants)))
    if not ops:
        raise ArgumentError(f"{pack.path}: has no kernels that could be exported: build one with modules")
    return ops, list(cubins.values())


def _made(pack: Pack, module: str, op: str, arch: str) -> Mapping[int, Compiled]:
    return {index: load() for index, load in pack.loaders(module, op, arch).items()}


def _variant(made: Compiled, arch: str, index: int, unit: int, cubins: dict[bytes, CArray]) -> str:
    """A Variant's initialiser; `unit` is what N must be a multiple of where it is not for any."""
    cubin = cubins.setdefault(made.binary.cubin, CArray(f"cubin_{len(cubins)}", made.binary.cubin))
    size, any_rows = index % ranges.SIZES, index >= ranges.SIZES
    most = ranges.BOUNDS[size] if size < len(ranges.BOUNDS) else MOST_ROWS
    exact = int(not arch[-1].isdigit())  # sm_90a code runs on no other GPU
    launches = ", ".join(map(_launch, made.outline.launches)) or "{0}"
    workspace = made.outline.workspace
    numbers = (
        TARGETS[arch].capability,
        exact,
        most,
        1 if any_rows else unit,
        len(made.outline.launches),
        workspace.fixed,
        workspace.per_row,
    )
    return f"{{{cubin.name}, {', '.join(map(str, numbers))}, {{{launches}}}}}"


def _launch(launch: Launch) -> str:
    grid, maps = launch.grid, {each.argument: place for place, each in enumerate(launch.maps)}
    kinds = [f"MAP + {maps[name]}" if name in maps else POINTERS.get(name, name.upper()) for name in launch.arguments]
    numbers = (grid.blocks, grid.rows, grid.cluster, int(grid.persistent), launch.threads, launch.shared_memory)
    shown = ", ".join(map(_map, launch.maps)) or "{0}"
    return f'{{"{launch.entry}", {", ".join(map(str, numbers))}, {{{", ".join(kinds)}}}, {len(kinds)}, {{{shown}}}}}'


def _map(spec: TensorMap) -> str:
    values: tuple[Any, ...] = (
        TYPES[spec.dtype],
        spec.columns,
        spec.rows,
        spec.box_columns,
        spec.box_rows,
        spec.fetched,
    )
    return f"{{{POINTERS[spec.operand]}, {', '.join(map(str, values))}}}"
