"""Cuts a tile of the Hopper kernels for narrow blocks into the stages of its ring, and says what each loads.

A stage lies in shared memory as its panels, the stored blocks that they are multiplied by in the order of W, a gap, and its record
(plan/narrow_records.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np

from bsgen.plan.blocks import IntArray, Part
from bsgen.plan.narrow_records import OPERATION_BYTES, NarrowStage, record_bytes, record_starts
from bsgen.plan.narrow_tile import NarrowGeometry
from bsgen.plan.tile import CHUNK_BYTES

WINDOW = 16  # panels that are looked at to fill a stage
NO_LOAD = -1

Item = tuple[int, int, int, int]  # panel, input block inside it, slot, stored block


def tile_items(parts: Sequence[Part | None], geo: NarrowGeometry) -> list[Item]:
    """Every block that a tile multiplies, by panel and place in W."""
    found = [_part_items(part, slot, geo) for slot, part in enumerate(parts) if part is not None and part.work]
    if not found:
        return []
    items = np.concatenate(found)
    return [tuple(item) for item in items[np.lexsort((items[:, 3], items[:, 0]))].tolist()]


def _part_items(part: Part, slot: int, geo: NarrowGeometry) -> IntArray:
    panel, inside = np.divmod(part.inputs, geo.panel_blocks)
    return np.stack([panel, inside, np.full_like(panel, slot), part.blocks], axis=1).astype(np.int32)


def pack(items: Sequence[Item], geo: NarrowGeometry) -> Iterator[NarrowStage]:
    """Fill stages panel by panel, in order; where the next does not fit, with one of the following that does.

    A panel with more blocks than a stage has room for is loaded again in the next.
    """
    waiting = [chunk for _, group in groupby(items, key=itemgetter(0)) for chunk in _fitting(list(group), geo)]
    stage, loads = NarrowStage(), 0
    while waiting:
        index = _next_that_fits(waiting, stage, loads, geo)
        if index is None:
            yield stage
            stage, loads = NarrowStage(), 0
            continue
        chunk = waiting.pop(index)
        position = len(stage.panels)
        stage.panels.append(chunk[0][0])
        stage.operations += [(position, inside, slot, block) for _, inside, slot, block in chunk]
        loads += _loads(chunk)
    if stage.panels:
        yield stage


def _fitting(group: list[Item], geo: NarrowGeometry) -> list[list[Item]]:
    """A panel's blocks, in lists that fit a stage of their own."""
    room = geo.shape.stage_bytes - geo.panel_bytes - record_bytes(1, 0, geo) - CHUNK_BYTES
    most = min(room // (geo.piece_bytes + OPERATION_BYTES), most_loads(geo) - 1)
    if _loads(group) > most_loads(geo) or len(group) > most:
        return [*_fitting(group[:most], geo), *_fitting(group[most:], geo)]
    return [group]


def _next_that_fits(
    waiting: Sequence[Sequence[Item]], stage: NarrowStage, loads: int, geo: NarrowGeometry
) -> int | None:
    for index, chunk in enumerate(waiting[:WINDOW]):
        used = stage_bytes(len(stage.panels) + 1, len(stage.operations) + len(chunk), geo)
        if used <= geo.shape.stage_bytes and loads + _loads(chunk) <= most_loads(geo):
            return index
    return None


def stage_bytes(panels: int, operations: int, geo: NarrowGeometry) -> int:
    """What a stage of so many panels and operations takes."""
    return panels * geo.panel_bytes + operations * geo.piece_bytes + record_bytes(panels, operations, geo)


def most_loads(geo: NarrowGeometry) -> int:
    """Of panels and runs in a stage: a thread that loads each, beside the record."""
    return geo.shape.loaders - 1


def _loads(chunk: Sequence[Item]) -> int:
    """Copies of a panel and its blocks, unless they join those of other panels."""
    return 1 + len(runs([block for _, _, _, block in chunk]))


def runs(stored: Sequence[int]) -> list[tuple[int, int]]:
    """First and count of each run of blocks that follow one another in W."""
    blocks = np.asarray(stored)
    cuts = np.flatnonzero(np.diff(blocks) != 1) + 1
    return [(int(run[0]), len(run)) for run in np.split(blocks, cuts)] if len(blocks) else []


def encode_loads(stages: Sequence[NarrowStage], geo: NarrowGeometry) -> IntArray:
    """[stages, loads, 2]: the record's (place in the table, its size | the whole stage's bytes << 16; all in chunks), then for each
    panel (first feature, 0), then for each run (place in W, place in the stage | size << 16; in chunks), then (NO_LOAD, 0).
    """
    found = [_stage_loads(stage, geo) for stage in stages]
    table = np.zeros((len(stages), max(map(len, found), default=0) + 1, 2), np.int64)
    table[:, :, 0] = NO_LOAD
    starts = record_starts(stages, geo)[:-1].tolist()
    for row, loads, stage, start in zip(table, found, stages, starts, strict=True):
        record = record_bytes(len(stage.panels), len(stage.operations), geo) // CHUNK_BYTES
        whole = stage_bytes(len(stage.panels), len(stage.operations), geo) // CHUNK_BYTES
        row[0] = start, record | whole << 16
        row[1 : 1 + len(loads)] = loads
    return table.astype(np.uint32).view(np.int32)


def _stage_loads(stage: NarrowStage, geo: NarrowGeometry) -> list[tuple[int, int]]:
    loads = [(panel * geo.shape.panel, 0) for panel in stage.panels]
    place, size = len(stage.panels) * geo.panel_bytes // CHUNK_BYTES, geo.piece_chunks
    for first, count in runs(stage.stored):
        loads.append((first * size, place | count * size << 16))
        place += count * size
    return loads
