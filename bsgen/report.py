"""`Report`: what was compiled, as data and as a short table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from bsgen.nvrtc import KernelFacts
from bsgen.operation import Operation
from bsgen.plan.dense_cost import dense_seconds


@dataclass(frozen=True)
class KernelReport:
    """One kernel: registers and spills (bytes) a thread, shared memory (bytes, static and dynamic)."""

    name: str
    registers: int
    spill_stores: int
    spill_loads: int
    shared_memory: int
    threads: int


@dataclass(frozen=True)
class OpReport:
    """One op: its plan in a line, its kernels, and predicted seconds of a call with `rows` rows (N), and of a dense product."""

    op: str
    family: str
    arch: str
    plan: str
    kernels: tuple[KernelReport, ...]
    predicted_seconds: float
    dense_seconds: float
    rows: int

    @classmethod
    def of(cls, operation: Operation) -> OpReport:
        """Describe an operation, compiling it if it was not."""
        outline, binary = operation.outline, operation.binary
        kernels = tuple(
            _kernel(binary.kernel(launch.entry), launch.shared_memory, launch.threads) for launch in outline.launches
        )
        problem, arch = operation.problem, binary.arch
        dense = dense_seconds(problem, operation.target, outline.n)
        return cls(str(problem.op), outline.family, arch, outline.summary, kernels, outline.seconds, dense, outline.n)


def _kernel(facts: KernelFacts, dynamic: int, threads: int) -> KernelReport:
    return KernelReport(
        facts.name, facts.registers, facts.spill_stores, facts.spill_loads, facts.static_shared + dynamic, threads
    )


def dense_advice(seconds: float, dense: float, rows: int) -> str:
    """What to say where the dense product is predicted to be faster."""
    return (
        f"a dense product would be faster: {dense * 1e6:.1f} us predicted against {seconds * 1e6:.1f} us at N = {rows}; "
        "use cuBLAS for this layout (torch.matmul), or measure both with bsgen bench"
    )


@dataclass(frozen=True)
class Report:
    """The layout in a line, and what each op was compiled to; `str` gives a short table."""

    layout: str
    block_size: int
    dtype: str
    ops: tuple[OpReport, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join([f"{self.layout}, b = {self.block_size}, {self.dtype}", *self._lines()])

    def _lines(self) -> Iterator[str]:
        for op in self.ops:
            time = f"{op.predicted_seconds * 1e6:.1f} us predicted at N = {op.rows}"
            yield f"{op.op:5}  {op.family}, {op.arch}: {op.plan}; {time}"
            if op.dense_seconds < op.predicted_seconds:
                yield f"       {dense_advice(op.predicted_seconds, op.dense_seconds, op.rows)}"
            for kernel in op.kernels:
                spills = kernel.spill_stores + kernel.spill_loads
                yield (
                    f"       {kernel.name}: {kernel.registers} registers, {spills} bytes spilled, "
                    f"{kernel.shared_memory / 1024:.1f} KiB shared memory, {kernel.threads} threads"
                )
