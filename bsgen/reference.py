"""Runs any plan in NumPy by following its tables, never the mask: the CPU backend, and the kernels' twin in tests.

The sums are float32 in the plan's order of stages, slots and splits, as on the GPU; TF32 plans multiply in full float32 here.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsgen.plan import HopperNarrowPlan, HopperPlan, HopperWGradPlan, MatMulPlan, Plan, WGradPlan
from bsgen.plan.product import NO_OUTPUT
from bsgen.plan.tile import Geometry
from bsgen.plan.wgrad_geometry import WGradGeometry
from bsgen.plan.wgrad_units import NO_UNIT
from bsgen.problem import Activation, Op, Problem
from bsgen.reference_gates import gate_gradients, gated
from bsgen.reference_gradients import gradient_terms, row_cuts
from bsgen.reference_narrow import narrow_terms
from bsgen.reference_rings import Terms, ring_terms

Array = NDArray[Any]
ROWS = ("x", "dy", "residual")  # operands that have N rows


def run(plan: Plan, operands: Mapping[str, Array]) -> Array:
    """The plan's result for 2-D activations, [N, features] or as the problem's axis says [features, N], and weights [nnz, b, b], in
    the problem's result dtype.

    `operands` holds x and w (fprop, with bias and residual where the epilogue has them), dy and w (dgrad), x and dy (wgrad),
    and gate where the problem has gates.
    """
    return results(plan, operands)["out"]


def results(plan: Plan, operands: Mapping[str, Array]) -> dict[str, Array]:
    """The plan's results by name: out, as `run` gives it, and of a gated wgrad that is given w also dgate [nnz], float32."""
    problem = plan.problem
    wide = {name: np.asarray(value, np.float32) for name, value in operands.items()}
    if problem.feature_first:
        wide |= {name: wide[name].T for name in ROWS if name in wide}
    if problem.gate and problem.op is not Op.WGRAD:
        wide["w"] = gated(wide["w"], wide["gate"], problem.dtype)
    if isinstance(plan, HopperWGradPlan):
        result = _hopper_wgrad(plan, wide)
    else:
        result = _wgrad(plan, wide) if isinstance(plan, WGradPlan) else _matmul(plan, wide)
    if problem.feature_first and problem.op is not Op.WGRAD:
        result = result.T
    found = gate_gradients(result, wide) if problem.gate and problem.op is Op.WGRAD else {"out": result}
    with np.errstate(over="ignore"):  # float16 overflows to infinity, as on the GPU
        return {**found, "out": found["out"].astype(problem.result_dtype.numpy)}


def _matmul(plan: HopperPlan | HopperNarrowPlan | MatMulPlan, operands: Mapping[str, Array]) -> Array:
    activations, weights = operands[plan.activations], operands["w"].reshape(-1)
    rows, block = len(activations), plan.geometry.block
    out = np.zeros((rows, plan.features[1]), np.float32)
    partials = np.zeros((plan.partials, rows, block), np.float32)
    for tile in range(plan.tiles):
        for slot, (inputs, pieces) in enumerate(_terms(plan, tile)):
            target = int(plan.targets[tile, slot])
            if target == NO_OUTPUT:
                continue
            total = activations[:, inputs] @ weights[pieces]
            if target < 0:
                partials[~target] = total
            else:
                out[:, target * block : (target + 1) * block] = total
    for reduction in plan.reductions:
        columns = slice(reduction.output * block, (reduction.output + 1) * block)
        for p in range(reduction.first, reduction.first + reduction.count):
            out[:, columns] += partials[p]
    return _finish(out, plan.problem, operands)


def _terms(plan: HopperPlan | HopperNarrowPlan | MatMulPlan, tile: int) -> list[Terms]:
    if isinstance(plan, HopperNarrowPlan):
        return narrow_terms(plan, tile)
    return ring_terms(plan, tile) if isinstance(plan, HopperPlan) else slot_terms(plan, tile)


def slot_terms(plan: MatMulPlan, tile: int) -> list[Terms]:
    """For each slot of a tile: the features it reads [terms], and the elements of W that multiply them [terms, b]."""
    geo, form = plan.geometry, plan.form
    features: list[list[NDArray[np.int64]]] = [[] for _ in range(form.slots)]
    elements: list[list[NDArray[np.int64]]] = [[] for _ in range(form.slots)]
    piece = _piece_elements(plan)
    for record in plan.records[plan.tile_stages[tile] : plan.tile_stages[tile + 1]]:
        bounds = record[form.slot_starts : form.slot_starts + form.slots + 1]
        for slot in range(form.slots):
            for operation in range(bounds[slot], bounds[slot + 1]):
                offset = int(record[form.operation_inputs + operation])
                features[slot].append(_features(plan, record, offset, len(piece)))
                elements[slot].append(int(record[form.piece_starts + operation]) * geo.chunk + piece)
    width = (0, geo.block)
    return [
        (np.concatenate(f), np.concatenate(e)) if f else (np.zeros(0, np.int64), np.zeros(width, np.int64))
        for f, e in zip(features, elements, strict=True)
    ]


