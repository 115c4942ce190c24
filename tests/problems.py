"""What the tests of plans, sources and kernels share: every kind of problem, and layouts that are hard on a planner."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from hypothesis import strategies as st

from bsgen.layout import Layout
from bsgen.plan import FAMILIES, Plan, hopper, hopper_narrow
from bsgen.problem import BLOCK_SIZES, TARGETS, DType, Op, Precision, Problem, Target

ROOT = Path(__file__).parent.parent
ARITHMETIC = (
    (DType.FLOAT16, Precision.TENSOR),
    (DType.BFLOAT16, Precision.TENSOR),
    (DType.FLOAT32, Precision.TENSOR),
    (DType.FLOAT32, Precision.IEEE),
)
BIG, SMALL = TARGETS["sm_90a"], TARGETS["sm_86"]  # 227 KiB and 99 KiB of shared memory
# Everything that the Hopper family serves.
HOPPER_KINDS = tuple(
    (op, block, dtype) for op in (Op.FPROP, Op.DGRAD) for block in hopper.BLOCK_SIZES for dtype in DType
)
# And those of its kernels for narrow blocks.
NARROW_KINDS = tuple(
    (op, block, dtype)
    for op in (Op.FPROP, Op.DGRAD)
    for block in hopper_narrow.BLOCK_SIZES
    for dtype in (DType.FLOAT16, DType.BFLOAT16)
)


def bernoulli(rows: int, cols: int, density: float, seed: int = 0) -> Layout:
    """Each block with the same chance."""
    return Layout(np.random.default_rng(seed).random((rows, cols)) < density)


def hub(rows: int, cols: int) -> Layout:
    """A full row and a full column, every other one empty: what makes a planner split."""
    mask = np.zeros((rows, cols), bool)
    mask[rows // 2] = mask[:, cols // 3] = True
    return Layout(mask)


def small_layouts(limit: int = 10) -> st.SearchStrategy[Layout]:
    """Random at any density, skewed, empty, full and single-block layouts of at most `limit` rows and columns."""
    side = st.integers(1, limit)
    random = st.builds(bernoulli, side, side, st.floats(0, 1), st.integers(0, 2**32 - 1))
    filled = st.builds(bernoulli, side, side, st.sampled_from([0.0, 1.0]))
    return st.one_of(random, filled, st.builds(hub, side, side), st.just(Layout([[1]])))


def problems(ops: Sequence[Op], layouts: st.SearchStrategy[Layout]) -> st.SearchStrategy[Problem]:
    """Problems of any block size and arithmetic, features last or first; without a hint for N, or for few or many rows."""

    def make(
        op: Op, layout: Layout, block: int, kind: tuple[DType, Precision], batch: int | None, axis: int
    ) -> Problem:
        return Problem(op, layout, block, *kind, batch=batch, axis=axis)

    kinds, batches, axes = st.sampled_from(ARITHMETIC), st.sampled_from([None, 1, 20000]), st.sampled_from([1, 0])
    return st.builds(make, st.sampled_from(ops), layouts, st.sampled_from(BLOCK_SIZES), kinds, batches, axes)


def targets() -> st.SearchStrategy[Target]:
    """A target with much shared memory and one with little."""
    return st.sampled_from([BIG, SMALL])


def some_of(cases: Sequence[Any], every: int) -> list[Any]:
    """Each `every`-th case, to keep the suite quick; all of them where BSGEN_TEST_ALL is set."""
    return list(cases) if os.environ.get("BSGEN_TEST_ALL") else list(cases)[::every]


def sample(plans: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the plans (or drafts of plans), spread evenly, the first and the last among them."""
    places = np.linspace(0, len(plans) - 1, min(count, len(plans))).astype(int)
    return [plans[place] for place in places]


def cheapest(family: ModuleType, problem: Problem, target: Target) -> Plan:
    """What `choose` would take if there were no other family."""
    plan: Plan = min(family.shortlist(problem, target), key=lambda plan: plan.cost.seconds)
    return plan


def portable(problem: Problem, target: Target) -> Plan:
    """The plan for any architecture, also where there is a better one: the last family serves everything."""
    return cheapest(FAMILIES[problem.op][-1], problem, target)


def fingerprint(plan: Plan) -> str:
    """A hash of everything that a plan holds, tables included."""
    digest = hashlib.sha256()
    for field in dataclasses.fields(plan):
        value: Any = getattr(plan, field.name)
        content = (value.dtype.str, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else repr(value)
        digest.update(f"{field.name}={content}\n".encode())
    return digest.hexdigest()
