"""`Contract`: the arrays that an op takes and returns, and the checks of a call, before anything is launched."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from bsgen.errors import ArgumentError
from bsgen.problem import DType, Op, Problem
from bsgen.runtime.arrays import CPU, View

ALIGNMENT = 16
GATE_GRADIENT = frozenset({"w", "dgate"})  # what a gated wgrad needs, and gives, for the gradients of gates alone
MAXIMUM_ROWS = 2**31 - 2**16  # the last tile of rows must end below 2^31, too


@dataclass(frozen=True, eq=False)
class Contract:
    """Operands of an op by name: *rows* are activations [..., features], *fixed* have one shape. `leading` is rows too.

    Where `axis` is 0, activations are [features, ...]. The result is rows of `result_features`, or of shape `result_shape` where
    that is given; a call may ask for `further` results, too. `types` are those of operands and results that are not of `dtype`;
    a call may leave out what is `optional`.
    """

    dtype: DType
    leading: str
    rows: Mapping[str, int]
    fixed: Mapping[str, tuple[int, ...]]
    result_features: int = 0
    result_shape: tuple[int, ...] | None = None
    further: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    types: Mapping[str, DType] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    axis: int = 1

    def type_of(self, name: str) -> DType:
        """The type of an operand, or of a result (`out`, or the name of a further one)."""
        return self.types.get(name, self.dtype)

    def check(self, views: Mapping[str, View]) -> tuple[int, ...]:
        """Check the inputs against this and each other; the dimensions beside features, which they share. `ArgumentError`."""
        first = views[self.leading]
        lead, device = first.shape[:-1] if self.axis else first.shape[1:], first.device
        for name, view in views.items():
            self._check(name, view, self.expected(name, lead), device)
        if math.prod(lead) > MAXIMUM_ROWS:
            raise ArgumentError(
                f"{self.leading}: got {math.prod(lead)} rows, expected at most {MAXIMUM_ROWS}: split it"
            )
        return lead

    def result(self, lead: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the result."""
        return self.result_shape if self.result_shape is not None else self.shape(lead, self.result_features)

    def shape(self, lead: tuple[int, ...], features: int) -> tuple[int, ...]:
        """The shape of activations."""
        return (*lead, features) if self.axis else (features, *lead)

    def results(self, names: Iterable[str], lead: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """The shapes of results by name: `out`, and further ones."""
        return {name: self.further[name] if name in self.further else self.result(lead) for name in names}

    def check_out(self, out: View, views: Mapping[str, View], shape: tuple[int, ...], name: str = "out") -> None:
        """Check the array for a result against `views`, which it must not share memory with."""
        self._check(name, out, shape, views[self.leading].device)
        for other, view in views.items():
            if _overlap(out, self.type_of(name).itemsize, view, self.type_of(other).itemsize):
                raise ArgumentError(
                    f"{name}: shares memory with {other}, which the kernel uses, too: pass another array"
                )

    def expected(self, name: str, lead: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of an operand in a call with these dimensions beside features."""
        features = self.rows.get(name)
        return self.fixed[name] if features is None else self.shape(lead, features)

    def _check(self, name: str, view: View, shape: tuple[int, ...], device: int) -> None:
        """One comparison on the way of every call; words only for what failed."""
        if (
            view.shape != shape
            or view.dtype != self.type_of(name).value
            or view.device != device
            or not view.contiguous
            or (device != CPU and view.pointer % ALIGNMENT)
        ):
            raise ArgumentError(f"{name}: {self._objection(name, view, shape, device)}")

    def _objection(self, name: str, view: View, shape: tuple[int, ...], device: int) -> str:
        if tuple(view.shape) != tuple(shape):
            return self._shape_objection(name, tuple(view.shape), tuple(shape))
        if view.dtype != self.type_of(name).value:
            which = "" if name in ("gate", "dgate") else ", which this was compiled for"
            widened = name == "out" and self.result_shape and view.dtype == DType.FLOAT32.value
            remedy = 'give bsgen.compile wgrad_dtype="float32"' if widened else "convert it"
            return f"got {view.dtype}, expected {self.type_of(name)}{which}: {remedy}"
        if view.device != device:
            return f"is on {place(view.device)}, {self.leading} on {place(device)}: move them to one device"
        if not view.contiguous:
            return "is not contiguous, expected row-major order without gaps: pass a contiguous copy"
        return f"starts at address {view.pointer:#x}, expected a multiple of {ALIGNMENT} bytes: pass a copy"

    def _shape_objection(self, name: str, got: tuple[int, ...], expected: tuple[int, ...]) -> str:
        if name in self.fixed and len(got) == len(expected) == 3:
            return f"got shape {got}, expected {expected} (nnz, b, b): weights of another layout or block size"
        if name in ("gate", "dgate"):
            return f"got shape {got}, expected {expected} (nnz,): a float for each stored block"
        if name in self.rows and not got:
            return f"got an array of rank 0, expected {self._written(self.rows[name])}"
        if name in self.rows and got[-1 if self.axis else 0] != self.rows[name]:
            which = "last" if self.axis else "first"
            other = 0 if self.axis else -1
            turned = got[other] == self.rows[name] and len(got) > 1
            remedy = f" (this was compiled for axis={self.axis}: pass axis={1 - self.axis}, or the transpose)"
            return f"got shape {got}, expected a {which} dimension of {self.rows[name]}{remedy * turned}"
        if name in self.rows:
            return f"got shape {got}, expected {expected}, the rows of {self.leading}"
        return f"got shape {got}, expected {expected}"

    def _written(self, features: int) -> str:
        return f"[..., {features}]" if self.axis else f"[{features}, ...]"


def place(device: int) -> str:
    """A device as errors name it."""
    return "the CPU" if device == CPU else f"GPU {device}"


def _overlap(a: View, a_itemsize: int, b: View, b_itemsize: int) -> bool:
    a_end, b_end = (
        view.pointer + math.prod(view.shape) * itemsize for view, itemsize in ((a, a_itemsize), (b, b_itemsize))
    )
    return a.pointer < b_end and b.pointer < a_end


def contract_of(problem: Problem) -> Contract:
    """The contract of a problem's op."""
    inputs, outputs, block = problem.in_features, problem.out_features, problem.block_size
    weights = (problem.layout.nnz, block, block)
    gates: dict[str, tuple[int, ...]] = {"gate": weights[:1]} if problem.gate else {}
    types = dict.fromkeys(("gate", "dgate"), DType.FLOAT32) if problem.gate else {}
    contract = partial(Contract, problem.dtype, types=types, axis=problem.axis)
    if problem.op is Op.WGRAD:
        if problem.wgrad_dtype:
            types["out"] = problem.wgrad_dtype
        plain = contract("x", {"x": inputs, "dy": outputs}, {}, result_shape=weights)
        further = {"dgate": weights[:1]}
        gated = replace(plain, fixed={"w": weights, **gates}, further=further, optional=GATE_GRADIENT)
        return gated if problem.gate else plain
    if problem.op is Op.DGRAD:
        return contract("dy", {"dy": outputs}, {"w": weights, **gates}, inputs)
    rows = {"x": inputs}
    fixed = {"w": weights, **gates}
    if problem.epilogue.bias:
        fixed["bias"] = (outputs,)
    if problem.epilogue.residual:
        rows["residual"] = outputs
    return contract("x", rows, fixed, outputs)
