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
PAIRED, SECOND = 1, 64  # of a visit's panel: it is one of a pair; the second, whose rows are 64 bytes further
WINDOW = 24  # panels that are looked at to fill a stage

Item = tuple[int, int, int, int]  # panel, slot, stored block, slice of it


@dataclass
class RingStage:
    """One stage: `panels`, and for each of them its pieces as (slot, stored block, slice). Panels follow one another; the first
    `pairs` times two are neighbours that one copy brings."""

    panels: list[int] = field(default_factory=list)
    pieces: list[list[tuple[int, int, int]]] = field(default_factory=list)
    pairs: int = 0

    @property
    def piece_count(self) -> int:
        """Pieces of all panels."""
        return sum(map(len, self.pieces))

    @property
    def places(self) -> int:
        """Panels that lie ahead of the pieces."""
        return len(self.panels)

    def place_word(self, position: int, geo: WarpgroupGeometry) -> int:
        """Where a visit finds the panel at `position`."""
        if position >= 2 * self.pairs:
            return position * geo.panel_bytes
        pair, second = divmod(position, 2)
        return 2 * pair * geo.panel_bytes | PAIRED | second * SECOND

    def copy_words(self, boxes: int, geo: WarpgroupGeometry) -> list[int]:
        """The head, for so many boxes of W, and each copy's first feature, of pairs first."""
        firsts = [*self.panels[: 2 * self.pairs : 2], *self.panels[2 * self.pairs :]]
        return [len(firsts) | boxes << 8 | self.pairs << 16, *(panel * geo.depth for panel in firsts)]


