"""The order of tiles in the Hopper kernels, as the emitted text computes it: run on the host by the C++ compiler there is."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from problems import BIG, bernoulli

from bsgen.emit import render
from bsgen.layout import Layout
from bsgen.plan import HopperPlan, hopper, hopper_shapes
from bsgen.problem import DType, Op, Problem

COMPILER = shutil.which("g++") or shutil.which("clang++")
HOST = """
#include <algorithm>
#include <cstdio>
#include <cstdlib>
using std::min;
typedef unsigned int u32;
#define __device__
#define __forceinline__ inline
#define __align__(bytes)
"""
# What the loading warp and the warps that multiply do with tiles, for a grid of `stride` thread blocks (or clusters).
MAIN = """
int main(int count, char** given) {
    const Tiles tiles(std::atoi(given[1]));
    const int stride = std::atoi(given[2]);
    std::printf("%d\\n", tiles.rows);
    for (int first = 0; first < stride; ++first) {
        for (Walk walk(tiles, first, stride); walk.more(); walk.advance())
            std::printf("p %d %d %d\\n", first, tiles.row(walk.tile), walk.stage);
        for (int tile = first; tile < tiles.count; tile += stride) {
            std::printf("t %d %d\\n", tiles.group(tile), tiles.row(tile));
            for (int s = begin(tiles.group(tile)); s < begin(tiles.group(tile) + 1); ++s)
                std::printf("c %d %d %d\\n", first, tiles.row(tile), s);
        }
    }
}
"""


def program(plan: HopperPlan, folder: Path) -> Path:
    """The constants, the table of stages (if tiles differ in them) and the structs of a kernel, with a main of their own."""
    text = render(plan).text
    constants = re.findall(r"^constexpr .*", text, re.MULTILINE)
    tables = re.findall(
        r"^__device__ const int __align__\(16\) kTileStages\[\] = \{.*?\};", text, re.MULTILINE | re.DOTALL
    )
    assert len(tables) == (plan.stages_a_tile == 0)
    first = "group * kTileStages" if plan.stages_a_tile else "kTileStages[group]"
    begin = f"int begin(int group) {{ return {first}; }}"
    structs = re.findall(r"^struct (?:Tiles|Walk) \{.*?^\};", text, re.MULTILINE | re.DOTALL)
    assert len(structs) == 2
    (folder / "walk.cpp").write_text("\n".join([HOST, *constants, *tables, begin, *structs, MAIN]))
    subprocess.run([str(COMPILER), "-w", "-o", folder / "walk", folder / "walk.cpp"], check=True)
    return folder / "walk"


def plans(layout: Layout) -> list[HopperPlan]:
    """A plan alone and one in clusters, in bands of one and more."""
    problem = Problem(Op.FPROP, layout, 32, DType.BFLOAT16)
    drafts = list(hopper.drafts(problem, BIG))
    chosen = [
        next(draft for draft in drafts if draft.geometry.shape.cluster == size) for size in hopper_shapes.CLUSTERS
    ]
    shapes = [hopper.assemble(problem, BIG, draft) for draft in chosen]
    return [replace(plan, band=band) for plan, band in zip(shapes * 2, (1, 4, 3, 1), strict=True)]


def empty_groups() -> Layout:
    """Blocks for few groups of output blocks: the others have no stage."""
    mask = np.zeros((4, 64), bool)
    mask[:, 40:42] = True
    return Layout(mask)


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
@pytest.mark.parametrize(
    "layout",
    [bernoulli(6, 5, 0.4), bernoulli(40, 50, 0.2), empty_groups(), Layout(np.eye(64, dtype=bool))],
    ids=["one group", "many", "empty", "alike"],
)
def test_every_tile_once_and_the_same_stages_on_both_sides(layout: Layout, tmp_path: Path) -> None:
    for plan in plans(layout):
        run = program(plan, tmp_path)
        for n, stride in ((1, 1), (1000, 7), (4097, 66), (40_000, 24), (300, 132)):
            lines = subprocess.run(
                [run, str(n), str(stride)], capture_output=True, text=True, check=True
            ).stdout.splitlines()
            rows = int(lines[0])
            assert rows == -(-n // (plan.geometry.shape.rows * plan.geometry.shape.cluster))
            tiles = [tuple(map(int, line.split()[1:])) for line in lines if line.startswith("t")]
            assert sorted(tiles) == [(group, row) for group in range(plan.tiles) for row in range(rows)]
            loaded, multiplied = ([line[2:] for line in lines if line.startswith(side)] for side in "pc")
            assert loaded == multiplied
            assert len(loaded) == rows * len(plan.loads)
