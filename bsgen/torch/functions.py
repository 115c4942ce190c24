"""The products as `torch.autograd.Function`s: the quick way of eager PyTorch, and the one that torch.func transforms.

PyTorch runs a Function with `setup_context`, which transforms need, and an operator with a registered gradient several
times slower than one with a plain `forward`. `runner` picks what a call needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bsgen.torch import gradients, kernels
from bsgen.torch.gradients import Runner
from bsgen.torch.kernels import Call
from bsgen.torch.ops import TRACED

PLAIN = frozenset({torch.Tensor, torch.nn.Parameter, type(None)})
NAMES = ("fprop", "dgrad", "wgrad")

_transforms_active: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
# How many modes look at every operator (tracing, counting): they must see ours.
_modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)


def runner(*tensors: Tensor | None) -> Runner:
    """How to run products of these tensors here and now."""
    if torch.compiler.is_compiling() or _modes():
        return TRACED
    if _transforms_active():
        return TRANSFORMED
    for tensor in tensors:
        if type(tensor) not in PLAIN:
            return TRACED
    return EAGER


def _eager(name: str) -> Callable[..., Tensor]:
    run, grads = getattr(kernels, name), gradients.OF[name]

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, call: Call, *tensors: Tensor | None) -> Tensor:
            result: Tensor = run(call, *tensors)
            ctx.call = call
            ctx.save_for_backward(*gradients.kept(name, call, tensors, result))
            return result

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
            return None, *grads(EAGER, ctx.call, ctx.needs_input_grad[1:], ctx.saved_tensors, g)

    Product.__name__ = Product.__qualname__ = f"bsgen_{name}"  # what a graph of gradients shows

    def product(call: Call, *tensors: Tensor | None) -> Tensor:
        result: Tensor = Product.apply(call, *tensors) if torch.is_grad_enabled() else run(call, *tensors)
        return result

    return product


def _transformed(name: str) -> Callable[..., Tensor]:
    grads, many = gradients.OF[name], BATCHED[name]

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(call: Call, *tensors: Tensor | None) -> Tensor:
            result: Tensor = getattr(TRACED, name)(call, *tensors)
            return result

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            ctx.call, *tensors = inputs
            ctx.save_for_backward(*gradients.kept(name, ctx.call, tensors, output))

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
            return None, *grads(TRANSFORMED, ctx.call, ctx.needs_input_grad[1:], ctx.saved_tensors, g)

        @staticmethod
        def vmap(info: Any, dims: tuple[int | None, ...], call: Call, *tensors: Tensor | None) -> tuple[Tensor, int]:
            return many(info.batch_size, dims[1:], call, *tensors), 0

    Product.__name__ = Product.__qualname__ = f"bsgen_{name}"

    def product(call: Call, *tensors: Tensor | None) -> Tensor:
        result: Tensor = Product.apply(call, *tensors)
        return result

    return product


def _one_by_one(name: str) -> Callable[..., Tensor]:
    """A batch of products as so many calls."""

    def many(size: int, dims: tuple[int | None, ...], call: Call, *tensors: Tensor | None) -> Tensor:
        moved = [_first(tensor, dim, size) for tensor, dim in zip(tensors, dims, strict=True)]
        each = getattr(TRANSFORMED, name)
        return torch.stack([each(call, *(None if t is None else t[i] for t in moved)) for i in range(size)])

    return many


def _first(tensor: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """The tensor with its batch first; one without a batch is repeated."""
    if tensor is None:
        return None
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _as_rows(name: str) -> Callable[..., Tensor]:
    """Batched activations are more rows of one product; with batched weights there are many."""
    otherwise = _one_by_one(name)

    def many(size: int, dims: tuple[int | None, ...], call: Call, first: Tensor, *rest: Tensor | None) -> Tensor:
        if any(dim is not None for dim in dims[1:]):
            return otherwise(size, dims, call, first, *rest)
        result: Tensor = getattr(TRANSFORMED, name)(call, _first(first, dims[0], size), *rest)
        return result

    return many


BATCHED = {"fprop": _as_rows("fprop"), "dgrad": _as_rows("dgrad"), "wgrad": _one_by_one("wgrad")}
EAGER = Runner(*map(_eager, NAMES))
TRANSFORMED = Runner(*map(_transformed, NAMES))
