"""Block-sparse layers as functions."""

from __future__ import annotations

import torch
from torch import Tensor

from bsgen.errors import ArgumentError
from bsgen.matmul import MatMul
from bsgen.problem import Precision
from bsgen.torch.functions import runner
from bsgen.torch.kernels import ACTIVATIONS, Call
from bsgen.torch.products import Products, of

PRECISIONS = (None, *(str(precision) for precision in Precision))  # a constant: tracing does not look into enumerations


def block_sparse_linear(
    x: Tensor,
    weight: Tensor,
    mm: MatMul | Products,
    bias: Tensor | None = None,
    activation: str | None = None,
    precision: str | None = None,
) -> Tensor:
    """activation(x [..., C] @ W + bias [K]) -> [..., K], with gradients for x, weight [nnz, b, b] and bias.

    Bias, and where nothing but the result is needed the activation ("relu", "gelu" (exact) or "silu"), are part of the
    kernel. In training only relu is: the gradients of the others need the sums before them, which PyTorch's own
    activation keeps. Under `torch.autocast` all inputs are cast, as those of `torch.nn.functional.linear` are.

    Args:
        mm: what `bsgen.compile` returned for the layout of `weight`, or `bsgen.torch.register(layout, block_size)`.
        precision: of float32 on a GPU: "tensor" multiplies in TF32, "ieee" in full float32. None: TF32 if
            `torch.set_float32_matmul_precision` allows it when the product runs.

    Raises:
        ArgumentError: an activation that there is not; shapes, dtypes or devices that do not belong together.
    """
    name = activation or ""
    if name not in ACTIVATIONS:
        known = ", ".join(repr(each) for each in ACTIVATIONS if each)
        raise ArgumentError(f"activation: got {activation!r}, expected None or one of {known}")
    if precision not in PRECISIONS:
        raise ArgumentError(f"precision: got {precision!r}, expected None, 'tensor' or 'ieee'")
    products = of(mm)
    place = x.device.type
    if place != "meta" and torch.is_autocast_enabled(place):
        dtype = torch.get_autocast_dtype(place)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if not x.is_cuda or torch.compiler.is_compiling():  # else the kernels' own checks say it
        _check(x, weight, bias, products)
    fused = name if name == "relu" or not _tracks(x, weight, bias) else ""
    y = runner(x, weight, bias).fprop(Call(products, fused, precision or ""), x, weight, bias)
    return y if fused == name else ACTIVATIONS[name](y)


def _tracks(*tensors: Tensor | None) -> bool:
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, products: Products) -> None:
    """What tracing must not pass on: said here, where names are the caller's."""
    if not x.ndim or x.shape[-1] != products.in_features:
        raise ArgumentError(f"x: got shape {tuple(x.shape)}, expected a last dimension of {products.in_features}")
    if tuple(weight.shape) != products.weight_shape:
        raise ArgumentError(
            f"weight: got shape {tuple(weight.shape)}, expected {products.weight_shape} (nnz, b, b): weights of another layout "
            "or block size"
        )
    if bias is not None and tuple(bias.shape) != (products.out_features,):
        raise ArgumentError(f"bias: got shape {tuple(bias.shape)}, expected ({products.out_features},)")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype is not x.dtype:
            raise ArgumentError(
                f"{name}: got {tensor.dtype}, x is {x.dtype}: convert one of them, or use torch.autocast"
            )
        if tensor is not None and tensor.device != x.device:
            raise ArgumentError(f"{name}: is on {tensor.device}, x on {x.device}: move them to one device")
