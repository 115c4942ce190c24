"""Reads the tables of plans, as their docstrings describe them, into what they mean in terms of the layout.

Written from the description alone, apart from `bsgen.reference` and the templates, so that all three must agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bsgen.plan import MatMulPlan, WGradPlan
from bsgen.problem import Op

CHUNK = 16  # bytes
NO_UNIT = -1


@dataclass(frozen=True)
class Term:
    """Inputs `begin` ... `end - 1` of the product times a part of a stored block, added to a slot of a tile.

    `weights` holds the elements' places in W (flat), as [inputs, outputs].
    """

    tile: int
    slot: int
    begin: int
    end: int
    weights: np.ndarray


@dataclass(frozen=True)
class StageUse:
    """What a stage loads: panel numbers, operations, and the bytes that both take in shared memory."""

    panels: tuple[int, ...]
    operations: int
    bytes: int


def terms(plan: MatMulPlan) -> Iterator[Term]:
    """Every operation of every tile."""
    geo, form, item = plan.geometry, plan.form, plan.problem.dtype.itemsize
    panel, block, chunk = geo.shape.panel, plan.problem.block_size, CHUNK // item
    depth = min(plan.problem.block_size, geo.shape.panel)
    for tile in range(plan.tiles):
        for record in _records(plan, tile):
            for slot in range(geo.shape.slots):
                for operation in range(record[form.slot_starts + slot], record[form.slot_starts + slot + 1]):
                    offset = int(record[form.operation_inputs + operation])
                    position, column = place_in_panel(plan, offset, geo.shape.rows, panel)
                    assert position < record[0], "reads a panel that the stage does not load"
                    assert column + depth <= panel, "runs out of its panel"
                    begin = int(record[form.panel_ids + position]) * panel + column
                    start = int(record[form.piece_starts + operation]) * chunk
                    yield Term(tile, slot, begin, begin + depth, start + _piece(plan.problem.op, depth, block))


def place_in_panel(plan: MatMulPlan | WGradPlan, offset: int, rows: int, width: int) -> tuple[int, int]:
    """Which panel of a stage begins at or before an offset in chunks, and the feature of it whose row 0 is there."""
    chunk = CHUNK // plan.problem.dtype.itemsize
    position, inside = divmod(offset, rows * width // chunk)
    if plan.problem.feature_first:
        assert inside % (rows // chunk) == 0, "starts inside the rows of a feature"
        return position, inside // (rows // chunk)
    assert inside < width // chunk, "starts below the first row of its panel"
    return position, inside * chunk


def _piece(op: Op, depth: int, block: int) -> np.ndarray:
    """Places of [inputs, outputs] in a row-major block, from the first: fprop's inputs are rows, dgrad's columns."""
    inputs, outputs = np.arange(depth)[:, None], np.arange(block)[None, :]
    return inputs * block + outputs if op is Op.FPROP else outputs * block + inputs


def stage_uses(plan: MatMulPlan) -> Iterator[StageUse]:
    """What each stage loads, with its record's fields checked against their format."""
    geo, form, item = plan.geometry, plan.form, plan.problem.dtype.itemsize
    depth = min(plan.problem.block_size, geo.shape.panel)
    for record in plan.records:
        panels, operations = int(record[0]), int(record[1])
        bounds = record[form.slot_starts : form.slot_starts + geo.shape.slots + 1]
        assert 0 < panels <= form.panels
        assert 0 < operations <= form.operations
        assert bounds[0] == 0
        assert bounds[-1] == operations
        assert (np.diff(bounds) >= 0).all()
        size = panels * geo.shape.rows * geo.shape.panel * item + operations * depth * plan.problem.block_size * item
        yield StageUse(tuple(record[form.panel_ids : form.panel_ids + panels].tolist()), operations, size)


def _records(plan: MatMulPlan, tile: int) -> np.ndarray:
    return plan.records[plan.tile_stages[tile] : plan.tile_stages[tile + 1]]


@dataclass(frozen=True)
class Product:
    """Features of x, features of dy, and the elements of dW [x features, dy features] that their products add up to."""

    tile: int
    x: np.ndarray
    dy: np.ndarray
    elements: np.ndarray


def products(plan: WGradPlan) -> Iterator[Product]:
    """Every block, or part of one, of every unit of every tile."""
    geo, block = plan.geometry, plan.problem.block_size
    chunk = CHUNK // plan.problem.dtype.itemsize
    inside = np.arange(geo.unit)[:, None] * block + np.arange(geo.unit)
    for tile in range(plan.tiles):
        for unit in plan.units[tile].tolist():
            first, second, gradient, place, second_place = unit
            if first == NO_UNIT:
                assert unit == [NO_UNIT] * 5, "an empty unit with something in it"
                continue
            # Warps read the second block's inputs even where there is none.
            x, second_x = (_unit_features(plan, tile, offset, gradient=False) for offset in (first, second))
            dy = _unit_features(plan, tile, gradient, gradient=True)
            yield Product(tile, x, dy, place * chunk + inside)
            if second_place != NO_UNIT:
                yield Product(tile, second_x, dy, second_place * chunk + inside)


def _unit_features(plan: WGradPlan, tile: int, offset: int, gradient: bool) -> np.ndarray:
    """The features of a unit: those of its panel, then of the next panels of the stage."""
    shape, unit = plan.geometry.shape, plan.geometry.unit
    position, first = place_in_panel(plan, offset, shape.rows, shape.panel)
    assert first % min(unit, shape.panel) == 0, "the kernel steps along a unit by exclusive or"
    features = []
    for step in range(first, first + unit):
        at = position + step // shape.panel
        assert at < plan.panel_counts[tile], "reads a panel that the tile does not load"
        panel = int(plan.panels[tile, at])
        assert (panel < 0) == gradient, "takes x for dy, or dy for x"
        features.append((~panel if gradient else panel) * shape.panel + step % shape.panel)
    return np.array(features)
