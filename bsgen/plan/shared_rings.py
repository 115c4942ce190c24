"""Cuts tiles side by side into stages in step: a panel that thread blocks of a cluster need is loaded once, into all of them.

A copy puts a panel at the same place of each thread block's stage. So a stage has places, which hold a panel for some of the ranks
and another for others; where it finds none, a rank leaves a place empty. Stages are given back by all thread blocks together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from operator import itemgetter

from bsgen.plan.ring_records import MAXIMUM_LOADS, RingStage
from bsgen.plan.rings import WINDOW, Item, room
from bsgen.plan.warpgroup import WarpgroupGeometry

MOST_PANELS = 1 << 16  # that a load names


@dataclass
class SharedStage(RingStage):
    """A stage of one thread block: each panel lies at its place in `taken`, of which all have as many; it `issues` some of the
    copies, as (panel, place, bits of the ranks that get it)."""

    taken: list[int] = field(default_factory=list)
    places_of_all: int = 0
    issues: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def places(self) -> int:
        """Places ahead of the pieces, those that it leaves empty among them."""
        return self.places_of_all

    def place_word(self, position: int, geo: WarpgroupGeometry) -> int:
        """Where a visit finds the panel at `position`."""
        return self.taken[position] * geo.panel_bytes

    def copy_words(self, boxes: int, geo: WarpgroupGeometry) -> list[int]:
        """Copies | boxes << 8 | places << 16 | panels that arrive << 24; of each copy its panel | place << 16 | ranks << 24."""
        copies = [panel | place << 16 | ranks << 24 for panel, place, ranks in self.issues]
        return [len(copies) | boxes << 8 | self.places << 16 | len(self.panels) << 24, *copies]


@dataclass
class _Wanted:
    """A panel, and its pieces for each rank."""

    panel: int
    pieces: list[list[tuple[int, int, int]]]

    @cached_property
    def ranks(self) -> int:
        """Bits of the ranks that need it."""
        return sum(1 << rank for rank, pieces in enumerate(self.pieces) if pieces)


@dataclass
class _Filling:
    """A stage of all ranks while it is filled."""

    geo: WarpgroupGeometry
    taken: list[int] = field(default_factory=list)  # of each place, bits of the ranks that have a panel there
    stages: list[SharedStage] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stages = [SharedStage() for _ in range(self.geo.shape.across)]

    def place(self, ranks: int) -> int:
        """The first place that is free in all of these; past the last where there is none."""
        return next((place for place, taken in enumerate(self.taken) if not taken & ranks), len(self.taken))

    def issuer(self, wanted: _Wanted) -> int:
        """The rank with the fewest loads of those that need a panel."""
        needing = [rank for rank, pieces in enumerate(wanted.pieces) if pieces]
        return min(needing, key=lambda rank: self._loads(rank, wanted))

    def fits(self, wanted: _Wanted) -> bool:
        """Whether there is room for a panel and its pieces in every rank that needs it, and for its place in all."""
        places, issuer = max(len(self.taken), self.place(wanted.ranks) + 1), self.issuer(wanted)
        for rank, stage in enumerate(self.stages):
            pieces = stage.piece_count + len(wanted.pieces[rank])
            if places * self.geo.panel_bytes + pieces * self.geo.piece_bytes > room(self.geo):
                return False
            if self._loads(rank, wanted) + (rank == issuer) > MAXIMUM_LOADS:
                return False
        return True

    def add(self, wanted: _Wanted) -> None:
        """Put a panel and its pieces in."""
        place, issuer = self.place(wanted.ranks), self.issuer(wanted)
        if place == len(self.taken):
            self.taken.append(0)
        self.taken[place] |= wanted.ranks
        self.stages[issuer].issues.append((wanted.panel, place, wanted.ranks))
        for stage, pieces in zip(self.stages, wanted.pieces, strict=True):
            if pieces:
                stage.panels.append(wanted.panel)
                stage.taken.append(place)
                stage.pieces.append(pieces)

    def finished(self) -> list[SharedStage]:
        """The stage of each rank."""
        for stage in self.stages:
            stage.places_of_all = len(self.taken)
        return self.stages

    def _loads(self, rank: int, wanted: _Wanted) -> int:
        stage = self.stages[rank]
        return len(stage.issues) + (stage.piece_count + len(wanted.pieces[rank])) * self.geo.piece_boxes


def pack_together(items: Sequence[Sequence[Item]], geo: WarpgroupGeometry, first: int = 0) -> list[list[RingStage]]:
    """The stages of each rank, as many for all: panels in order, from `first` on and then those before it, but of the next few
    first those that need no further place."""
    waiting = _wanted(items, first)
    found: list[list[RingStage]] = [[] for _ in items]
    while waiting:
        filling = _Filling(geo)
        while (index := _next(waiting, filling)) is not None:
            filling.add(waiting.pop(index))
        for stages, stage in zip(found, filling.finished(), strict=True):
            stages.append(stage)
    return found


def _wanted(items: Sequence[Sequence[Item]], first: int) -> list[_Wanted]:
    panels: dict[int, _Wanted] = {}
    for rank, own in enumerate(items):
        for panel, group in groupby(own, key=itemgetter(0)):
            wanted = panels.setdefault(panel, _Wanted(panel, [[] for _ in items]))
            wanted.pieces[rank] = [(slot, block, which) for _, slot, block, which in group]
    return [panels[panel] for panel in sorted(panels, key=lambda panel: (panel < first, panel))]


def _next(waiting: Sequence[_Wanted], filling: _Filling) -> int | None:
    """The first that fits where there is a place; else the first that fits."""
    found = None
    for index, wanted in enumerate(waiting[:WINDOW]):
        fresh = filling.place(wanted.ranks) == len(filling.taken)
        if not (fresh and found is not None) and filling.fits(wanted):
            if not fresh:
                return index
            found = index
    return found
