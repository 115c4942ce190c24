"""Follows the tables of Hopper plans as the kernel does: bytes of a stage's shared memory back to features and weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsgen.plan import HopperPlan
from bsgen.plan.ring_records import COUNT_BITS, PAIRED, PRODUCT_PAIRED, SECOND
from bsgen.problem import Op

Terms = tuple[NDArray[np.int64], NDArray[np.int64]]


def ring_terms(plan: HopperPlan, tile: int) -> list[Terms]:
    """For each slot of a tile: the features it reads [terms], and the elements of W that multiply them [terms, b]."""
    geo = plan.geometry
    features: list[list[NDArray[np.int64]]] = [[] for _ in range(geo.shape.tile_slots)]
    elements: list[list[NDArray[np.int64]]] = [[] for _ in range(geo.shape.tile_slots)]
    for stage in range(plan.tile_stages[tile], plan.tile_stages[tile + 1]):
        memory = _Stage(plan, plan.loads[stage]) if geo.shape.across == 1 else _SharedStage(plan, tile, stage)
        products = _products if geo.direct else _visits
        for slot, panel, piece in products(plan, plan.records[stage]):
            features[slot].append(memory.features(panel))
            elements[slot].append(memory.weights(piece))
    empty = np.zeros(0, np.int64), np.zeros((0, geo.block), np.int64)
    return [(np.concatenate(f), np.concatenate(e)) if f else empty for f, e in zip(features, elements, strict=True)]


def _visits(plan: HopperPlan, record: NDArray[np.int32]) -> Iterator[tuple[int, int, int]]:
    """Slot, byte of the panel and byte of the piece of each multiplication of a stage."""
    geo, words = plan.geometry, record.view(np.uint32).tolist()
    slots = geo.shape.slots
    for column in range(geo.shape.columns):
        first, count = (words[column] & 0xFFFF) // 4, words[column] >> 16
        for panel, visit in zip(words[first::2][:count], words[first + 1 :: 2][:count], strict=True):
            mask, piece = visit & 0xFF, (visit >> 16) * 16
            for slot in range(slots):
                if mask >> slot & 1:
                    yield column * slots + slot, panel, piece
                    piece += geo.piece_bytes


def _products(plan: HopperPlan, record: NDArray[np.int32]) -> Iterator[tuple[int, int, int]]:
    """The same, where panels are multiplied where they lie."""
    geo, words = plan.geometry, record.view(np.uint32).tolist()
    slots = geo.shape.slots
    for column in range(geo.shape.columns):
        at, counts = words[2 * column] // 4, words[2 * column + 1]
        for slot in range(slots):
            for product in words[at : at + (counts >> COUNT_BITS * slot & (1 << COUNT_BITS) - 1)]:
                panel = (product & PRODUCT_PAIRED - 1) << 4 | bool(product & PRODUCT_PAIRED) * PAIRED
                for each in range(geo.shape.product_slots):
                    yield column * slots + slot + each, panel, (product >> 16) * 16 + each * geo.piece_bytes
                at += 1


class _Stage:
    """What the loads of a stage put where."""

    def __init__(self, plan: HopperPlan, loads: NDArray[np.int32]) -> None:
        self.plan = plan
        copies, boxes, self.pairs = int(loads[0]) & 0xFF, int(loads[0]) >> 8 & 0xFF, int(loads[0]) >> 16
        self.panels = copies + self.pairs
        self.firsts = loads[1 : 1 + copies].tolist()
        self.boxes = loads[1 + copies : 1 + copies + boxes].tolist()

    def features(self, at: int) -> NDArray[np.int64]:
        """The features of the panel that the first word of a visit names."""
        geo = self.plan.geometry
        paired, second = at & PAIRED, bool(at & SECOND)
        position, inside = divmod(at & ~(PAIRED | SECOND), geo.panel_bytes)
        assert not inside, "a visit starts inside a panel"
        assert position < self.panels, "a visit reads past the panels of its stage"
        assert (position < 2 * self.pairs) == bool(paired), "a visit takes a pair for a panel"
        assert paired or not second, "a panel alone has no second half"
        assert not (paired and position % 2), "a visit starts inside a pair"
        copy = position // 2 if paired else position - self.pairs
        return np.asarray(self.firsts[copy] + second * geo.depth + np.arange(geo.depth, dtype=np.int64))

    def weights(self, at: int) -> NDArray[np.int64]:
        """The elements of W of the piece at a byte of the stage, [inputs, outputs]."""
        geo, fprop = self.plan.geometry, self.plan.problem.op is Op.FPROP
        first, inside = divmod(at - self.panels * geo.panel_bytes, geo.box_bytes)
        assert not inside, "a piece starts inside a box"
        assert 0 <= first <= len(self.boxes) - geo.piece_boxes, "a piece reads past the boxes of its stage"
        boxes = [self._box(place) for place in self.boxes[first : first + geo.piece_boxes]]
        return np.concatenate(boxes, axis=1) if fprop else boxes[0].T

    def _box(self, place: int) -> NDArray[np.int64]:
        geo: Any = self.plan.geometry
        row, column = divmod(place, geo.boxes_across)
        rows = row + np.arange(geo.box_rows, dtype=np.int64)[:, None]
        return np.asarray(rows * geo.block + column * geo.box_columns + np.arange(geo.box_columns))


class _SharedStage(_Stage):
    """The same where thread blocks across bring panels for each other."""

    def __init__(self, plan: HopperPlan, tile: int, stage: int) -> None:
        self.plan, across = plan, plan.geometry.shape.across
        group, rank = divmod(tile, across)
        self.there: dict[int, int] = {}  # panels by place
        for other in range(across):
            row = plan.loads[plan.tile_stages[group * across + other] + stage - plan.tile_stages[tile]].view(np.uint32)
            head = int(row[0])
            copies, boxes = head & 0xFF, head >> 8 & 0xFF
            for word in row[1 : 1 + copies].tolist():
                if word >> 24 >> rank & 1:
                    place = word >> 16 & 0xFF
                    assert place not in self.there, "two panels at one place"
                    self.there[place] = word & 0xFFFF
            if other == rank:
                self.panels, needed = head >> 16 & 0xFF, head >> 24  # the pieces lie behind all places
                self.boxes = row[1 + copies : 1 + copies + boxes].tolist()
        assert len(self.there) == needed, "other panels arrive than are waited for"

    def features(self, at: int) -> NDArray[np.int64]:
        """The features of the panel at a byte of the stage."""
        geo = self.plan.geometry
        place, inside = divmod(at, geo.panel_bytes)
        assert not inside, "a visit starts inside a panel"
        return np.asarray(self.there[place] * geo.depth + np.arange(geo.depth, dtype=np.int64))
