"""Which output blocks a tile computes, and in which slots: in order, balanced for skewed layouts, or by the inputs they share."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from bsgen.plan.blocks import OutputBlocks, Part, Reduction, split
from bsgen.problem import Target

UNEVEN = 3.0  # and of so many, worth nothing but that
SKEWED = 1.5  # a longest output block of so many times the mean is worth balancing
Tiles = Sequence[Sequence[Part | None]]
Grouping = tuple[str, Tiles, tuple[Reduction, ...]]


class Couple(NamedTuple):
    """Two neighbouring output blocks, which are stored together."""

    first: Part
    second: Part

    @property
    def work(self) -> int:
        """Stored blocks to multiply."""
        return self.first.work + self.second.work


P = TypeVar("P", Part, Couple)


def groupings(view: OutputBlocks, columns: int, slots: int, target: Target) -> Iterator[Grouping]:
    """Ways to fill tiles of `columns` times `slots`: contiguous; for skewed layouts balanced, and with long output blocks split."""
    tile_slots, longest = columns * slots, max(1, int(view.work.max()))
    parts, _ = split(view, longest)
    yield "contiguous", _in_tiles(parts, tile_slots), ()
    if not skewed(view):
        return
    yield "balanced", balanced(parts, columns, slots), ()
    fair = max(4, int(view.work.sum()) // max(-(-view.outputs // tile_slots), target.sms // 4))
    if longest > fair:
        parts, reductions = split(view, fair)
        yield "balanced", balanced(parts, columns, slots), reductions


def skewed(view: OutputBlocks) -> bool:
    """Whether some output block has so many more inputs than the mean that tiles of neighbours would be uneven."""
    return bool(max(1, int(view.work.max())) > SKEWED * view.work.mean())


def similar(view: OutputBlocks, tile_slots: int, width: int = 1, coupled: int = 1) -> Iterator[Grouping]:
    """Output blocks that share inputs in one tile: greedily, each next one shares most with those that the tile has. Of inputs that
    come `width` at a time, two output blocks share those of which each uses any; `coupled` neighbouring ones stay together.
    """
    if view.outputs <= tile_slots or int(view.work.max()) > UNEVEN * view.work.mean():
        return
    units = view.outputs // coupled
    uses = np.zeros((-(-view.inputs_total // width), units), bool)
    uses[view.inputs // width, np.repeat(np.arange(view.outputs), view.work) // coupled] = True
    free = np.ones(units, bool)
    order: list[int] = []
    while free.any():
        order += _tile_of_similar(uses, free, tile_slots // coupled)
    parts, _ = split(view, max(1, int(view.work.max())))
    ordered = [parts[unit * coupled + each] for unit in order for each in range(coupled)]
    yield "similar" if width == 1 else "similar wide", _in_tiles(ordered, tile_slots), ()


def joinable(tiles: Tiles, slots: int) -> bool:
    """Whether each `slots` output blocks of tiles, counted off, use the same inputs."""
    inputs = [[() if part is None else part.inputs for part in tile] for tile in tiles]
    runs = (own[at : at + slots] for own in inputs for at in range(0, len(own), slots))
    return all(np.array_equal(run[0], each) for run in runs for each in run[1:])


def alike(view: OutputBlocks, tile_slots: int, coupled: int = 1) -> Iterator[Grouping]:
    """Output blocks that have the same inputs one after the other, where they are not so already and `coupled` neighbouring ones
    stay together."""
    order = [output for own in view.classes for output in own]
    runs = zip(order[::coupled], order[coupled - 1 :: coupled], strict=True)
    together = all(first % coupled == 0 and last == first + coupled - 1 for first, last in runs)
    if together and order != sorted(order):
        parts, _ = split(view, max(1, int(view.work.max())))
        yield "alike", _in_tiles([parts[output] for output in order], tile_slots), ()


def neighbours(view: OutputBlocks, columns: int, slots: int) -> Iterator[Grouping]:
    """Ways that leave each two neighbouring output blocks in neighbouring slots: contiguous; for skewed layouts balanced."""
    parts, _ = split(view, max(1, int(view.work.max())))
    yield "contiguous", _in_tiles(parts, columns * slots), ()
    if skewed(view):
        couples = [Couple(*parts[i : i + 2]) for i in range(0, view.outputs, 2)]
        tiles = balanced(couples, columns, slots // 2)
        yield "balanced", [[part for couple in tile for part in couple or (None, None)] for tile in tiles], ()


def _tile_of_similar(uses: np.ndarray, free: np.ndarray, tile_slots: int) -> list[int]:
    """One tile's output blocks, taken out of `free`; starts from the first that is free."""
    chosen: list[int] = []
    covered = np.zeros(len(uses), bool)
    shared = np.zeros(len(free), np.int64)
    while free.any() and len(chosen) < tile_slots:
        output = int(np.argmax(np.where(free, shared, -1)))
        chosen.append(output)
        free[output] = False
        fresh = uses[:, output] & ~covered
        covered |= fresh
        shared += np.count_nonzero(uses[fresh], axis=0)
    return chosen


def balanced(parts: Sequence[P], columns: int, slots: int) -> list[list[P | None]]:
    """Longest part first into the lightest tile with a free slot, and likewise onto the columns of warps inside a tile."""
    tile_slots = columns * slots
    tiles = _spread(sorted(parts, key=lambda part: -part.work), -(-len(parts) // tile_slots), tile_slots)
    tiles.sort(key=lambda tile: -sum(part.work for part in tile))
    return [[slot for warp in _spread(tile, columns, slots) for slot in _padded(warp, slots)] for tile in tiles]


def _in_tiles(parts: Sequence[P], tile_slots: int) -> list[list[P | None]]:
    return [_padded(parts[i : i + tile_slots], tile_slots) for i in range(0, len(parts), tile_slots)]


def _spread(parts: Sequence[P], bins: int, space: int) -> list[list[P]]:
    filled: list[list[P]] = [[] for _ in range(bins)]
    heap = [(0, index) for index in range(bins)]
    for part in parts:
        load, index = heapq.heappop(heap)
        filled[index].append(part)
        if len(filled[index]) < space:
            heapq.heappush(heap, (load + part.work, index))
    return filled


def _padded(parts: Sequence[P], length: int) -> list[P | None]:
    padded: list[P | None] = list(parts)
    return padded + [None] * (length - len(parts))
