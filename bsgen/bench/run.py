"""Runs cases: plans compiled ahead in threads, then for each case every contender checked and timed on the same operands."""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch

from bsgen import compiled, plan
from bsgen.bench.bound import TEXT, Bound, bound
from bsgen.bench.cases import Case
from bsgen.bench.contenders import PEERS, LeftOut, Work, compiled_plan
from bsgen.bench.cusparse import Refused
from bsgen.bench.operands import Operands
from bsgen.bench.records import Measured, Row
from bsgen.bench.timing import Clock
from bsgen.compiled import Compiled
from bsgen.plan.cost import memory_bytes
from bsgen.problem import Target, parse_target
from bsgen.runtime import driver

THREADS = 16

Entrants = dict[str, Callable[[Operands], AbstractContextManager[Work]]]
Plans = dict[str, Compiled]


def machine(clock: Clock) -> dict[str, Any]:
    """What the figures were taken on, and how."""
    gpu = driver.current_device()
    return {
        "gpu": gpu.name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "timing": clock.text,
        "bound": TEXT,
        "error": "relative, in the Frobenius norm, against the float32 product",
    }


def prepare(cases: Sequence[Case], families: bool, advance: Callable[[], None]) -> list[Plans]:
    """Plan and compile every case before any is timed; with `families`, every family's best plan beside the choice.

    Raises:
        DriverError: there is no usable GPU.
    """
    target = parse_target(driver.current_device().arch)

    def one(case: Case) -> Plans:
        made = entries(case, target, families)
        advance()
        return made

    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(one, cases))


def run(
    cases: Sequence[Case], plans: Sequence[Plans], peers: Sequence[str], clock: Clock, limit: float = math.inf
) -> Iterator[Measured]:
    """Measure case after case, until `limit` seconds have passed."""
    begin = time.perf_counter()
    for case, made in zip(cases, plans, strict=True):
        if time.perf_counter() - begin > limit:
            break
        yield _measure(case, made, peers, clock)


def entries(case: Case, target: Target, families: bool) -> Plans:
    """What `bsgen.compile` would run, and the best plan of each other family that has one."""
    problem = case.problem
    made = {"bsgen": compiled.compiled(problem, target)}
    for family in plan.FAMILIES[problem.op] if families else ():
        best = min(family.shortlist(problem, target), key=lambda p: p.cost.seconds, default=None)
        if best is not None and best.family != made["bsgen"].outline.family:
            made[f"bsgen {best.family}"] = compiled.assemble(best)
    return made


def _measure(case: Case, plans: Plans, peers: Sequence[str], clock: Clock) -> Measured:
    problem = case.problem
    operands = Operands(problem, case.n)
    entrants: Entrants = {name: PEERS[name] for name in peers}
    entrants |= {name: _entrant(each) for name, each in plans.items()}
    least, rows, left_out = bound(problem, case.n), list[Row](), dict[str, str]()
    for name, entrant in entrants.items():
        try:
            row = _row(name, entrant, operands, clock, least)
        except (LeftOut, Refused, RuntimeError, NotImplementedError, ImportError) as error:
            left_out[name] = " ".join(f"{error}".split())[:200] or type(error).__name__
        else:
            rows.append(_described(row, plans.get(name), next((r for r in rows if r.contender == "dense"), None)))
    features = (problem.in_features, problem.out_features)
    measured = Measured(
        case.name, case.suite, str(case.op), str(case.dtype), case.block_size, case.n, features, problem.layout.nnz,
        problem.layout.density, least.seconds, least.limiter, tuple(rows), left_out, dict(case.floors), case.balanced,
    )  # fmt: skip
    del operands
    gc.collect()
    torch.cuda.empty_cache()
    return measured


def _entrant(made: Compiled) -> Callable[[Operands], AbstractContextManager[Work]]:
    return lambda operands: compiled_plan(operands, made)


def _row(name: str, entrant: Callable[[Operands], Any], operands: Operands, clock: Clock, least: Bound) -> Row:
    """Check one contender, then time it."""
    problem, n = operands.problem, operands.n
    with entrant(operands) as (call, result):
        call()
        torch.cuda.synchronize()
        error = operands.error(result())
        if not error <= operands.tolerance:
            raise LeftOut(f"WRONG: relative error {error:.1e}, at most {operands.tolerance:.0e} is rounding")
        timing = clock.time(call)
    seconds = timing.seconds
    flops, moved = problem.flops(n), memory_bytes(problem, n)
    return Row(name, timing, error, flops / seconds / 1e12, moved / seconds / 1e9, least.seconds / seconds)


def _described(row: Row, made: Compiled | None, dense: Row | None) -> Row:
    """The row with its plan, and its speed beside dense."""
    over = dense.timing.seconds / row.timing.seconds if dense else None
    if made is None:
        return replace(row, over_dense=over)
    outline = made.outline
    return replace(row, over_dense=over, plan=f"{outline.family}: {outline.summary}", predicted_seconds=outline.seconds)
