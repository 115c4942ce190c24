"""What every plan of fprop or dgrad has, whatever its family: tiles of output blocks, splits, launch names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bsgen.outline import Grid, Launch, Workspace
from bsgen.plan.blocks import IntArray, Reduction
from bsgen.plan.cost import Cost
from bsgen.plan.gates import gate_launch, gated_floats
from bsgen.problem import Op, Problem, Target

NO_OUTPUT = -(2**31) + 1
REDUCE_THREADS = 256
FEATURE_FIRST_ROWS = 32  # rows of [features, N] that a block of the reduction kernel covers


@dataclass(frozen=True, eq=False)
class ProductPlan:
    """Tile t runs stages `tile_stages[t]` ... `tile_stages[t + 1] - 1`, and writes slot s to `targets[t, s]`: an output block, ~p
    for partial sum p, or NO_OUTPUT. Families add the tables that say what a stage loads and multiplies.
    """

    problem: Problem
    target: Target
    grouping: str
    tile_stages: IntArray
    targets: IntArray
    reductions: tuple[Reduction, ...]
    cost: Cost

    @property
    def family(self) -> str:
        """The name of the family."""
        raise NotImplementedError

    @property
    def dependent(self) -> bool:
        """Whether the kernels wait by themselves for those ahead."""
        return self.family == "hopper"

    @property
    def residual_panels(self) -> int:
        """Panels of the residual that come through a ring of stages at a tile's end; elsewhere threads read it themselves."""
        return 0

    @property
    def across(self) -> int:
        """Thread blocks with the same rows that work on neighbouring tiles together."""
        return 1

    @property
    def tile_groups(self) -> int:
        """Groups of tiles that thread blocks work on together."""
        return self.tiles // self.across

    @property
    def tiles(self) -> int:
        """Tiles of output blocks; they repeat for each tile of rows."""
        return len(self.targets)

    @cached_property
    def stages_a_tile(self) -> int:
        """How many stages each tile has, where all have as many; else 0."""
        counts = set(np.diff(self.tile_stages).tolist())
        return counts.pop() if len(counts) == 1 else 0

    @property
    def partials(self) -> int:
        """Partial sums of split output blocks."""
        return sum(reduction.count for reduction in self.reductions)

    @property
    def activations(self) -> str:
        """The argument that holds the activations."""
        return "x" if self.problem.op is Op.FPROP else "dy"

    @property
    def gated(self) -> bool:
        """Whether there are weights that gates multiply."""
        return self.problem.gate and self.problem.layout.nnz > 0

    @property
    def weights(self) -> str:
        """The argument that holds the weights to multiply by: with gates their product, which begins the workspace."""
        return "workspace" if self.gated else "w"

    @property
    def gated_floats(self) -> int:
        """float32 elements of the workspace that the product of weights and gates takes."""
        return gated_floats(self.problem) if self.gated else 0

    @property
    def formula(self) -> str:
        """What it computes, but for the epilogue."""
        weights = "(gate * W)" if self.problem.gate else "W"
        if self.problem.feature_first:
            return f"{weights}.T @ x" if self.problem.op is Op.FPROP else f"{weights} @ dy"
        return f"x @ {weights}" if self.problem.op is Op.FPROP else f"dy @ {weights}.T"

    @property
    def features(self) -> tuple[int, int]:
        """Features of a row of the activations and of a row of the result."""
        sizes = self.problem.in_features, self.problem.out_features
        return sizes if self.problem.op is Op.FPROP else (sizes[1], sizes[0])

    @property
    def no_output(self) -> int:
        """The target of a slot that holds nothing."""
        return NO_OUTPUT

    @property
    def reduction_table(self) -> IntArray:
        """The reductions as words: output block, first partial sum, count."""
        return np.array([(r.output, r.first, r.count) for r in self.reductions], np.int32)

    @property
    def entry(self) -> str:
        """Name of the main kernel: what a profiler shows."""
        problem = self.problem
        return f"bsgen_{problem.op}_b{problem.block_size}_{problem.dtype}_{self.family}_{problem.layout.digest}"

    @property
    def epilogue_arguments(self) -> tuple[str, ...]:
        """Operands of the epilogue, in order."""
        epilogue = self.problem.epilogue
        return ("bias",) * epilogue.bias + ("residual",) * epilogue.residual

    @property
    def tail_arguments(self) -> tuple[str, ...]:
        """Arguments of the main kernel after its inputs."""
        return ("out", *self.epilogue_arguments, *("workspace",) * bool(self.reductions), "n")

    @property
    def gate_launches(self) -> tuple[Launch, ...]:
        """Ahead of the main kernel: weights times gates, into the workspace."""
        return (gate_launch(self.entry, self.problem),) if self.gated else ()

    @property
    def reduce_rows(self) -> int:
        """Rows of one split output block that a block of the reduction kernel covers, two columns a thread."""
        return FEATURE_FIRST_ROWS if self.problem.feature_first else REDUCE_THREADS * 2 // self.problem.block_size

    @property
    def reduce_launches(self) -> tuple[Launch, ...]:
        """The reduction of split output blocks, when there are any."""
        if not self.reductions:
            return ()
        grid, arguments = (
            Grid(len(self.reductions), self.reduce_rows),
            ("out", *self.epilogue_arguments, "workspace", "n"),
        )
        return (Launch(f"{self.entry}_reduce", grid, REDUCE_THREADS, 0, arguments, dependent=self.dependent),)

    @property
    def workspace(self) -> Workspace:
        """Weights times gates, then partial sums, [partials, N, b], or [partials, b, N] where features come first."""
        return Workspace(fixed=self.gated_floats, per_row=self.partials * self.problem.block_size)

    @property
    def split_text(self) -> str:
        """How the summary tells of splits."""
        return f", {len(self.reductions)} split outputs" if self.reductions else ""

    @property
    def gate_text(self) -> str:
        """And of gates."""
        return ", weights gated first" if self.gated else ""
