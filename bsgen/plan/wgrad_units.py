"""Groups of stored blocks that share panels of x and dy: the tiles of wgrad, filled block by block, and their tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bsgen.plan.blocks import IntArray
from bsgen.plan.wgrad_geometry import WGradGeometry, WGradShape
from bsgen.problem import Problem

NO_UNIT = -1
Bands = list[IntArray]  # (row, column, index) of the stored blocks of each


@dataclass
class Group:
    """A tile in the making: its panels (x as p, dy as ~p) in order, and its units."""

    panels: dict[int, int] = field(default_factory=dict)
    units: list[list[int]] = field(default_factory=list)
    open: dict[int, int] = field(default_factory=dict)


def encode(groups: Sequence[Group], geo: WGradGeometry) -> tuple[WGradGeometry, IntArray, IntArray, IntArray]:
    """The geometry with no more panels than needed, and the tables: panel counts, panels and units of each tile."""
    width = max((len(group.panels) for group in groups), default=0)
    geo = replace(geo, shape=replace(geo.shape, panels=width))
    counts = np.array([len(group.panels) for group in groups], np.int32)
    panels = np.zeros((len(groups), width), np.int32)
    units = np.full((len(groups), geo.capacity, 5), NO_UNIT, np.int32)
    for tile, group in enumerate(groups):
        panels[tile, : counts[tile]] = list(group.panels)
        units[tile, _deal(len(group.units), geo.shape)] = group.units
    return geo, counts, panels, units


def _deal(count: int, shape: WGradShape) -> list[int]:
    """Slots for `count` units, one to each warp in turn, so that no warp has two more than another."""
    return [(i % shape.warps) * shape.units + i // shape.warps for i in range(count)]


def bands(problem: Problem, band: int) -> Iterator[IntArray]:
    """(row, column, index) of the stored blocks of each run of `band` block columns, by row, then column."""
    coordinates = problem.layout.blocks
    order = np.lexsort((coordinates[:, 1], coordinates[:, 0], coordinates[:, 1] // band))
    fields = np.column_stack([coordinates[order], order])
    keys = fields[:, 1] // band
    cuts = np.flatnonzero(np.diff(keys)) + 1
    for run in np.split(fields, cuts):
        if len(run):
            yield run


def bands_of(problem: Problem, geometries: Iterable[WGradGeometry]) -> dict[int, Bands]:
    """Those of every width that geometries have, made once."""
    return {band: list(bands(problem, band)) for band in {geo.shape.band for geo in geometries}}


def groups(blocks: IntArray, geo: WGradGeometry) -> Iterator[Group]:
    """Fill groups with the blocks of a band, in order, until units or panels run out."""
    group = Group()
    for block in blocks.tolist():
        if not _add(group, block, geo):
            yield group
            group = Group()
            if not _add(group, block, geo):
                raise AssertionError("a block does not fit an empty group")
    if group.units:
        yield group


def _add(group: Group, block: Sequence[int], geo: WGradGeometry) -> bool:
    """Add a block's units to the group if units and panels allow."""
    row, column, index = block
    parts = range(0, geo.block, geo.unit)
    x_features = [row * geo.block + part for part in parts]
    y_features = [column * geo.block + part for part in parts]
    width = geo.shape.panel
    reach = range(0, geo.unit, min(width, geo.unit))
    needed = [f // width for feature in x_features for f in (feature + r for r in reach)]
    needed += [~(f // width) for feature in y_features for f in (feature + r for r in reach)]
    fresh = [panel for panel in dict.fromkeys(needed) if panel not in group.panels]
    partner = group.open.get(column) if geo.paired else None
    units = 0 if partner is not None else len(parts) ** 2
    if len(group.panels) + len(fresh) > geo.shape.panels or len(group.units) + units > geo.capacity:
        return False
    for panel in fresh:
        group.panels[panel] = len(group.panels)
    base = index * geo.block**2 // geo.chunk
    if partner is not None:
        unit = group.units[group.open.pop(column)]
        unit[1], unit[4] = _offset(group, x_features[0], False, geo), base
        return True
    for i, x_feature in enumerate(x_features):
        for j, y_feature in enumerate(y_features):
            x_offset, y_offset = _offset(group, x_feature, False, geo), _offset(group, y_feature, True, geo)
            place = base + (i * geo.unit * geo.block + j * geo.unit) // geo.chunk
            group.units.append([x_offset, x_offset, y_offset, place, NO_UNIT])
    if geo.paired:
        group.open[column] = len(group.units) - 1
    return True


def _offset(group: Group, feature: int, gradient: bool, geo: WGradGeometry) -> int:
    panel, inside = divmod(feature, geo.shape.panel)
    position = group.panels[~panel if gradient else panel]
    return position * geo.panel_size + geo.feature_offset(inside)
