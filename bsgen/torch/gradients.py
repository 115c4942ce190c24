"""The gradients of the three products, which are these same products: so any order of derivative works.

    fprop  y = act(x @ W + bias)    dx = dgrad(dz, w)    dw = wgrad(x, dz)    dbias = sum(dz),  dz = act'(z) dy
    dgrad  dx = dy @ W.T            ddy = fprop(g, w)    dw = wgrad(g, dy)
    wgrad  dW = x.T @ dy at blocks  dx = dgrad(dy, G)    ddy = fprop(x, G)

Each takes what runs the products (`Runner`), which inputs need a gradient, what was kept, and the gradient of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bsgen.torch.kernels import Call

Gradients = tuple[Tensor | None, ...]


class Runner(NamedTuple):
    """The products, in one of the ways that PyTorch can be told their gradients; each is called with a `Call` and tensors."""

    fprop: Callable[..., Tensor]
    dgrad: Callable[..., Tensor]
    wgrad: Callable[..., Tensor]


def kept(name: str, call: Call, tensors: Sequence[Tensor | None], result: Tensor) -> tuple[Tensor | None, ...]:
    """What the gradients of a product need: its inputs, and for relu its result."""
    return (*tensors, result) if name == "fprop" and call.activation == "relu" else tuple(tensors)


def fprop(run: Runner, call: Call, needed: Sequence[bool], saved: Sequence[Any], dy: Tensor) -> Gradients:
    """Of x, w and bias."""
    x, w, bias, *result = saved
    plain = call._replace(activation="")
    if result:
        dy = torch.ops.aten.threshold_backward(dy, result[0], 0)
    elif call.activation:  # the sums were not kept: make them again
        z = run.fprop(plain, x, w, bias)
        backward = {"gelu": torch.ops.aten.gelu_backward, "silu": torch.ops.aten.silu_backward}[call.activation]
        dy = backward(dy, z)
    dx = run.dgrad(plain, dy, w) if needed[0] else None
    dw = run.wgrad(plain, x, dy) if needed[1] else None
    dbias = dy.reshape(-1, dy.shape[-1]).sum(0) if needed[2] else None
    return dx, dw, dbias


def dgrad(run: Runner, call: Call, needed: Sequence[bool], saved: Sequence[Any], g: Tensor) -> Gradients:
    """Of dy and w."""
    dy, w = saved
    return run.fprop(call, g, w, None) if needed[0] else None, run.wgrad(call, g, dy) if needed[1] else None


def wgrad(run: Runner, call: Call, needed: Sequence[bool], saved: Sequence[Any], g: Tensor) -> Gradients:
    """Of x and dy."""
    x, dy = saved
    return run.dgrad(call, dy, g) if needed[0] else None, run.fprop(call, x, g, None) if needed[1] else None


OF = {"fprop": fprop, "dgrad": dgrad, "wgrad": wgrad}
