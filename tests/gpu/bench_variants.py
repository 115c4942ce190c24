"""Times the likeliest plans by the cost model beside the one that the planner takes, cuBLAS and Blocked-ELL.

    PYTHONPATH=. python3 tests/gpu/bench_variants.py [SUITE ...] [--json FILE]

*narrow*, *turned*, *wgrad*: the Hopper kernels for blocks of 8 and 16.
*coarse*: wgrad by whole sums of 128 x 128. *joined*: dense and block-diagonal layouts, one product of all of a warpgroup's blocks.
*wide_wgrad*: wgrad of b = 32, 64 and 128, few rows and many.
*axis*: features first, for which the cost model has not been fitted.
*lines*, *small*: b = 32, many rows and few: panels, pieces and results in lines of 64 bytes and of 128.
*forms*: warpgroups of every form, alone and in clusters, b = 32, 64 and 128.
*rings*: two rings a thread block, each with warpgroups and tiles of its own. *four*: b = 32, four output blocks a warpgroup.
*across*: b = 32, thread blocks that share activations. *direct*: b = 32, panels that are multiplied where they lie.
*six*: many blocks, tiles of 128 x 384 by two warpgroups. *residual*: those, with a residual that takes two stages.
*tf32*: float32 dgrad, with panels through registers and where they lie.
*middle*: from 128 rows to as many as have few tiles for each SM, with tiles of more widths.
Each plan is checked before it is timed; one that is wrong is said and left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from bsgen import topology
from bsgen.bench.contenders import PEERS, LeftOut, compiled_plan
from bsgen.bench.operands import Operands
from bsgen.bench.timing import Clock
from bsgen.compiled import Compiled, assemble
from bsgen.layout import Layout
from bsgen.plan import (
    FAMILIES,
    Plan,
    choose,
    hopper,
    hopper_coarse_wgrad,
    hopper_narrow,
    hopper_narrow_wgrad,
    hopper_shapes,
    hopper_wgrad,
)
from bsgen.problem import TARGETS, Activation, DType, Epilogue, Op, Problem

TARGET, CLOCK, SIZE = TARGETS["sm_90a"], Clock(), 4096
MOST = 14  # variants of a case
PLAIN, FINISH = Epilogue(), Epilogue(True, Activation.GELU, True)

Case = tuple[str, Problem, list[Callable[[], Plan]]]  # plans to be assembled
T = TypeVar("T")


def _random(b: int, density: float, size: int = SIZE) -> Layout:
    return topology.random(size // b, size // b, density=density, seed=1)


def _grouped(b: int, groups: int) -> Layout:
    return topology.block_diagonal(SIZE // b, SIZE // b, groups)


def _problem(op: Op, b: int, density: float, n: int = 16384, size: int = SIZE) -> Problem:
    return Problem(op, _random(b, density, size), b, DType.BFLOAT16, batch=n)


def narrow(op: Op, b: int, density: float, n: int = 16384, size: int = SIZE) -> Case:
    """Blocks of 8 and 16: for each shape, panel and grouping the cheapest plan by the model, the likeliest first."""
    problem = _problem(op, b, density, n, size)
    best = _cheapest(hopper_narrow.drafts(problem, TARGET), lambda draft: (_shape(draft), draft.grouping))
    plans = [partial(hopper_narrow.assemble, problem, TARGET, draft) for draft in best[:MOST]]
    return f"{op} b{b} {density:.0%} N={n} {size}", problem, plans


def turned(op: Op, b: int, density: float, n: int = 16384, first: int = 1) -> Case:
    """Blocks of 8 and 16, products turned and not: for each grouping the cheapest plan by the model."""
    problem = replace(_problem(op, b, density, n), axis=first)
    best = _cheapest(hopper_narrow.drafts(problem, TARGET), lambda draft: (draft.geometry.turned, draft.grouping))
    plans = [partial(hopper_narrow.assemble, problem, TARGET, draft) for draft in best]
    return f"{op} b{b} {density:.0%} N={n} {SIZE} axis {first} turned", problem, plans


def wgrad(b: int, density: float) -> Case:
    """Gradients of weights of 8 and 16: for each number of warps, band and ring the best split of N by the model."""
    problem = _problem(Op.WGRAD, b, density)
    best = _cheapest(hopper_narrow_wgrad.candidates(problem, TARGET), lambda plan: plan.geometry)
    return f"wgrad b{b} {density:.0%} N=16384 {SIZE}", problem, [partial(_same, plan) for plan in best[:MOST]]


def wide_wgrad(b: int, density: float, n: int, size: int = SIZE) -> Case:
    """Gradients of weights of 32 and wider: for each ring, number of tiles and of splits the cheapest plan by the model."""
    problem = _problem(Op.WGRAD, b, density, n, size)
    best = _cheapest(
        hopper_wgrad.drafts(problem, TARGET), lambda draft: (draft.geometry.rows, len(draft.tiles) // 16, draft.splits)
    )
    plans = [partial(hopper_wgrad.assemble, problem, TARGET, draft) for draft in best[:MOST]]
    return f"wgrad b{b} {density:.0%} N={n} {size} wide", problem, plans


def coarse(b: int, name: str, layout: Layout, n: int = 16384, first: int = 1) -> Case:
    """Gradients of weights as coarse blocks: for each ring, split and number of tiles the cheapest plan by the model, and the best
    that sums stored blocks alone."""
    problem = Problem(Op.WGRAD, layout, b, DType.BFLOAT16, batch=n, axis=first)
    drafts = hopper_coarse_wgrad.drafts(problem, TARGET)
    best = _cheapest(drafts, lambda draft: (draft.geometry.rows, draft.splits, len(draft.tiles)))
    plans = [partial(hopper_coarse_wgrad.assemble, problem, TARGET, draft) for draft in best[:4]]
    family = hopper_narrow_wgrad if b in hopper_narrow_wgrad.BLOCK_SIZES else hopper_wgrad
    alone = [partial(_same, plan) for plan in family.shortlist(problem, TARGET)]
    return f"wgrad b{b} {name} N={n} axis {first} coarse", problem, [*plans, *alone]


def axis(op: Op, b: int, density: float) -> Case:
    """Features first: the cheapest plans by the model, which has not been fitted for them."""
    problem = replace(_problem(op, b, density), axis=0)
    plans = (plan for family in FAMILIES[op] for plan in family.candidates(problem, TARGET))
    ranked = sorted(plans, key=lambda plan: plan.cost.seconds)
    return f"{op} b{b} {density:.0%} N=16384 {SIZE} axis 0", problem, [partial(_same, plan) for plan in ranked[:MOST]]


def lines(op: Op, name: str, layout: Layout, n: int, tiles: int = 2) -> Case:
    """Panels, pieces and results in short lines and in whole ones, alone and in clusters: each with the cheapest tiles by the
    model, with output blocks that share inputs and that share pairs of them."""
    problem = Problem(op, layout, 32, DType.BFLOAT16, batch=n)
    drafts = hopper.drafts(problem, TARGET, across=(1,), rings=(1,))
    best = _cheapest(drafts, lambda draft: (_shape(draft), draft.grouping == "similar wide"))
    cheap = list(dict.fromkeys(map(_tile, best)))[:tiles]
    return f"{op} b32 {name} N={n}", problem, _plans(problem, [draft for draft in best if _tile(draft) in cheap])


def forms(op: Op, b: int, name: str, layout: Layout, n: int) -> Case:
    """For each form of warpgroups, cluster and way to whole lines the cheapest plan by the model, the likeliest first."""
    problem = Problem(op, layout, b, DType.BFLOAT16, batch=n)
    drafts = (draft for draft in hopper.drafts(problem, TARGET, across=(1,), rings=(1,)) if b > 32 or _slots(draft) < 4)
    return f"{op} b{b} {name} N={n}", problem, _plans(problem, _cheapest(drafts, _way)[: 2 * MOST])


def small(n: int, size: int, density: float) -> Case:
    """Few rows."""
    return lines(Op.FPROP, f"{density:.0%} {size}", _random(32, density, size), n, tiles=4)


def across(op: Op, name: str, layout: Layout, n: int) -> Case:
    """Thread blocks across: for each number of them and each tile the cheapest plan by the model, the likeliest first."""
    problem = Problem(op, layout, 32, DType.BFLOAT16, batch=n)
    drafts = [draft for draft in hopper.drafts(problem, TARGET, across=(2, 4)) if draft.geometry.shape.across > 1]
    best = _cheapest(drafts, lambda draft: (_tile(draft), draft.geometry.shape.across))
    return f"{op} b32 {name} N={n} across", problem, _plans(problem, best[:MOST])


def rings(op: Op, b: int, name: str, layout: Layout, n: int, epilogue: Epilogue = PLAIN) -> Case:
    """Two rings: for each tile, number of stages and way to whole lines the cheapest plan by the model, the likeliest first."""
    problem = Problem(op, layout, b, DType.BFLOAT16, epilogue=epilogue, batch=n)
    drafts = hopper.drafts(problem, TARGET, rings=(2,))
    best = _cheapest(drafts, lambda draft: (_way(draft), draft.geometry.shape.stages))
    finished = " with its epilogue" if epilogue.activation else ""
    return f"{op} b{b} {name} N={n} rings{finished}", problem, _plans(problem, best[:MOST])


def four(op: Op, name: str, layout: Layout, n: int) -> Case:
    """b = 32, four output blocks a warpgroup: for each way to whole lines the cheapest plan by the model, the likeliest first."""
    problem = Problem(op, layout, 32, DType.BFLOAT16, batch=n)
    drafts = [draft for draft in hopper.drafts(problem, TARGET) if _slots(draft) == 4]
    return f"{op} b32 {name} N={n} four", problem, _plans(problem, _cheapest(drafts, _way)[:MOST])


def direct(op: Op, name: str, layout: Layout, n: int, first: int = 1) -> Case:
    """b = 32, panels multiplied where they lie and through registers: of both the cheapest plans by the model, for each way to
    whole lines and each cluster of the first."""
    problem = replace(Problem(op, layout, 32, DType.BFLOAT16, batch=n), axis=first)
    drafts = list(hopper.drafts(problem, TARGET, across=(1,), rings=(1,)))
    best = _cheapest((draft for draft in drafts if draft.geometry.direct), _way)
    through = _cheapest((draft for draft in drafts if not draft.geometry.direct), _way)
    return f"{op} b32 {name} N={n} axis {first} direct", problem, _plans(problem, [*best[:5], *through[:2]])


def six(op: Op, b: int, name: str, layout: Layout, n: int) -> Case:
    """Many blocks: tiles of 128 x 384 by two warpgroups, for each way to whole lines, and the cheapest plan of every other tile."""
    problem = Problem(op, layout, b, DType.BFLOAT16, batch=n)
    drafts = list(hopper.drafts(problem, TARGET, across=(1,), rings=(1,)))
    wide = [draft for draft in drafts if draft.geometry.shape.crowded]
    best = _cheapest(wide, _way)[:4]
    return f"{op} b{b} {name} N={n} six", problem, _plans(problem, [*best, *_cheapest(drafts, _tile)[:5]])


def residual(name: str, layout: Layout, n: int, epilogue: Epilogue) -> Case:
    """With a residual: for each tile whose residual takes one stage, and each that takes two, the cheapest plan by the model."""
    problem = Problem(Op.FPROP, layout, 32, DType.BFLOAT16, epilogue=epilogue, batch=n)
    drafts = list(hopper.drafts(problem, TARGET, across=(1,), rings=(1,)))
    best = _cheapest(drafts, lambda draft: (draft.geometry.residual_parts, _tile(draft)))
    finished = "bias and residual" if epilogue.activation is None else "with its epilogue"
    return f"fprop b32 {name} N={n} {finished}", problem, _plans(problem, best[:5])


def tf32(b: int, density: float, n: int = 16384) -> Case:
    """float32 dgrad: the cheapest plans by the model with panels through registers, and where they lie."""
    problem = Problem(Op.DGRAD, _random(b, density), b, DType.FLOAT32, batch=n)
    best = _cheapest(hopper.drafts(problem, TARGET, across=(1,)), lambda draft: (draft.geometry.direct, _tile(draft)))
    kinds = [[draft for draft in best if draft.geometry.direct is direct][:3] for direct in (True, False)]
    return f"dgrad b{b} float32 {density:.0%} N={n}", problem, _plans(problem, [*kinds[0], *kinds[1]])


def middle(op: Op, b: int, layout_name: str, layout: Layout, n: int) -> Case:
    """Few tiles for each SM: of every tile, alone and in clusters, the cheapest plan by the model with the ring that suits it, the
    likeliest first, and the likeliest of the forms that are for many tiles, too."""
    problem = Problem(op, layout, b, DType.BFLOAT16, batch=n)
    drafts = [draft for draft in hopper.drafts(problem, TARGET, rings=(1,)) if draft.band == 1]
    best = _cheapest(drafts, _clustered)
    common = [draft for draft in best if hopper_shapes.form_of(draft.geometry) in hopper_shapes.SHAPES]
    picked = {id(draft): draft for draft in (*best[:9], *common[:4])}.values()
    return f"{op} b{b} {layout_name} N={n} middle", problem, _plans(problem, _suited(problem, drafts, picked))


def joined(op: Op, b: int, name: str, layout: Layout, n: int) -> Case:
    """Joined products and others: of both the cheapest plans by the model for each tile, alone and in clusters, with the ring that
    suits it, the likeliest first."""
    problem = Problem(op, layout, b, DType.BFLOAT16, batch=n)
    drafts = [draft for draft in hopper.drafts(problem, TARGET, across=(1,), rings=(1,)) if draft.band == 1]
    plans: list[hopper.Draft] = []
    for most, together in ((5, True), (2, False)):
        own = [draft for draft in drafts if draft.geometry.shape.joined == together]
        plans += _suited(problem, own, _cheapest(own, _clustered)[:most])
    return f"{op} b{b} {name} N={n} joined", problem, _plans(problem, plans)


def _suited(problem: Problem, drafts: Sequence[hopper.Draft], picked: Iterable[hopper.Draft]) -> list[hopper.Draft]:
    """Each that is picked, with the ring that suits its tiles."""
    alike = ([each for each in drafts if _clustered(each) == _clustered(draft)] for draft in picked)
    return [hopper.suited(problem, each) for each in alike]


def _clustered(draft: hopper.Draft) -> tuple[object, ...]:
    return _tile(draft), draft.geometry.shape.cluster, draft.geometry.shape.across


def _cheapest(given: Iterable[T], kind: Callable[[T], object]) -> list[T]:
    """The cheapest draft, or plan, of each kind by the model, the likeliest first."""
    best: dict[object, T] = {}
    for each in sorted(given, key=lambda each: each.cost.seconds):
        best.setdefault(kind(each), each)
    return list(best.values())


def _plans(problem: Problem, drafts: Sequence[hopper.Draft]) -> list[Callable[[], Plan]]:
    return [partial(hopper.assemble, problem, TARGET, draft) for draft in drafts]


def _same(plan: Plan) -> Plan:
    return plan


def _shape(draft: Any) -> object:
    return replace(draft.geometry.shape, stages=0, stage_bytes=0)


def _tile(draft: hopper.Draft) -> tuple[int, ...]:
    shape = draft.geometry.shape
    return shape.row_groups, shape.columns, shape.m_tiles, shape.slots


def _way(draft: hopper.Draft) -> tuple[object, ...]:
    shape = draft.geometry.shape
    return _tile(draft), shape.cluster, shape.paired, shape.store_bytes


def _slots(draft: hopper.Draft) -> int:
    return draft.geometry.shape.slots


DENSITIES = (0.01, 0.05, 0.1, 0.2)
SUITES: dict[str, list[Callable[[], Case]]] = {
    "narrow": [
        *(partial(narrow, Op.FPROP, b, density) for b in (16, 8) for density in (*DENSITIES, 0.5)),
        *(partial(narrow, Op.DGRAD, b, 0.1) for b in (16, 8)),
        *(partial(narrow, Op.FPROP, b, 0.05, 64, 3 * SIZE) for b in (16, 8)),
    ],
    "turned": [
        *(partial(turned, Op.FPROP, b, density) for b in (16, 8) for density in (0.2, 0.3, 0.4, 0.5, 1.0)),
        *(partial(turned, Op.DGRAD, b, 0.5) for b in (16, 8)),
        *(partial(turned, Op.FPROP, b, 0.5, n) for b in (16, 8) for n in (576, 1024, 2048, 4096)),
        *(partial(turned, Op.FPROP, b, density, 16384, 0) for b in (16, 8) for density in (0.2, 0.3, 0.5)),
        *(partial(turned, Op.DGRAD, b, 0.5, 16384, 0) for b in (16, 8)),
    ],
    "wgrad": [partial(wgrad, b, density) for b, density in ((16, 0.1), (16, 0.01), (16, 0.5), (8, 0.1), (8, 0.02))],
    "wide_wgrad": [
        *(partial(wide_wgrad, 32, d, n) for d in (0.05, 0.2, 0.5) for n in (64, 256, 1024, 4096)),
        *(partial(wide_wgrad, 32, d, 16384) for d in (0.05, 0.1, 0.2, 0.5)),
        *(partial(wide_wgrad, 64, d, n) for d in (0.05, 0.2, 0.5) for n in (64, 256, 1024, 4096, 16384)),
        *(partial(wide_wgrad, 128, d, n) for d in (0.1, 0.5) for n in (256, 1024, 4096)),
        partial(wide_wgrad, 64, 0.05, 1024, 3 * SIZE),
        partial(wide_wgrad, 64, 0.2, 1024, SIZE // 4),
        partial(wide_wgrad, 32, 0.2, 1024, SIZE // 4),
    ],
    "coarse": [
        *(
            partial(coarse, b, f"{SIZE} {density:.0%}", _random(b, density), n)
            for b, densities in ((8, (0.2, 0.5)), (16, (0.3, 0.5)), (32, (0.5, 0.7, 1.0)), (64, (0.7, 1.0)))
            for density in densities
            for n in (256, 2048, 16384)
        ),
        *(
            partial(coarse, b, f"{SIZE} in {groups} groups", _grouped(b, groups), n)
            for b in (8, 16, 32, 64)
            for groups in (4, 16)
            for n in (64, 256, 2048, 16384)
        ),
        *(partial(coarse, b, f"{SIZE} 50%", _random(b, 0.5), 16384, 0) for b in (16, 32)),
        *(partial(coarse, b, f"{SIZE // 4} 100%", _random(b, 1.0, SIZE // 4), 4096) for b in (16, 32)),
    ],
    "joined": [
        *(
            partial(joined, op, b, f"{SIZE} {name}", layout, n)
            for b in (32, 64)
            for name, layout in (("100%", _random(b, 1.0)), *((f"in {g} groups", _grouped(b, g)) for g in (4, 16)))
            for op, n in ((Op.FPROP, 1024), (Op.FPROP, 4096), (Op.FPROP, 16384), (Op.DGRAD, 16384))
        ),
        partial(joined, Op.FPROP, 32, f"{SIZE // 4} 100%", _random(32, 1.0, SIZE // 4), 4096),
        partial(joined, Op.FPROP, 32, f"{3 * SIZE} 100%", _random(32, 1.0, 3 * SIZE), 4096),
    ],
    "axis": [
        *(partial(axis, Op.FPROP, b, density) for b in (8, 16, 32) for density in (0.01, 0.1)),
        *(partial(axis, op, b, 0.1) for op in (Op.DGRAD, Op.WGRAD) for b in (8, 32)),
    ],
    "small": [
        *(partial(small, 64, size, density) for size in (SIZE, 3 * SIZE) for density in DENSITIES),
        *(partial(small, n, 3 * SIZE, density) for n, density in ((32, 0.1), (8, 0.2), (1, 0.2))),
        *(partial(small, 256, SIZE, density) for density in (0.05, 0.2)),
    ],
    "forms": [
        *(
            partial(forms, Op.FPROP, 32, f"{3 * SIZE} {d:.0%}", _random(32, d, 3 * SIZE), SIZE)
            for d in (0.2, 0.1, 0.05)
        ),
        *(partial(forms, Op.FPROP, 32, f"{SIZE} {d:.0%}", _random(32, d), 16384) for d in (0.1, 0.5)),
        partial(forms, Op.FPROP, 32, "banded", topology.banded(128, 128, 13), 16384),
        partial(forms, Op.FPROP, 32, "watts", topology.watts_strogatz(128, 12, 0.2, seed=1), 16384),
        *(partial(forms, Op.FPROP, 64, f"{SIZE} {d:.0%}", _random(64, d), 16384) for d in (0.05, 0.1, 0.2, 0.5)),
        partial(forms, Op.FPROP, 128, f"{SIZE} 100%", _random(128, 1.0), 8192),
    ],
    "rings": [
        partial(rings, Op.FPROP, 32, "banded", topology.banded(128, 128, 13), 16384),
        partial(rings, Op.FPROP, 32, "watts", topology.watts_strogatz(128, 12, 0.2, seed=1), 16384),
        partial(rings, Op.FPROP, 32, f"{SIZE} 10%", _random(32, 0.1), 16384, FINISH),
        *(partial(rings, Op.FPROP, 64, f"{SIZE} {d:.0%}", _random(64, d), 16384) for d in (0.05, 0.1, 0.5)),
        *(partial(rings, Op.FPROP, 32, f"{SIZE} {d:.0%}", _random(32, d), 16384) for d in (*DENSITIES, 0.5)),
        *(
            partial(rings, Op.DGRAD, b, f"{SIZE} {d:.0%}", _random(b, d), 16384)
            for b, d in ((32, 0.1), (32, 0.01), (64, 0.05))
        ),
    ],
    "four": [
        partial(four, Op.FPROP, "banded", topology.banded(128, 128, 13), 16384),
        partial(four, Op.FPROP, "watts", topology.watts_strogatz(128, 12, 0.2, seed=1), 16384),
        *(partial(four, Op.FPROP, f"{SIZE} {d:.0%}", _random(32, d), 16384) for d in (0.05, 0.1, 0.2, 0.5)),
        *(partial(four, Op.FPROP, f"{3 * SIZE} {d:.0%}", _random(32, d, 3 * SIZE), SIZE) for d in (0.05, 0.1, 0.2)),
    ],
    "direct": [
        *(
            partial(direct, op, f"{s} {d:.0%}", _random(32, d, s), n)
            for op, s, n, densities in (
                (Op.FPROP, 3 * SIZE, SIZE, (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)),
                (Op.FPROP, SIZE, 16384, (0.05, 0.1, 0.2, 0.3, 0.5)),
                (Op.FPROP, SIZE, SIZE, (0.05, 0.1, 0.2)),
                (Op.FPROP, SIZE, 1024, (0.1,)),
                (Op.FPROP, 2 * SIZE, 2 * SIZE, (0.05, 0.1, 0.2)),
                (Op.DGRAD, 3 * SIZE, SIZE, (0.05, 0.1, 0.2)),
                (Op.DGRAD, SIZE, 16384, (0.1, 0.2)),
            )
            for d in densities
        ),
        partial(direct, Op.FPROP, "banded", topology.banded(128, 128, 13), 16384),
        partial(direct, Op.FPROP, "watts", topology.watts_strogatz(128, 12, 0.2, seed=1), 16384),
        *(
            partial(direct, Op.FPROP, f"{s} 10%", _random(32, 0.1, s), n, 0)
            for s, n in ((SIZE, 16384), (3 * SIZE, SIZE))
        ),
    ],
    "six": [
        *(
            partial(six, op, b, f"{s} {d:.0%}", _random(b, d, s), n)
            for op, b, s, n, densities in (
                (Op.FPROP, 32, SIZE, 16384, (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)),
                (Op.FPROP, 32, 3 * SIZE, SIZE, (0.2, 0.3, 0.5)),
                (Op.FPROP, 32, SIZE, SIZE, (0.2, 0.5)),
                (Op.DGRAD, 32, SIZE, 16384, (0.3, 0.5)),
                (Op.FPROP, 64, SIZE, 16384, (0.2, 0.5, 1.0)),
                (Op.FPROP, 128, SIZE, 8192, (0.5, 1.0)),
            )
            for d in densities
        ),
        partial(six, Op.FPROP, 32, "banded", topology.banded(128, 128, 13), 16384),
        partial(six, Op.FPROP, 32, "watts", topology.watts_strogatz(128, 12, 0.2, seed=1), 16384),
    ],
    "residual": [
        *(
            partial(residual, f"{s} {d:.0%}", _random(32, d, s), n, epilogue)
            for s, n, d in ((3 * SIZE, SIZE, 0.1), (3 * SIZE, SIZE, 0.2), (2 * SIZE, 2 * SIZE, 0.1), (SIZE, 16384, 0.1))
            for epilogue in (Epilogue(True, None, True), FINISH)
        ),
        partial(residual, f"{SIZE} 50%", _random(32, 0.5), 16384, FINISH),
    ],
    "tf32": [
        *(partial(tf32, 32, density, n) for density, n in ((0.01, 16384), (0.1, 16384), (0.5, 16384), (0.1, 4096))),
        *(partial(tf32, b, density, n) for b, density, n in ((64, 0.1, 16384), (64, 0.5, 16384), (128, 1.0, 8192))),
        partial(tf32, 32, 0.1, 64),
    ],
    "middle": [
        *(
            partial(middle, op, b, f"{s} {d:.0%}", _random(b, d, s), n)
            for op, b, s, rows, densities in (
                (Op.FPROP, 32, 3 * SIZE, (128, 256), (0.05, 0.1, 0.2, 0.5)),
                (Op.FPROP, 32, SIZE, (128, 256, 512), (0.05, 0.1, 0.3)),
                (Op.FPROP, 32, 5120, (256, 512), (0.05, 0.1, 0.3)),
                (Op.FPROP, 32, 3072, (1024,), (0.1, 0.3)),
                (Op.FPROP, 32, 1024, (512, 2048), (0.1, 0.3)),
                (Op.FPROP, 64, 3 * SIZE, (128, 256), (0.05, 0.1, 0.3)),
                (Op.FPROP, 64, SIZE, (512,), (0.05, 0.1, 0.3)),
                (Op.FPROP, 64, 5120, (128, 512), (0.1, 0.3)),
                (Op.DGRAD, 32, 3 * SIZE, (256,), (0.1,)),
                (Op.DGRAD, 32, 5120, (512,), (0.1,)),
                (Op.DGRAD, 64, 5120, (512,), (0.1,)),
            )
            for n in rows
            for d in densities
        ),
        partial(middle, Op.FPROP, 32, f"{3 * SIZE} 1%", _random(32, 0.01, 3 * SIZE), 16384),
        partial(middle, Op.FPROP, 32, f"{3 * SIZE} 1%", _random(32, 0.01, 3 * SIZE), SIZE),
    ],
    "across": [
        *(
            partial(across, Op.FPROP, f"{d:.0%} {s}", _random(32, d, s), 64)
            for s in (SIZE, 3 * SIZE)
            for d in DENSITIES
        ),
        *(
            partial(across, Op.FPROP, f"{d:.0%} {3 * SIZE}", _random(32, d, 3 * SIZE), n)
            for d in (0.1, 0.2)
            for n in (8, 32)
        ),
    ],
    "lines": [
        *(partial(lines, Op.FPROP, f"{d:.0%} {SIZE}", _random(32, d), 16384) for d in (*DENSITIES, 0.5)),
        *(partial(lines, Op.FPROP, f"{d:.0%} {3 * SIZE}", _random(32, d, 3 * SIZE), SIZE) for d in DENSITIES),
        partial(lines, Op.FPROP, f"banded {SIZE}", topology.banded(128, 128, 13), 16384),
        partial(lines, Op.FPROP, f"watts-strogatz {SIZE}", topology.watts_strogatz(128, 12, 0.2, seed=1), 16384),
        partial(lines, Op.DGRAD, f"10% {SIZE}", _random(32, 0.1), 16384),
    ],
}


def compiled_case(case: Callable[[], Case]) -> tuple[str, Problem, list[Compiled]]:
    """A case with its plans compiled, the planner's choice first."""
    name, problem, plans = case()
    return name, problem, [assemble(plan) for plan in [choose(problem, TARGET), *(made() for made in plans)]]


