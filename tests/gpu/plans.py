"""Single plans on the GPU, whatever the planner would choose: compiled side by side, launched on given addresses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from bsgen.build import build
from bsgen.emit import render
from bsgen.plan import (
    HopperNarrowPlan,
    HopperNarrowWGradPlan,
    Plan,
    hopper,
    hopper_coarse_wgrad,
    hopper_narrow,
    hopper_narrow_wgrad,
    hopper_shapes,
    hopper_wgrad,
)
from bsgen.plan.hopper import HopperPlan
from bsgen.problem import Problem, Target
from bsgen.runtime import driver
from bsgen.runtime.launch import Kernels

BANDS = 3  # the highest band
T = TypeVar("T")


def loaded(plans: Sequence[Plan], arch: str) -> list[Kernels]:
    """The kernels of plans, compiled in parallel."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        binaries = list(pool.map(lambda plan: build(render(plan), arch), plans))
    return [Kernels(binary, plan.launches, plan.workspace) for plan, binary in zip(plans, binaries, strict=True)]


def launch(
    kernels: Kernels, pointers: Mapping[str, int], n: int, stream: int = driver.DEFAULT_STREAM, accumulate: bool = False
) -> None:
    """Enqueue one call on the first GPU."""
    kernels(0, stream, {**pointers, "n": n, "accumulate": int(accumulate)})


def spread(problem: Problem, target: Target, across: Sequence[int] = hopper.ACROSS) -> list[HopperPlan]:
    """A hopper plan of each shape and cluster, taking turns at groupings, rings and bands (of shapes for few tiles at ways to whole
    lines, too), and one with split outputs, if any."""
    drafts = list(hopper.drafts(problem, target, across, rings=(1, 2)))
    chosen = _in_turn(drafts, _shape_of)
    split = [draft for draft in drafts if draft.reductions]
    plans = [hopper.assemble(problem, target, draft) for draft in [*chosen, *split[:1]]]
    return [replace(plan, band=1 + turn % BANDS) for turn, plan in enumerate(plans)]


def _shape_of(draft: hopper.Draft) -> object:
    shape = draft.geometry.shape
    form = hopper_shapes.form_of(draft.geometry)
    if form in hopper_shapes.FILLING_SHAPES and shape.rings == 1:
        return form, shape.thread_blocks
    return replace(shape, stages=0, stage_bytes=0)


def narrow(problem: Problem, target: Target) -> list[HopperNarrowPlan]:
    """A plan for narrow blocks of each shape, taking turns at panels, groupings and rings; and two that are split."""
    drafts = list(hopper_narrow.drafts(problem, target))
    chosen = _in_turn(drafts, lambda draft: replace(draft.geometry.shape, panel=0, stages=0, stage_bytes=0))
    split = [draft for draft in drafts if draft.reductions]
    return [hopper_narrow.assemble(problem, target, draft) for draft in [*chosen, *split[:1], *split[-1:]]]


def gradients(problem: Problem, target: Target) -> list[Plan]:
    """Plans of Hopper's wgrad: one of each ring, with splits and without, of tiles of turning sizes; and those of whole sums."""
    whole = _in_turn(hopper_coarse_wgrad.drafts(problem, target), lambda draft: (draft.geometry.rows, draft.splits > 1))
    coarse = [hopper_coarse_wgrad.assemble(problem, target, draft) for draft in whole]
    if hopper_narrow_wgrad.serves(problem, target):
        return [*_in_turn(hopper_narrow_wgrad.candidates(problem, target), _ring_of_narrow), *coarse]
    drafts = _in_turn(hopper_wgrad.drafts(problem, target), lambda draft: (draft.geometry.rows, draft.splits))
    return [*(hopper_wgrad.assemble(problem, target, draft) for draft in drafts[::2]), *coarse]


def _ring_of_narrow(plan: HopperNarrowWGradPlan) -> object:
    shape = plan.geometry.shape
    return shape.warps, shape.units, shape.rows, shape.panel, shape.stages, plan.splits > 1


def _in_turn(given: Iterable[T], kind: Callable[[T], object]) -> list[T]:
    """One of each kind: of the first its first, of the second its second, and so on."""
    found: dict[object, list[T]] = {}
    for each in given:
        found.setdefault(kind(each), []).append(each)
    return [alike[turn % len(alike)] for turn, alike in enumerate(found.values())]
