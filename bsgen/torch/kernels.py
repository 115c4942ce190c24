"""The three products of PyTorch tensors, without gradients: compiled kernels on a GPU, dense PyTorch products on the CPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bsgen.errors import ArgumentError
from bsgen.operands import ALIGNMENT
from bsgen.torch.products import Products


class Call(NamedTuple):
    """What a product is given besides tensors. No activation, or PyTorch's own float32 precision, is an empty string."""

    products: Products
    activation: str = ""
    precision: str = ""


# On a GPU: kernels.


def _ready(tensor: Tensor) -> Tensor:
    """The tensor, or a copy that is contiguous and aligned as kernels need it."""
    if tensor.data_ptr() % ALIGNMENT:
        return tensor.contiguous().clone(memory_format=torch.contiguous_format)
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def fprop_cuda(call: Call, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """The compiled fprop."""
    products, activation, precision = call
    mm = products.matmul("fprop", x.dtype, x.get_device(), precision, bias is not None, activation)
    result: Tensor = mm(_ready(x), _ready(w), None if bias is None else _ready(bias))
    return result


def dgrad_cuda(call: Call, dy: Tensor, w: Tensor) -> Tensor:
    """The compiled dgrad."""
    mm = call.products.matmul("dgrad", dy.dtype, dy.get_device(), call.precision)
    result: Tensor = mm.dgrad(_ready(dy), _ready(w))
    return result


def wgrad_cuda(call: Call, x: Tensor, dy: Tensor) -> Tensor:
    """The compiled wgrad."""
    mm = call.products.matmul("wgrad", x.dtype, x.get_device(), call.precision)
    result: Tensor = mm.wgrad(_ready(x), _ready(dy))
    return result


# On the CPU: the dense product, in float32 or better.

ACTIVATIONS = {
    "": lambda z: z,
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
}


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.element_size() < 4 else tensor


def _check_rows(products: Products, **rows: Tensor) -> None:
    """What a kernel's contract says of activations on a GPU, for those on the CPU."""
    features = {"x": products.in_features, "dy": products.out_features}
    leading, first = next(iter(rows.items()))
    for name, tensor in rows.items():
        if not tensor.ndim or tensor.shape[-1] != features[name]:
            raise ArgumentError(
                f"{name}: got shape {tuple(tensor.shape)}, expected a last dimension of {features[name]}"
            )
        if tensor.shape[:-1] != first.shape[:-1]:
            raise ArgumentError(f"{name}: got shape {tuple(tensor.shape)}, expected the rows of {leading}")
        _check_kind(name, tensor, leading, first)


def _check_weights(products: Products, w: Tensor, leading: str, first: Tensor) -> None:
    if tuple(w.shape) != products.weight_shape:
        raise ArgumentError(
            f"w: got shape {tuple(w.shape)}, expected {products.weight_shape} (nnz, b, b): weights of another layout or block size"
        )
    _check_kind("w", w, leading, first)


def _check_kind(name: str, tensor: Tensor, leading: str, first: Tensor) -> None:
    if tensor.dtype is not first.dtype:
        raise ArgumentError(f"{name}: got {tensor.dtype}, expected {first.dtype}, as {leading}: convert it")
    if tensor.device != first.device:
        raise ArgumentError(f"{name}: is on {tensor.device}, {leading} on {first.device}: move them to one device")


def fprop_cpu(call: Call, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """The dense product, with its epilogue."""
    products = call.products
    _check_rows(products, x=x)
    _check_weights(products, w, "x", x)
    z = _wide(x) @ products.scatter(_wide(w))
    if bias is not None:
        z = z + _wide(bias)
    return ACTIVATIONS[call.activation](z).to(x.dtype)


def dgrad_cpu(call: Call, dy: Tensor, w: Tensor) -> Tensor:
    """The dense product with W.T."""
    products = call.products
    _check_rows(products, dy=dy)
    _check_weights(products, w, "dy", dy)
    return (_wide(dy) @ products.scatter(_wide(w)).T).to(dy.dtype)


def wgrad_cpu(call: Call, x: Tensor, dy: Tensor) -> Tensor:
    """The stored blocks of the dense weight gradient."""
    products = call.products
    _check_rows(products, x=x, dy=dy)
    flat = _wide(x).reshape(-1, products.in_features), _wide(dy).reshape(-1, products.out_features)
    return products.gather(flat[0].T @ flat[1]).to(x.dtype)


def fprop(call: Call, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """act(x [..., C] @ W + bias [K]) -> [..., K]."""
    return fprop_cuda(call, x, w, bias) if x.is_cuda else fprop_cpu(call, x, w, bias)


def dgrad(call: Call, dy: Tensor, w: Tensor) -> Tensor:
    """dy [..., K] @ W.T -> [..., C]."""
    return dgrad_cuda(call, dy, w) if dy.is_cuda else dgrad_cpu(call, dy, w)


def wgrad(call: Call, x: Tensor, dy: Tensor) -> Tensor:
    """x.T @ dy at the stored blocks -> [nnz, b, b]."""
    return wgrad_cuda(call, x, dy) if x.is_cuda else wgrad_cpu(call, x, dy)
