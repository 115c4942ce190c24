"""What a stage of the Hopper kernels holds, and how kernels are told: what TMA loads, and what each warpgroup multiplies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from bsgen.plan.blocks import IntArray
from bsgen.plan.warpgroup import WarpgroupGeometry
from bsgen.problem import Op

MAXIMUM_LOADS = 31  # a lane of the loading warp each, beside the head
PAIRED, SECOND = 1, 64  # of a panel's place: it is one of a pair; the second, whose rows are 64 bytes further
VISIT_WORDS, PRODUCT_WORDS = 2, 1
PAST_LAST = 2  # visits, or products, that are read, but not followed, after the last
COUNT_BITS, MOST_COUNTED = 8, 4  # of the number of products of a slot; slots whose numbers are one word
PRODUCT_PAIRED = 1 << 15  # of a product's panel: it is one of a pair


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
        """The byte of the panel at `position`; of one in a pair that of the pair, with PAIRED, and for the second SECOND."""
        if position >= 2 * self.pairs:
            return position * geo.panel_bytes
        pair, second = divmod(position, 2)
        return 2 * pair * geo.panel_bytes | PAIRED | second * SECOND

    def copy_words(self, boxes: int, geo: WarpgroupGeometry) -> list[int]:
        """The head, for so many boxes of W, and each copy's first feature, of pairs first."""
        firsts = [*self.panels[: 2 * self.pairs : 2], *self.panels[2 * self.pairs :]]
        return [len(firsts) | boxes << 8 | self.pairs << 16, *(panel * geo.depth for panel in firsts)]


def record_bytes(geo: WarpgroupGeometry) -> int:
    """Bytes of a stage's record: its head, as many visits or products as a stage may have, and zeros past the last."""
    columns = geo.shape.columns
    if geo.direct:
        words = 2 * columns + PRODUCT_WORDS * (MAXIMUM_LOADS + PAST_LAST)
    else:
        words = _first_visit(columns) + VISIT_WORDS * (columns * _most_panels(geo) + PAST_LAST)
    return -(-4 * words // 16) * 16


def _most_panels(geo: WarpgroupGeometry) -> int:
    """Panels of a stage, by the loads of each: a piece and half of a copy of two panels; a piece alone, where others bring panels;
    or a piece and a panel."""
    loads = 1.5 if geo.shape.paired else 1 if geo.shape.across > 1 else 2
    return min(int(MAXIMUM_LOADS / loads), geo.shape.stage_bytes // (geo.panel_bytes + geo.piece_bytes))


def _first_visit(columns: int) -> int:
    """Word of the first visit in a record: after the bounds, at a multiple of two."""
    return -(-columns // 2) * 2


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
    """[stages, words]: of each stage its visits, or where panels are multiplied where they lie its products.

    Visits: byte of the first | visits << 16 for each column of warpgroups, then the visits, two words each. A visit is the place
    of a panel; and the mask of the column's slots that use it, with the place of their first piece in 16 bytes << 16. The pieces
    follow one another by slot.

    Products: for each column the byte of its first, and how many each of its slots has, COUNT_BITS each; then the products of
    slot after slot, a word each: the place of a panel in 16 bytes, with PRODUCT_PAIRED for one of a pair; that of a piece << 16.
    Joined ones are the first slot's: their pieces begin at this one.
    """
    encode = _encode_products if geo.direct else _encode_visits
    table = np.zeros((len(stages), record_bytes(geo) // 4), np.int64)
    for row, stage in zip(table, stages, strict=True):
        encode(row, stage, geo)
    return table.astype(np.uint32).view(np.int32)


def _encode_visits(row: np.ndarray, stage: RingStage, geo: WarpgroupGeometry) -> None:
    slots, word = geo.shape.slots, _first_visit(geo.shape.columns)
    visits: list[list[int]] = [[] for _ in range(geo.shape.columns)]
    piece = 0
    for position, pieces in enumerate(stage.pieces):
        for column, run in groupby(pieces, key=lambda p: p[0] // slots):
            members = list(run)
            mask = sum(1 << slot % slots for slot, _, _ in members)
            visits[column] += [stage.place_word(position, geo), mask | _piece_place(stage, piece, geo) << 16]
            piece += len(members)
    for column, words in enumerate(visits):
        row[column] = word * 4 | len(words) // VISIT_WORDS << 16
        row[word : word + len(words)] = words
        word += len(words)


def _encode_products(row: np.ndarray, stage: RingStage, geo: WarpgroupGeometry) -> None:
    slots, word = geo.shape.slots, 2 * geo.shape.columns
    products: list[list[int]] = [[] for _ in range(geo.shape.tile_slots)]
    piece = 0
    for position, pieces in enumerate(stage.pieces):
        place = stage.place_word(position, geo)
        panel = place >> 4 | (place & PAIRED) * PRODUCT_PAIRED
        for slot, _, _ in pieces[:: geo.shape.product_slots]:
            products[slot].append(panel | _piece_place(stage, piece, geo) << 16)
            piece += geo.shape.product_slots
    for column in range(geo.shape.columns):
        own = products[column * slots : (column + 1) * slots]
        row[2 * column : 2 * column + 2] = word * 4, sum(len(each) << COUNT_BITS * i for i, each in enumerate(own))
        for words in own:
            row[word : word + len(words)] = words
            word += len(words)


def _piece_place(stage: RingStage, piece: int, geo: WarpgroupGeometry) -> int:
    """Where a piece is, in 16 bytes."""
    return (stage.places * geo.panel_bytes + piece * geo.piece_bytes) // 16
