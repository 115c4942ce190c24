"""`BlockSparseLinear`: `torch.nn.Linear` with only the blocks of a layout."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bsgen.errors import ArgumentError
from bsgen.layout import Layout
from bsgen.ranges import members
from bsgen.torch.functional import block_sparse_linear
from bsgen.torch.kernels import ACTIVATIONS
from bsgen.torch.products import register
from bsgen.weights import Norm, layout_from_weights

MASK = "layout_mask"


class BlockSparseLinear(nn.Module):
    """y = activation(x [..., C] @ W + bias), W [C, K] with the blocks that `layout` [C / b, K / b] stores, and no others.

    Attributes:
        weight: Parameter [nnz, b, b], blocks in the order of `numpy.argwhere(layout)`, each [in, out].
        bias: Parameter [K], or None.
        layout_mask: the layout as a buffer, so that `state_dict` carries it: weights of another one are refused.

    Runs on CUDA through bsgen's kernels and on the CPU through dense PyTorch products, with the same results to rounding.
    Initialised as `torch.nn.Linear`, each column by the number of inputs that it has.

    Args:
        layout: a `Layout`, 0/1 array or file. block_size: 8, 16, 32, 64 or 128.
        activation: None, "relu", "gelu" (exact) or "silu".

    Raises:
        LayoutError, ArgumentError: a layout, block size or activation that is not usable.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    layout_mask: Tensor

    def __init__(
        self,
        layout: object,
        block_size: int = 32,
        bias: bool = True,
        activation: str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if (activation or "") not in ACTIVATIONS:
            raise ArgumentError(f"activation: got {activation!r}, expected None, 'relu', 'gelu' or 'silu'")
        self.products = register(layout, block_size)
        self.activation = activation
        self.weight = nn.Parameter(torch.empty(self.products.weight_shape, dtype=dtype, device=device))
        if bias:
            self.bias = nn.Parameter(torch.empty(self.out_features, dtype=dtype, device=device))
        else:
            self.register_parameter("bias", None)
        self.register_buffer(MASK, torch.tensor(self.layout.mask, device=device))
        self.reset_parameters()

    @property
    def layout(self) -> Layout:
        """Which blocks are stored."""
        return self.products.layout

    @property
    def block_size(self) -> int:
        """b: the side of a block."""
        return self.products.block_size

    @property
    def in_features(self) -> int:
        """C: the last dimension of x."""
        return self.products.in_features

    @property
    def out_features(self) -> int:
        """K: the last dimension of the result."""
        return self.products.out_features

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Uniform in +- 1 / sqrt(fan-in), as `torch.nn.Linear`, with the fan-in of each column of blocks."""
        fan_in = torch.tensor(self.layout.fan_in * self.block_size, dtype=torch.float32)
        bounds = fan_in.clamp(min=1).rsqrt().to(self.weight.device)
        columns = self.products.blocks(self.weight.device)[1] if self.weight.device.type != "meta" else None
        if columns is None:
            return
        self.weight.uniform_(-1, 1).mul_(bounds[columns][:, None, None].to(self.weight.dtype))
        if self.bias is not None:
            self.bias.uniform_(-1, 1).mul_(bounds.repeat_interleave(self.block_size).to(self.bias.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """activation(x [..., C] @ W + bias) -> [..., K]."""
        return block_sparse_linear(x, self.weight, self.products, self.bias, self.activation)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        density: float | None = None,
        layout: object | None = None,
        block_size: int = 32,
        norm: Norm = "l2",
        activation: str | None = None,
    ) -> BlockSparseLinear:
        """The blocks of a `torch.nn.Linear` that `layout` has, or the share `density` with the largest `norm` ("l2" or "max").

        Raises:
            ArgumentError: not exactly one of density and layout; a layout of another shape. LayoutError: features that
                blocks do not fill.
        """
        if (density is None) == (layout is None):
            raise ArgumentError(f"density, layout: got {density!r} and {layout!r}, expected exactly one of the two")
        weight = linear.weight.detach()
        if layout is None:
            layout = layout_from_weights(weight.float().cpu().numpy(), block_size, density or 0.0, norm, transpose=True)
        has_bias = linear.bias is not None
        made = cls(layout, block_size, has_bias, activation, weight.dtype, weight.device)
        if (made.in_features, made.out_features) != (linear.in_features, linear.out_features):
            raise ArgumentError(
                f"layout: got {made.in_features} x {made.out_features} features, expected {linear.in_features} x "
                f"{linear.out_features}, those of the Linear (rows of a layout are inputs)"
            )
        with torch.no_grad():
            made.weight.copy_(made.products.gather(weight.T))
            if made.bias is not None:
                made.bias.copy_(linear.bias)
        made.weight.requires_grad_(linear.weight.requires_grad)
        made.train(linear.training)
        return made

    def to_linear(self) -> nn.Linear:
        """A `torch.nn.Linear` with the same weights, and zeros where no block is stored; the activation is not in it."""
        dense = nn.Linear(
            self.in_features, self.out_features, self.bias is not None, self.weight.device, self.weight.dtype
        )
        with torch.no_grad():
            dense.weight.copy_(self.products.scatter(self.weight).T)
            if self.bias is not None:
                dense.bias.copy_(self.bias)
        return dense.train(self.training)

    def warmup(self, dtype: torch.dtype | None = None, rows: Iterable[int] | None = None) -> None:
        """Compile and load the kernels for calls with `dtype` (None: the weights'), so that calls may be captured.

        `rows`: how many rows those calls will have, all but the last dimension of x together; None: any.
        """
        if self.weight.is_cuda:
            kind, device = dtype or self.weight.dtype, self.weight.get_device()
            asked = members(1) if rows is None else tuple(rows)
            for activation in {"", self.activation or ""}:
                self.products.prepare(kind, device, self.bias is not None, activation, asked)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        mask: Tensor | None = state_dict.get(prefix + MASK)
        if mask is not None and not torch.equal(mask.cpu(), torch.tensor(self.layout.mask)):
            errors: list[str] = rest[-1]
            errors.append(
                f"{prefix}weight: saved for {Layout(mask.cpu().numpy())!r}, but this layer has {self.layout!r}: make the layer "
                "with the saved layout (the entry layout_mask) before loading"
            )
            return
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        """Size, density and parameters, for print."""
        parameters = self.weight.numel() + (self.bias.numel() if self.bias is not None else 0)
        text = f"{self.in_features}, {self.out_features}, block_size={self.block_size}, bias={self.bias is not None}"
        activation = f", activation={self.activation}" if self.activation else ""
        return f"{text}{activation}, density={self.layout.density:.3g}, parameters={parameters}"
