"""bsgen.torch on the CPU: layers, operators, gradients of any order, tracing."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.func import functional_call, grad, vmap  # noqa: E402
from torch.library import opcheck  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import bsgen  # noqa: E402
import bsgen.torch as bt  # noqa: E402
from bsgen import topology  # noqa: E402
from bsgen.errors import ArgumentError, LayoutError  # noqa: E402

LAYOUT = topology.random(4, 6, density=0.5, seed=1)
EMPTY_EDGES = np.pad(LAYOUT.mask[:2, :4], ((1, 1), (1, 1)))
ACTIVATIONS = (None, "relu", "gelu", "silu")
PLAIN: dict[str | None, Callable[[Any], Any]] = {None: lambda z: z, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}


def operands(products: bt.Products, dtype: Any = torch.float64, rows: int = 5) -> tuple[Any, Any, Any]:
    """x, weight and bias, all with gradients."""
    generator = torch.Generator().manual_seed(3)
    shapes = (rows, products.in_features), products.weight_shape, (products.out_features,)
    return tuple(torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes)


def dense(layer: bt.BlockSparseLinear) -> Any:
    """The layer as PyTorch's own operations."""

    def forward(x: Any) -> Any:
        return PLAIN[layer.activation](F.linear(x, layer.products.scatter(layer.weight).T, layer.bias))

    return forward


