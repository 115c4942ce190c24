"""`compile`, the way in, and `MatMul`, what it returns: the three products of one layout as a Python callable."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bsgen import dense as dense_weights
from bsgen import ranges
from bsgen.checks import integer
from bsgen.errors import ArgumentError
from bsgen.layout import Layout
from bsgen.nvrtc import Binary
from bsgen.operation import Operation
from bsgen.problem import (
    DType,
    Epilogue,
    Op,
    Precision,
    Problem,
    Target,
    parse_activation,
    parse_axis,
    parse_block_size,
    parse_dtype,
    parse_op,
    parse_precision,
    parse_target,
    parse_wgrad_dtype,
)
from bsgen.runtime import driver
from bsgen.runtime.arrays import framework_of

if TYPE_CHECKING:
    from pathlib import Path

    from bsgen.packs.format import Module
    from bsgen.packs.pack import Pack
    from bsgen.plan import Plan
    from bsgen.report import Report

DEFAULT_ARCH = "sm_90a"
OPS = ("fprop", "dgrad", "wgrad")

_log = logging.getLogger("bsgen")


def compile(
    layout: Layout | str | os.PathLike[str] | object,
    block_size: int = 32,
    dtype: object = "bfloat16",
    ops: str | Iterable[str] = OPS,
    arch: str | None = None,
    batch: int | None = None,
    bias: bool = False,
    activation: str | None = None,
    residual: bool = False,
    precision: str = "tensor",
    gate: bool = False,
    wgrad_dtype: object = None,
    axis: int = 1,
) -> MatMul:
    """Compile the products of activations [N, C] and block-sparse weights W [C, K] for one layout.

    Args:
        layout: which blocks of W are stored, [C / block_size, K / block_size]: a `Layout`, 0/1 array or file.
        block_size: 8, 16, 32, 64 or 128.
        dtype: of activations and weights: "float16", "bfloat16" or "float32". Sums are float32.
        ops: what to compile, of "fprop", "dgrad" and "wgrad".
        arch: the GPU architecture, such as "sm_90a", which needs no GPU. None: the current GPU; where there is none,
            the result runs on NumPy arrays, and its kernels are for sm_90a.
        batch: about how many rows N calls will have; None: thousands. Any N works either way: kernels are made for ranges of N
            (up to 8, 32, 64, 128, 256, 512, 1024, 2048 and 4096 rows, and more), the hint's range now, others when a call
            first needs them.
        bias, activation, residual: what fprop does after the product, activation(x @ W + bias) + residual. The
            activation is "relu", "gelu" (exact) or "silu".
        precision: float32 only: "tensor" multiplies in TF32 on tensor cores, "ieee" in full float32.
        gate: calls take a float32 for each stored block, which multiplies it; zero switches a block off. It costs a pass over the
            weights in fprop and dgrad, one over the sums in wgrad, and saves nothing where gates are zero: for that, compile a
            layout without those blocks.
        wgrad_dtype: of dW; None: `dtype`. "float32" leaves sums as they are, so that `accumulate` over many batches loses nothing.
        axis: of the features in activations: 1 for x [..., C], dy [..., K]; 0 for x [C, ...], dy [K, ...]. A call may say another;
            its kernels are then made when first needed.

    Raises:
        BsgenError: `LayoutError`, `ArgumentError`, `PlanError` or `CompileError`, before anything is left behind.
    """
    finish = bias, activation, residual
    return MatMul(layout, block_size, dtype, ops, arch, batch, *finish, precision, gate, wgrad_dtype, axis)


class MatMul:
    """The products of one layout; made by `compile`. Call it from any thread; pickling it compiles it again.

    Arrays are NumPy's (run on the CPU), or on a GPU PyTorch's, CuPy's, JAX's, Numba's or anything with `__dlpack__` or
    `__cuda_array_interface__`. Results are of the kind of the activations, on the current stream of their library, or
    on `stream`: then ordering it with other streams is up to the caller. `out` must not share memory with an input.
    Wrong arrays raise `ArgumentError` before anything is launched. Gradients are not tracked.

    Shapes are written for `axis` 1, features last. With axis=0, of `compile` or of a call, features come first in x, dy,
    residual and results: x [C, ...], y [K, ...]. There N is best a multiple of 8 (of 4 for float32): else activations are
    read element by element.

    JAX arrays are waited for, and results are ready when a call returns (not inside jax.jit).
    """

    _pack: tuple[Path, str] | None  # file and module, of kernels that came out of a pack

    def __init__(
        self,
        layout: object,
        block_size: int,
        dtype: object,
        ops: str | Iterable[str],
        arch: str | None,
        batch: int | None,
        bias: bool,
        activation: str | None,
        residual: bool,
        precision: str,
        gate: bool,
        wgrad_dtype: object,
        axis: int,
    ) -> None:
        self.layout = Layout.load(layout)
        self.block_size = parse_block_size(block_size)
        self.dtype: DType = parse_dtype(dtype)
        self.precision: Precision = parse_precision(precision)
        self.epilogue = Epilogue(bool(bias), parse_activation(activation), bool(residual))
        self.batch, self.gate = None if batch is None else integer("batch", batch, 1), bool(gate)
        self._wgrad_dtype = parse_wgrad_dtype(wgrad_dtype, self.dtype)
        self.axis = parse_axis(axis)
        self._arch, self._pack = arch, None
        self.target, self._compiled = _target(arch)
        parsed = _parse_ops(ops, self.epilogue)
        if self._wgrad_dtype and Op.WGRAD not in parsed:
            raise ArgumentError('ops: wgrad_dtype belongs to wgrad, which is not in ops: add "wgrad"')
        # NVRTC compiles in parallel, and the Python of one op runs while another is inside it.
        with ThreadPoolExecutor(len(parsed)) as pool:
            self._operations = dict(zip(map(str, parsed), pool.map(self._make, parsed), strict=True))
        self._turned: dict[str, Operation] = {}

    @classmethod
    def packed(cls, pack: Pack, module: Module, arch: str) -> MatMul:
        """The products of a module of a pack, with its kernels for `arch`; nothing is planned or compiled."""
        made = cls.__new__(cls)
        made.layout, made.block_size = pack.layout(module), module.block_size
        made.dtype, made.precision = parse_dtype(module.dtype), parse_precision(module.precision)
        made.epilogue = Epilogue(module.bias, parse_activation(module.activation), module.residual)
        made.batch, made._arch, made.target, made._compiled = None, arch, parse_target(arch), True
        made.gate, made._wgrad_dtype = module.gate, parse_wgrad_dtype(module.wgrad_dtype, made.dtype)
        made.axis, made._turned = module.axis, {}
        made._pack = (pack.path, module.name)
        loaders = {op: pack.loaders(module.name, op, arch) for op in module.ops}
        made._operations = {
            op: Operation(made._problem(parse_op(op)), made.target, found) for op, found in loaders.items() if found
        }
        return made

    def _make(self, op: Op) -> Operation:
        operation = Operation(self._problem(op), self.target)
        if self._compiled:
            operation.prepare()
        else:
            _ = operation.plan  # what cannot be planned is said now
        return operation

    def _problem(self, op: Op) -> Problem:
        epilogue = self.epilogue if op is Op.FPROP else Epilogue()
        kind = op, self.layout, self.block_size, self.dtype, self.precision
        gradients = self._wgrad_dtype if op is Op.WGRAD else None
        return Problem(*kind, epilogue, self.batch, self.gate, gradients, self.axis)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        if self._pack:
            return _from_pack, (*self._pack, self._arch)
        ops, epilogue = self.ops, self.epilogue
        activation = None if epilogue.activation is None else str(epilogue.activation)
        problem = (self.layout, self.block_size, str(self.dtype), ops, self._arch, self.batch)
        finish = epilogue.bias, activation, epilogue.residual, str(self.precision), self.gate
        return compile, (*problem, *finish, self._wgrad_dtype and str(self._wgrad_dtype), self.axis)

    @property
    def in_features(self) -> int:
        """C: the dimension of x along `axis`."""
        return self.layout.shape[0] * self.block_size

    @property
    def out_features(self) -> int:
        """K: the dimension of the result along `axis`."""
        return self.layout.shape[1] * self.block_size

    @property
    def nnz(self) -> int:
        """Stored blocks."""
        return self.layout.nnz

    @property
    def wgrad_dtype(self) -> DType:
        """The dtype of dW."""
        return self._wgrad_dtype or self.dtype

    @property
    def weight_shape(self) -> tuple[int, int, int]:
        """[nnz, b, b]: blocks in the order of `numpy.argwhere(layout)`."""
        return self.nnz, self.block_size, self.block_size

    @property
    def ops(self) -> tuple[str, ...]:
        """The ops that were compiled."""
        return tuple(self._operations)

    def __call__(
        self,
        x: Any,
        w: Any,
        bias: Any = None,
        residual: Any = None,
        out: Any = None,
        stream: Any = None,
        gate: Any = None,
        axis: int | None = None,
    ) -> Any:
        """y [..., K] = activation(x [..., C] @ W + bias [K]) + residual [..., K], as far as compiled in.

        With `gate` [nnz], float32, blocks of W are multiplied by their gates, rounded to the dtype. One whose gate is zero counts
        as zeros, whatever it holds.
        """
        arrays = {"x": x, "w": w}
        if bias is not None or self.epilogue.bias:
            arrays["bias"] = _agreed("bias", bias, self.epilogue.bias)
        if residual is not None or self.epilogue.residual:
            arrays["residual"] = _agreed("residual", residual, self.epilogue.residual)
        return self.operation("fprop", axis)(self._with_gate(arrays, gate), out, stream=stream)

    def dgrad(
        self, dy: Any, w: Any, out: Any = None, stream: Any = None, gate: Any = None, axis: int | None = None
    ) -> Any:
        """dx [..., C] = dy [..., K] @ W.T; `gate` as for the product."""
        return self.operation("dgrad", axis)(self._with_gate({"dy": dy, "w": w}, gate), out, stream=stream)

    def wgrad(
        self,
        x: Any,
        dy: Any,
        out: Any = None,
        accumulate: bool = False,
        stream: Any = None,
        gate: Any = None,
        axis: int | None = None,
    ) -> Any:
        """dW [nnz, b, b] = x.T @ dy at the stored blocks; `accumulate` adds it into `out`, which must then be given.

        Lists of x and dy, such as the time steps of a recurrent network, are joined and summed in one launch, in float32.
        With `gate` it is gate * (x.T @ dy), zero where the gate is; `gate_grad` gives the gates' gradients with it.
        """
        if isinstance(x, list | tuple) or isinstance(dy, list | tuple):
            x, dy = _joined(x, dy, stream, self._axis(axis))
        return self.operation("wgrad", axis)(self._with_gate({"x": x, "dy": dy}, gate), out, accumulate, stream)

    def gate_grad(
        self,
        x: Any,
        dy: Any,
        w: Any,
        gate: Any,
        out: tuple[Any, Any] | None = None,
        accumulate: bool = False,
        stream: Any = None,
        axis: int | None = None,
    ) -> tuple[Any, Any]:
        """The gradients of weights and gates, in one pass over x and dy: dW [nnz, b, b], as `wgrad` gives it, and dgate [nnz],
        float32, the sum of (x.T @ dy) * W over each block. That of a gate that is zero is what it would be if open.

        `out` is a pair of arrays for them, either of which may be None; `accumulate` adds into both. x and dy may be lists.
        """
        if isinstance(x, list | tuple) or isinstance(dy, list | tuple):
            x, dy = _joined(x, dy, stream, self._axis(axis))
        arrays = {"x": x, "dy": dy, "w": w, "gate": _agreed("gate", gate, self.gate)}
        results = self.operation("wgrad", axis).run(arrays, _gradient_pair(out), accumulate, stream)
        return results["out"], results["dgate"]

    def _with_gate(self, arrays: dict[str, Any], gate: Any) -> dict[str, Any]:
        if gate is not None or self.gate:
            arrays["gate"] = _agreed("gate", gate, self.gate)
        return arrays

    def warmup(self, device: int | None = None, rows: int | Iterable[int] | None = None) -> None:
        """Compile and load kernels onto a GPU (None: the current one), so that calls may be captured into a CUDA graph.

        `rows`: how many rows N those calls will have. None: any; then the kernels of every range of N are made, which takes
        some seconds where the disk cache has none of them. Kernels for another axis than that of `compile` are among them once
        a call has used it.
        """
        ordinal = driver.current_device().ordinal if device is None else driver.device(device).ordinal
        asked = None if rows is None else (rows,) if isinstance(rows, int) else tuple(rows)
        for operation in (*self._operations.values(), *self._turned.values()):
            wanted = ranges.members(operation.problem.row_unit) if asked is None else asked
            operation.load(ordinal, (integer("rows", n, 0) for n in wanted))

    def from_dense(self, dense: Any) -> Any:
        """Weights [nnz, b, b] of a dense matrix [C, K]; converts to the dtype, drops what is outside the layout."""
        return dense_weights.gather(dense, self.layout, self.block_size, self.dtype)

    def to_dense(self, w: Any) -> Any:
        """The dense matrix [C, K] of weights [nnz, b, b], with zeros outside the layout."""
        return dense_weights.scatter(w, self.layout, self.block_size)

    def operation(self, op: str, axis: int | None = None) -> Operation:
        """One op: its problem, plan, source, binary; `ArgumentError` if it was not compiled. `axis`: None for that of `compile`."""
        found = self._operations.get(op)
        if found is None:
            name, known = parse_op(op), ", ".join(self.ops)
            raise ArgumentError(f"op: {name} was not compiled, only {known}: add it to ops of bsgen.compile")
        return found if axis is None or self._axis(axis) == self.axis else self._other(op)

    def _axis(self, axis: int | None) -> int:
        return self.axis if axis is None else parse_axis(axis)

    def _other(self, op: str) -> Operation:
        """The op for the other axis than that of `compile`; of two threads that come here at once, both get the first one's."""
        found = self._turned.get(op)
        if found is None:
            if self._pack:
                raise ArgumentError(
                    f"axis: got {1 - self.axis}, but the pack has {self._pack[1]!r} for axis {self.axis} alone: add a module for it"
                )
            problem = replace(self._operations[op].problem, axis=1 - self.axis)
            found = self._turned.setdefault(op, Operation(problem, self.target))
        return found

    def plan(self, op: str, n: int | None = None) -> Plan:
        """How an op is done, for a call of N = `n` rows; None: for as many as `batch` said, or thousands."""
        operation = self.operation(op)
        return (operation if n is None else operation.variant(integer("n", n, 0))).plan

    def source(self, op: str) -> str:
        """The CUDA text of an op."""
        return self.operation(op).source.text

    def binary(self, op: str) -> Binary:
        """The cubin of an op with the compiler's facts."""
        return self.operation(op).binary

    def report(self) -> Report:
        """For each op the plan, registers, spills, shared memory and predicted time."""
        from bsgen.report import OpReport, Report

        ops = tuple(OpReport.of(operation) for operation in self._operations.values())
        return Report(repr(self.layout), self.block_size, str(self.dtype), ops)

    def __repr__(self) -> str:
        return (
            f"MatMul({self.layout!r}, b = {self.block_size}, {self.dtype}, {', '.join(self.ops)}, {self.target.arch})"
        )


