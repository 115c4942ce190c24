"""bsgen.torch on a GPU: against its CPU twin and dense layers; compiled, captured, checkpointed, trained, pruned."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from cases import torch

import bsgen
from bsgen import topology

pytest.importorskip("torch")

import bsgen.torch as bt

LAYOUT = topology.random(12, 16, density=0.3, seed=1)
ROWS = (1, 7, 64, 300)
ACTIVATIONS = (None, "relu", "gelu", "silu")
TOLERANCE = {"float16": 4e-3, "bfloat16": 2e-2, "float32": 4e-3}  # float32 in TF32


@pytest.fixture(autouse=True)
def _tf32() -> Any:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def layer_of(
    dtype: str = "bfloat16", activation: str | None = None, block: int = 32, **more: Any
) -> bt.BlockSparseLinear:
    torch.manual_seed(1)
    return bt.BlockSparseLinear(
        LAYOUT, block, activation=activation, dtype=getattr(torch, dtype), device="cuda", **more
    )


def close(got: Any, wanted: Any, dtype: str = "bfloat16", tolerance: float | None = None) -> None:
    """Relative, in the Frobenius norm."""
    wanted = wanted.to(got.device).double()
    assert not torch.isnan(got).any()
    assert float((got.double() - wanted).norm()) <= (tolerance or TOLERANCE[dtype]) * float(wanted.norm()) + 1e-12


def gradients(layer: Any, x: Any, g: Any) -> tuple[Any, ...]:
    x = x.detach().requires_grad_()
    y = layer(x)
    return y.detach(), *torch.autograd.grad(y, (x, layer.weight, layer.bias), g)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_same_as_in_float64_on_the_cpu(dtype: str, activation: str | None) -> None:
    layer = layer_of(dtype, activation)
    twin = copy.deepcopy(layer).cpu().double()
    for n in ROWS:
        x = torch.randn(n, layer.in_features, device="cuda").to(layer.weight.dtype)
        g = torch.randn(n, layer.out_features, device="cuda").to(x.dtype)
        wanted = gradients(twin, x.cpu().double(), g.cpu().double())
        step = 5e-2 if activation == "relu" else None  # sums that round to the other side of its step
        for got, want in zip(gradients(layer, x, g), wanted, strict=True):
            close(got, want, dtype, step)
        with torch.no_grad():
            close(layer(x), wanted[0], dtype)


@pytest.mark.parametrize("block", [8, 16, 64, 128])
def test_every_block_size(block: int) -> None:
    layer = layer_of("float16", block=block)
    twin = copy.deepcopy(layer).cpu().double()
    x, g = (torch.randn(130, features, device="cuda").half() for features in (layer.in_features, layer.out_features))
    for got, want in zip(gradients(layer, x, g), gradients(twin, x.cpu().double(), g.cpu().double()), strict=True):
        close(got, want, "float16")


def test_gradcheck_in_full_float32() -> None:
    """The issue's gradcheck on the GPU's own arithmetic: float32 ieee against finite differences."""
    torch.set_float32_matmul_precision("highest")
    products = bt.register(topology.random(3, 4, density=0.5, seed=2), 8)
    inputs = [
        torch.randn(5, products.in_features),
        torch.randn(products.weight_shape),
        torch.randn(products.out_features),
    ]
    inputs = [tensor.cuda().requires_grad_() for tensor in inputs]

    def product(x: Any, w: Any, bias: Any) -> Any:
        return bt.functional.block_sparse_linear(x, w, products, bias, precision="ieee")

    options = {
        "eps": 1e-1,
        "atol": 2e-2,
        "rtol": 2e-2,
        "nondet_tol": 0.0,
    }  # it is linear in each: a large step is exact
    assert torch.autograd.gradcheck(product, inputs, **options)
    assert torch.autograd.gradgradcheck(product, inputs, **options)


def test_captured() -> None:
    """Forward and backward in one graph, replayed on new data."""
    layer = layer_of(activation="gelu")
    layer.warmup(rows=[64])
    static = torch.zeros(64, layer.in_features, device="cuda", dtype=torch.bfloat16)

    def step() -> Any:
        layer.zero_grad(set_to_none=False)
        y = layer(static)
        y.square().mean().backward()
        return y

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = step()
    static.normal_()
    graph.replay()
    replayed = [y.clone(), layer.weight.grad.clone(), layer.bias.grad.clone()]
    again = step()
    for got, want in zip(replayed, [again, layer.weight.grad, layer.bias.grad], strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled(mode: str) -> None:
    """No graph break, the same gradients; CUDA graphs in the second mode."""
    torch._dynamo.reset()
    model = torch.nn.Sequential(
        layer_of(activation="gelu"), torch.nn.LayerNorm(512, device="cuda", dtype=torch.bfloat16)
    )
    fast = torch.compile(model, fullgraph=True, mode=mode)
    for _ in range(3):
        x, g = (torch.randn(64, features, device="cuda", dtype=torch.bfloat16) for features in (384, 512))
        results = []
        for run in (model, fast):
            model.zero_grad()
            torch.compiler.cudagraph_mark_step_begin()
            y = run(x)
            y.backward(g)
            results.append([y.detach().clone(), *(p.grad.clone() for p in model.parameters())])
        for got, want in zip(*results, strict=True):
            close(got, want)


def test_autocast_and_checkpoint() -> None:
    from torch.utils.checkpoint import checkpoint

    layer = layer_of("float32", "gelu")
    x = torch.randn(64, layer.in_features, device="cuda", requires_grad=True)
    with torch.autocast("cuda", torch.bfloat16):
        y = layer(x)
        assert y.dtype is torch.bfloat16
        y.float().square().sum().backward()
        first, x.grad, layer.weight.grad = (x.grad, layer.weight.grad), None, None
        checkpoint(layer, x, use_reentrant=False).float().square().sum().backward()
    assert layer.weight.grad.dtype is torch.float32
    for got, want in zip((x.grad, layer.weight.grad), first, strict=True):
        assert torch.equal(got, want)


def test_exported() -> None:
    layer = layer_of(activation="silu").eval()
    x = torch.randn(64, layer.in_features, device="cuda", dtype=torch.bfloat16)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=2, max=4096)},))
    for n in (2, 64, 700):
        x = torch.randn(n, layer.in_features, device="cuda", dtype=torch.bfloat16)
        with torch.no_grad():
            close(program.module()(x), layer(x))


def test_loss_curves_are_those_of_masked_dense_training() -> None:
    """200 steps from the same seed, bfloat16, against a dense layer whose weights are masked after every step."""
    torch.manual_seed(0)
    sparse = bt.BlockSparseLinear(topology.random(16, 16, density=0.25, seed=3), 32, device="cuda", dtype=torch.float32)
    dense = sparse.to_linear()
    mask = (sparse.products.scatter(torch.ones_like(sparse.weight)) > 0).T
    target = torch.nn.Linear(512, 512, device="cuda")
    losses: list[list[float]] = [[], []]
    for model, curve in zip((sparse, dense), losses, strict=True):
        generator = torch.Generator("cuda").manual_seed(5)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(200):
            x = torch.randn(256, 512, device="cuda", generator=generator)
            with torch.autocast("cuda", torch.bfloat16):
                loss = torch.nn.functional.mse_loss(model(x), target(x).detach())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if model is dense:
                with torch.no_grad():
                    model.weight.mul_(mask)
            curve.append(float(loss))
    ours, theirs = np.array(losses)
    assert ours[-1] < 0.9 * ours[0]
    assert np.abs(ours / theirs - 1).max() < 0.02


def test_pruned_while_training() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.GELU(), torch.nn.Linear(512, 256)).cuda()
    schedule = bt.PolynomialSchedule(final=0.25, end=40, begin=5, every=5)
    bt.sparsify(model, schedule=schedule, block_size=32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    pruner = bt.Pruner(model, schedule, optimizer, lead=3)
    x = torch.randn(128, 256, device="cuda")
    for _ in range(50):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), x)
        loss.backward()
        optimizer.step()
        pruner.step()
    assert model[0].layout.density == pytest.approx(0.25, abs=0.02)
    assert torch.isfinite(loss)
    assert float(torch.nn.functional.mse_loss(bt.dense_twin(model)(x), model(x))) < 1e-4


def test_wrong_input_is_named_before_a_launch() -> None:
    layer = layer_of()
    good = torch.randn(4, layer.in_features, device="cuda", dtype=torch.bfloat16)
    for bad, words in (
        (good[:, :-1], "last dimension"),
        (good.float(), "float32"),
        (good.cpu(), "cpu"),
    ):
        with pytest.raises(bsgen.ArgumentError, match=words):
            layer(bad)
    with pytest.raises(bsgen.ArgumentError, match="another layout"):
        bt.functional.block_sparse_linear(good, layer.weight[1:], layer.products)
