"""Times bsgen.torch beside torch.nn.Linear: a training step of a layer and of a feed-forward block, memory, and host overhead.

    PYTHONPATH=. python3 tests/gpu/bench_torch.py [--json out.json]

bfloat16, 16384 tokens, b = 32, 10 % of the blocks. Times are medians of steps between events; forward and backward, no optimizer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bsgen.torch as bt
from bsgen import topology

TOKENS, WIDTH, HIDDEN, DENSITY, BLOCK = 16384, 4096, 16384, 0.1, 32
DTYPE = torch.bfloat16


def sparse(inputs: int, outputs: int, activation: str | None = None) -> bt.BlockSparseLinear:
    """A layer of random layout."""
    layout = topology.random(inputs // BLOCK, outputs // BLOCK, density=DENSITY, seed=1)
    return bt.BlockSparseLinear(layout, BLOCK, activation=activation, device="cuda", dtype=DTYPE)


def dense(inputs: int, outputs: int) -> nn.Linear:
    """What it stands beside."""
    return nn.Linear(inputs, outputs, device="cuda", dtype=DTYPE)


def step_of(model: nn.Module) -> Callable[[], Any]:
    """Forward and backward on the same tokens."""
    x = torch.randn(TOKENS, WIDTH, device="cuda", dtype=DTYPE, requires_grad=True)
    g = torch.randn(TOKENS, WIDTH, device="cuda", dtype=DTYPE)

    def step() -> None:
        x.grad = None
        model.zero_grad(set_to_none=True)
        model(x).backward(g)

    return step


def milliseconds(step: Callable[[], Any], repeats: int = 15) -> float:
    """Median time on the GPU."""
    for _ in range(4):
        step()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        step()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def peak(step: Callable[[], Any]) -> int:
    """Bytes that a step needs beyond what it found: activations, gradients, workspaces."""
    step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def layer() -> dict[str, Any]:
    """A layer of 4096 x 4096."""
    ours, theirs = sparse(WIDTH, WIDTH), dense(WIDTH, WIDTH)
    steps = step_of(ours), step_of(theirs)
    times = [milliseconds(step) for step in steps]
    stored = ours.weight.numel() * ours.weight.element_size()
    activations = 2 * TOKENS * WIDTH * 2  # the result, and the gradient of x; the given ones were there before
    return {
        "sparse_ms": times[0],
        "dense_ms": times[1],
        "speed_up": times[1] / times[0],
        "peak_bytes": peak(steps[0]),
        "activations_and_weights_bytes": activations + stored,
    }


def feed_forward() -> dict[str, Any]:
    """4096 -> 16384 -> 4096 with gelu, under torch.compile on both sides."""
    models = [
        nn.Sequential(sparse(WIDTH, HIDDEN, "gelu"), sparse(HIDDEN, WIDTH)),
        nn.Sequential(dense(WIDTH, HIDDEN), nn.GELU(), dense(HIDDEN, WIDTH)),
    ]
    eager = [milliseconds(step_of(model)) for model in models]
    compiled = [milliseconds(step_of(torch.compile(model))) for model in models]
    return {
        "eager_sparse_ms": eager[0],
        "eager_dense_ms": eager[1],
        "sparse_ms": compiled[0],
        "dense_ms": compiled[1],
        "speed_up": compiled[1] / compiled[0],
    }


def host() -> dict[str, Any]:
    """Host time of a forward call at N = 1, and its GPU time in a CUDA graph."""
    models = {"sparse": sparse(WIDTH, WIDTH), "dense": dense(WIDTH, WIDTH)}
    x = torch.randn(1, WIDTH, device="cuda", dtype=DTYPE)
    found: dict[str, Any] = {}
    for mode in ("training", "no_grad"):
        for name, model in models.items():
            with torch.set_grad_enabled(mode == "training"):
                found[f"{name}_{mode}_us"] = _host_microseconds(lambda model=model: model(x))
    for name, model in models.items():
        found[f"{name}_graph_us"] = _graph_microseconds(lambda model=model: model(x))
    return found


def _host_microseconds(call: Callable[[], Any]) -> float:
    times = []
    for _ in range(40):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(100):
            call()
        times.append((time.perf_counter() - begin) / 100 * 1e6)
    return statistics.median(times)


@torch.no_grad()
def _graph_microseconds(call: Callable[[], Any]) -> float:
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(100):
            call()
    return milliseconds(graph.replay) * 10


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    for name, part in (("host", host), ("layer", layer), ("feed_forward", feed_forward)):
        found[name] = part()
        print(name, json.dumps(found[name], indent=1), flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
