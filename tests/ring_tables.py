"""Reads the tables of Hopper plans, as their docstrings describe them, into what they mean in terms of the layout.

Written from the descriptions in plan/rings.py and plan/warpgroup.py and from the PTX ISA (matrix descriptors) alone, apart from
`bsgen.reference_rings` and the template, so that all three must agree: loads fill a model of a stage's shared memory, element by
element, and visits read it back as wgmma would.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from plan_tables import Term

from bsgen.outline import TensorMap
from bsgen.plan import HopperPlan
from bsgen.problem import Op

NOTHING = -1
SWIZZLES = {1: 128, 2: 64}  # bytes, by the code in a matrix descriptor


@dataclass(frozen=True)
class RingUse:
    """What a stage holds: places in bytes; `past` are the panel places of visits that are read after a column's last."""

    panels: int
    boxes: int
    data_bytes: int
    panel_places: tuple[int, ...]
    piece_places: tuple[int, ...]
    past: tuple[int, ...]
    record_end: int


@dataclass(frozen=True)
class Visit:
    """One visit of a column of warpgroups: a panel, and the slots of the tile that use it, each with its piece."""

    column: int
    panel: int
    pieces: tuple[tuple[int, int], ...]


def ring_terms(plan: HopperPlan) -> Iterator[Term]:
    """Every multiplication of every tile."""
    depth = plan.geometry.depth
    for tile in range(plan.tiles):
        for stage in range(plan.tile_stages[tile], plan.tile_stages[tile + 1]):
            features, weights = _memory(plan, stage)
            for visit in visits(plan, stage):
                begin = _first_feature(plan, features, visit.panel)
                for slot, place in visit.pieces:
                    yield Term(tile, slot, begin, begin + depth, _read_piece(plan, weights, place))


def ring_uses(plan: HopperPlan) -> Iterator[RingUse]:
    """What each stage loads, reads and reads ahead."""
    for stage, loads in enumerate(plan.loads):
        panels, boxes = _counts(loads)
        found = list(visits(plan, stage))
        words = _words(plan, stage)
        ends = [(words[column] & 0xFFFF) + (words[column] >> 16) * 8 for column in range(plan.geometry.shape.columns)]
        used = [end for column, end in enumerate(ends) if words[column] >> 16]
        yield RingUse(
            panels,
            boxes,
            panels * plan.geometry.panel_boxes * _box_bytes(plan, 0) + boxes * _box_bytes(plan, 1),
            tuple(visit.panel for visit in found),
            tuple(place for visit in found for _, place in visit.pieces),
            tuple(words[end // 4] for end in used),
            max(used, default=0),
        )


def visits(plan: HopperPlan, stage: int) -> Iterator[Visit]:
    """The visits of a stage, column after column."""
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
            yield Visit(column, words[at], tuple(pieces))


def _words(plan: HopperPlan, stage: int) -> list[int]:
    words: list[int] = plan.records[stage].view(np.uint32).tolist()
    return words


def _counts(loads: np.ndarray) -> tuple[int, int]:
    """Panels and boxes of a stage; no word after them means anything."""
    panels, boxes = int(loads[0]) & 0xFF, int(loads[0]) >> 8
    assert panels > 0
    assert boxes > 0
    assert not loads[1 + panels + boxes :].any()
    return panels, boxes


def _box_bytes(plan: HopperPlan, which: int) -> int:
    tensor_map = plan.maps[which]
    return tensor_map.box_columns * tensor_map.box_rows * plan.problem.dtype.itemsize


def _memory(plan: HopperPlan, stage: int) -> tuple[np.ndarray, np.ndarray]:
    """Shared memory of a stage before the swizzle: the feature, or the element of W, at each place for an element."""
    loads, (activations, w) = plan.loads[stage], plan.maps[:2]
    panels, boxes = _counts(loads)
    size = plan.geometry.shape.stage_bytes // plan.problem.dtype.itemsize
    features, weights = np.full(size, NOTHING, np.int32), np.full(size, NOTHING, np.int32)
    at = 0
    for first in loads[1 : 1 + panels].tolist():
        at = _fill(features, at, _panel(plan, activations, first))
    for place in loads[1 + panels : 1 + panels + boxes].tolist():
        at = _fill(weights, at, _box(w, place).ravel())
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


def _first_feature(plan: HopperPlan, features: np.ndarray, place: int) -> int:
    """The first feature of the panel at a byte of the stage; every row of the tile must hold the same."""
    item, depth, rows = plan.problem.dtype.itemsize, plan.geometry.depth, plan.geometry.shape.rows
    panel = features[place // item : place // item + rows * depth]
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
