"""The three products as PyTorch operators, `torch.ops.bsgen.fprop`, `.dgrad` and `.wgrad`: what torch.compile and export see.

`layout` is a key of `products`; `features`, `blocks` and `block` say the shape of the result to whoever traces.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bsgen.torch import gradients, kernels
from bsgen.torch.gradients import Runner
from bsgen.torch.kernels import Call
from bsgen.torch.products import known

SCHEMAS = (
    "fprop(Tensor x, Tensor w, Tensor? bias, str layout, int features, str activation, str precision) -> Tensor",
    "dgrad(Tensor dy, Tensor w, str layout, int features, str precision) -> Tensor",
    "wgrad(Tensor x, Tensor dy, str layout, int blocks, int block, str precision) -> Tensor",
)
library = torch.library.Library("bsgen", "DEF")
for _schema in SCHEMAS:
    library.define(_schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))


def _run_fprop(call: Call, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    products, activation, precision = call
    result: Tensor = torch.ops.bsgen.fprop(x, w, bias, products.key, products.out_features, activation, precision)
    return result


def _run_dgrad(call: Call, dy: Tensor, w: Tensor) -> Tensor:
    result: Tensor = torch.ops.bsgen.dgrad(dy, w, call.products.key, call.products.in_features, call.precision)
    return result


def _run_wgrad(call: Call, x: Tensor, dy: Tensor) -> Tensor:
    blocks, block, _ = call.products.weight_shape
    result: Tensor = torch.ops.bsgen.wgrad(x, dy, call.products.key, blocks, block, call.precision)
    return result


TRACED = Runner(_run_fprop, _run_dgrad, _run_wgrad)


def _fprop(
    x: Tensor, w: Tensor, bias: Tensor | None, layout: str, features: int, activation: str, precision: str
) -> Tensor:
    return kernels.fprop(Call(known(layout), activation, precision), x, w, bias)


def _dgrad(dy: Tensor, w: Tensor, layout: str, features: int, precision: str) -> Tensor:
    return kernels.dgrad(Call(known(layout), "", precision), dy, w)


def _wgrad(x: Tensor, dy: Tensor, layout: str, blocks: int, block: int, precision: str) -> Tensor:
    return kernels.wgrad(Call(known(layout), "", precision), x, dy)


def _fprop_fake(
    x: Tensor, w: Tensor, bias: Tensor | None, layout: str, features: int, activation: str, precision: str
) -> Tensor:
    return x.new_empty((*x.shape[:-1], features))


def _dgrad_fake(dy: Tensor, w: Tensor, layout: str, features: int, precision: str) -> Tensor:
    return dy.new_empty((*dy.shape[:-1], features))


def _wgrad_fake(x: Tensor, dy: Tensor, layout: str, blocks: int, block: int, precision: str) -> Tensor:
    return x.new_empty((blocks, block, block))


def _fprop_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, layout, _, activation, precision = inputs
    _keep(ctx, "fprop", Call(known(layout), activation, precision), tensors, output)


def _dgrad_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, layout, _, precision = inputs
    _keep(ctx, "dgrad", Call(known(layout), "", precision), tensors, output)


def _wgrad_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, layout, _, _, precision = inputs
    _keep(ctx, "wgrad", Call(known(layout), "", precision), tensors, output)


def _keep(ctx: Any, name: str, call: Call, tensors: list[Tensor | None], output: Tensor) -> None:
    ctx.call = call
    ctx.save_for_backward(*gradients.kept(name, call, tensors, output))


def _fprop_backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    return *gradients.fprop(TRACED, ctx.call, ctx.needs_input_grad, ctx.saved_tensors, dy), None, None, None, None


def _dgrad_backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    return *gradients.dgrad(TRACED, ctx.call, ctx.needs_input_grad, ctx.saved_tensors, g), None, None, None


def _wgrad_backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    return *gradients.wgrad(TRACED, ctx.call, ctx.needs_input_grad, ctx.saved_tensors, g), None, None, None, None


PARTS = {
    "fprop": (_fprop, _fprop_fake, _fprop_setup, _fprop_backward),
    "dgrad": (_dgrad, _dgrad_fake, _dgrad_setup, _dgrad_backward),
    "wgrad": (_wgrad, _wgrad_fake, _wgrad_setup, _wgrad_backward),
}
for _name, (_run, _fake, _setup, _backward) in PARTS.items():
    library.impl(_name, _run, "CUDA")
    library.impl(_name, _run, "CPU")
    torch.library.register_fake(f"bsgen::{_name}", _fake, lib=library)
    torch.library.register_autograd(f"bsgen::{_name}", _backward, setup_context=_setup, lib=library)
