"""`tune`: candidates of a problem timed on the GPU. The fastest is kept in the disk cache, where `compile` finds it."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np

from bsgen import compiled, plan
from bsgen.checks import integer
from bsgen.compiled import Compiled
from bsgen.matmul import OPS, parse_problems
from bsgen.operands import contract_of
from bsgen.plan import Plan
from bsgen.problem import DType, Op, Problem, Target, parse_target
from bsgen.ranges import DEFAULT_ROWS
from bsgen.runtime import driver, timing, transfer
from bsgen.runtime.device_array import DeviceArray
from bsgen.runtime.launch import Kernels

COUNT = 8  # candidates of each family that are timed
AGREEMENT = 2e-2  # relative difference, in the Frobenius norm, between results of two plans
THREADS = 8
INPUTS = {Op.FPROP: ("x", "w"), Op.DGRAD: ("dy", "w"), Op.WGRAD: ("x", "dy")}

_log = logging.getLogger("bsgen")

Advance = Callable[[], None]


@dataclass(frozen=True)
class Trial:
    """One candidate: predicted and measured seconds of a call; `chosen` marks the one that the cost model takes."""

    family: str
    plan: str
    predicted_seconds: float
    seconds: float
    chosen: bool


@dataclass(frozen=True)
class Tuned:
    """The candidates of an op, fastest first, for N = `rows` on a GPU; `kept` says whether the cache took the winner."""

    op: str
    rows: int
    gpu: str
    trials: tuple[Trial, ...]
    kept: bool

    @property
    def gain(self) -> float:
        """Time of the cost model's choice over that of the fastest; 1 when they are the same."""
        chosen = next(trial for trial in self.trials if trial.chosen)
        return chosen.seconds / self.trials[0].seconds

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "gain": self.gain}


def tune(
    layout: object,
    block_size: int = 32,
    dtype: object = "bfloat16",
    ops: str | Iterable[str] = OPS,
    batch: int | None = None,
    precision: str = "tensor",
    count: int = COUNT,
    device: int | None = None,
    started: Callable[[str, int], Advance] | None = None,
    axis: int = 1,
) -> list[Tuned]:
    """Time the `count` most promising candidates of each family for each op, and keep the fastest in the disk cache.

    `bsgen.compile` with the same layout, block size, dtype, precision, `batch`, `axis` and no epilogue finds it there from then on.
    They are timed for N = `batch` rows of random data (None: 4096). `started` is told of each op, with how many candidates it
    has, and returns what is called after each.

    Raises:
        ArgumentError, LayoutError: as `bsgen.compile`; DriverError: there is no usable GPU.
    """
    gpu = driver.current_device() if device is None else driver.device(device)
    target = parse_target(gpu.arch)
    problems = parse_problems(layout, block_size, dtype, ops, batch, precision, axis)
    number = integer("count", count, 1)
    return [_tune(problem, target, gpu, number, started) for problem in problems]


def _tune(
    problem: Problem,
    target: Target,
    gpu: driver.Device,
    count: int,
    started: Callable[[str, int], Advance] | None,
) -> Tuned:
    rows = problem.batch or DEFAULT_ROWS
    own = plan.choose(problem, target)
    plans = list(_promising(problem, target, own, count))
    advance = started(str(problem.op), len(plans)) if started else _nothing
    bench = _Bench(problem, gpu, rows)
    trials: list[tuple[Trial, Compiled]] = []
    for candidate, made in zip(plans, _build(plans, target), strict=True):
        seconds = bench.seconds(made)
        if seconds is not None:
            cost, own_plan = candidate.cost.seconds, candidate is own
            trials.append((Trial(candidate.family, candidate.summary, cost, seconds, own_plan), made))
        advance()
    trials.sort(key=lambda pair: pair[0].seconds)
    kept = compiled.keep(problem, target, trials[0][1])
    return Tuned(str(problem.op), rows, gpu.name, tuple(trial for trial, _ in trials), kept)


def _nothing() -> None:
    """Nobody watches."""


def _promising(problem: Problem, target: Target, own: Plan, count: int) -> Iterator[Plan]:
    """The cost model's choice, then the cheapest of each family by prediction."""
    yield own
    for family in plan.FAMILIES[problem.op]:
        ranked = sorted(family.candidates(problem, target), key=lambda candidate: candidate.cost.seconds)
        fresh = (
            candidate for candidate in ranked if (candidate.family, candidate.summary) != (own.family, own.summary)
        )
        yield from islice(fresh, count)


def _build(plans: Iterable[Plan], target: Target) -> Iterator[Compiled]:
    """Compile in parallel, in order."""

    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        yield from pool.map(compiled.assemble, plans)


class _Bench:
    """Random operands of a problem on a GPU; every plan must give what the first one gives."""

    def __init__(self, problem: Problem, gpu: driver.Device, rows: int) -> None:
        self._gpu, self._rows, self._problem = gpu, rows, problem
        self._contract = contract_of(problem)
        shapes = {
            **{name: self._contract.shape((rows,), features) for name, features in self._contract.rows.items()},
            "w": (problem.layout.nnz, problem.block_size, problem.block_size),
        }
        self._inputs = {name: self._random(shapes[name], seed) for seed, name in enumerate(INPUTS[problem.op])}
        self._expected: np.ndarray[Any, Any] | None = None

    def _random(self, shape: tuple[int, ...], seed: int) -> DeviceArray:
        values = np.random.default_rng(seed).standard_normal(shape, np.float32).astype(self._problem.dtype.numpy)
        return transfer.to_device(values, self._gpu.ordinal)

    def seconds(self, made: Compiled) -> float | None:
        """Median seconds of a call; None, and a warning, if its result is not that of the first plan."""
        stream, outline, rows = driver.DEFAULT_STREAM, made.outline, self._rows
        shape = self._contract.result((rows,))
        out = DeviceArray(shape, self._problem.dtype.value, self._gpu.ordinal, stream)
        workspace = DeviceArray((outline.workspace.elements(rows),), DType.FLOAT32.value, self._gpu.ordinal, stream)
        arrays = {**self._inputs, "out": out, "workspace": workspace}
        operands = {name: array.pointer for name, array in arrays.items()} | {"n": rows, "accumulate": 0}
        kernels = Kernels(made.binary, outline.launches, outline.workspace)

        def call() -> None:
            if math.prod(shape):
                kernels(self._gpu.ordinal, stream, operands)

        call()
        if not self._agrees(transfer.to_host(out).astype(np.float32)):
            _log.warning("tune: a plan gives other results than the first and is left out: %s", outline.summary)
            return None
        return timing.median_seconds(call, self._gpu.ordinal, stream)

    def _agrees(self, result: np.ndarray[Any, Any]) -> bool:
        if self._expected is None:
            self._expected = result
        difference = float(np.linalg.norm(result - self._expected))
        return difference <= AGREEMENT * float(np.linalg.norm(self._expected))
