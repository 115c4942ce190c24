"""Cuts the work of a tile into pipeline stages: which panels to load, which pieces of W, which operations follow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter

import numpy as np

from bsgen.plan.blocks import IntArray, Part
from bsgen.plan.tile import Geometry
from bsgen.problem import Op

NO_PIECE = -1


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
    pieces: int

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
        """First word of the operations' input offsets, in chunks from the stage's start, two halves when paired."""
        return self.panel_ids + self.panels

    @property
    def piece_starts(self) -> int:
        """First word of the pieces' places in W, in chunks, `NO_PIECE` for zeros."""
        return self.operation_inputs + self.operations

    @property
    def words(self) -> int:
        """Words of a record, a whole number of 16-byte chunks."""
        return -(-(self.piece_starts + self.operations * self.pieces) // 4) * 4


Item = tuple[int, int, int, int]  # panel, chunk column inside it, slot, first chunk of the weights


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
    fields = (panel, column // geo.chunk, np.full_like(panel, slot), start)
    return np.stack([value.ravel() for value in fields], axis=1).astype(np.int32)


def zero_column(geo: Geometry) -> int:
    """Chunk offset of the stage's column of zeros, the partner of a block that found none."""
    return geo.stage_chunks - geo.panel_pitch


def stage_room(geo: Geometry) -> int:
    """Chunks of a stage that loads may fill."""
    return zero_column(geo) if geo.pieces == 2 else geo.stage_chunks


def pack(items: Sequence[Item], geo: Geometry) -> Iterator[Stage]:
    """Fill stages greedily, panel by panel; a panel whose weights exceed a stage is loaded again in the next."""
    stage = Stage(geo.shape.slots)
    for _, group in groupby(items, key=itemgetter(0)):
        waiting = list(group)
        if stage.panels and _size_with(stage, waiting, geo) > stage_room(geo):
            yield stage
            stage = Stage(geo.shape.slots)
        while waiting:
            waiting = _fill(stage, waiting, geo)
            if waiting:
                yield stage
                stage = Stage(geo.shape.slots)
    if stage.panels:
        yield stage


def _size_with(stage: Stage, items: Sequence[Item], geo: Geometry) -> int:
    more: dict[int, int] = {}
    for item in items:
        more[item[2]] = more.get(item[2], 0) + 1
    operations = stage.operations
    for slot, count in more.items():
        have = len(stage.work[slot])
        operations += -(-(have + count) // geo.pieces) - -(-have // geo.pieces)
    return (len(stage.panels) + 1) * geo.panel_size + operations * geo.operation_chunks


def _fill(stage: Stage, items: list[Item], geo: Geometry) -> list[Item]:
    """Add one panel and as many of its items as fit; return the rest."""
    base = len(stage.panels) * geo.panel_size
    used = base + geo.panel_size
    stage.panels.append(items[0][0])
    for index, (_, column, slot, start) in enumerate(items):
        work = stage.work[slot]
        opens = len(work) % geo.pieces == 0
        if opens and used + (stage.operations + 1) * geo.operation_chunks > stage_room(geo):
            return items[index:]
        stage.operations += opens
        work.append((base + column * geo.panel_pitch, start))
    return []


def encode(stages: Sequence[Stage], geo: Geometry) -> tuple[RecordFormat, IntArray]:
    """The records of all stages of all tiles, [stages, words]."""
    form = RecordFormat(
        slots=geo.shape.slots,
        panels=max((len(stage.panels) for stage in stages), default=0),
        operations=max((stage.operations for stage in stages), default=0),
        pieces=geo.pieces,
    )
    records = np.zeros((len(stages), form.words), np.int32)
    for record, stage in zip(records, stages, strict=True):
        _encode_one(record, stage, form, geo)
    return form, records


def _encode_one(record: IntArray, stage: Stage, form: RecordFormat, geo: Geometry) -> None:
    record[0], record[1] = len(stage.panels), stage.operations
    record[form.panel_ids : form.panel_ids + len(stage.panels)] = stage.panels
    inputs: list[int] = []
    starts: list[int] = []
    bounds = [0]
    for work in stage.work:
        if geo.pieces == 2 and len(work) % 2:
            work = [*work, (zero_column(geo), NO_PIECE)]
        offsets = [offset for offset, _ in work]
        inputs += offsets if geo.pieces == 1 else [a | b << 16 for a, b in zip(offsets[::2], offsets[1::2], strict=True)]
        starts += [start for _, start in work]
        bounds.append(len(inputs))
    record[form.slot_starts : form.panel_ids] = bounds
    record[form.operation_inputs : form.operation_inputs + len(inputs)] = np.array(inputs, np.uint32).view(np.int32)
    record[form.piece_starts : form.piece_starts + len(starts)] = starts