def _features(plan: MatMulPlan, record: NDArray[np.int32], offset: int, count: int) -> NDArray[np.int64]:
    """The features at a chunk offset of the stage: its panel's place in global memory, then the chunk inside it."""
    geo = plan.geometry
    position, inside = divmod(offset, geo.panel_size)
    panel = int(record[plan.form.panel_ids + position])
    assert position < record[0], "an operation reads past the panels of its stage"
    return panel * geo.shape.panel + _feature(geo, inside) + np.arange(count)


def _feature(geo: Geometry | WGradGeometry, inside: int) -> int:
    """The feature of a panel whose row 0 is so many chunks from its start."""
    line, column = divmod(inside, geo.panel_chunks)
    assert not (line if geo.axis else column), "it starts past the first row of its panel"
    return column * geo.chunk if geo.axis else line


def _piece_elements(plan: MatMulPlan) -> NDArray[np.int64]:
    """Elements of a piece of W relative to its start, as [inputs, outputs] of the product."""
    geo = plan.geometry
    rows, columns = np.arange(geo.weight_rows)[:, None], np.arange(geo.weight_chunks * geo.chunk)
    elements = (rows * geo.block + columns).astype(np.int64)
    return elements if plan.problem.op is Op.FPROP else elements.T


def _finish(out: Array, problem: Problem, operands: Mapping[str, Array]) -> Array:
    epilogue = problem.epilogue
    if problem.op is Op.FPROP and epilogue.bias:
        out = out + operands["bias"]
    if problem.op is Op.FPROP and epilogue.activation is not None:
        out = ACTIVATIONS[epilogue.activation](out)
    if problem.op is Op.FPROP and epilogue.residual:
        out = out + operands["residual"]
    return out


def _erf(v: Array) -> Array:
    from math import erf

    return np.vectorize(erf, otypes=[np.float32])(v) if v.size else v


def _silu(v: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(v / (1 + np.exp(-v)), np.float32)


ACTIVATIONS = {
    Activation.RELU: lambda v: np.where(v < 0, np.float32(0), v),
    Activation.GELU: lambda v: np.float32(0.5) * v * (1 + _erf(v * np.float32(0.5**0.5))),
    Activation.SILU: _silu,
}


def _wgrad(plan: WGradPlan, operands: Mapping[str, Array]) -> Array:
    x, dy, geo = operands["x"], operands["dy"], plan.geometry
    rows, block = geo.shape.rows, geo.block
    stages = -(-len(x) // rows)
    cuts = [stages * split // plan.splits * rows for split in range(plan.splits)] + [len(x)]
    out = np.zeros(plan.elements, np.float32)
    inside = (np.arange(geo.unit)[:, None] * block + np.arange(geo.unit)).astype(np.int64)
    for x_features, y_features, place in unit_terms(plan):
        a, b = x[:, x_features], dy[:, y_features]
        total = sum(a[begin:end].T @ b[begin:end] for begin, end in pairwise(cuts))
        out[place + inside] = total
    return out.reshape(-1, block, block)


def _hopper_wgrad(plan: HopperWGradPlan, operands: Mapping[str, Array]) -> Array:
    x, dy, block = operands["x"], operands["dy"], plan.problem.block_size
    out = np.zeros(plan.elements, np.float32)
    cuts = row_cuts(plan, len(x))
    for tile in range(plan.tiles):
        for x_features, y_features, place in gradient_terms(plan, tile):
            a, b = x[:, x_features], dy[:, y_features]
            inside = np.arange(len(x_features))[:, None] * block + np.arange(block)
            out[place + inside] = sum(a[begin:end].T @ b[begin:end] for begin, end in cuts)
    return out.reshape(-1, block, block)


def unit_terms(plan: WGradPlan) -> list[tuple[NDArray[np.int64], NDArray[np.int64], int]]:
    """Features of x, features of dy and first element of dW of every block or part of a block that a unit sums."""
    geo = plan.geometry
    terms = []
    for tile in range(plan.tiles):
        for first, second, y_offset, place, second_place in plan.units[tile].tolist():
            if first == NO_UNIT:
                continue
            y_features = _unit_features(plan, tile, y_offset, gradient=True)
            terms.append((_unit_features(plan, tile, first, gradient=False), y_features, place * geo.chunk))
            if second_place != NO_UNIT:
                terms.append((_unit_features(plan, tile, second, gradient=False), y_features, second_place * geo.chunk))
    return terms


def _unit_features(plan: WGradPlan, tile: int, offset: int, gradient: bool) -> NDArray[np.int64]:
    """The features that a unit reads from a chunk offset on, panel by panel."""
    geo = plan.geometry
    first, inside = divmod(offset, geo.panel_size)
    features = first * geo.shape.panel + _feature(geo, inside) + np.arange(geo.unit)
    position, column = np.divmod(features, geo.shape.panel)
    assert position[-1] < plan.panel_counts[tile], "a unit reads past the panels of its tile"
    ids = plan.panels[tile, position].astype(np.int64)
    assert ((ids < 0) == gradient).all(), "a unit takes x for dy or dy for x"
    return np.asarray(np.where(ids < 0, ~ids, ids) * geo.shape.panel + column)
