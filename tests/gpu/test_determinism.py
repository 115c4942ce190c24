"""The same inputs give the same bits, run after run."""

from __future__ import annotations

import pytest
from cases import BLOCK_SIZES, Case, compile_case, normal, torch

ARITHMETIC = (("bfloat16", "tensor"), ("float32", "tensor"), ("float32", "ieee"))
CASES = [Case(layout, b, *a) for layout in ("hub", "random50") for b in BLOCK_SIZES for a in ARITHMETIC]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_bits(case: Case) -> None:
    mm = compile_case(case)
    x, dy = (normal(1000, f, dtype=case.dtype, seed=f) for f in (mm.in_features, mm.out_features))
    w = normal(*mm.weight_shape, dtype=case.dtype)

    def products() -> list[object]:
        return [mm(x, w), mm.dgrad(dy, w), mm.wgrad(x, dy)]

    first = products()
    for _ in range(19):
        assert all(torch.equal(a, b) for a, b in zip(first, products(), strict=True))
