"""A stage of the Hopper kernels for narrow blocks, and its record: what warps multiply, list by list, and where each list ends.

A list is a slot's, or where products are turned a warp's, whose multiply steps are those of its warpgroup: it takes part in them
with zeros where it has no block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from bsgen.plan.blocks import IntArray
from bsgen.plan.narrow_tile import NarrowGeometry
from bsgen.plan.registers import WARPGROUP_WARPS
from bsgen.plan.tile import CHUNK_BYTES

OPERATION_BYTES, PAST_LAST = 8, 2  # operations that are read, but not followed, after the last

Lists = list[list[int]]  # words


@dataclass
class NarrowStage:
    """One stage: `panels`, and as (position of the panel, input block inside it, slot, stored block) what is multiplied."""

    panels: list[int] = field(default_factory=list)
    operations: list[tuple[int, int, int, int]] = field(default_factory=list)

    @property
    def stored(self) -> list[int]:
        """The stored blocks, in the order of W."""
        return sorted(operation[3] for operation in self.operations)


def lists(geo: NarrowGeometry) -> int:
    """Lists of operations in a record."""
    return geo.shape.warps if geo.turned else geo.shape.tile_slots


def operation_bytes(geo: NarrowGeometry) -> int:
    """Bytes of an operation: two words, or as many for each input block of a turned multiply step."""
    return OPERATION_BYTES * (geo.step_blocks if geo.turned else 1)


def bounds_bytes(geo: NarrowGeometry) -> int:
    """Bytes of the bounds at the end of a record."""
    return _whole_chunks(4 * (lists(geo) + 1))


def record_bytes(panels: int, operations: int, geo: NarrowGeometry) -> int:
    """Bytes of the record of a stage of so many panels and operations: with a gap after each list where operations go in pairs, or
    with room for every multiply step of the panels where they are turned."""
    if geo.turned:
        room = panels * (geo.shape.panel // geo.step) * geo.shape.warps
    else:
        room = operations + (geo.shape.tile_slots if geo.paired else 0)
    return _whole_chunks(operation_bytes(geo) * (room + PAST_LAST)) + bounds_bytes(geo)


def _whole_chunks(size: int) -> int:
    return -(-size // CHUNK_BYTES) * CHUNK_BYTES


def record_starts(stages: Sequence[NarrowStage], geo: NarrowGeometry) -> IntArray:
    """Where each stage's record begins in the table, in chunks, and where the last one ends."""
    sizes = [_size(stage, geo) // CHUNK_BYTES for stage in stages]
    return np.cumsum([0, *sizes]).astype(np.int32)


def _size(stage: NarrowStage, geo: NarrowGeometry) -> int:
    return record_bytes(len(stage.panels), len(stage.operations), geo)


def encode_records(stages: Sequence[NarrowStage], geo: NarrowGeometry) -> IntArray:
    """The records of all stages, one after the other. List i has the operations from bound i, rounded up to 16 where they go in
    pairs, up to bound i + 1; bounds are bytes from the start of the stage.

    An operation is two words, bytes from the start of the stage: of its inputs, in row 0 of their panel and not swizzled, and
    of its stored block. A turned one is two words for b = 16, and two and two for the halves of a warp for b = 8, in units of 16
    bytes: of the inputs; and of the stored block, or of those of two outputs << 16, 0 for none.
    """
    encode = _turned_operations if geo.turned else _operations
    records = [_record(stage, encode(stage, geo), geo) for stage in stages]
    return np.concatenate(records).astype(np.int32) if records else np.zeros(0, np.int32)


def _record(stage: NarrowStage, found: Lists, geo: NarrowGeometry) -> IntArray:
    record = np.zeros(_size(stage, geo) // 4, np.int32)
    start = geo.shape.stage_bytes - 4 * len(record)
    word, bounds = 0, [start]
    for words in found:
        word = -(-word // 4) * 4 if geo.paired and not geo.turned else word
        record[word : word + len(words)] = words
        word += len(words)
        bounds.append(start + 4 * word)
    first = len(record) - bounds_bytes(geo) // 4
    record[first : first + len(bounds)] = bounds
    return record


def _places(stage: NarrowStage, geo: NarrowGeometry) -> dict[int, int]:
    """Where each stored block lies in the stage, in bytes."""
    weights = len(stage.panels) * geo.panel_bytes
    return {block: weights + i * geo.piece_bytes for i, block in enumerate(stage.stored)}


def _operations(stage: NarrowStage, geo: NarrowGeometry) -> Lists:
    place = _places(stage, geo)
    found: Lists = [[] for _ in range(lists(geo))]
    for position, inside, slot, block in stage.operations:
        found[slot] += position * geo.panel_bytes + inside * geo.block * geo.feature_bytes, place[block]
    return found


def _turned_operations(stage: NarrowStage, geo: NarrowGeometry) -> Lists:
    place = _places(stage, geo)
    chunks: dict[tuple[int, int], IntArray] = {}  # of a warpgroup and multiply step: [warps, inputs, outputs]
    for position, inside, slot, block in stage.operations:
        step, k = divmod(position * geo.panel_blocks + inside, geo.step_blocks)
        warp, output = divmod(slot, geo.shape.slots)
        group, warp = divmod(warp, WARPGROUP_WARPS)
        squares = chunks.setdefault(
            (group, step), np.zeros((WARPGROUP_WARPS, geo.step_blocks, geo.shape.slots), np.int32)
        )
        squares[warp, k, output] = place[block] // CHUNK_BYTES
    found: Lists = [[] for _ in range(lists(geo))]
    for (group, step), squares in sorted(chunks.items()):
        inputs = _step_place(step, geo) // CHUNK_BYTES
        for warp, square in enumerate(squares.tolist()):
            for outputs in square:
                found[group * WARPGROUP_WARPS + warp] += inputs, sum(chunk << 16 * i for i, chunk in enumerate(outputs))
    return found


def _step_place(step: int, geo: NarrowGeometry) -> int:
    """Where the inputs of a multiply step lie in row 0 of their panel, in bytes of the stage."""
    position, inside = divmod(step, geo.shape.panel // geo.step)
    return position * geo.panel_bytes + inside * geo.step * geo.feature_bytes


def turned_blocks(words: Sequence[int], geo: NarrowGeometry) -> Iterator[tuple[int, int, int]]:
    """What the words of a turned operation multiply: (output block of the warp, bytes of its inputs, bytes of the stored block)."""
    for k, (inputs, outputs) in enumerate(zip(words[::2], words[1::2], strict=True)):
        for output in range(geo.shape.slots):
            chunk = outputs >> 16 * output & 0xFFFF
            if chunk:
                yield output, inputs * CHUNK_BYTES + k * geo.block * geo.feature_bytes, chunk * CHUNK_BYTES
