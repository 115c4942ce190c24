"""Follows the tables of Hopper's wgrad plans as the kernel does: descriptors back to features of x and dy, splits to rows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from bsgen.plan import HopperCoarseWGradPlan, HopperWGradPlan
from bsgen.plan.gradient_tiles import NOTHING
from bsgen.plan.tile import CHUNK_BYTES

Indices = NDArray[np.int64]


def gradient_terms(plan: HopperWGradPlan, tile: int) -> Iterator[tuple[Indices, Indices, int]]:
    """Features of x, features of dy and first element of dW of what each unit of a tile sums; dW's rows lie a block apart."""
    geo = plan.geometry
    for group, count in enumerate(plan.unit_counts[tile].tolist()):
        for unit, (left, right, *places) in enumerate(plan.units[tile, group, :count].tolist()):
            y = np.concatenate([_features(plan, tile, right, part, gradient=True) for part in range(geo.parts)])
            if isinstance(plan, HopperCoarseWGradPlan):
                x = _features(plan, tile, left, 0, gradient=False)
                yield from _kept_terms(x, y, plan.kept[tile, group, unit], plan.problem.block_size)
                continue
            for stacked, place in enumerate(places[: geo.stacked]):
                if place != NOTHING:
                    yield _features(plan, tile, left, stacked, gradient=False), y, place * geo.math.chunk


def _kept_terms(x: Indices, y: Indices, kept: NDArray[np.int32], block: int) -> Iterator[tuple[Indices, Indices, int]]:
    for row, column in np.argwhere(kept != NOTHING).tolist():
        rows, columns = (slice(at * block, (at + 1) * block) for at in (row, column))
        yield x[rows], y[columns], int(kept[row, column]) * block**2


def _features(plan: HopperWGradPlan, tile: int, descriptor: int, further: int, gradient: bool) -> Indices:
    """The features of the panel at a descriptor's address, or `further` leading dimensions on."""
    geo = plan.geometry
    at = (descriptor & 0xFFFF) + further * (descriptor >> 16)
    position, inside = divmod(at * CHUNK_BYTES, geo.panel_bytes)
    assert not inside, "a unit starts inside a panel"
    assert position < plan.panel_counts[tile], "a unit reads past the panels of its tile"
    word = int(plan.panels[tile, position])
    assert (word < 0) == gradient, "a unit takes x for dy or dy for x"
    return np.asarray((~word if word < 0 else word) + np.arange(geo.depth, dtype=np.int64))


def row_cuts(plan: HopperWGradPlan, n: int) -> list[tuple[int, int]]:
    """The runs of rows that the splits sum, in the order in which they are added."""
    rows, splits = plan.geometry.rows, plan.splits
    stages = -(-n // rows)
    cuts = [stages * split // splits * rows for split in range(splits)] + [n]
    return list(pairwise(cuts))
