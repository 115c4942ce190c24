"""Cuts a tile of the Hopper kernels into the stages of its ring: what TMA loads for each, and what each warpgroup multiplies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter

import numpy as np

from bsgen.plan.blocks import IntArray, Part
from bsgen.plan.warpgroup import WarpgroupGeometry
from bsgen.problem import Op

MAXIMUM_LOADS = 31  # a lane of the loading warp each, beside the head
VISIT_BYTES, PAST_LAST = 8, 2  # of shared memory; visits that are read, but not followed, after the last
WINDOW = 24  # panels that are looked at to fill a stage

Item = tuple[int, int, int, int]  # panel, slot, stored block, slice of it


@dataclass
class RingStage:
    """One stage: `panels`, and for each of them its pieces as (slot, stored block, slice)."""

    panels: list[int] = field(default_factory=list)
    pieces: list[list[tuple[int, int, int]]] = field(default_factory=list)

    @property
    def piece_count(self) -> int:
        """Pieces of all panels."""
        return sum(map(len, self.pieces))


def record_bytes(geo: WarpgroupGeometry) -> int:
    """Bytes of a stage's record: bounds and visits of each column of warpgroups, and zeros past the last visit."""
    columns, stage_bytes = geo.shape.columns, geo.shape.stage_bytes
    panels = min(MAXIMUM_LOADS // 2, stage_bytes // (geo.panel_bytes + geo.piece_bytes))
    return -(-(4 * first_visit(columns) + VISIT_BYTES * (columns * panels + PAST_LAST)) // 16) * 16


def first_visit(columns: int) -> int:
    """Word of the first visit in a record: after the bounds, at a multiple of two."""
    return -(-columns // 2) * 2


def room(geo: WarpgroupGeometry) -> int:
    """Bytes of a stage for panels and pieces."""
    return geo.shape.stage_bytes - record_bytes(geo)


def tile_items(parts: Sequence[Part | None], geo: WarpgroupGeometry) -> list[Item]:
    """Every piece that a tile multiplies, ordered by panel and slot."""
    found = [_part_items(part, slot, geo) for slot, part in enumerate(parts) if part is not None and part.work]
    if not found:
        return []
    items = np.concatenate(found)
    return [tuple(item) for item in items[np.lexsort((items[:, 1], items[:, 0]))].tolist()]


def _part_items(part: Part, slot: int, geo: WarpgroupGeometry) -> IntArray:
    slices = np.arange(geo.slices)
    panel = part.inputs[:, None].astype(np.int64) * geo.slices + slices
    block, which = np.broadcast_arrays(part.blocks[:, None], slices)
    return np.stack([v.ravel() for v in (panel, np.full_like(panel, slot), block, which)], axis=1).astype(np.int32)


def pack(items: Sequence[Item], geo: WarpgroupGeometry) -> Iterator[RingStage]:
    """Fill stages panel by panel, in order; where the next does not fit, with one of the following that does.

    A panel whose pieces exceed a stage is loaded again in the next.
    """
    left = [_fitting(list(group), geo) for _, group in groupby(items, key=itemgetter(0))]
    waiting = [chunk for chunks in left for chunk in chunks]
    stage, used, loads = RingStage(), 0, 0
    while waiting:
        index = _next_that_fits(waiting, room(geo) - used, MAXIMUM_LOADS - loads, geo)
        if index is None:
            yield stage
            stage, used, loads = RingStage(), 0, 0
            continue
        chunk = waiting.pop(index)
        stage.panels.append(chunk[0][0])
        stage.pieces.append([(slot, block, which) for _, slot, block, which in chunk])
        used += _bytes(chunk, geo)
        loads += _loads(chunk, geo)
    if stage.panels:
        yield stage


def _bytes(chunk: Sequence[Item], geo: WarpgroupGeometry) -> int:
    return geo.panel_bytes + len(chunk) * geo.piece_bytes


def _loads(chunk: Sequence[Item], geo: WarpgroupGeometry) -> int:
    return 1 + len(chunk) * geo.piece_boxes


def _fitting(group: list[Item], geo: WarpgroupGeometry) -> list[list[Item]]:
    """A panel's pieces, in runs that fit a stage."""
    most = min((room(geo) - geo.panel_bytes) // geo.piece_bytes, (MAXIMUM_LOADS - 1) // geo.piece_boxes)
    return [group[i : i + most] for i in range(0, len(group), most)]


def _next_that_fits(waiting: Sequence[Sequence[Item]], left: int, loads: int, geo: WarpgroupGeometry) -> int | None:
    for index, chunk in enumerate(waiting[:WINDOW]):
        if _bytes(chunk, geo) <= left and _loads(chunk, geo) <= loads:
            return index
    return None


def encode_loads(stages: Sequence[RingStage], geo: WarpgroupGeometry) -> IntArray:
    """[stages, words]: panels | boxes << 8; each panel's first feature; each box's place in W, row * boxes across + column."""
    widest = max((len(s.panels) + s.piece_count * geo.piece_boxes for s in stages), default=0)
    table = np.zeros((len(stages), widest + 1), np.int32)
    for row, stage in zip(table, stages, strict=True):
        boxes = [box for pieces in stage.pieces for _, block, which in pieces for box in _boxes(block, which, geo)]
        row[0] = len(stage.panels) | len(boxes) << 8
        row[1 : 1 + len(stage.panels)] = np.array(stage.panels) * geo.depth
        row[1 + len(stage.panels) : 1 + len(stage.panels) + len(boxes)] = boxes
    return table


def _boxes(block: int, which: int, geo: WarpgroupGeometry) -> list[int]:
    if geo.op is Op.FPROP:
        first = (block * geo.block + which * geo.depth) * geo.boxes_across
        return list(range(first, first + geo.piece_boxes))
    return [block * geo.block * geo.boxes_across + which]


def encode_records(stages: Sequence[RingStage], geo: WarpgroupGeometry) -> IntArray:
    """[stages, words]: byte of the first visit | visits << 16 for each column, then the visits, two words each.

    A visit is the place of a panel in bytes; and the mask of the column's slots that use it, with the place of their first
    piece in 16 bytes << 16. The pieces follow one another by slot.
    """
    table = np.zeros((len(stages), record_bytes(geo) // 4), np.int64)
    for row, stage in zip(table, stages, strict=True):
        _encode_record(row, stage, geo)
    return table.astype(np.uint32).view(np.int32)


def _encode_record(row: np.ndarray, stage: RingStage, geo: WarpgroupGeometry) -> None:
    slots, word = geo.shape.slots, first_visit(geo.shape.columns)
    visits: list[list[int]] = [[] for _ in range(geo.shape.columns)]
    piece = 0
    for position, pieces in enumerate(stage.pieces):
        for column, run in groupby(pieces, key=lambda p: p[0] // slots):
            members = list(run)
            mask = sum(1 << slot % slots for slot, _, _ in members)
            place = (len(stage.panels) * geo.panel_bytes + piece * geo.piece_bytes) // 16
            visits[column] += [position * geo.panel_bytes, mask | place << 16]
            piece += len(members)
    for column, words in enumerate(visits):
        row[column] = word * 4 | len(words) // 2 << 16
        row[word : word + len(words)] = words
        word += len(words)
