"""The picture of a benchmark: speed-up over dense against density, a curve a contender, a panel for each size, N and block size."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bsgen.bench.records import Measured
from bsgen.errors import ArgumentError
from bsgen.files import require_suffix, write_atomic

PANEL_INCHES, COLUMNS = 4.2, 3
MOST_TICKS = 8  # densities that are written below a panel


def write_png(measured: Iterable[Measured], path: str | Path) -> None:
    """Write the curves as a .png file.

    Raises:
        ArgumentError: matplotlib is not installed, or nothing was timed beside dense.
        LayoutError: the file is not a .png, or cannot be written.
    """
    place = require_suffix(path, ".png")
    panels = _panels(measured)
    if not panels:
        raise ArgumentError(
            "png: no case was timed beside dense, expected at least one; do not leave the peer dense out"
        )
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ArgumentError("png: needs matplotlib, which is not installed; pip install 'bsgen[plot]'") from None
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(PANEL_INCHES * columns, PANEL_INCHES * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for (title, cases), axis in zip(panels.items(), axes, strict=False):
        _draw(axis, title, cases)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_atomic(place, buffer.getvalue())


def _panels(measured: Iterable[Measured]) -> dict[str, list[Measured]]:
    """Cases that differ in density alone, sparsest first, by what they share."""
    panels: dict[str, list[Measured]] = {}
    for case in measured:
        if case.row("dense"):
            size = f"{case.features[0]} x {case.features[1]}"
            panels.setdefault(f"{size}, b = {case.block_size}, N = {case.n}, {case.op}", []).append(case)
    return {title: sorted(cases, key=lambda case: case.density) for title, cases in panels.items()}


def _draw(axis: Any, title: str, cases: Sequence[Measured]) -> None:
    percent = [100 * case.density for case in cases]
    axis.plot(percent, [100 / p for p in percent], "--", color="0.6", label="1 / density")
    axis.axhline(1, color="0.6", linewidth=0.8)
    for name in dict.fromkeys(row.contender for case in cases for row in case.rows if row.contender != "dense"):
        points = [(p, row.over_dense) for p, case in zip(percent, cases, strict=True) if (row := case.row(name))]
        axis.plot(
            *zip(*points, strict=True), marker="o", markersize=3, label=name, linewidth=2 if name == "bsgen" else 1
        )
    axis.set(title=title, xlabel="density, %", ylabel="speed-up over dense", xscale="log")
    axis.set_yscale("log", base=2)
    shown = percent[:: -(-len(percent) // MOST_TICKS)]
    axis.set_xticks(shown, [f"{float(f'{p:.2g}'):g}" for p in shown])
    axis.minorticks_off()
    axis.yaxis.set_major_formatter("{x:g}")
    axis.grid(visible=True, linewidth=0.3)
    axis.legend(fontsize=7)