def record_bytes(geo: WarpgroupGeometry) -> int:
    """Bytes of a stage's record: bounds and visits of each column of warpgroups, and zeros past the last visit."""
    columns, stage_bytes = geo.shape.columns, geo.shape.stage_bytes
    # A piece and half of a copy of two panels; a piece alone, where others bring panels; or a piece and a panel.
    most = MAXIMUM_LOADS * 2 // 3 if geo.shape.paired else MAXIMUM_LOADS if geo.shape.across > 1 else MAXIMUM_LOADS // 2
    panels = min(most, stage_bytes // (geo.panel_bytes + geo.piece_bytes))
    return -(-(4 * first_visit(columns) + VISIT_BYTES * (columns * panels + PAST_LAST)) // 16) * 16


def first_visit(columns: int) -> int:
    """Word of the first visit in a record: after the bounds, at a multiple of two."""
    return -(-columns // 2) * 2


def room(geo: WarpgroupGeometry) -> int:
    """Bytes of a stage for panels and pieces."""
    return geo.shape.stage_bytes - record_bytes(geo)


def tile_items(parts: Sequence[Part | None], geo: WarpgroupGeometry, first: int = 0) -> list[Item]:
    """Every piece that a tile multiplies, ordered by panel, from `first` on and then those before it, and slot."""
    found = [_part_items(part, slot, geo) for slot, part in enumerate(parts) if part is not None and part.work]
    if not found:
        return []
    items = np.concatenate(found)
    return [tuple(item) for item in items[np.lexsort((items[:, 1], items[:, 0], items[:, 0] < first))].tolist()]


def _part_items(part: Part, slot: int, geo: WarpgroupGeometry) -> IntArray:
    slices = np.arange(geo.slices)
    panel = part.inputs[:, None].astype(np.int64) * geo.slices + slices
    block, which = np.broadcast_arrays(part.blocks[:, None], slices)
    return np.stack([v.ravel() for v in (panel, np.full_like(panel, slot), block, which)], axis=1).astype(np.int32)


def pack(items: Sequence[Item], geo: WarpgroupGeometry) -> Iterator[RingStage]:
    """Fill stages copy by copy, in order; where the next does not fit, with one of the following that does.

    A panel whose pieces exceed a stage is loaded again in the next. Where panels may come in pairs, those at an even place and the
    next do, unless their pieces exceed a stage.
    """
    waiting = _chunks([list(group) for _, group in groupby(items, key=itemgetter(0))], geo)
    stage, used, loads = RingStage(), 0, 0
    while waiting:
        index = _next_that_fits(waiting, room(geo) - used, MAXIMUM_LOADS - loads, geo)
        if index is None:
            yield stage
            stage, used, loads = RingStage(), 0, 0
            continue
        chunk = waiting.pop(index)
        _add(stage, chunk)
        used += _bytes(chunk, geo)
        loads += _loads(chunk, geo)
    if stage.panels:
        yield stage


def _chunks(groups: Sequence[list[Item]], geo: WarpgroupGeometry) -> list[list[Item]]:
    """What is loaded together: a panel, or a pair of them, with as many of its pieces as fit a stage."""
    found: list[list[Item]] = []
    place = 0
    while place < len(groups):
        both = [item for group in groups[place : place + 2] for item in group]
        if geo.shape.paired and _are_pair(groups[place : place + 2]) and _fits(both, room(geo), MAXIMUM_LOADS, geo):
            found.append(both)
            place += 2
        else:
            found += _fitting(groups[place], geo)
            place += 1
    return found


def _are_pair(groups: Sequence[Sequence[Item]]) -> bool:
    panels = [group[0][0] for group in groups]
    return len(panels) == 2 and panels[0] % 2 == 0 and panels[1] == panels[0] + 1


def _add(stage: RingStage, chunk: Sequence[Item]) -> None:
    """Put a pair behind those that the stage has, a panel behind all."""
    groups = [(panel, list(group)) for panel, group in groupby(chunk, key=itemgetter(0))]
    at = 2 * stage.pairs if len(groups) == 2 else len(stage.panels)
    stage.panels[at:at] = [panel for panel, _ in groups]
    stage.pieces[at:at] = [[(slot, block, which) for _, slot, block, which in group] for _, group in groups]
    stage.pairs += len(groups) - 1


def _bytes(chunk: Sequence[Item], geo: WarpgroupGeometry) -> int:
    return len({item[0] for item in chunk}) * geo.panel_bytes + len(chunk) * geo.piece_bytes


def _loads(chunk: Sequence[Item], geo: WarpgroupGeometry) -> int:
    return 1 + len(chunk) * geo.piece_boxes


def _fits(chunk: Sequence[Item], space: int, loads: int, geo: WarpgroupGeometry) -> bool:
    return _bytes(chunk, geo) <= space and _loads(chunk, geo) <= loads


def _fitting(group: list[Item], geo: WarpgroupGeometry) -> list[list[Item]]:
    """A panel's pieces, in runs that fit a stage."""
    most = min((room(geo) - geo.panel_bytes) // geo.piece_bytes, (MAXIMUM_LOADS - 1) // geo.piece_boxes)
    return [group[i : i + most] for i in range(0, len(group), most)]


def _next_that_fits(waiting: Sequence[Sequence[Item]], left: int, loads: int, geo: WarpgroupGeometry) -> int | None:
    for index, chunk in enumerate(waiting[:WINDOW]):
        if _fits(chunk, left, loads, geo):
            return index
    return None


def encode_loads(stages: Sequence[RingStage], geo: WarpgroupGeometry) -> IntArray:
    """[stages, words]: a head; a word for each copy of panels; each box's place in W, row * boxes across + column.

    The head is copies | boxes << 8 | pairs << 16, the word of a copy its first feature, pairs first; where thread blocks across
    share panels, both are as plan/shared_rings.py says.
    """
    rows = [_load_words(stage, geo) for stage in stages]
    table = np.zeros((len(rows), max(map(len, rows), default=1)), np.int32)
    for row, words in zip(table, rows, strict=True):
        row[: len(words)] = words
    return table


def _load_words(stage: RingStage, geo: WarpgroupGeometry) -> list[int]:
    boxes = [box for pieces in stage.pieces for _, block, which in pieces for box in _boxes(block, which, geo)]
    return [*stage.copy_words(len(boxes), geo), *boxes]


def _boxes(block: int, which: int, geo: WarpgroupGeometry) -> list[int]:
    if geo.op is Op.FPROP:
        first = (block * geo.block + which * geo.depth) * geo.boxes_across
        return list(range(first, first + geo.piece_boxes))
    return [block * geo.block * geo.boxes_across + which]


def encode_records(stages: Sequence[RingStage], geo: WarpgroupGeometry) -> IntArray:
    """[stages, words]: byte of the first visit | visits << 16 for each column, then the visits, two words each.

    A visit is the place of a panel in bytes, of one in a pair that of the pair, with PAIRED and for the second SECOND; and the mask
    of the column's slots that use it, with the place of their first piece in 16 bytes << 16. The pieces follow one another by slot.
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
            place = (stage.places * geo.panel_bytes + piece * geo.piece_bytes) // 16
            visits[column] += [stage.place_word(position, geo), mask | place << 16]
            piece += len(members)
    for column, words in enumerate(visits):
        row[column] = word * 4 | len(words) // 2 << 16
        row[word : word + len(words)] = words
        word += len(words)
