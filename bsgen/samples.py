"""The samples in generated/samples: what the compiler emits for a handful of small layouts.

    python -m bsgen.samples          # write them again, from a checkout

They show readers what to expect, and reviewers what a change of a template or plan does to the kernels.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from bsgen.emit import render
from bsgen.files import write_together
from bsgen.layout import Layout
from bsgen.plan import HopperPlan, Plan, choose, hopper, hopper_coarse_wgrad, hopper_narrow, hopper_narrow_wgrad
from bsgen.plan.streamed import RUN_PARTS, Kept
from bsgen.problem import TARGETS, Activation, DType, Epilogue, Op, Precision, Problem, Target
from bsgen.topology import banded, block_diagonal

FOLDER = Path("generated/samples")
FEW, MANY = 512, 16384  # rows to plan for
ANY, HOPPER = "sm_80", "sm_90a"


def scattered(rows: int, cols: int) -> Layout:
    """More than a quarter of the blocks, by arithmetic rather than chance: the same on every machine, for all time. No period, or
    output blocks would have the same inputs."""
    row, column = np.indices((rows, cols))
    return Layout((row * row + 3 * column + (row + column) * column // 7) % 4 == 0)


def hub(rows: int, cols: int) -> Layout:
    """One full column beside short ones: its sum is split among thread blocks."""
    row, column = np.indices((rows, cols))
    return Layout((column == 0) | (row == column))


def narrow(problem: Problem, target: Target) -> Plan:
    """The kernels for narrow blocks, where the planner would choose the portable ones for so small a layout."""
    if problem.op is Op.WGRAD:
        return next(hopper_narrow_wgrad.shortlist(problem, target))
    return next(hopper_narrow.shortlist(problem, target))


def warps_alone(problem: Problem, target: Target) -> Plan:
    """Narrow blocks, warps that multiply by themselves, as the planner has them where fewer blocks are stored."""
    return _cheapest_narrow(problem, target, turned=False)


def turned(problem: Problem, target: Target) -> Plan:
    """Narrow blocks in turned products, as the planner has them for large layouts with many blocks."""
    return _cheapest_narrow(problem, target, turned=True)


def _cheapest_narrow(problem: Problem, target: Target, *, turned: bool) -> Plan:
    drafts = (draft for draft in hopper_narrow.drafts(problem, target) if draft.geometry.turned == turned)
    return hopper_narrow.assemble(problem, target, min(drafts, key=lambda draft: draft.cost.seconds))


def coarse(problem: Problem, target: Target) -> Plan:
    """Gradients of narrow weights as whole sums, as the planner has them for large layouts with many blocks."""
    return next(hopper_coarse_wgrad.shortlist(problem, target))


def in_lines(problem: Problem, target: Target) -> Plan:
    """Whole lines of L2 in copies of neighbouring panels, and in stores."""
    drafts = (draft for draft in hopper.drafts(problem, target) if draft.geometry.shape.paired)
    return hopper.assemble(problem, target, next(draft for draft in drafts if draft.geometry.coupled))


def direct(problem: Problem, target: Target) -> Plan:
    """Panels, some of them in pairs, multiplied where they lie, and a residual in two stages, as the planner has it for larger
    layouts."""
    drafts = (draft for draft in hopper.drafts(problem, target) if draft.geometry.direct)
    return hopper.assemble(problem, target, next(draft for draft in drafts if draft.geometry.shape.paired))


def joined(problem: Problem, target: Target) -> Plan:
    """One product of all output blocks of a warpgroup, as the planner has it for larger layouts where they share all inputs."""
    drafts = (draft for draft in hopper.drafts(problem, target) if draft.geometry.shape.joined)
    return _cheapest(problem, target, drafts)


def ringed(problem: Problem, target: Target) -> Plan:
    """Two rings of stages, each with warpgroups of its own."""
    drafts = hopper.drafts(problem, target, rings=(2,))
    return _cheapest(problem, target, drafts)


def across(problem: Problem, target: Target) -> Plan:
    """Thread blocks that bring activations for each other."""
    drafts = (draft for draft in hopper.drafts(problem, target, (2,)) if draft.geometry.shape.across > 1)
    return _cheapest(problem, target, drafts)


def streamed(problem: Problem, target: Target) -> Plan:
    """As if W were larger than L2, which keeps a part of its blocks."""
    if problem.block_size in hopper_narrow.BLOCK_SIZES:
        return replace(next(hopper_narrow.shortlist(problem, target)), streamed=Kept(13, RUN_PARTS))
    drafts = (draft for draft in hopper.drafts(problem, target) if draft.geometry.shape.cluster == 1)
    return replace(_cheapest(problem, target, drafts), streamed=Kept(14))


def _cheapest(problem: Problem, target: Target, drafts: Iterable[hopper.Draft]) -> HopperPlan:
    return hopper.assemble(problem, target, min(drafts, key=lambda draft: draft.cost.seconds))


@dataclass(frozen=True)
class Sample:
    """A problem with a name that says what it shows."""

    name: str
    op: Op
    layout: Callable[[], Layout]
    block_size: int
    dtype: DType
    precision: Precision = Precision.TENSOR
    epilogue: Epilogue = field(default_factory=Epilogue)
    batch: int | None = None
    arch: str = ANY
    planner: Callable[[Problem, Target], Plan] = choose
    gate: bool = False
    wgrad_dtype: DType | None = None
    axis: int = 1

    @property
    def plan(self) -> Plan:
        """How it is done on its architecture."""
        layout, epilogue = self.layout(), self.epilogue
        kind = self.block_size, self.dtype, self.precision
        problem = Problem(self.op, layout, *kind, epilogue, self.batch, self.gate, self.wgrad_dtype, self.axis)
        return self.planner(problem, TARGETS[self.arch])

    @property
    def text(self) -> str:
        """The CUDA source."""
        return render(self.plan).text


SAMPLES = (
    Sample(
        "hopper_fprop_b32_bfloat16", Op.FPROP, lambda: scattered(32, 32), 32, DType.BFLOAT16, batch=MANY, arch=HOPPER
    ),
    Sample(
        "hopper_fprop_b32_bfloat16_lines",
        Op.FPROP,
        lambda: scattered(16, 16),
        32,
        DType.BFLOAT16,
        batch=MANY,
        arch=HOPPER,
        planner=in_lines,
    ),
    Sample(
        "hopper_fprop_b32_bfloat16_bias_residual_direct",
        Op.FPROP,
        lambda: scattered(16, 16),
        32,
        DType.BFLOAT16,
        epilogue=Epilogue(bias=True, residual=True),
        batch=MANY,
        arch=HOPPER,
        planner=direct,
    ),
    Sample(
        "hopper_fprop_b32_bfloat16_joined",
        Op.FPROP,
        lambda: block_diagonal(16, 32, 2),
        32,
        DType.BFLOAT16,
        batch=MANY,
        arch=HOPPER,
        planner=joined,
    ),
    Sample(
        "hopper_fprop_b32_bfloat16_rings",
        Op.FPROP,
        lambda: scattered(16, 16),
        32,
        DType.BFLOAT16,
        batch=MANY,
        arch=HOPPER,
        planner=ringed,
    ),
    Sample(
        "hopper_fprop_b32_bfloat16_across",
        Op.FPROP,
        lambda: scattered(16, 16),
        32,
        DType.BFLOAT16,
        batch=64,
        arch=HOPPER,
        planner=across,
    ),
    Sample(
        "hopper_fprop_b32_bfloat16_streamed",
        Op.FPROP,
        lambda: scattered(16, 16),
        32,
        DType.BFLOAT16,
        batch=8,
        arch=HOPPER,
        planner=streamed,
    ),
    Sample(
        "hopper_fprop_b64_float16_bias_silu",
        Op.FPROP,
        lambda: scattered(16, 16),
        64,
        DType.FLOAT16,
        epilogue=Epilogue(bias=True, activation=Activation.SILU),
        batch=MANY,
        arch=HOPPER,
    ),
    Sample(
        "hopper_fprop_b32_float16_bias_gelu_residual",
        Op.FPROP,
        lambda: scattered(16, 16),
        32,
        DType.FLOAT16,
        epilogue=Epilogue(bias=True, activation=Activation.GELU, residual=True),
        batch=MANY,
        arch=HOPPER,
    ),
    Sample(
        "hopper_fprop_b32_bfloat16_bias_gelu_residual_axis0",
        Op.FPROP,
        lambda: scattered(16, 16),
        32,
        DType.BFLOAT16,
        epilogue=Epilogue(bias=True, activation=Activation.GELU, residual=True),
        batch=MANY,
        arch=HOPPER,
        axis=0,
    ),
    Sample(
        "hopper_dgrad_b64_float16_axis0",
        Op.DGRAD,
        lambda: scattered(8, 8),
        64,
        DType.FLOAT16,
        batch=MANY,
        arch=HOPPER,
        axis=0,
    ),
    Sample("hopper_fprop_b32_float16_split", Op.FPROP, lambda: hub(256, 12), 32, DType.FLOAT16, batch=FEW, arch=HOPPER),
    Sample("hopper_fprop_b32_float32", Op.FPROP, lambda: scattered(16, 16), 32, DType.FLOAT32, batch=MANY, arch=HOPPER),
    Sample("hopper_dgrad_b32_float32", Op.DGRAD, lambda: scattered(16, 16), 32, DType.FLOAT32, batch=MANY, arch=HOPPER),
    Sample(
        "hopper_dgrad_b128_bfloat16", Op.DGRAD, lambda: scattered(8, 8), 128, DType.BFLOAT16, batch=MANY, arch=HOPPER
    ),
    Sample(
        "hopper_wgrad_b32_bfloat16_split",
        Op.WGRAD,
        lambda: scattered(32, 32),
        32,
        DType.BFLOAT16,
        batch=MANY,
        arch=HOPPER,
    ),
    Sample(
        "hopper_wgrad_b32_bfloat16_split_axis0",
        Op.WGRAD,
        lambda: scattered(32, 32),
        32,
        DType.BFLOAT16,
        batch=MANY,
        arch=HOPPER,
        axis=0,
    ),
    Sample(
        "hopper_wgrad_b64_float16_axis0",
        Op.WGRAD,
        lambda: scattered(8, 8),
        64,
        DType.FLOAT16,
        batch=FEW,
        arch=HOPPER,
        axis=0,
    ),
    Sample("hopper_wgrad_b128_float16", Op.WGRAD, lambda: scattered(8, 8), 128, DType.FLOAT16, batch=FEW, arch=HOPPER),
    Sample(
        "hopper_fprop_b8_float16",
        Op.FPROP,
        lambda: scattered(16, 64),
        8,
        DType.FLOAT16,
        batch=MANY,
        arch=HOPPER,
        planner=warps_alone,
    ),
    Sample(
        "hopper_fprop_b8_bfloat16_streamed",
        Op.FPROP,
        lambda: scattered(16, 64),
        8,
        DType.BFLOAT16,
        batch=8,
        arch=HOPPER,
        planner=streamed,
    ),
    Sample(
        "hopper_fprop_b16_bfloat16_bias_gelu_residual",
        Op.FPROP,
        lambda: scattered(24, 20),
        16,
        DType.BFLOAT16,
        epilogue=Epilogue(bias=True, activation=Activation.GELU, residual=True),
        batch=MANY,
        arch=HOPPER,
        planner=warps_alone,
    ),
    Sample(
        "hopper_fprop_b16_bfloat16_bias_gelu_residual_turned",
        Op.FPROP,
        lambda: scattered(24, 20),
        16,
        DType.BFLOAT16,
        epilogue=Epilogue(bias=True, activation=Activation.GELU, residual=True),
        batch=MANY,
        arch=HOPPER,
        planner=turned,
    ),
    Sample(
        "hopper_dgrad_b8_float16_turned",
        Op.DGRAD,
        lambda: scattered(40, 32),
        8,
        DType.FLOAT16,
        batch=MANY,
        arch=HOPPER,
        planner=turned,
    ),
    Sample(
        "hopper_dgrad_b8_bfloat16",
        Op.DGRAD,
        lambda: scattered(64, 16),
        8,
        DType.BFLOAT16,
        batch=MANY,
        arch=HOPPER,
        planner=warps_alone,
    ),
    Sample(
        "hopper_fprop_b16_bfloat16_split",
        Op.FPROP,
        lambda: hub(256, 12),
        16,
        DType.BFLOAT16,
        batch=FEW,
        arch=HOPPER,
        planner=narrow,
    ),
    Sample(
        "hopper_fprop_b8_bfloat16_axis0",
        Op.FPROP,
        lambda: scattered(16, 64),
        8,
        DType.BFLOAT16,
        batch=MANY,
        arch=HOPPER,
        planner=warps_alone,
        axis=0,
    ),
    Sample(
        "hopper_fprop_b8_float16_bias_relu_residual_axis0_turned",
        Op.FPROP,
        lambda: scattered(40, 32),
        8,
        DType.FLOAT16,
        epilogue=Epilogue(bias=True, activation=Activation.RELU, residual=True),
        batch=MANY,
        arch=HOPPER,
        planner=turned,
        axis=0,
    ),
    Sample(
        "hopper_fprop_b16_float16_bias_gelu_residual_axis0",
        Op.FPROP,
        lambda: scattered(24, 20),
        16,
        DType.FLOAT16,
        epilogue=Epilogue(bias=True, activation=Activation.GELU, residual=True),
        batch=MANY,
        arch=HOPPER,
        planner=warps_alone,
        axis=0,
    ),
    Sample(
        "hopper_dgrad_b64_bfloat16_gate",
        Op.DGRAD,
        lambda: scattered(8, 8),
        64,
        DType.BFLOAT16,
        batch=FEW,
        arch=HOPPER,
        gate=True,
    ),
    Sample(
        "hopper_wgrad_b32_float16_gate",
        Op.WGRAD,
        lambda: scattered(8, 8),
        32,
        DType.FLOAT16,
        batch=FEW,
        arch=HOPPER,
        gate=True,
    ),
    Sample(
        "hopper_wgrad_b64_bfloat16_dw_float32",
        Op.WGRAD,
        lambda: scattered(8, 8),
        64,
        DType.BFLOAT16,
        batch=FEW,
        arch=HOPPER,
        wgrad_dtype=DType.FLOAT32,
    ),
    Sample(
        "hopper_wgrad_b8_bfloat16",
        Op.WGRAD,
        lambda: scattered(16, 24),
        8,
        DType.BFLOAT16,
        batch=100,
        arch=HOPPER,
        planner=narrow,
    ),
    Sample(
        "hopper_wgrad_b16_float16_split",
        Op.WGRAD,
        lambda: scattered(24, 16),
        16,
        DType.FLOAT16,
        batch=MANY,
        arch=HOPPER,
        planner=narrow,
    ),
    Sample(
        "hopper_wgrad_b16_bfloat16_coarse",
        Op.WGRAD,
        lambda: scattered(24, 20),
        16,
        DType.BFLOAT16,
        batch=FEW,
        arch=HOPPER,
        planner=coarse,
    ),
    Sample(
        "hopper_wgrad_b8_float16_split_axis0",
        Op.WGRAD,
        lambda: scattered(24, 16),
        8,
        DType.FLOAT16,
        batch=MANY,
        arch=HOPPER,
        planner=narrow,
        axis=0,
    ),
    Sample(
        "hopper_wgrad_b16_bfloat16_axis0",
        Op.WGRAD,
        lambda: scattered(16, 24),
        16,
        DType.BFLOAT16,
        batch=104,
        arch=HOPPER,
        planner=narrow,
        axis=0,
    ),
    Sample("portable_fprop_b8_float16", Op.FPROP, lambda: scattered(12, 12), 8, DType.FLOAT16),
    Sample("portable_fprop_b32_bfloat16", Op.FPROP, lambda: scattered(8, 8), 32, DType.BFLOAT16),
    Sample("portable_fprop_b64_float32", Op.FPROP, lambda: scattered(6, 4), 64, DType.FLOAT32),
    Sample(
        "portable_fprop_b32_bfloat16_bias_gelu_residual",
        Op.FPROP,
        lambda: banded(8, 8, 3),
        32,
        DType.BFLOAT16,
        epilogue=Epilogue(bias=True, activation=Activation.GELU, residual=True),
    ),
    Sample("portable_fprop_b16_bfloat16_split", Op.FPROP, lambda: hub(256, 12), 16, DType.BFLOAT16),
    Sample("portable_dgrad_b8_float16", Op.DGRAD, lambda: scattered(12, 12), 8, DType.FLOAT16),
    Sample("portable_dgrad_b128_bfloat16", Op.DGRAD, lambda: scattered(4, 4), 128, DType.BFLOAT16),
    Sample("portable_wgrad_b8_float16", Op.WGRAD, lambda: scattered(8, 8), 8, DType.FLOAT16),
    Sample("portable_wgrad_b32_bfloat16", Op.WGRAD, lambda: scattered(8, 8), 32, DType.BFLOAT16),
    Sample("portable_fprop_b32_float32_gate", Op.FPROP, lambda: scattered(8, 8), 32, DType.FLOAT32, gate=True),
    Sample("portable_wgrad_b16_bfloat16_gate", Op.WGRAD, lambda: scattered(8, 8), 16, DType.BFLOAT16, gate=True),
    Sample("portable_fprop_b8_bfloat16_axis0", Op.FPROP, lambda: scattered(12, 12), 8, DType.BFLOAT16, axis=0),
    Sample(
        "portable_fprop_b32_float16_bias_gelu_residual_split_axis0",
        Op.FPROP,
        lambda: hub(256, 12),
        32,
        DType.FLOAT16,
        epilogue=Epilogue(bias=True, activation=Activation.GELU, residual=True),
        axis=0,
    ),
    Sample("portable_dgrad_b32_float32_axis0", Op.DGRAD, lambda: scattered(8, 8), 32, DType.FLOAT32, axis=0),
    Sample("portable_wgrad_b16_bfloat16_axis0", Op.WGRAD, lambda: scattered(8, 8), 16, DType.BFLOAT16, axis=0),
    Sample("simt_fprop_b32_float32", Op.FPROP, lambda: scattered(8, 8), 32, DType.FLOAT32, Precision.IEEE),
    Sample("simt_dgrad_b16_float32", Op.DGRAD, lambda: scattered(8, 8), 16, DType.FLOAT32, Precision.IEEE),
    Sample("simt_wgrad_b32_float32", Op.WGRAD, lambda: scattered(8, 8), 32, DType.FLOAT32, Precision.IEEE),
)


def write(folder: Path = FOLDER) -> list[Path]:
    """Render every sample into `folder`, and remove samples that are no more."""
    files = {folder / f"{sample.name}.cu": sample.text.encode() for sample in SAMPLES}
    folder.mkdir(parents=True, exist_ok=True)
    write_together(files)
    for stale in set(folder.glob("*.cu")) - set(files):
        stale.unlink()
    return list(files)


def main() -> None:
    """Command line: the folder may be given."""
    for file in write(*map(Path, sys.argv[1:2])):
        print(f"wrote {file}")


if __name__ == "__main__":
    main()
