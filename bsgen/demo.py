"""The steps of `bsgen demo`, for use from Python: a layout, its kernels, their results beside a dense product."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bsgen import artefact, topology
from bsgen.artefact import Artefact
from bsgen.errors import DriverError
from bsgen.layout import Layout
from bsgen.matmul import OPS, MatMul, compile
from bsgen.problem import DType
from bsgen.runtime import driver, timing, transfer
from bsgen.runtime.device_array import DeviceArray

Array = np.ndarray[Any, Any]

BLOCKS, EDGES, BLOCK_SIZE, DTYPE, ROWS = 48, 4, 32, "bfloat16", 200
TOLERANCE = {DType.FLOAT16: 5e-3, DType.BFLOAT16: 5e-3, DType.FLOAT32: 1e-3}
LAYOUT_FILE = "layout.npy"
INPUTS = {"fprop": ("x", "w"), "dgrad": ("dy", "w"), "wgrad": ("x", "dy")}


@dataclass(frozen=True)
class Measured:
    """An op on a GPU: error beside the dense product, median seconds of a call with `rows` rows."""

    error: float
    seconds: float
    rows: int


@dataclass(frozen=True)
class Outcome:
    """What a demo did: relative errors by op; `gpu` and `measured` are empty where no GPU can be used."""

    layout: Layout
    files: tuple[Path, ...]
    artefacts: tuple[Artefact, ...]
    rows: int
    tolerance: float
    errors: Mapping[str, float]
    gpu: str | None
    measured: Mapping[str, Measured]

    @property
    def passed(self) -> bool:
        """Whether every error is within the tolerance (NaN is not)."""
        found = [*self.errors.values(), *(op.error for op in self.measured.values())]
        return all(error <= self.tolerance for error in found)


def run(folder: str | os.PathLike[str] = "generated", blocks: int = BLOCKS, rows: int = ROWS) -> Outcome:
    """All steps: the files go into `folder`; `rows` of activations are multiplied on the CPU, and on the GPU if any."""
    layout = make_layout(blocks)
    mm = compile_layout(layout)
    files = save(mm, folder)
    operands = make_operands(mm, rows)
    expected = dense_products(mm, operands)
    errors = run_on_cpu(mm, operands, expected)
    gpu = usable_gpu(mm)
    measured = run_on_gpu(mm, gpu, operands, expected) if gpu else {}
    made = tuple(Artefact.of(mm.operation(op)) for op in OPS)
    name = gpu.name if gpu else None
    return Outcome(layout, files, made, rows, TOLERANCE[mm.dtype], errors, name, measured)


def make_layout(blocks: int = BLOCKS) -> Layout:
    """A small-world layout: `blocks` x `blocks`."""
    return topology.barabasi_albert(blocks, min(EDGES, blocks - 1), seed=0)


def compile_layout(layout: Layout) -> MatMul:
    """Its three products for the current GPU, or for sm_90a where there is none."""
    return compile(layout, BLOCK_SIZE, DTYPE, arch=artefact.default_arch())


def save(mm: MatMul, folder: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Write the layout, and the source, cubin and facts of each op."""
    made = [Artefact.of(mm.operation(op)) for op in mm.ops]
    written = artefact.write(made, folder)
    layout = Path(folder, LAYOUT_FILE)
    mm.layout.save(layout)
    return layout, *written


def make_operands(mm: MatMul, rows: int, seed: int = 0) -> dict[str, Array]:
    """Random x [rows, C], dy [rows, K] and w [nnz, b, b], in the dtype of the kernels."""
    rng, kind = np.random.default_rng(seed), mm.dtype.numpy
    shapes = {"x": (rows, mm.in_features), "dy": (rows, mm.out_features), "w": mm.weight_shape}
    return {name: rng.standard_normal(shape, np.float32).astype(kind) for name, shape in shapes.items()}


def dense_products(mm: MatMul, operands: Mapping[str, Array]) -> dict[str, Array]:
    """What the ops should give, from dense products in float64 that know nothing of plans."""
    wide = {name: array.astype(np.float64) for name, array in operands.items()}
    dense = mm.to_dense(wide["w"])
    rows, columns = mm.layout.shape
    gradient = (wide["x"].T @ wide["dy"]).reshape(rows, mm.block_size, columns, mm.block_size)
    return {
        "fprop": wide["x"] @ dense,
        "dgrad": wide["dy"] @ dense.T,
        "wgrad": gradient.swapaxes(1, 2)[mm.layout.mask],
    }


def run_on_cpu(mm: MatMul, operands: Mapping[str, Array], expected: Mapping[str, Array]) -> dict[str, float]:
    """The error of each op, computed by following its plan on the CPU."""
    return {op: relative_error(call(mm, op, operands), expected[op]) for op in mm.ops}


def call(mm: MatMul, op: str, operands: Mapping[str, Any]) -> Any:
    """The op on its operands."""
    methods: dict[str, Callable[..., Any]] = {"fprop": mm, "dgrad": mm.dgrad, "wgrad": mm.wgrad}
    return methods[op](*(operands[name] for name in INPUTS[op]))


def relative_error(got: Array, expected: Array) -> float:
    """The norm of the difference over the norm of what was expected."""
    scale = float(np.linalg.norm(expected))
    difference = float(np.linalg.norm(got.astype(np.float64) - expected))
    return difference / scale if scale else difference


def usable_gpu(mm: MatMul) -> driver.Device | None:
    """The current GPU, if there is one and it runs the kernels."""
    try:
        gpu = driver.current_device()
        return gpu if gpu.runs(mm.target.arch) else None
    except DriverError:
        return None


def run_on_gpu(
    mm: MatMul, gpu: driver.Device, operands: Mapping[str, Array], expected: Mapping[str, Array]
) -> dict[str, Measured]:
    """The error of each op launched on a GPU, and its time for the rows that its prediction is for."""
    here = {name: transfer.to_device(array, gpu.ordinal) for name, array in operands.items()}
    results = {op: transfer.to_host(call(mm, op, here)) for op in mm.ops}
    return {op: Measured(relative_error(results[op], expected[op]), *time_op(mm, op, gpu, operands)) for op in mm.ops}


def time_op(mm: MatMul, op: str, gpu: driver.Device, operands: Mapping[str, Array]) -> tuple[float, int]:
    """Median seconds of the op's launches, and the rows they had: `operands`, repeated to as many as predicted for."""
    operation = mm.operation(op)
    rows, workspace = operation.outline.n, operation.outline.workspace
    arrays = {
        name: operands[name] if name == "w" else np.resize(operands[name], (rows, operands[name].shape[1]))
        for name in INPUTS[op]
    }
    here = {name: transfer.to_device(array, gpu.ordinal) for name, array in arrays.items()}
    here["out"] = DeviceArray(operation.contract.result((rows,)), mm.dtype.value, gpu.ordinal, driver.DEFAULT_STREAM)
    elements = workspace.elements(rows)
    here["workspace"] = DeviceArray((elements,), "float32", gpu.ordinal, driver.DEFAULT_STREAM)
    pointers = {name: array.pointer for name, array in here.items()} | {"n": rows, "accumulate": 0}
    kernels, stream = operation.kernels, driver.DEFAULT_STREAM
    return timing.median_seconds(lambda: kernels(gpu.ordinal, stream, pointers), gpu.ordinal, stream), rows
