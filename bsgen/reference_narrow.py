"""Follows the tables of Hopper plans for narrow blocks as the kernel does: bytes of a stage back to features and weights."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from bsgen.plan import HopperNarrowPlan
from bsgen.plan.narrow_records import lists, turned_blocks
from bsgen.plan.tile import CHUNK_BYTES
from bsgen.problem import Op

Terms = tuple[NDArray[np.int64], NDArray[np.int64]]


def narrow_terms(plan: HopperNarrowPlan, tile: int) -> list[Terms]:
    """For each slot of a tile: the features it reads [terms], and the elements of W that multiply them [terms, b]."""
    slots, block = plan.geometry.shape.tile_slots, plan.geometry.block
    features: list[list[NDArray[np.int64]]] = [[] for _ in range(slots)]
    elements: list[list[NDArray[np.int64]]] = [[] for _ in range(slots)]
    for stage in range(plan.tile_stages[tile], plan.tile_stages[tile + 1]):
        memory = _Stage(plan, plan.loads[stage])
        for slot, inputs, weights in _operations(plan, stage):
            features[slot].append(memory.features(inputs))
            elements[slot].append(memory.weights(weights))
    empty = np.zeros(0, np.int64), np.zeros((0, block), np.int64)
    return [(np.concatenate(f), np.concatenate(e)) if f else empty for f, e in zip(features, elements, strict=True)]


def _operations(plan: HopperNarrowPlan, stage: int) -> Iterator[tuple[int, int, int]]:
    """Slot, byte of the inputs and byte of the stored block of each operation of a stage."""
    geo, size = plan.geometry, plan.operation_bytes
    begin, end = (4 * int(start) for start in plan.record_starts[stage : stage + 2])
    record = plan.records[begin:end].tolist()
    start = geo.shape.stage_bytes - 4 * len(record)
    bounds = record[len(record) - plan.bounds_bytes // 4 :]
    for index, (first, past) in enumerate(pairwise(bounds[: lists(geo) + 1])):
        aligned = -(-first // CHUNK_BYTES) * CHUNK_BYTES if geo.paired and not geo.turned else first
        for at in range(aligned, past, size):
            words = record[(at - start) // 4 : (at - start + size) // 4]
            if geo.turned:
                for output, inputs, weights in turned_blocks(words, geo):
                    yield index * geo.shape.slots + output, inputs, weights
            else:
                yield index, words[0], words[1]


class _Stage:
    """What the loads of a stage put where."""

    def __init__(self, plan: HopperNarrowPlan, loads: NDArray[np.int32]) -> None:
        self.plan = plan
        rest = loads[1:].view(np.uint32).tolist()
        self.panels = [place for place, size in rest if size == 0 and place < 1 << 31]
        self.runs = [(place, word & 0xFFFF, word >> 16) for place, word in rest if word]

    def features(self, at: int) -> NDArray[np.int64]:
        """The features at a byte of row 0 of a panel."""
        geo = self.plan.geometry
        position, inside = divmod(at, geo.panel_bytes)
        assert inside < geo.shape.panel * geo.feature_bytes, "an operation starts past the first row of its panel"
        return np.asarray(self.panels[position] + inside // geo.feature_bytes + np.arange(geo.block, dtype=np.int64))

    def weights(self, at: int) -> NDArray[np.int64]:
        """The elements of W of the stored block at a byte of the stage, [inputs, outputs]."""
        geo = self.plan.geometry
        for place, to, size in self.runs:
            inside = at - to * CHUNK_BYTES
            if 0 <= inside < size * CHUNK_BYTES:
                first = place * geo.chunk + inside // geo.itemsize
                elements = first + np.arange(geo.block**2, dtype=np.int64).reshape(geo.block, geo.block)
                return np.asarray(elements if self.plan.problem.op is Op.FPROP else elements.T)
        raise AssertionError("an operation reads a block that no run brings")
