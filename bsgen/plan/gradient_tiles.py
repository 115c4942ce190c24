"""Which blocks of dW a thread block of the Hopper kernel sums together: tiles that need few panels of x and dy for many blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bsgen.plan.blocks import IntArray
from bsgen.problem import Problem

NOTHING = -1
Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Column:
    """Stored blocks of one block column, or a run of them: `rows` in rising order and their places in W."""

    column: int
    rows: IntArray
    blocks: IntArray

    def __len__(self) -> int:
        return len(self.rows)


@dataclass
class GradientTile:
    """Columns that are summed together, and the block rows of x that they need."""

    columns: list[Column] = field(default_factory=list)
    rows: Rows = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass(frozen=True)
class Room:
    """What a tile holds: units, and panels of x and dy. A unit sums `stacked` blocks of a column, or a `parts`-th of one."""

    units: int
    panels: int
    stacked: int
    parts: int

    def units_of(self, blocks: int) -> int:
        """Units that sum so many blocks of a column."""
        return -(-blocks // self.stacked) * self.parts

    @property
    def longest(self) -> int:
        """Blocks of a column that a tile of their own has room for."""
        by_panels = self.panels // self.parts - 1
        by_units = self.units // self.parts * self.stacked
        return max(0, min(by_panels, by_units))

    def fits(self, units: int, rows: int, columns: int) -> bool:
        """Whether a tile of so many units, block rows and block columns fits."""
        return units <= self.units and (rows + columns) * self.parts <= self.panels


def heights(problem: Problem, room: Room) -> list[int]:
    """Bands of block rows worth trying: all of them, and the one in which a random layout needs the fewest panels a block."""
    rows, density = problem.layout.shape[0], max(problem.layout.density, 1e-9)

    def panels_a_block(height: int) -> float:
        blocks = density * height
        columns = room.units / (blocks / room.stacked + (0.25 if room.stacked > 1 else 0)) / room.parts
        return float((columns + height * (1 - (1 - density) ** columns)) / (columns * blocks))

    fewest = min(range(1, rows + 1), key=panels_a_block)
    return sorted({rows, fewest}, reverse=True)


def gradient_tiles(problem: Problem, room: Room, height: int) -> list[GradientTile]:
    """Tiles of every band of `height` block rows, in order; in each, columns that share rows join first."""
    tiles: list[GradientTile] = []
    for columns in _bands(problem, room, height):
        tiles += _filled(columns, problem.layout.shape[0], room)
    return tiles


def _bands(problem: Problem, room: Room, height: int) -> Iterator[list[Column]]:
    coordinates = problem.layout.blocks
    order = np.lexsort((coordinates[:, 0], coordinates[:, 1], coordinates[:, 0] // height)).astype(np.int32)
    rows, columns = coordinates[order].T
    bands = rows // height
    starts = np.flatnonzero(np.diff(bands, prepend=-1) | np.diff(columns, prepend=-1))
    found: list[Column] = []
    band = -1
    for begin, end in zip(starts.tolist(), [*starts[1:].tolist(), len(rows)], strict=True):
        if bands[begin] != band and found:
            yield found
            found = []
        band = bands[begin]
        found += _pieces(Column(int(columns[begin]), rows[begin:end], order[begin:end]), room)
    if found:
        yield found


def _pieces(column: Column, room: Room) -> Iterator[Column]:
    """A column, in runs that fit a tile, all but the last of whole units."""
    ways = -(-len(column) // room.longest)
    length = min(room.longest, -(-len(column) // (ways * room.stacked)) * room.stacked)
    for begin in range(0, len(column), length):
        run = slice(begin, begin + length)
        yield Column(column.column, column.rows[run], column.blocks[run])


def _filled(columns: list[Column], rows_total: int, room: Room) -> Iterator[GradientTile]:
    """Greedily: a tile starts with the first free column; the next shares most of its rows with the tile, and fits."""
    uses = np.zeros((rows_total, len(columns)), bool)
    for index, column in enumerate(columns):
        uses[column.rows, index] = True
    counts = uses.sum(axis=0)
    units = np.array([room.units_of(len(column)) for column in columns])
    free = np.ones(len(columns), bool)
    while free.any():
        chosen: list[int] = []
        covered = np.zeros(rows_total, bool)
        shared = np.zeros(len(columns), np.int64)
        taken, names = 0, set[int]()
        pick: int | None = int(np.argmax(free))
        while pick is not None:
            chosen.append(pick)
            names.add(columns[pick].column)
            free[pick] = False
            taken += int(units[pick])
            fresh = uses[:, pick] & ~covered
            covered |= fresh
            shared += np.count_nonzero(uses[fresh], axis=0)
            panels = (int(covered.sum()) + counts - shared + len(names) + 1) * room.parts
            able = free & (units <= room.units - taken) & (panels <= room.panels)
            pick = int(np.argmax(np.where(able, shared / counts, -1.0))) if able.any() else None
        yield GradientTile([columns[index] for index in chosen], np.flatnonzero(covered))
