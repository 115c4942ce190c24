"""Plans: how a problem is done on a target, as data. `candidates` lists them, `choose` takes the cheapest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import ModuleType

from bsgen.errors import PlanError
from bsgen.outline import Outline
from bsgen.plan import hopper, hopper_coarse_wgrad, hopper_narrow, hopper_narrow_wgrad, hopper_wgrad, matmul, wgrad
from bsgen.plan.hopper import HopperPlan
from bsgen.plan.hopper_coarse_wgrad import HopperCoarseWGradPlan
from bsgen.plan.hopper_narrow import HopperNarrowPlan
from bsgen.plan.hopper_narrow_wgrad import HopperNarrowWGradPlan
from bsgen.plan.hopper_wgrad import HopperWGradPlan
from bsgen.plan.matmul import MatMulPlan
from bsgen.plan.wgrad import WGradPlan
from bsgen.problem import Op, Problem, Target

Plan = HopperPlan | HopperNarrowPlan | HopperWGradPlan | MatMulPlan | WGradPlan

# The families of each op; a further one adds its module, with `candidates` and `shortlist`, here.
FAMILIES: dict[Op, tuple[ModuleType, ...]] = {
    Op.FPROP: (hopper, hopper_narrow, matmul),
    Op.DGRAD: (hopper, hopper_narrow, matmul),
    Op.WGRAD: (hopper_wgrad, hopper_coarse_wgrad, hopper_narrow_wgrad, wgrad),
}

__all__ = [
    "FAMILIES",
    "HopperCoarseWGradPlan",
    "HopperNarrowPlan",
    "HopperNarrowWGradPlan",
    "HopperPlan",
    "HopperWGradPlan",
    "MatMulPlan",
    "Plan",
    "WGradPlan",
    "candidates",
    "choose",
    "outline",
]


def candidates(problem: Problem, target: Target) -> Iterator[Plan]:
    """Every plan of every family that fits the problem on the target, to measure; takes seconds for a large layout."""
    for family in FAMILIES[problem.op]:
        yield from family.candidates(problem, target)


def choose(problem: Problem, target: Target) -> Plan:
    """The plan with the least predicted time; the first of equals, so that the choice never varies."""
    _check_size(problem)
    best: Plan | None = None
    for family in FAMILIES[problem.op]:
        limit = best.cost.seconds if best else math.inf
        plans = [*([best] if best else []), *family.shortlist(problem, target, limit)]
        best = min(plans, key=lambda plan: plan.cost.seconds, default=None)
    if best is None:
        raise PlanError(
            f"no plan fits {problem.op} with block size {problem.block_size} and {problem.dtype} into the "
            f"{target.shared_memory // 1024} KiB of shared memory of {target.arch}; use a smaller block size"
        )
    return best


def _check_size(problem: Problem) -> None:
    """Tables and constants are 32-bit: features, and places in W in chunks of 16 bytes, must fit."""
    bytes_stored = problem.layout.nnz * problem.block_size**2 * problem.dtype.itemsize
    features = max(problem.in_features, problem.out_features)
    if bytes_stored >= 16 << 31 or features >= 1 << 31:
        raise PlanError(
            f"layout: {problem.layout.nnz} blocks of {problem.block_size} x {problem.block_size} {problem.dtype} and "
            f"{features} features, expected less than 32 GiB of weights and 2^31 features; split the layout"
        )


def outline(plan: Plan) -> Outline:
    """What of a plan is kept beside its binary."""
    return Outline(plan.family, plan.summary, plan.launches, plan.workspace, plan.cost.seconds, plan.cost.n)
