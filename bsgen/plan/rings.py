"""Cuts a tile of the Hopper kernels into the stages of its ring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np

from bsgen.plan.blocks import IntArray, Part
from bsgen.plan.ring_records import MAXIMUM_LOADS, RingStage, record_bytes
from bsgen.plan.warpgroup import WarpgroupGeometry

WINDOW = 24  # panels that are looked at to fill a stage

Item = tuple[int, int, int, int]  # panel, slot, stored block, slice of it


def room(geo: WarpgroupGeometry) -> int:
    """Bytes of a stage for panels and pieces; its record is at its end."""
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
    """A panel's pieces, in runs that fit a stage, and have all pieces of a product."""
    most = min((room(geo) - geo.panel_bytes) // geo.piece_bytes, (MAXIMUM_LOADS - 1) // geo.piece_boxes)
    most -= most % geo.shape.product_slots
    return [group[i : i + most] for i in range(0, len(group), most)]


def _next_that_fits(waiting: Sequence[Sequence[Item]], left: int, loads: int, geo: WarpgroupGeometry) -> int | None:
    for index, chunk in enumerate(waiting[:WINDOW]):
        if _fits(chunk, left, loads, geo):
            return index
    return None
