"""Tensor parallelism (Shoeybi et al. 2019): a pair of block-sparse layers over the ranks of a process group.

The hidden features between the two are cut into runs that are balanced by stored blocks; a rank has the columns of the
first layer and the rows of the second that meet there. One all-reduce forward, one backward, by PyTorch's own
functional collectives.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import _functional_collectives as collectives

from bsgen.errors import ArgumentError
from bsgen.layout import Layout
from bsgen.masks import cuts
from bsgen.torch.linear import BlockSparseLinear


class _Enter(torch.autograd.Function):
    """The same input for every rank; its gradients are summed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return collectives.wait_tensor(collectives.all_reduce(g.contiguous(), "sum", ctx.group)), None


class _Leave(torch.autograd.Function):
    """The sum of every rank's results; its gradient is the same for all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        result: Tensor = collectives.wait_tensor(collectives.all_reduce(x.contiguous(), "sum", group))
        return result

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g, None


class ParallelPair(nn.Module):
    """second(first(x)) with this rank's share of the hidden features; made by `parallelize`.

    Attributes:
        first, second: `BlockSparseLinear`s of this rank's part; `second` has no bias of its own.
        bias: of the second layer, the same on every rank: added once, after the sum.
    """

    def __init__(
        self, first: BlockSparseLinear, second: BlockSparseLinear, bias: nn.Parameter | None, group: Any
    ) -> None:
        super().__init__()
        self.first, self.second, self.group = first, second, group
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., C], the same on every rank -> [..., K], the same on every rank."""
        y = self.second(self.first(_Enter.apply(x, self.group)))
        y = _Leave.apply(y, self.group)
        return y if self.bias is None else y + self.bias


def parallelize(first: BlockSparseLinear, second: BlockSparseLinear, group: Any = None) -> ParallelPair:
    """This rank's part of a column-parallel `first` and a row-parallel `second` layer, with their weights.

    Every rank of `group` (None: all) calls it with the same two layers. Activations of `first` are kept; `second` must
    have none, for it would come before the sum.

    Raises:
        ArgumentError: layers that do not fit each other. LayoutError: more ranks than hidden blocks.
    """
    if (first.out_features, first.block_size) != (second.in_features, second.block_size):
        raise ArgumentError(
            f"second: takes {second.in_features} features in blocks of {second.block_size}, expected "
            f"{first.out_features} in blocks of {first.block_size}, which first gives"
        )
    if second.activation:
        raise ArgumentError(f"second: has the activation {second.activation!r}, expected none: apply it after the pair")
    group = group or dist.group.WORLD
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    begin, end = list(pairwise(cuts(first.layout.fan_in + second.layout.fan_out, size)))[rank]
    own = _part(first, slice(None), slice(begin, end)), _part(second, slice(begin, end), slice(None), bias=False)
    bias = None if second.bias is None else nn.Parameter(second.bias.detach().clone())
    return ParallelPair(*own, bias, group)


@torch.no_grad()
def _part(layer: BlockSparseLinear, rows: slice, columns: slice, bias: bool = True) -> BlockSparseLinear:
    """The layer of some block rows and columns, with its weights."""
    layout, size, weight = layer.layout, layer.block_size, layer.weight
    own = Layout(layout.mask[rows, columns])
    bias = bias and layer.bias is not None
    part = BlockSparseLinear(own, size, bias, layer.activation, weight.dtype, weight.device)
    first_row, first_column = rows.start or 0, columns.start or 0
    inside = torch.tensor(
        [
            first_row <= row < first_row + own.shape[0] and first_column <= column < first_column + own.shape[1]
            for row, column in layout.blocks.tolist()
        ],
        dtype=torch.bool,
        device=weight.device,
    )
    part.weight.copy_(weight[inside])
    if part.bias is not None and layer.bias is not None:
        part.bias.copy_(layer.bias[first_column * size : (first_column + own.shape[1]) * size])
    part.train(layer.training)
    return part
