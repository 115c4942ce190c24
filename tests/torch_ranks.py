"""What the processes of tests/test_torch_parallel.py run; each gets its rank."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist

import bsgen.torch as bt
from bsgen import topology
from bsgen.torch.parallel import parallelize

HIDDEN = topology.barabasi_albert(8, 2, seed=0)


def layers() -> tuple[bt.BlockSparseLinear, bt.BlockSparseLinear]:
    torch.manual_seed(0)
    first = bt.BlockSparseLinear(HIDDEN, 8, activation="gelu", dtype=torch.float64)
    return first, bt.BlockSparseLinear(HIDDEN.transpose(), 8, dtype=torch.float64)


def data(rows: int) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(rows, 64, generator=generator, dtype=torch.float64) for _ in range(2))


def join(rank: int, size: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=size)


def leave() -> None:
    """Together, and without the interpreter's own end, at which a thread of gloo's now and then aborts the process."""
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)


def losses(model: Any, parameters: Any, x: Any, target: Any, steps: int = 5) -> list[float]:
    """Of training; of several ranks the mean."""
    optimizer, found = torch.optim.SGD(parameters, lr=0.05), []
    for _ in range(steps):
        loss = (model(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean = loss.detach().clone()
        if dist.is_initialized():
            dist.all_reduce(mean)
            mean /= dist.get_world_size()
        found.append(mean.item())
    return found


def tensor_parallel(rank: int, size: int, port: int, expected: list[float]) -> None:
    join(rank, size, port)
    pair = parallelize(*layers())
    x, target = data(16)
    x.requires_grad_()
    whole = torch.nn.Sequential(*layers())
    torch.testing.assert_close(pair(x), whole(x))
    torch.testing.assert_close(*(torch.autograd.grad(model(x).square().sum(), x)[0] for model in (pair, whole)))
    torch.testing.assert_close(losses(pair, pair.parameters(), x.detach(), target), expected)
    blocks = torch.tensor(float(pair.first.layout.nnz + pair.second.layout.nnz))
    dist.all_reduce(blocks)
    assert blocks == 2 * HIDDEN.nnz
    leave()


def data_parallel(rank: int, size: int, port: int, expected: list[float]) -> None:
    join(rank, size, port)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Sequential(*layers()))
    x, target = (tensor.chunk(size)[rank] for tensor in data(16))
    torch.testing.assert_close(losses(model, model.parameters(), x, target), expected)
    leave()


def fully_sharded(rank: int, size: int, port: int, expected: list[float]) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    join(rank, size, port)
    model = torch.nn.Sequential(*layers())
    mesh = init_device_mesh("cpu", (size,))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    x, target = (tensor.chunk(size)[rank] for tensor in data(16))
    torch.testing.assert_close(losses(model, model.parameters(), x, target), expected)
    leave()
