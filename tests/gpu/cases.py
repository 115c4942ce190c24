"""Cases and an oracle for the GPU tests: layouts of many kinds, products in float64 on the GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

import bsgen

try:
    import torch
except ImportError:
    torch = None

BLOCK_SIZES = (8, 16, 32, 64, 128)
ARITHMETIC = (("float16", "tensor"), ("bfloat16", "tensor"), ("float32", "tensor"), ("float32", "ieee"))
TOLERANCE = {
    ("float16", "tensor"): 5e-3,
    ("bfloat16", "tensor"): 5e-3,
    ("float32", "tensor"): 1e-3,
    ("float32", "ieee"): 1e-5,
}
BATCHES = (0, 1, 3, 17, 64, 100, 129, 1000, 4097)
BLOCKS = {8: 40, 16: 28, 32: 20, 64: 12, 128: 8}


def _random(blocks: int, density: float) -> np.ndarray:
    return np.random.default_rng(1).random((blocks, blocks)) < density


def _holes(blocks: int) -> np.ndarray:
    mask = _random(blocks, 0.4)
    mask[[0, blocks // 2]] = False
    mask[:, [1, blocks - 1]] = False
    return mask


def _hub(blocks: int) -> np.ndarray:
    """One full row and column beside almost nothing: what makes a planner split."""
    mask = np.eye(blocks, dtype=bool)
    mask[0] = mask[:, 0] = True
    return mask


def _one(blocks: int) -> np.ndarray:
    return np.ones((1, 1), bool)


def _banded(blocks: int) -> np.ndarray:
    row, column = np.indices((blocks, blocks))
    return abs(row - column) <= 2


LAYOUTS = {
    "random1": lambda blocks: _random(blocks, 0.01),
    "random10": lambda blocks: _random(blocks, 0.10),
    "random50": lambda blocks: _random(blocks, 0.50),
    "one": _one,
    "holes": _holes,
    "hub": _hub,
    "full": lambda blocks: np.ones((blocks // 2, blocks // 2), bool),
    "grouped": lambda blocks: bsgen.topology.block_diagonal(12, 24, 2).mask,
    "banded": _banded,
    "barabasi": lambda blocks: bsgen.topology.barabasi_albert(blocks=blocks, m=3, seed=0).mask,
    "wide": lambda blocks: _random(2 * blocks, 0.2)[: blocks // 3],
    "tall": lambda blocks: _random(2 * blocks, 0.2)[:, : blocks // 3],
    "none": lambda blocks: np.zeros((blocks // 2, blocks // 2), bool),
}


@dataclass(frozen=True)
class Case:
    """One compiled layout."""

    layout: str
    block: int
    dtype: str
    precision: str = "tensor"
    gate: bool = False

    def __str__(self) -> str:
        return f"{self.layout}-b{self.block}-{self.dtype}-{self.precision}{'-gate' * self.gate}"

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.dtype, self.precision]


def compile_case(case: Case, arch: str | None = None, **options: Any) -> bsgen.MatMul | None:
    """Compile a case; with an arch, for the disk cache alone."""
    mask = LAYOUTS[case.layout](BLOCKS[case.block])
    made = bsgen.compile(mask, case.block, case.dtype, precision=case.precision, gate=case.gate, arch=arch, **options)
    return None if arch else made


def normal(*shape: int, dtype: str, seed: int = 0) -> Any:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(*shape, generator=generator, device="cuda").to(getattr(torch, dtype))


def poison(*shape: int, dtype: str) -> Any:
    return torch.full(shape, float("nan"), device="cuda", dtype=getattr(torch, dtype))


def gathered(mm: bsgen.MatMul, dense: Any) -> Any:
    """The stored blocks of a dense matrix, in its own type."""
    blocks = torch.as_tensor(mm.layout.blocks.astype(np.int64), device=dense.device)
    b = mm.block_size
    view = dense.reshape(dense.shape[0] // b, b, dense.shape[1] // b, b).permute(0, 2, 1, 3)
    return view[blocks[:, 0], blocks[:, 1]]


def assert_close(got: Any, expected: Any, tolerance: float) -> None:
    """Relative error in the Frobenius norm, and no single element far off; NaN anywhere fails."""
    if not expected.numel():
        assert got.shape == expected.shape
        return
    difference, scale = got.double() - expected, expected.norm()
    if float(scale) == 0.0:
        assert not got.any()
        return
    error = float(difference.norm() / scale)
    worst = float(difference.abs().max() / expected.abs().max())
    assert error < tolerance, f"relative error {error:.2e}"
    assert worst < 10 * tolerance, f"largest error / largest element {worst:.2e}"
