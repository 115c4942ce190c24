"""Plans: how a problem is done on a target, as data. `candidates` lists them, `choose` takes the cheapest."""

from __future__ import annotations

from collections.abc import Iterator

from bsgen.errors import PlanError
from bsgen.plan import matmul, wgrad
from bsgen.plan.matmul import MatMulPlan
from bsgen.plan.wgrad import WGradPlan
from bsgen.problem import Op, Problem, Target

Plan = MatMulPlan | WGradPlan

# A further family adds its generator here.
FAMILIES = {Op.FPROP: (matmul.candidates,), Op.DGRAD: (matmul.candidates,), Op.WGRAD: (wgrad.candidates,)}

__all__ = ["FAMILIES", "MatMulPlan", "Plan", "WGradPlan", "candidates", "choose"]


def candidates(problem: Problem, target: Target) -> Iterator[Plan]:
    """Every plan of every family that fits the problem on the target."""
    for family in FAMILIES[problem.op]:
        yield from family(problem, target)


def choose(problem: Problem, target: Target) -> Plan:
    """The plan with the least predicted time; the first of equals, so that the choice never varies."""
    best = min(candidates(problem, target), key=lambda plan: plan.cost.seconds, default=None)
    if best is None:
        raise PlanError(
            f"no plan fits {problem.op} with block size {problem.block_size} and {problem.dtype} into the "
            f"{target.shared_memory // 1024} KiB of shared memory of {target.arch}; use a smaller block size"
        )
    return best