@pytest.mark.parametrize("mask", [LAYOUT.mask, EMPTY_EDGES, np.zeros((2, 3), bool), np.ones((1, 1), bool)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_forward_and_gradients_are_those_of_the_dense_layer(activation: str | None, mask: np.ndarray) -> None:
    layer = bt.BlockSparseLinear(mask, 8, activation=activation, dtype=torch.float64)
    for shape in ((), (0,), (1,), (2, 3)):
        x = torch.randn(*shape, layer.in_features, dtype=torch.float64, requires_grad=True)
        wanted = dense(layer)(x)
        got = layer(x)
        torch.testing.assert_close(got, wanted)
        g = torch.randn_like(got)
        inputs = (x, layer.weight, layer.bias)
        for one, other in zip(torch.autograd.grad(got, inputs, g), torch.autograd.grad(wanted, inputs, g), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck_of_first_and_second_order(activation: str | None) -> None:
    products = bt.register([[1, 0, 1], [0, 0, 1]], 8)

    def product(x: Any, w: Any, bias: Any) -> Any:
        return bt.functional.block_sparse_linear(x, w, products, bias, activation)

    assert torch.autograd.gradcheck(product, operands(products))
    assert torch.autograd.gradgradcheck(product, operands(products, rows=3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype: Any) -> None:
    products = bt.register(LAYOUT, 8)
    x, w, bias = operands(products, dtype)
    dy = torch.randn(5, products.out_features, dtype=dtype, requires_grad=True)
    for activation in ("", "relu", "gelu", "silu"):
        opcheck(torch.ops.bsgen.fprop.default, (x, w, bias, products.key, 48, activation, ""))
    opcheck(torch.ops.bsgen.fprop.default, (x, w, None, products.key, 48, "", "ieee"))
    opcheck(torch.ops.bsgen.dgrad.default, (dy, w, products.key, 32, ""))
    opcheck(torch.ops.bsgen.wgrad.default, (x, dy, products.key, LAYOUT.nnz, 8, ""))


def test_16_bit_sums_in_float32() -> None:
    layer = bt.BlockSparseLinear(np.ones((64, 1), bool), 32, bias=False, dtype=torch.bfloat16)
    x = torch.randn(16, layer.in_features).bfloat16()
    exact = x.double() @ layer.products.scatter(layer.weight.double())
    torch.testing.assert_close(layer(x).double(), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_compile_without_graph_breaks(activation: str | None) -> None:
    layer = bt.BlockSparseLinear(LAYOUT, 8, activation=activation)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (5, 7):
        x = torch.randn(rows, 32, requires_grad=True)
        results = []
        for call in (compiled, layer):
            y = call(x)
            results.append((y, *torch.autograd.grad(y.square().sum(), (x, layer.weight, layer.bias))))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), layer(x))


def test_export_and_run_again() -> None:
    layer, x = bt.BlockSparseLinear(LAYOUT, 8, activation="gelu").eval(), torch.randn(5, 32)
    program = torch.export.export(layer, (x,))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    torch.testing.assert_close(torch.export.load(file).module()(x), layer(x))


def test_transforms() -> None:
    layer, x = bt.BlockSparseLinear(LAYOUT, 8, activation="silu"), torch.randn(5, 32)
    parameters = dict(layer.named_parameters())

    def loss(parameters: Any, x: Any) -> Any:
        return functional_call(layer, parameters, (x,)).square().sum()

    whole, each = grad(loss)(parameters, x), vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    plain = torch.autograd.grad(loss(parameters, x), list(parameters.values()))
    for name, value in zip(parameters, plain, strict=True):
        torch.testing.assert_close(whole[name], value)
        torch.testing.assert_close(each[name].sum(0), value)
    rows = vmap(layer, in_dims=1, out_dims=1)(x.unsqueeze(0))
    torch.testing.assert_close(rows[0], layer(x))
    models = {name: torch.stack([value, 2 * value]) for name, value in parameters.items()}
    torch.testing.assert_close(
        vmap(lambda p: functional_call(layer, p, (x,)))(models)[1],
        functional_call(layer, {name: 2 * value for name, value in parameters.items()}, (x,)),
    )


def test_checkpointing_and_autocast() -> None:
    layer, x = bt.BlockSparseLinear(LAYOUT, 8), torch.randn(5, 32, requires_grad=True)
    y = checkpoint(layer, x, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(layer(x).sum(), x)[0])
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x)
    assert low.dtype is torch.bfloat16
    low.sum().backward()
    assert layer.weight.grad.dtype is torch.float32
    torch.testing.assert_close(low.float(), layer(x), rtol=3e-2, atol=3e-2)


def test_fake_tensors_and_traces_see_the_operator() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    layer = bt.BlockSparseLinear(LAYOUT, 8)
    graph = make_fx(layer)(torch.randn(5, 32)).graph
    assert torch.ops.bsgen.fprop.default in {node.target for node in graph.nodes}
    with FakeTensorMode() as mode:
        x = mode.from_tensor(torch.randn(5, 32))
        weight = mode.from_tensor(layer.weight)
        assert bt.functional.block_sparse_linear(x, weight, layer.products).shape == (5, 48)


def test_state_carries_the_layout() -> None:
    layer, other = bt.BlockSparseLinear(LAYOUT, 8), bt.BlockSparseLinear(LAYOUT, 8)
    assert set(layer.state_dict()) == {"weight", "bias", "layout_mask"}
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight, layer.weight)
    elsewhere = topology.random(4, 6, density=0.5, seed=2)
    stranger = bt.BlockSparseLinear(elsewhere, 8)
    before = stranger.weight.clone()
    with pytest.raises(RuntimeError, match=f"saved for Layout.*{LAYOUT.digest}.*this layer has.*{elsewhere.digest}"):
        stranger.load_state_dict(layer.state_dict())
    assert torch.equal(stranger.weight, before)
    rebuilt = bt.BlockSparseLinear(layer.state_dict()["layout_mask"].numpy(), 8)
    rebuilt.load_state_dict(layer.state_dict())
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert copied.layout == LAYOUT
        assert torch.equal(copied.weight, layer.weight)


def test_from_linear_and_back() -> None:
    linear = torch.nn.Linear(64, 96)
    layer = bt.BlockSparseLinear.from_linear(linear, density=0.5, block_size=16)
    assert layer.layout.nnz == 12
    masked = layer.to_linear()
    mask = np.kron(layer.layout.mask, np.ones((16, 16), bool)).T
    np.testing.assert_array_equal(masked.weight.detach(), np.where(mask, linear.weight.detach(), 0))
    x = torch.randn(3, 64)
    torch.testing.assert_close(layer(x), masked(x))
    given = bt.BlockSparseLinear.from_linear(linear, layout=np.ones((4, 6), bool), block_size=16)
    torch.testing.assert_close(given(x), linear(x))


def test_initialised_for_the_fan_in_of_each_column() -> None:
    mask = np.zeros((64, 2), bool)
    mask[:, 0] = mask[0, 1] = True
    layer = bt.BlockSparseLinear(mask, 8)
    columns = layer.products.blocks(torch.device("cpu"))[1]
    for column, fan_in in ((0, 512), (1, 8)):
        own = layer.weight[columns == column].abs().max()
        assert 0.8 / fan_in**0.5 < own <= 1 / fan_in**0.5


def test_meta_device_then_empty() -> None:
    layer = bt.BlockSparseLinear(LAYOUT, 8, device="meta")
    assert layer.weight.is_meta
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert layer.weight.isfinite().all()


def test_repr() -> None:
    layer = bt.BlockSparseLinear(LAYOUT, 8, activation="gelu")
    assert repr(layer) == (
        "BlockSparseLinear(32, 48, block_size=8, bias=True, activation=gelu, density=0.5, parameters=816)"
    )


def test_a_matmul_stands_for_its_layout() -> None:
    mm = bsgen.compile(LAYOUT, 8, "float32")
    x, w, bias = operands(bt.register(LAYOUT, 8), torch.float32)
    torch.testing.assert_close(
        bt.functional.block_sparse_linear(x, w, mm, bias), x @ bt.register(LAYOUT, 8).scatter(w) + bias
    )


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda layer, x: layer(x[..., :-1]), r"x: got shape \(5, 31\), expected a last dimension of 32"),
        (lambda layer, x: layer(x.half()), r"weight: got torch.float32, x is torch.float16: .*autocast"),
        (lambda layer, x: layer.double()(x), "weight: got torch.float64"),
        (
            lambda layer, x: bt.functional.block_sparse_linear(x, layer.weight[1:], layer.products),
            r"weight: got shape \(11, 8, 8\), expected \(12, 8, 8\).*another layout",
        ),
        (
            lambda layer, x: bt.functional.block_sparse_linear(x, layer.weight, layer.products, layer.bias[1:]),
            r"bias: got shape \(47,\), expected \(48,\)",
        ),
        (lambda layer, x: layer(x.to("meta")), "weight: is on cpu, x on meta"),
        (lambda layer, x: bt.BlockSparseLinear(LAYOUT, 8, activation="tanh"), "activation: got 'tanh'"),
        (lambda layer, x: bt.BlockSparseLinear(LAYOUT, 9), "block_size: got 9"),
        (
            lambda layer, x: bt.functional.block_sparse_linear(x, layer.weight, layer.products, precision="half"),
            "precision: got 'half'",
        ),
        (lambda layer, x: torch.ops.bsgen.fprop(x, layer.weight, None, "nobody-b8", 48, "", ""), "not known in this process"),
        (lambda layer, x: torch.ops.bsgen.dgrad(x, layer.weight, layer.products.key, 32, ""), "dy: got shape"),
        (lambda layer, x: torch.ops.bsgen.wgrad(x, x, layer.products.key, 12, 8, ""), "dy: got shape"),
        (lambda layer, x: bt.BlockSparseLinear.from_linear(torch.nn.Linear(32, 48)), "density, layout: got None and None"),
        (
            lambda layer, x: bt.BlockSparseLinear.from_linear(torch.nn.Linear(48, 32), layout=LAYOUT, block_size=8),
            "layout: got 32 x 48 features, expected 48 x 32",
        ),
    ],
)  # fmt: skip
def test_errors_say_what_came(call: Callable[[Any, Any], Any], named: str) -> None:
    with pytest.raises(ArgumentError, match=named):
        call(bt.BlockSparseLinear(LAYOUT, 8), torch.randn(5, 32))


def test_a_linear_that_blocks_do_not_fill() -> None:
    with pytest.raises(LayoutError, match="multiples of the block size 32"):
        bt.BlockSparseLinear.from_linear(torch.nn.Linear(33, 64), density=0.5)


def test_importing_without_pytorch_says_what_to_install() -> None:
    script = "import sys; sys.modules['torch'] = None; import bsgen.torch"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert "bsgen.torch needs PyTorch, which is not installed: pip install 'bsgen[torch]'" in done.stderr
