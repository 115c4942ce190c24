"""What the processes of test_two_gpus.py run, one a GPU, and how they are started: no wait is without end.

Nothing here needs a GPU: `Place("gloo", "cpu")` runs the same on the CPU.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from cases import assert_close

import bsgen.torch as bt
from bsgen import topology
from bsgen.torch.parallel import parallelize

sys.path.append(str(Path(__file__).parent.parent))
import torch_ranks

RANKS, ROWS, BLOCK = 2, 1024, 32
HIDDEN = topology.random(16, 31, fan_in=5, seed=1)  # 31 columns and 155 blocks: halves that are not equal
SCALE = 16.0  # of x: its losses fall by a third in a step, so that a wrong gradient shows
RANK_SECONDS, SECONDS = 120, 300  # of a collective, the other rank's compilation included; of a whole run
# NVLink multicast is off: no use of it is worth what its failures do to the other programs on a host.
ENVIRONMENT = {
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "NVSHMEM_DISABLE_NVLS": "1",
}
# Relative, of losses and of results. Where ranks do not share their gradients losses are 1e-2 off. float32 is in full, not TF32.
TOLERANCE = {"float64": (1e-12, 1e-12), "float32": (1e-5, 1e-5), "bfloat16": (2e-3, 1e-2)}


class Place(NamedTuple):
    """Where ranks run, and in what arithmetic."""

    backend: str = "nccl"
    device: str = "cuda"
    kind: str = "float32"

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        found: torch.dtype = getattr(torch, self.kind)
        return found


# How ranks are started.


def start(way: Callable[..., None], place: Place, *args: Any, seconds: float = SECONDS) -> None:
    """Run way(rank, place, *args) in a process a rank; one that fails or takes too long ends all of them.

    Raises:
        ProcessExitedException: a rank failed, and has said why on stderr. TimeoutError: some did not end in time.
    """
    os.environ.update(ENVIRONMENT)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    deadline = time.monotonic() + seconds
    context = torch.multiprocessing.spawn(_rank, (way, place, port, args), nprocs=RANKS, join=False)
    try:
        while not context.join(timeout=max(0.0, deadline - time.monotonic())):
            if time.monotonic() >= deadline:
                raise TimeoutError(f"{way.__name__}: the ranks did not end in {seconds} s")
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()


def _rank(rank: int, way: Callable[..., None], place: Place, port: int, args: tuple[Any, ...]) -> None:
    try:
        where = torch.device(place.device, rank) if place.device == "cuda" else None
        if where is not None:
            torch.cuda.set_device(where)
        dist.init_process_group(
            place.backend,
            init_method=f"tcp://127.0.0.1:{port}",
            timeout=timedelta(seconds=RANK_SECONDS),
            rank=rank,
            world_size=RANKS,
            device_id=where,
        )
        with in_full_float32():
            way(rank, place, *args)
        torch_ranks.leave()
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # the interpreter's own end may wait for collectives in which the other rank is missing


@contextlib.contextmanager
def in_full_float32() -> Iterator[None]:
    """Products of float32 without TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# What they train.


def layers(place: Place) -> tuple[bt.BlockSparseLinear, bt.BlockSparseLinear]:
    """The same weights in every process."""
    torch.manual_seed(0)
    pair = bt.BlockSparseLinear(HIDDEN, BLOCK, activation="gelu"), bt.BlockSparseLinear(HIDDEN.transpose(), BLOCK)
    first, second = (layer.to(place.device, place.dtype) for layer in pair)
    return first, second


def data(place: Place) -> tuple[Any, Any]:
    """The global batch and its targets, which are float32 or wider: so are losses."""
    generator = torch.Generator().manual_seed(1)
    features = HIDDEN.shape[0] * BLOCK
    x, target = (torch.randn(ROWS, features, generator=generator).to(place.device) for _ in range(2))
    return (SCALE * x).to(place.dtype), target


def part(rank: int, place: Place) -> tuple[Any, Any]:
    """A rank's part of the batch."""
    x, target = (tensor.chunk(RANKS)[rank] for tensor in data(place))
    return x, target


def alone(place: Place) -> list[float]:
    """The losses of one process."""
    model = torch.nn.Sequential(*layers(place))
    with in_full_float32():
        return torch_ranks.losses(model, model.parameters(), *data(place))


# What a rank does.


def data_parallel(rank: int, place: Place, expected: list[float]) -> None:
    """DistributedDataParallel, each rank with its part of the batch."""
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Sequential(*layers(place)))
    _compare(model, *part(rank, place), place, expected)
    for parameter in model.parameters():
        first = parameter.detach().clone()
        dist.broadcast(first, 0)
        assert torch.equal(parameter, first)


def fully_sharded(rank: int, place: Place, expected: list[float]) -> None:
    """FSDP2, each rank with its part of the batch."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = torch.nn.Sequential(*layers(place))
    mesh = init_device_mesh(place.device, (RANKS,))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    _compare(model, *part(rank, place), place, expected)


def tensor_parallel(rank: int, place: Place, expected: list[float]) -> None:
    """The pair's hidden features over the ranks, all with the whole batch."""
    pair, whole = parallelize(*layers(place)), torch.nn.Sequential(*layers(place))
    x, target = data(place)
    x.requires_grad_()
    results = [(y := model(x), *torch.autograd.grad(y.square().sum(), x)) for model in (pair, whole)]
    for got, wanted in zip(*results, strict=True):
        assert_close(got.detach(), wanted.detach().double(), TOLERANCE[place.kind][1])
    _compare(pair, x.detach(), target, place, expected)
    blocks = torch.tensor(float(pair.first.layout.nnz + pair.second.layout.nnz), device=place.device)
    dist.all_reduce(blocks)
    assert blocks == 2 * HIDDEN.nnz


def _compare(model: Any, x: Any, target: Any, place: Place, expected: list[float]) -> None:
    found = torch_ranks.losses(model, model.parameters(), x, target)
    torch.testing.assert_close(found, expected, rtol=TOLERANCE[place.kind][0], atol=0)


WAYS = {way.__name__: way for way in (data_parallel, fully_sharded, tensor_parallel)}
