"""`Pruner`: density that falls while a model trains, with optimizer state carried over."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from bsgen.checks import integer
from bsgen.errors import ArgumentError
from bsgen.layout import Layout
from bsgen.torch.linear import BlockSparseLinear
from bsgen.torch.products import Products, register
from bsgen.torch.schedule import PolynomialSchedule
from bsgen.weights import NORMS, Norm

THREADS = 4


@dataclass(frozen=True)
class Change:
    """What a layer becomes: the products of its new layout, and which of its blocks stay."""

    layer: BlockSparseLinear
    products: Products
    kept: torch.Tensor


class Pruner:
    """Takes the blocks with the smallest norms out of every `BlockSparseLinear` of a model, as a schedule says.

        pruner = Pruner(model, PolynomialSchedule(final=0.1, end=10_000), optimizer)
        for batch in data:
            ...
            optimizer.step()
            pruner.step()

    Which blocks go is decided `lead` steps ahead: the kernels of the new layouts compile in the background meanwhile, and
    the change waits for them, so that training is the same however long they take. Weights, biases and the optimizer's
    state of the blocks that stay are carried over; a layer's `weight` is a new Parameter then. Wrap the model in
    DistributedDataParallel again after a change: it knows the old Parameters.

    Args:
        optimizer: what trains the model; None if nothing does yet.
        norm: "l2" or "max", of a block's weights.

    Raises:
        ArgumentError: the model has no `BlockSparseLinear`; a norm or lead that there is not.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: PolynomialSchedule,
        optimizer: torch.optim.Optimizer | None = None,
        norm: Norm = "l2",
        lead: int = 20,
    ) -> None:
        self._layers = [layer for layer in model.modules() if isinstance(layer, BlockSparseLinear)]
        if not self._layers:
            raise ArgumentError(
                "model: has no BlockSparseLinear, expected at least one: call bsgen.torch.sparsify first"
            )
        if norm not in NORMS:
            raise ArgumentError(f"norm: got {norm!r}, expected one of {', '.join(map(repr, NORMS))}")
        self._schedule, self._optimizer, self._norm = schedule, optimizer, norm
        self._lead = integer("lead", lead, 0)
        if lead >= schedule.every:
            raise ArgumentError(
                f"lead: got {lead}, expected less than the schedule's every ({schedule.every}): a change at a time"
            )
        self._count = self._decided = 0
        self._pending: dict[int, tuple[list[Change], list[Future[None]]]] = {}
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="bsgen-prune")

    @property
    def density(self) -> float:
        """Stored blocks over all blocks, of all layers together."""
        return sum(layer.layout.nnz for layer in self._layers) / sum(layer.layout.size for layer in self._layers)

    def step(self) -> bool:
        """Count a training step; whether layouts changed in it."""
        self._count += 1
        ahead = self._count + self._lead
        for step in range(self._decided + 1, ahead + 1):  # several at first, when there was nothing to look ahead from
            if self._schedule.changes(step):
                changes = [
                    c for c in (self._decide(layer, self._schedule.density(step)) for layer in self._layers) if c
                ]
                self._pending[step] = changes, [self._pool.submit(_prepare, change) for change in changes]
        self._decided = ahead
        changes, waiting = self._pending.pop(self._count, ([], []))
        for change, future in zip(changes, waiting, strict=True):
            future.result()
            self._apply(change)
        return bool(changes)

    def state_dict(self) -> dict[str, Any]:
        """The step count; layouts are in the model's own state."""
        return {"count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a step count."""
        self._count = self._decided = int(state["count"])
        self._pending.clear()

    @torch.no_grad()
    def _decide(self, layer: BlockSparseLinear, density: float) -> Change | None:
        """The blocks of largest norm that stay, of equals the first; None if no block has to go."""
        layout = layer.layout
        count = round(density * layout.size)
        if count >= layout.nnz:
            return None
        weight = layer.weight.detach().float()
        norms = weight.abs().amax((1, 2)) if self._norm == "max" else weight.square().sum((1, 2))
        kept = torch.argsort(norms, descending=True, stable=True)[:count].sort().values
        mask = np.zeros(layout.shape, bool)
        mask[tuple(layout.blocks[kept.cpu().numpy()].T)] = True
        return Change(layer, register(Layout(mask), layer.block_size), layout_places(layout, kept))

    @torch.no_grad()
    def _apply(self, change: Change) -> None:
        layer, kept = change.layer, _still_stored(change)
        old, new = layer.weight, nn.Parameter(layer.weight[kept].clone(), layer.weight.requires_grad)
        if old.grad is not None:
            new.grad = old.grad[kept].clone()
        layer.products, layer.weight = change.products, new
        layer.layout_mask.copy_(torch.tensor(layer.layout.mask))
        if self._optimizer is not None:
            _carry(self._optimizer, old, new, kept)


def layout_places(layout: Layout, kept: torch.Tensor) -> torch.Tensor:
    """Row-major places in the block grid of stored blocks: what names a block when others have gone."""
    rows, columns = layout.blocks[kept.cpu().numpy()].T.astype(np.int64)
    return torch.as_tensor(rows * layout.shape[1] + columns)


def _still_stored(change: Change) -> torch.Tensor:
    """Where the kept blocks are among those that the layer has now."""
    now = layout_places(change.layer.layout, torch.arange(change.layer.layout.nnz))
    return torch.searchsorted(now, change.kept).to(change.layer.weight.device)


def _prepare(change: Change) -> None:
    """In the background: the kernels that the layer will call."""
    weight = change.layer.weight
    if weight.is_cuda:
        layer = change.layer
        rows = layer.products.rows()
        change.products.prepare(weight.dtype, weight.get_device(), layer.bias is not None, "", rows)


def _carry(optimizer: torch.optim.Optimizer, old: nn.Parameter, new: nn.Parameter, kept: torch.Tensor) -> None:
    """The optimizer trains `new` with the state that it had for these blocks of `old`."""
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    state = optimizer.state.pop(old, None)
    if state is not None:
        optimizer.state[new] = {
            name: value[kept].clone() if torch.is_tensor(value) and value.shape == old.shape else value
            for name, value in state.items()
        }