def measure(name: str, problem: Problem, made: Sequence[Compiled]) -> dict[str, Any]:
    """Times of the peers, of the planner's choice, and of the variants."""
    operands = Operands(problem, problem.batch or 0)
    print(f"== {name}", flush=True)
    row: dict[str, Any] = {"case": name, "peers": {}, "plans": []}
    no_ell = problem.block_size == 8 or problem.op is Op.WGRAD
    for peer in ("dense",) if no_ell else ("dense", "blocked-ell"):
        with suppress(LeftOut), PEERS[peer](operands) as (call, _):
            row["peers"][peer] = CLOCK.time(call).seconds
    for turn, each in enumerate(made):
        row["plans"].append({"chosen": turn == 0, **_timed(operands, each)})
    for peer, seconds in row["peers"].items():
        print(f"  {seconds * 1e6:8.1f} us  {peer}", flush=True)
    for plan in sorted(row["plans"], key=lambda plan: plan["seconds"]):
        mark = "*" if plan["chosen"] else " "
        print(
            f" {mark}{plan['seconds'] * 1e6:8.1f} us  predicted {plan['predicted'] * 1e6:7.1f}  {plan['plan']}",
            flush=True,
        )
    return row


def _timed(operands: Operands, made: Compiled) -> dict[str, Any]:
    outline = made.outline
    said = {"plan": outline.summary, "predicted": outline.seconds, "seconds": float("inf")}
    with compiled_plan(operands, made) as (call, result):
        call()
        torch.cuda.synchronize()
        error = operands.error(result())
        first = result().clone()
        call()
        if not error <= operands.tolerance or not torch.equal(first, result()):
            print(f"  WRONG ({error:.1e}): {outline.summary}", flush=True)
            return said
        return {**said, "seconds": CLOCK.time(call).seconds}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", default=list(SUITES))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = []
    with ProcessPoolExecutor() as pool:  # planning takes longer than the GPU
        for case in pool.map(compiled_case, [case for suite in given.suites for case in SUITES[suite]]):
            rows.append(measure(*case))
            if given.json:
                given.json.write_text(
                    json.dumps({"gpu": torch.cuda.get_device_name(), "clock": CLOCK.text, "cases": rows}, indent=1)
                )


if __name__ == "__main__":
    main()