def _from_pack(path: Path, name: str, arch: str) -> MatMul:
    from bsgen.packs import load_pack

    return load_pack(path).get_for(name, arch)


def parse_problems(
    layout: object,
    block_size: object,
    dtype: object,
    ops: str | Iterable[str],
    batch: int | None,
    precision: object,
    axis: object,
) -> list[Problem]:
    """A problem for each op, without epilogue; raises as `compile` does."""
    hint = None if batch is None else integer("batch", batch, 1)
    parsed = Layout.load(layout), parse_block_size(block_size), parse_dtype(dtype), parse_precision(precision)
    return [Problem(op, *parsed, batch=hint, axis=parse_axis(axis)) for op in _parse_ops(ops, Epilogue())]


def _target(arch: str | None) -> tuple[Target, bool]:
    """The target, and whether to compile for it now: without a GPU, NumPy arrays need no kernels."""
    if arch is not None:
        return parse_target(arch), True
    obstacle = driver.why_unavailable()
    if obstacle is None:
        return parse_target(driver.current_device().arch), True
    _log.info("no GPU, so arch=None plans for %s and calls run on the CPU: %s", DEFAULT_ARCH, obstacle)
    return parse_target(DEFAULT_ARCH), False


def _parse_ops(ops: str | Iterable[str], epilogue: Epilogue) -> tuple[Op, ...]:
    parsed = tuple(dict.fromkeys(parse_op(op) for op in ([ops] if isinstance(ops, str) else ops)))
    if not parsed:
        raise ArgumentError(f"ops: got none, expected some of {', '.join(OPS)}")
    if epilogue != Epilogue() and Op.FPROP not in parsed:
        raise ArgumentError('ops: bias, activation and residual belong to fprop, which is not in ops: add "fprop"')
    return parsed


