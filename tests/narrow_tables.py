"""Reads the tables of Hopper plans for narrow blocks, as their docstrings describe them, into what they mean for the layout.

Written from the descriptions in plan/narrow_stages.py alone, apart from `bsgen.reference_narrow` and the template: loads fill a
model of a stage's shared memory, element by element, and operations read it back.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from plan_tables import Term

from bsgen.plan import HopperNarrowPlan
from bsgen.problem import Op

NOTHING, RECORD, FEATURE = -1, -2, 1 << 40  # what a place holds, beside elements of W and FEATURE + features


def narrow_terms(plan: HopperNarrowPlan) -> Iterator[Term]:
    """Every operation of every tile, and the checks of what stages hold."""
    block, op = plan.problem.block_size, plan.problem.op
    for tile in range(plan.tiles):
        for stage in range(plan.tile_stages[tile], plan.tile_stages[tile + 1]):
            memory = _memory(plan, stage)
            read = set()
            for slot, inputs, weights in _operations(plan, stage):
                begin = _first_feature(plan, memory, inputs)
                elements = memory[weights // 2 : weights // 2 + block**2]
                assert ((elements >= 0) & (elements < FEATURE)).all(), "an operation reads what is no weight"
                assert weights not in read, "two operations read one block"
                read.add(weights)
                square = elements.reshape(block, block)
                yield Term(tile, slot, begin, begin + block, square if op is Op.FPROP else square.T)
            assert len(read) * block**2 == ((memory >= 0) & (memory < FEATURE)).sum(), "a block that nobody reads"


def _memory(plan: HopperNarrowPlan, stage: int) -> np.ndarray:
    """Shared memory of a stage before the swizzle, in places for elements of two bytes."""
    shape = plan.geometry.shape
    memory = np.full(shape.stage_bytes // 2, NOTHING, np.int64)
    (start, sizes), *rest = plan.loads[stage].view(np.uint32).astype(np.int64).tolist()
    record, whole = (sizes & 0xFFFF) * 16, (sizes >> 16) * 16
    assert start == plan.record_starts[stage]
    assert plan.record_starts[stage + 1] - start == record // 16
    _fill(memory, shape.stage_bytes - record, np.full(record // 2, RECORD))
    filled, panels = record, 0
    for place, word in rest:
        if word:
            at, size = (word & 0xFFFF) * 16, (word >> 16) * 16
            _fill(memory, at, place * 8 + np.arange(size // 2))
        elif place < 1 << 31:
            at, size = panels * plan.geometry.panel_bytes, plan.geometry.panel_bytes
            assert place % shape.panel == 0
            _fill(memory, at, _panel(plan, place))
            panels += 1
        else:
            continue
        assert at % (16 if word else _atom_bytes(plan)) == 0, "TMA writes whole swizzle atoms, bulk copies whole chunks"
        filled += size
    assert filled == whole, "the barrier waits for other bytes than come"
    assert panels > 0
    loads = [place for place, word in rest if word or place < 1 << 31]
    assert len(loads) < plan.geometry.shape.loaders, "a thread for each load beside the record's"
    assert len(loads) == len(rest) or all(word == 0 and place >= 1 << 31 for place, word in rest[len(loads) :])
    return memory


def _line_rows(plan: HopperNarrowPlan) -> int:
    """Rows of a feature in a line of at most 128 bytes; taller panels have several boxes."""
    return min(64, plan.geometry.shape.rows)


def _atom_bytes(plan: HopperNarrowPlan) -> int:
    """Where boxes may begin."""
    return 8 * 2 * _line_rows(plan) if plan.problem.feature_first else 1024


def _panel(plan: HopperNarrowPlan, first: int) -> np.ndarray:
    """A panel's elements, before the swizzle: rows of features, or in each box features of rows."""
    shape, features = plan.geometry.shape, FEATURE + np.arange(first, first + plan.geometry.shape.panel)
    if not plan.problem.feature_first:
        return np.tile(features, shape.rows)
    return np.tile(np.repeat(features, _line_rows(plan)), shape.rows // _line_rows(plan))


def _fill(memory: np.ndarray, at: int, values: np.ndarray) -> None:
    place = slice(at // 2, at // 2 + len(values))
    assert at >= 0
    assert at // 2 + len(values) <= len(memory), "a load runs out of its stage"
    assert (memory[place] == NOTHING).all(), "two loads in one place"
    memory[place] = values


def _operations(plan: HopperNarrowPlan, stage: int) -> Iterator[tuple[int, int, int]]:
    """Slot, and bytes of inputs and weights; what is read past the last is safe to follow."""
    geo, shape = plan.geometry, plan.geometry.shape
    words = plan.records[4 * plan.record_starts[stage] : 4 * plan.record_starts[stage + 1]]
    start = shape.stage_bytes - words.nbytes
    bounds = words[len(words) - plan.bounds_bytes // 4 :]
    lists, size = (shape.warps, 128 // geo.block) if geo.turned else (shape.tile_slots, 8)
    assert plan.bounds_bytes >= 4 * (lists + 1)
    assert plan.operation_bytes == size
    assert (np.diff(bounds[: lists + 1]) >= 0).all()
    counts = []
    for index in range(lists):
        first, end = int(bounds[index]), int(bounds[index + 1])
        first = (first + 15) // 16 * 16 if geo.paired and not geo.turned else first
        assert (end - first) % size == 0
        counts.append((end - first) // size)
        for at in range(first, end, size):
            operation = words[(at - start) // 4 : (at - start + size) // 4].tolist()
            yield from _turned(plan, index, operation) if geo.turned else [(index, operation[0], operation[1])]
    assert not geo.turned or all(len(set(counts[i : i + 4])) == 1 for i in range(0, lists, 4)), (
        "warps multiply by fours"
    )
    last = (int(bounds[lists]) + 15) // 16 * 16 - start
    assert not words[last // 4 : last // 4 + 2].any(), "past the last operation comes one of zeros"
    assert last + 16 <= words.nbytes, "warps read one round past the last operation"
    assert not geo.turned or int(bounds[lists]) + 2 * size <= shape.stage_bytes - plan.bounds_bytes, (
        "and two where turned"
    )


def _turned(plan: HopperNarrowPlan, warp: int, words: list[int]) -> Iterator[tuple[int, int, int]]:
    """The same of a turned operation: its inputs are those of all four warps, and it has at most one block for each of its words'
    halves; for b = 16 one."""
    blocks = {16: 1, 8: 2}[plan.problem.block_size]
    assert len(set(words[::2])) == 1, "16 inputs, wherever their blocks lie"
    for k, word in enumerate(words[1::2]):
        for output in range(blocks):
            place = word >> 16 * output & 0xFFFF
            if place:
                yield (
                    warp * blocks + output,
                    words[0] * 16 + k * (1024 if plan.problem.feature_first else 16),
                    place * 16,
                )


def _first_feature(plan: HopperNarrowPlan, memory: np.ndarray, place: int) -> int:
    """The first feature of an operation's inputs; every row of the tile must hold the same."""
    shape, block = plan.geometry.shape, plan.problem.block_size
    panel, inside = divmod(place, plan.geometry.panel_bytes)
    start = panel * plan.geometry.panel_bytes // 2
    elements = memory[start : start + shape.rows * shape.panel]
    if plan.problem.feature_first:
        line, boxes = _line_rows(plan), elements.reshape(-1, shape.panel, _line_rows(plan))
        assert inside < shape.panel * 2 * line, "an operation starts below row 0"
        assert inside % _atom_bytes(plan) == 0, "a lane's place in a swizzle atom is the same for all operations"
        rows = boxes.transpose(0, 2, 1).reshape(shape.rows, shape.panel)
        inside //= line
    else:
        assert inside < 2 * shape.panel, "an operation starts below row 0"
        assert inside % (2 * block) == 0, "the kernel steps along the inputs of an operation by exclusive or"
        rows = elements.reshape(shape.rows, shape.panel)
    features = rows[:, inside // 2 : inside // 2 + block]
    begin = int(features[0, 0])
    assert (features == np.arange(begin, begin + block)).all()
    assert begin >= FEATURE, "an operation reads what is no panel"
    return begin - FEATURE
