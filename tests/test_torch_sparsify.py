"""Trained models made block-sparse, at once and bit by bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import bsgen.torch as bt  # noqa: E402
from bsgen.errors import ArgumentError, LayoutError  # noqa: E402


def model() -> Any:
    torch.manual_seed(0)
    return torch.nn.ModuleDict(
        {
            "mlp": torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 64)),
            "head": torch.nn.Linear(64, 10),
        }
    )


def kinds(module: Any) -> dict[str, str]:
    return {name: type(layer).__name__ for name, layer in module.named_modules() if hasattr(layer, "weight")}


def test_every_linear_that_blocks_fill() -> None:
    sparse = bt.sparsify(model(), density=0.25, block_size=16)
    assert kinds(sparse) == {"mlp.0": "BlockSparseLinear", "mlp.2": "BlockSparseLinear", "head": "Linear"}
    assert [layer.layout.density for layer in (sparse["mlp"][0], sparse["mlp"][2])] == [0.25, 0.25]


@pytest.mark.parametrize("include", ["mlp.2", lambda name, layer: layer.in_features == 128])
def test_included_layers_only(include: Any) -> None:
    assert kinds(bt.sparsify(model(), 0.5, 16, include))["mlp.0"] == "Linear"
    assert kinds(bt.sparsify(model(), 0.5, 16, include))["mlp.2"] == "BlockSparseLinear"


def test_a_single_linear_is_returned_anew() -> None:
    assert isinstance(bt.sparsify(torch.nn.Linear(32, 32), 0.5, 16), bt.BlockSparseLinear)


def test_the_dense_twin_computes_the_same() -> None:
    sparse = bt.sparsify(model(), 0.5, 16)
    twin = bt.dense_twin(sparse)
    assert "BlockSparseLinear" not in kinds(twin).values()
    assert "BlockSparseLinear" in kinds(sparse).values()
    x = torch.randn(3, 64)
    torch.testing.assert_close(twin["mlp"](x), sparse["mlp"](x))
    gelu = bt.BlockSparseLinear(np.ones((2, 2), bool), 16, activation="gelu")
    torch.testing.assert_close(bt.dense_twin(gelu)(x[:, :32]), gelu(x[:, :32]))


def test_errors() -> None:
    with pytest.raises(ArgumentError, match="density, schedule: got None and None"):
        bt.sparsify(model())
    with pytest.raises(ArgumentError, match="include: got 'nothing'"):
        bt.sparsify(model(), 0.5, include="nothing")
    with pytest.raises(LayoutError, match="multiples of the block size"):
        bt.sparsify(model(), 0.5, 16, include="head")
    with pytest.raises(ArgumentError, match="has no BlockSparseLinear"):
        bt.Pruner(model(), bt.PolynomialSchedule(0.5, 100))
    with pytest.raises(ArgumentError, match=r"final: got 0\.5, expected at most initial"):
        bt.PolynomialSchedule(0.5, 100, initial=0.4)
    with pytest.raises(ArgumentError, match="lead: got 10, expected less than"):
        bt.Pruner(bt.sparsify(model(), 0.5, 16), bt.PolynomialSchedule(0.1, 100, every=10), lead=10)


def test_the_schedule_falls_as_zhu_and_gupta_say() -> None:
    schedule = bt.PolynomialSchedule(final=0.1, end=100, begin=20, every=10)
    assert [schedule.density(step) for step in (0, 20, 29)] == [1, 1, 1]
    assert schedule.density(60) == pytest.approx(0.1 + 0.9 * 0.5**3)
    assert schedule.density(100) == schedule.density(10**6) == 0.1
    densities = [schedule.density(step) for step in range(120)]
    assert densities == sorted(densities, reverse=True)
    assert [step for step in range(120) if schedule.changes(step)] == [30, 40, 50, 60, 70, 80, 90, 100]


def train(sparse: Any, optimizer: Any, pruner: bt.Pruner, steps: int) -> list[float]:
    """Losses of a regression towards fixed targets."""
    generator, losses = torch.Generator().manual_seed(1), []
    x, target = torch.randn(32, 64, generator=generator), torch.randn(32, 64, generator=generator)
    for _ in range(steps):
        loss = torch.nn.functional.mse_loss(sparse["mlp"](x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pruner.step()
        losses.append(loss.item())
    return losses


def pruned(lead: int) -> tuple[Any, Any, bt.Pruner]:
    schedule = bt.PolynomialSchedule(final=0.2, end=30, every=5)
    sparse = bt.sparsify(model(), schedule=schedule, block_size=16)
    optimizer = torch.optim.Adam(sparse.parameters(), lr=3e-3)
    return sparse, optimizer, bt.Pruner(sparse, schedule, optimizer, lead=lead)


def test_pruning_keeps_the_largest_blocks_and_their_optimizer_state() -> None:
    sparse, optimizer, pruner = pruned(lead=0)
    layer, seen = sparse["mlp"][0], []
    for _ in range(31):
        before = layer.layout.mask.copy()
        train(sparse, optimizer, pruner, 1)
        if layer.layout.nnz != before.sum():
            seen.append(layer.layout.density)
            assert not (layer.layout.mask & ~before).any()
            assert layer.weight in set(optimizer.param_groups[0]["params"])
            assert optimizer.state[layer.weight]["exp_avg"].shape == layer.weight.shape
            assert torch.equal(layer.layout_mask, torch.tensor(layer.layout.mask))
    assert len(seen) == 5  # of six changes the last is less than a block
    assert seen[-1] == pytest.approx(0.2, abs=0.02)
    assert pruner.density == pytest.approx(0.2, abs=0.02)
    assert len(optimizer.state) <= len(list(sparse.parameters()))


def test_adam_goes_on_as_if_the_lost_blocks_had_been_masked() -> None:
    """The state that is carried over is that of the blocks that stay: a masked dense run takes the same steps."""
    layer = bt.BlockSparseLinear(np.ones((2, 2), bool), 8, bias=False, dtype=torch.float64)
    dense = torch.nn.Parameter(layer.products.scatter(layer.weight).detach().clone())
    schedule = bt.PolynomialSchedule(final=0.5, end=3, every=3)
    one, other = torch.optim.Adam(layer.parameters(), lr=0.1), torch.optim.Adam([dense], lr=0.1)
    pruner, mask = bt.Pruner(layer, schedule, one, lead=0), torch.ones(16, 16, dtype=torch.float64)
    x, target = torch.randn(20, 16, dtype=torch.float64), torch.randn(20, 16, dtype=torch.float64)
    for _ in range(12):
        for optimizer, output in ((one, layer(x)), (other, x @ (dense * mask))):
            optimizer.zero_grad()
            (output - target).square().sum().backward()
            optimizer.step()
        if pruner.step():
            mask = torch.tensor(np.kron(layer.layout.mask, np.ones((8, 8))))
        torch.testing.assert_close(layer.products.scatter(layer.weight), dense * mask)
    assert layer.layout.nnz == 2


@pytest.mark.parametrize("lead", [0, 4])
def test_training_is_the_same_however_long_kernels_compile(lead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    for delay in (0.0, 0.02):
        monkeypatch.setattr("bsgen.torch.prune._prepare", lambda change, delay=delay: __import__("time").sleep(delay))
        runs.append(train(*pruned(lead), 35))
    assert runs[0] == runs[1]


def test_going_on_from_a_checkpoint() -> None:
    whole = pruned(lead=3)
    losses = train(*whole, 40)
    sparse, optimizer, pruner = pruned(lead=3)
    train(sparse, optimizer, pruner, 12)
    state = {"model": sparse.state_dict(), "optimizer": optimizer.state_dict(), "pruner": pruner.state_dict()}
    again, _, _ = pruned(lead=3)
    for name in ("0", "2"):
        mask = state["model"][f"mlp.{name}.layout_mask"].numpy()
        setattr(again["mlp"], name, bt.BlockSparseLinear(mask, 16))
    again.load_state_dict(state["model"])
    later = torch.optim.Adam(again.parameters(), lr=3e-3)
    later.load_state_dict(state["optimizer"])
    resumed = bt.Pruner(again, bt.PolynomialSchedule(final=0.2, end=30, every=5), later, lead=3)
    resumed.load_state_dict(state["pruner"])
    rest = train(again, later, resumed, 28)
    assert np.isfinite(rest).all()
    assert resumed.density == whole[2].density
    np.testing.assert_allclose(rest[-1], losses[-1], rtol=0.2)
