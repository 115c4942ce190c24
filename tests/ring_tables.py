"""Reads the tables of Hopper plans, as their docstrings describe them, into what they mean in terms of the layout.

Written from the descriptions in plan/ring_records.py and plan/warpgroup.py and from the PTX ISA (matrix descriptors) alone, apart
from `bsgen.reference_rings` and the template, so that all three must agree: loads fill a model of a stage's shared memory, element
by element, and visits read it back as wgmma would.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from plan_tables import Term

from bsgen.outline import TensorMap
from bsgen.plan import HopperPlan
from bsgen.plan.ring_records import PAIRED, PRODUCT_PAIRED, SECOND
from bsgen.problem import Op

NOTHING = -1
SWIZZLES = {1: 128, 2: 64}  # bytes, by the code in a matrix descriptor


@dataclass(frozen=True)
class RingUse:
    """What a stage holds: places in bytes; the second panel of a pair counts as behind the first;
    `past` are the panel places of visits that are followed after a column's last; two more than it has are read."""

    loads: int
    panels: int
    boxes: int
    data_bytes: int
    panel_places: tuple[int, ...]
    piece_places: tuple[int, ...]
    past: tuple[int, ...]
    record_end: int


@dataclass(frozen=True)
class Visit:
    """One visit of a column of warpgroups: a panel by its place (of a pair, that of both), and the slots of the tile that use it,
    each with its piece."""

    column: int
    panel: int
    paired: bool
    second: bool
    pieces: tuple[tuple[int, int], ...]


def ring_terms(plan: HopperPlan) -> Iterator[Term]:
    """Every multiplication of every tile."""
    depth = plan.geometry.depth
    for tile in range(plan.tiles):
        for stage in range(plan.tile_stages[tile], plan.tile_stages[tile + 1]):
            features, weights = _memory(plan, stage) if plan.geometry.shape.across == 1 else _shared(plan, tile, stage)
            for visit in visits(plan, stage):
                begin = _first_feature(plan, features, visit)
                for slot, place in visit.pieces:
                    yield Term(tile, slot, begin, begin + depth, _read_piece(plan, weights, place))


