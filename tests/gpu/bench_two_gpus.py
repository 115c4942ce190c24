"""Times a training step on two GPUs beside one GPU's: data parallel, fully sharded, tensor parallel.

    PYTHONPATH=. python3 tests/gpu/bench_two_gpus.py [--json out.json]

Feed-forward blocks 4096 -> 16384 -> 4096 with gelu, bfloat16, b = 32, 10 % of the blocks, 16384 tokens a GPU; tensor parallel ranks
share the same 16384 tokens. Forward, backward and AdamW; medians of steps between events, of the slower rank. A GPU alone is timed
while the other one waits, before and after the rest, so that clocks that drift show.
`--device cpu --tokens 64 --width 64 --hidden 128` goes through the same without a GPU, over gloo.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from two_gpus import RANKS, SECONDS, Place, start

import bsgen.torch as bt
from bsgen import topology
from bsgen.torch.parallel import parallelize

DENSITY, BLOCK, WARM, STEPS = 0.1, 32, 6, 20
TURN_SECONDS = 240  # how long a rank waits for the other's turn, in which it compiles


class Size(NamedTuple):
    """What is trained: `depth` feed-forward blocks on so many tokens a rank."""

    tokens: int
    width: int
    hidden: int
    depth: int


def pairs(size: Size, place: Place) -> list[tuple[bt.BlockSparseLinear, bt.BlockSparseLinear]]:
    """Feed-forward blocks of the same two layouts, with the same weights on every rank."""
    torch.manual_seed(0)
    wide, high = size.width // BLOCK, size.hidden // BLOCK
    up, down = (topology.random(*shape, density=DENSITY, seed=1) for shape in ((wide, high), (high, wide)))
    kind = {"device": place.device, "dtype": place.dtype}
    return [
        (bt.BlockSparseLinear(up, BLOCK, activation="gelu", **kind), bt.BlockSparseLinear(down, BLOCK, **kind))
        for _ in range(size.depth)
    ]


def alone(size: Size, place: Place) -> nn.Module:
    """The model of one GPU."""
    return nn.Sequential(*(layer for pair in pairs(size, place) for layer in pair))


def data_parallel(size: Size, place: Place) -> nn.Module:
    """DistributedDataParallel as it comes, but for gradients that are not copied out of its buckets."""
    return nn.parallel.DistributedDataParallel(alone(size, place), gradient_as_bucket_view=True)


def data_parallel_static(size: Size, place: Place) -> nn.Module:
    """The same, told that the graph stays and that layouts, which are buffers, need no broadcast at every step."""
    options = {"gradient_as_bucket_view": True, "static_graph": True, "broadcast_buffers": False}
    return nn.parallel.DistributedDataParallel(alone(size, place), **options)


def fully_sharded(size: Size, place: Place) -> nn.Module:
    """FSDP2, a feed-forward block at a time."""
    model = nn.Sequential(*(nn.Sequential(*pair) for pair in pairs(size, place)))
    mesh = init_device_mesh(place.device, (RANKS,))
    for each in model:
        fully_shard(each, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def tensor_parallel(size: Size, place: Place) -> nn.Module:
    """Half of the hidden features on each rank."""
    return nn.Sequential(*(parallelize(*pair) for pair in pairs(size, place)))


TOGETHER = (data_parallel, data_parallel_static, fully_sharded, tensor_parallel)


def milliseconds(make: Callable[[Size, Place], nn.Module], size: Size, place: Place) -> float:
    """The median training step of a model."""
    model = make(size, place)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    x, target = (torch.randn(size.tokens, size.width, device=place.device, dtype=place.dtype) for _ in range(2))
    x.requires_grad_()  # as in a network, whose earlier layers want their gradients

    def step() -> None:
        x.grad = None
        optimizer.zero_grad(set_to_none=True)
        nn.functional.mse_loss(model(x), target).backward()
        optimizer.step()

    for _ in range(WARM):
        step()
    synchronize(place)
    marks = [mark(place)]
    for _ in range(STEPS):
        step()
        marks.append(mark(place))
    synchronize(place)
    return statistics.median(between(*two) for two in pairwise(marks))


def synchronize(place: Place) -> None:
    """Wait for the GPU."""
    if place.device == "cuda":
        torch.cuda.synchronize()


def mark(place: Place) -> Any:
    """A moment: an event of the GPU, or seconds."""
    if place.device != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(begin: Any, end: Any) -> float:
    """Milliseconds from one moment to another."""
    return (end - begin) * 1e3 if isinstance(begin, float) else float(begin.elapsed_time(end))


def measure(rank: int, place: Place, size: Size, turn: Any, folder: str) -> None:
    """What a rank runs; its times go into a file of the folder."""
    found: dict[str, list[float]] = {"alone": []}

    def by_turns() -> None:
        """One rank at a time: the first also leaves its kernels in the disk cache for the second."""
        for own in range(RANKS):
            if rank == own:
                found["alone"].append(milliseconds(alone, size, place))
            turn.wait(TURN_SECONDS)  # on the host: a collective that waits would keep the GPU busy

    by_turns()
    for make in TOGETHER:
        dist.barrier()
        found[make.__name__] = [milliseconds(make, size, place)]
    dist.barrier()
    by_turns()
    Path(folder, f"{rank}.json").write_text(json.dumps(found))


def summary(ranks: list[dict[str, list[float]]]) -> dict[str, Any]:
    """Milliseconds of a step, and ratios to the faster GPU's alone."""
    one = min(min(rank["alone"]) for rank in ranks)
    times = {make.__name__: max(rank[make.__name__][0] for rank in ranks) for make in TOGETHER}
    return {
        "one_gpu_ms": one,
        "one_gpu_ms_of_each": [rank["alone"] for rank in ranks],
        **{f"{name}_ms": value for name, value in times.items()},
        **{f"{name}_ratio": value / one for name, value in times.items()},
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    for name, value in {"tokens": 16384, "width": 4096, "hidden": 16384, "depth": 4}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    on_gpu = args.device == "cuda"
    if on_gpu and torch.cuda.device_count() < RANKS:
        parser.error(f"needs {RANKS} GPUs, found {torch.cuda.device_count()}")
    size = Size(args.tokens, args.width, args.hidden, args.depth)
    found = {"gpu": torch.cuda.get_device_name() if on_gpu else "none", "torch": torch.__version__, **size._asdict()}
    turn = torch.multiprocessing.get_context("spawn").Barrier(RANKS)
    with tempfile.TemporaryDirectory() as folder:
        place = Place("nccl" if on_gpu else "gloo", args.device, "bfloat16")
        start(measure, place, size, turn, folder, seconds=2 * SECONDS)
        found.update(summary([json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(RANKS)]))
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
