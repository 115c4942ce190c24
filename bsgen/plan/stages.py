"""Cuts the work of a tile into pipeline stages: which panels to load, which pieces of W, which operations follow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from bsgen.plan.blocks import IntArray, Part
from bsgen.plan.tile import Geometry
from bsgen.problem import Op

WINDOW = 128
READ_AHEAD = 3


@dataclass
class Stage:
    """One pipeline stage of one tile; `work[slot]` lists (chunk offset of the inputs, first chunk of the weights)."""

    slots: int
    panels: list[int] = field(default_factory=list)
    work: list[list[tuple[int, int]]] = field(init=False)
    operations: int = 0

    def __post_init__(self) -> None:
        self.work = [[] for _ in range(self.slots)]


@dataclass(frozen=True)
class RecordFormat:
    """Where the fields of a stage's record lie, in 32-bit words; the kernel reads records of one fixed size."""

    slots: int
    panels: int
    operations: int

    @property
    def slot_starts(self) -> int:
        """First word of `slots + 1` bounds of each slot's operations; words 0 and 1 count panels and operations."""
        return 2

    @property
    def panel_ids(self) -> int:
        """First word of the panels to load."""
        return self.slot_starts + self.slots + 1

    @property
    def operation_inputs(self) -> int:
        """First word of the operations' input offsets: chunks from the stage's start to row 0, not swizzled."""
        return self.panel_ids + self.panels

    @property
    def piece_starts(self) -> int:
        """First word of the operations' places in W, in chunks."""
        return self.operation_inputs + self.operations

    @property
    def words(self) -> int:
        """Words of a record, a whole number of 16-byte chunks; warps read `READ_AHEAD` input offsets past the last."""
        return (
            -(-max(self.piece_starts + self.operations, self.operation_inputs + self.operations + READ_AHEAD) // 4) * 4
        )


Item = tuple[int, int, int, int]  # panel, chunks to the inputs inside it, slot, first chunk of the weights


def tile_items(parts: Sequence[Part | None], op: Op, geo: Geometry) -> list[Item]:
    """Every piece that a tile multiplies, ordered by panel and slot."""
    found = [_part_items(part, slot, op, geo) for slot, part in enumerate(parts) if part is not None and part.work]
    if not found:
        return []
    items = np.concatenate(found)
    return [tuple(item) for item in items[np.lexsort((items[:, 1], items[:, 2], items[:, 0]))].tolist()]


def _part_items(part: Part, slot: int, op: Op, geo: Geometry) -> IntArray:
    slices = np.arange(geo.slices)
    feature = part.inputs[:, None].astype(np.int64) * geo.block + slices * geo.depth
    panel, column = np.divmod(feature, geo.shape.panel)
    slice_elements = geo.depth * (geo.block if op is Op.FPROP else 1)
    start = (part.blocks[:, None].astype(np.int64) * geo.block**2 + slices * slice_elements) // geo.chunk
    fields = (panel, geo.feature_offset(column), np.full_like(panel, slot), start)
    return np.stack([value.ravel() for value in fields], axis=1).astype(np.int32)


def pack(items: Sequence[Item], geo: Geometry) -> Iterator[Stage]:
    """Fill stages greedily, panel by panel; a panel whose weights exceed a stage is loaded again in the next.

    Every warp waits for the slowest at the end of a stage, so the panel that comes next is the one, of the first `WINDOW` that
    are left, that evens out the warps' shares of the stage best.
    """
    groups = [list(group) for _, group in groupby(items, key=itemgetter(0))]
    loads = _warp_loads(groups, geo)
    left = list(range(len(groups)))
    stage, shares = Stage(geo.shape.slots), np.zeros(geo.shape.warps_n)
    while left:
        index = left.pop(_evenest(shares + loads[left[:WINDOW]]))
        waiting = groups[index]
        if stage.panels and _size_with(stage, waiting, geo) > geo.stage_chunks:
            yield stage
            stage, shares = Stage(geo.shape.slots), np.zeros(geo.shape.warps_n)
        while waiting:
            waiting = _fill(stage, waiting, geo)
            if waiting:
                yield stage
                stage, shares = Stage(geo.shape.slots), np.zeros(geo.shape.warps_n)
        shares = shares + loads[index]
    if stage.panels:
        yield stage


def _warp_loads(groups: Sequence[Sequence[Item]], geo: Geometry) -> NDArray[np.float64]:
    """Operations that each panel brings each column of warps, [panels, warps_n]."""
    loads = np.zeros((len(groups), geo.shape.warps_n))
    for panel, group in enumerate(groups):
        for _, _, slot, _ in group:
            loads[panel, slot // geo.shape.slots_per_warp] += 1
    return loads


def _evenest(shares: NDArray[np.float64]) -> int:
    """The first row whose largest share exceeds the mean by least, relative to the mean."""
    return int(np.argmin(shares.max(axis=1) / shares.mean(axis=1)))


def _size_with(stage: Stage, items: Sequence[Item], geo: Geometry) -> int:
    return (len(stage.panels) + 1) * geo.panel_size + (stage.operations + len(items)) * geo.piece_chunks


def _fill(stage: Stage, items: list[Item], geo: Geometry) -> list[Item]:
    """Add one panel and as many of its items as fit; return the rest."""
    base = len(stage.panels) * geo.panel_size
    room = geo.stage_chunks - base - geo.panel_size - stage.operations * geo.piece_chunks
    count = min(len(items), room // geo.piece_chunks)
    stage.panels.append(items[0][0])
    stage.operations += count
    for _, column, slot, start in items[:count]:
        stage.work[slot].append((base + column, start))
    return items[count:]


def encode(stages: Sequence[Stage], geo: Geometry) -> tuple[RecordFormat, IntArray]:
    """The records of all stages of all tiles, [stages, words]."""
    form = RecordFormat(
        slots=geo.shape.slots,
        panels=max((len(stage.panels) for stage in stages), default=0),
        operations=max((stage.operations for stage in stages), default=0),
    )
    records = np.zeros((len(stages), form.words), np.int32)
    for record, stage in zip(records, stages, strict=True):
        _encode_one(record, stage, form)
    return form, records


def _encode_one(record: IntArray, stage: Stage, form: RecordFormat) -> None:
    record[0], record[1] = len(stage.panels), stage.operations
    record[form.panel_ids : form.panel_ids + len(stage.panels)] = stage.panels
    record[form.slot_starts : form.panel_ids] = np.cumsum([0, *map(len, stage.work)])
    terms = [term for work in stage.work for term in work]
    for first, values in ((form.operation_inputs, 0), (form.piece_starts, 1)):
        record[first : first + len(terms)] = [term[values] for term in terms]