def ring_uses(plan: HopperPlan) -> Iterator[RingUse]:
    """What each stage loads, reads and reads ahead."""
    for stage, loads in enumerate(plan.loads):
        if plan.geometry.shape.across == 1:
            copies, boxes, pairs = _counts(loads)
            panels = places = copies + pairs
        else:
            copies, boxes, places, panels = _shared_counts(loads)
            pairs = 0
        found = list(visits(plan, stage))
        words = _words(plan, stage)
        used = list(_ends(plan, words))
        yield RingUse(
            copies + boxes,
            panels,
            boxes,
            (places - 2 * pairs) * plan.geometry.panel_boxes * _box_bytes(plan, plan.activations)
            + (pairs and pairs * _box_bytes(plan, f"{plan.activations}_pairs"))
            + boxes * _box_bytes(plan, "w"),
            tuple(visit.panel + visit.second * plan.geometry.panel_bytes for visit in found),
            tuple(place for visit in found for _, place in visit.pieces),
            () if plan.geometry.direct else tuple(words[end // 4] & ~(PAIRED | SECOND) for end in used),
            max(used, default=0) + 2 * (4 if plan.geometry.direct else 8),
        )


def _ends(plan: HopperPlan, words: list[int]) -> Iterator[int]:
    """The byte behind the last visit, or product, of each column that has any."""
    for column in range(plan.geometry.shape.columns):
        if plan.geometry.direct:
            first, counts = words[2 * column], words[2 * column + 1].to_bytes(4, "little")
            if any(counts):
                yield first + 4 * sum(counts)
        elif words[column] >> 16:
            yield (words[column] & 0xFFFF) + (words[column] >> 16) * 8


def visits(plan: HopperPlan, stage: int) -> Iterator[Visit]:
    """The visits of a stage, column after column; a product counts as one."""
    return _products(plan, stage) if plan.geometry.direct else _visits(plan, stage)


def _products(plan: HopperPlan, stage: int) -> Iterator[Visit]:
    geo, words = plan.geometry, _words(plan, stage)
    for column in range(geo.shape.columns):
        first, counts = words[2 * column], words[2 * column + 1].to_bytes(4, "little")
        assert first % 4 == 0
        assert first >= geo.shape.columns * 8, "products begin inside the heads"
        assert not any(counts[geo.shape.slots :]), "products of a slot that does not exist"
        assert not (geo.shape.joined and any(counts[1:])), "joined products are the first slot's"
        slots = [slot for slot, count in enumerate(counts) for _ in range(count)]
        for slot, word in zip(slots, words[first // 4 :], strict=False):
            panel, piece = (word & 0xFFFF) % PRODUCT_PAIRED * 16, (word >> 16) * 16
            second = panel % 128 == 64
            assert word & PRODUCT_PAIRED or not second, "the second of no pair"
            own = range(slot, geo.shape.slots) if geo.shape.joined else (slot,)
            pieces = tuple((column * geo.shape.slots + s, piece + i * geo.piece_bytes) for i, s in enumerate(own))
            yield Visit(column, panel - second * 64, bool(word & PRODUCT_PAIRED), second, pieces)


def _visits(plan: HopperPlan, stage: int) -> Iterator[Visit]:
    geo, words = plan.geometry, _words(plan, stage)
    for column in range(geo.shape.columns):
        first, count = words[column] & 0xFFFF, words[column] >> 16
        assert first % 8 == 0, "pairs of words are read at once"
        assert first >= geo.shape.columns * 4, "visits begin inside the bounds"
        for at in range(first // 4, first // 4 + 2 * count, 2):
            mask, place = words[at + 1] & 0xFFFF, (words[at + 1] >> 16) * 16
            assert 0 < mask < 1 << geo.shape.slots, "a visit of no slot, or of one that does not exist"
            slots = [slot for slot in range(geo.shape.slots) if mask >> slot & 1]
            pieces = [(column * geo.shape.slots + slot, place + i * geo.piece_bytes) for i, slot in enumerate(slots)]
            flags = words[at] & (PAIRED | SECOND)
            assert flags != SECOND, "the second of no pair"
            yield Visit(column, words[at] - flags, bool(flags & PAIRED), bool(flags & SECOND), tuple(pieces))


def _words(plan: HopperPlan, stage: int) -> list[int]:
    words: list[int] = plan.records[stage].view(np.uint32).tolist()
    return words


def _counts(loads: np.ndarray) -> tuple[int, int, int]:
    """Copies of panels, boxes, and copies that bring two panels, of a stage; no word after them means anything."""
    copies, boxes, pairs = int(loads[0]) & 0xFF, int(loads[0]) >> 8 & 0xFF, int(loads[0]) >> 16
    assert copies > 0
    assert boxes > 0
    assert pairs <= copies
    assert not loads[1 + copies + boxes :].any()
    return copies, boxes, pairs


def _shared_counts(loads: np.ndarray) -> tuple[int, int, int, int]:
    """Issued copies of panels, boxes, places for panels, panels that arrive, of a stage that thread blocks across fill together."""
    copies, boxes, places, panels = loads[:1].view(np.uint8).tolist()
    assert panels <= places
    assert bool(panels) == bool(boxes), "a panel that nothing multiplies"
    assert not loads[1 + copies + boxes :].any()
    return copies, boxes, places, panels


def _map(plan: HopperPlan, name: str) -> TensorMap:
    (found,) = (tensor_map for tensor_map in plan.maps if tensor_map.argument == f"{name}_map")
    return found


def _box_bytes(plan: HopperPlan, name: str) -> int:
    tensor_map = _map(plan, name)
    return tensor_map.box_columns * tensor_map.box_rows * plan.problem.dtype.itemsize


def _memory(plan: HopperPlan, stage: int) -> tuple[np.ndarray, np.ndarray]:
    """Shared memory of a stage before the swizzle: the feature, or the element of W, at each place for an element."""
    loads, w = plan.loads[stage], _map(plan, "w")
    copies, boxes, pairs = _counts(loads)
    size = plan.geometry.shape.stage_bytes // plan.problem.dtype.itemsize
    features, weights = np.full(size, NOTHING, np.int32), np.full(size, NOTHING, np.int32)
    at = 0
    for copy, first in enumerate(loads[1 : 1 + copies].tolist()):
        activations = _map(plan, plan.activations + "_pairs" * (copy < pairs))
        if copy < pairs:
            assert first * plan.problem.dtype.itemsize % 128 == 0, "a pair crosses lines of 128 bytes"
            assert at * plan.problem.dtype.itemsize % 1024 == 0, "a pair crosses swizzle atoms"
        at = _fill(features, at, _panel(plan, activations, first))
    for place in loads[1 + copies : 1 + copies + boxes].tolist():
        at = _fill(weights, at, _box(w, place).ravel())
    return features, weights


def _shared(plan: HopperPlan, tile: int, stage: int) -> tuple[np.ndarray, np.ndarray]:
    """The same of a thread block whose neighbours bring panels, too."""
    geo, across, item = plan.geometry, plan.geometry.shape.across, plan.problem.dtype.itemsize
    size = geo.shape.stage_bytes // item
    features, weights = np.full(size, NOTHING, np.int32), np.full(size, NOTHING, np.int32)
    group, rank = divmod(tile, across)
    for other in range(across):
        begin, end = plan.tile_stages[group * across + other : group * across + other + 2].tolist()
        assert end - begin == plan.tile_stages[tile + 1] - plan.tile_stages[tile], (
            "neighbours have other numbers of stages"
        )
        loads = plan.loads[begin + stage - plan.tile_stages[tile]]
        copies, boxes, places, _ = _shared_counts(loads)
        for word in loads[1 : 1 + copies].tolist():
            panel, place, ranks = word & 0xFFFF, word >> 16 & 0xFF, word >> 24
            assert ranks >> other & 1, "a thread block brings what it does not need"
            assert 0 < ranks < 1 << across
            assert place < places
            if ranks >> rank & 1:
                at = place * geo.panel_bytes // item
                assert (features[at : at + geo.panel_bytes // item] == NOTHING).all(), "two panels at one place"
                _fill(features, at, _panel(plan, _map(plan, plan.activations), panel * geo.depth))
        if other == rank:
            at = places * geo.panel_bytes // item
            for place in loads[1 + copies : 1 + copies + boxes].tolist():
                at = _fill(weights, at, _box(_map(plan, "w"), place).ravel())
    return features, weights


def _panel(plan: HopperPlan, activations: TensorMap, first: int) -> np.ndarray:
    """The feature of each element of a panel: of rows side by side, or of boxes of rows a line each."""
    if plan.problem.feature_first:
        assert 0 <= first <= activations.rows - activations.box_rows, "a panel reaches past the features"
        box = np.repeat(np.arange(first, first + activations.box_rows), activations.box_columns)
        return np.tile(box, plan.geometry.shape.rows // activations.box_columns)
    assert 0 <= first <= activations.columns - activations.box_columns, "a panel reaches past the features"
    return np.tile(np.arange(first, first + activations.box_columns), activations.box_rows)


def _fill(memory: np.ndarray, at: int, values: np.ndarray) -> int:
    end = at + len(values)
    assert end <= len(memory), "loads run out of their stage"
    memory[at:end] = values
    return end


def _box(w: TensorMap, place: int) -> np.ndarray:
    """Elements of W in a box, by its place: row * boxes across + column of boxes."""
    row, column = divmod(place, w.columns // w.box_columns)
    assert 0 <= row <= w.rows - w.box_rows, "a box reaches past the end of W"
    rows, columns = row + np.arange(w.box_rows)[:, None], column * w.box_columns + np.arange(w.box_columns)
    return rows * w.columns + columns


def _first_feature(plan: HopperPlan, features: np.ndarray, visit: Visit) -> int:
    """The first feature of the panel that a visit reads; every row of the tile must hold the same."""
    item, depth, rows = plan.problem.dtype.itemsize, plan.geometry.depth, plan.geometry.shape.rows
    begin = visit.panel // item
    panel = features[begin : begin + (1 + visit.paired) * rows * depth]
    if visit.paired:
        panel = panel.reshape(rows, 2, depth)[:, int(visit.second)]
    if plan.problem.feature_first:
        panel = panel.reshape(rows // 64, depth, 64).transpose(0, 2, 1)
    panel = panel.reshape(rows, depth)
    begin = int(panel[0, 0])
    assert begin != NOTHING, "a visit reads what no panel fills"
    assert (panel == np.arange(begin, begin + depth)).all(), "a visit reads across panels"
    return begin


def _read_piece(plan: HopperPlan, weights: np.ndarray, place: int) -> np.ndarray:
    """Elements of W of a piece at a byte of the stage, [inputs, outputs], by the strides of its matrix descriptor."""
    geo, item = plan.geometry, plan.problem.dtype.itemsize
    line = SWIZZLES[geo.weights_high >> 30]
    groups, side = (geo.weights_high & 0x3FFF) * 16, (geo.weights_low >> 16) * 16
    inputs, outputs = np.arange(geo.depth)[:, None], np.arange(geo.block)[None, :]
    step, inside = inputs // geo.step * geo.weights_step * 16, inputs % geo.step
    if plan.problem.op is Op.FPROP:  # rows are inputs; outputs run along lines that lie side by side
        rows = inside // 8 * groups + inside % 8 * line
        at = step + rows + outputs * item // line * side + outputs * item % line
    else:  # rows are outputs, inputs run along them
        at = step + inside * item + outputs // 8 * groups + outputs % 8 * line
    elements = weights[(place + at) // item]
    assert (elements != NOTHING).all(), "a piece reads what no box fills"
    return elements