def _joined(x: Any, dy: Any, stream: Any, axis: int) -> tuple[Any, Any]:
    """The rows of several pairs as one pair; `axis` is that of features."""
    if not (isinstance(x, list | tuple) and isinstance(dy, list | tuple) and len(x) == len(dy) and len(x)):
        counts = (f"{len(each)} arrays" if isinstance(each, list | tuple) else "an array" for each in (x, dy))
        raise ArgumentError(f"x, dy: got {' and '.join(counts)}, expected two lists of as many arrays, at least one")
    if stream is not None:
        raise ArgumentError("stream: lists are joined on the current stream: leave it None, or join them yourself")
    for place, (one, other) in enumerate(zip(x, dy, strict=True)):
        if tuple(one.shape[:-1] if axis else one.shape[1:]) != tuple(other.shape[:-1] if axis else other.shape[1:]):
            raise ArgumentError(
                f"dy: got shape {tuple(other.shape)} at {place}, expected the rows of x, {tuple(one.shape)}"
            )
    flat = [[_matrix(array, axis) for array in arrays] for arrays in (x, dy)]
    joined = [framework_of(each[0], name).join(each, 1 - axis) for name, each in zip(("x", "dy"), flat, strict=True)]
    return joined[0], joined[1]


def _matrix(array: Any, axis: int) -> Any:
    return array.reshape(-1, array.shape[-1]) if axis else array.reshape(array.shape[0], -1)


def _gradient_pair(out: Any) -> dict[str, Any]:
    if out is not None and not (isinstance(out, list | tuple) and len(out) == 2):
        got = f"{len(out)} arrays" if isinstance(out, list | tuple) else type(out).__name__
        raise ArgumentError(f"out: got {got}, expected a pair (dw, dgate), either of which may be None")
    return dict(zip(("out", "dgate"), out or (None, None), strict=True))


def _agreed(name: str, array: Any, compiled: bool) -> Any:
    if not compiled:
        raise ArgumentError(f"{name}: got an array, but this was compiled without: give bsgen.compile {name}=True")
    if array is None:
        raise ArgumentError(f"{name}: got None, but this was compiled with {name}=True: pass the array")
    return array


__all__ = ["MatMul", "compile"]
