"""Generators: their definitions, reproducibility and arguments; mixing against powers of the mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bsgen import topology
from bsgen.errors import ArgumentError, BsgenError
from bsgen.layout import Layout

sides = st.integers(1, 30)
seeds = st.integers(0, 2**64)

SEEDED: dict[str, Callable[[int], Layout]] = {
    "random": lambda seed: topology.random(30, 20, density=0.2, seed=seed),
    "bernoulli": lambda seed: topology.bernoulli(30, 20, 0.2, seed=seed),
    "watts_strogatz": lambda seed: topology.watts_strogatz(30, 4, 0.3, seed=seed),
    "barabasi_albert": lambda seed: topology.barabasi_albert(30, 3, seed=seed),
}
# A change here changes every layout that users made from a seed: it must be on purpose.
DIGESTS = {
    "random": "0e47ce226aaede61",
    "bernoulli": "1fef61892e5cf08a",
    "watts_strogatz": "9abcd1b97b4943a0",
    "barabasi_albert": "a1541d0d14700490",
}


@pytest.mark.parametrize("kind", SEEDED)
def test_a_seed_gives_one_layout(kind: str) -> None:
    make = SEEDED[kind]
    assert make(5) == make(5)
    assert len({make(seed).digest for seed in range(10)}) == 10
    assert make(0).digest == DIGESTS[kind]


@given(rows=sides, cols=sides, density=st.floats(0, 1), seed=seeds)
def test_random_has_the_same_fan_in_everywhere(rows: int, cols: int, density: float, seed: int) -> None:
    layout = topology.random(rows, cols, density=density, seed=seed)
    expected = max(round(density * rows), 1) if density else 0
    assert layout.shape == (rows, cols)
    assert set(layout.fan_in) == {expected}


@given(rows=sides, cols=sides, data=st.data())
def test_random_takes_a_fan_in(rows: int, cols: int, data: st.DataObject) -> None:
    fan_in = data.draw(st.integers(0, rows))
    assert set(topology.random(rows, cols, fan_in=fan_in).fan_in) == {fan_in}


def test_random_rows_are_uniform() -> None:
    fan_out = topology.random(20, 20000, fan_in=5, seed=1).fan_out
    assert np.abs(fan_out - 5000).max() < 5 * np.sqrt(20000 * 0.25 * 0.75)


def test_bernoulli_has_the_density_asked_for() -> None:
    assert topology.bernoulli(400, 400, 0.1, seed=2).density == pytest.approx(0.1, abs=0.004)
    assert topology.bernoulli(9, 7, 0).nnz == 0
    assert topology.bernoulli(9, 7, 1).nnz == 63


@given(blocks=sides, reach=st.integers(0, 10))
def test_a_square_band_of_odd_width_is_symmetric(blocks: int, reach: int) -> None:
    width = min(2 * reach + 1, 2 * blocks - 1)
    distance = np.abs(np.subtract.outer(np.arange(blocks), np.arange(blocks)))
    assert topology.banded(blocks, blocks, width) == Layout(distance <= width // 2)


def test_an_even_band_has_its_odd_block_below() -> None:
    assert topology.banded(3, 3, 2) == Layout([[1, 0, 0], [1, 1, 0], [0, 1, 1]])


@given(rows=sides, cols=sides, width=st.integers(1, 20))
def test_a_band_is_the_definition_cut_at_the_edges(rows: int, cols: int, width: int) -> None:
    width = min(width, rows + cols)
    layout = topology.banded(rows, cols, width)
    for column in range(cols):
        exact = ((2 * column + 1) * rows - (width - 1) * cols) / (2 * cols)
        first = int(np.floor(exact + 1e-9))
        expected = [row for row in range(first, first + width) if 0 <= row < rows]
        assert np.flatnonzero(layout.mask[:, column]).tolist() == expected


@given(groups=st.integers(1, 6), height=st.integers(1, 5), width=st.integers(1, 5))
def test_block_diagonal_is_a_kronecker_product(groups: int, height: int, width: int) -> None:
    expected = np.kron(np.eye(groups), np.ones((height, width)))
    assert topology.block_diagonal(groups * height, groups * width, groups) == Layout(expected)


@given(blocks=st.integers(3, 40), half=st.integers(1, 5), p=st.floats(0, 1), seed=seeds)
def test_watts_strogatz_keeps_its_edges(blocks: int, half: int, p: float, seed: int) -> None:
    k = 2 * min(half, (blocks - 1) // 2)
    layout = topology.watts_strogatz(blocks, k, p, seed=seed)
    assert layout == layout.transpose()
    assert layout.mask.diagonal().all()
    assert layout.nnz == blocks * (k + 1)


def test_watts_strogatz_without_rewiring_is_a_ring() -> None:
    ring = np.minimum(np.subtract.outer(range(11), range(11)) % 11, np.subtract.outer(range(11), range(11)).T % 11)
    assert topology.watts_strogatz(11, 4, 0.0) == Layout(ring <= 2)


@given(blocks=st.integers(2, 40), m=st.integers(1, 10), seed=seeds)
def test_barabasi_albert_is_symmetric_with_diagonal_and_corner(blocks: int, m: int, seed: int) -> None:
    m = min(m, blocks - 1)
    layout = topology.barabasi_albert(blocks, m, seed=seed)
    assert layout == layout.transpose()
    assert layout.mask.diagonal().all()
    assert layout.mask[:m, :m].all()
    # Each node after the first m + 1 joins exactly m earlier ones, and itself.
    assert set(np.tril(layout.mask)[m + 1 :].sum(axis=1)) <= {m + 1}


def test_the_small_world_lstm_layout() -> None:
    layout = topology.barabasi_albert(blocks=576, m=8, seed=0)
    assert layout.nnz == 9706
    assert 1 - layout.density == pytest.approx(0.97, abs=0.001)
    # It mixes in a few layers, which is its purpose.
    assert topology.mixing(layout, 3) > 0.99


@given(mask=hnp.arrays(np.bool_, st.integers(1, 12).map(lambda n: (n, n))), k=st.integers(1, 6))
def test_mixing_is_the_share_of_nonzeros_of_the_power(mask: np.ndarray, k: int) -> None:
    power = np.linalg.matrix_power(mask.astype(object).astype(int).astype(object), k)
    assert topology.mixing(Layout(mask), k) == pytest.approx((power != 0).mean())
    assert topology.mixing_profile(Layout(mask), k)[-1] == topology.mixing(Layout(mask), k)


def test_mixing_across_word_boundaries() -> None:
    for blocks in (63, 64, 65, 129):
        shift = np.roll(np.eye(blocks, dtype=bool), 1, axis=1)
        walk = Layout(shift | np.eye(blocks, dtype=bool))
        assert topology.mixing_profile(walk, 4) == pytest.approx([step / blocks for step in (2, 3, 4, 5)])


def test_mixing_ends_only_when_everything_is_reached() -> None:
    walk = topology.banded(20, 20, 3)
    power = walk.mask.astype(float)
    expected = [(np.linalg.matrix_power(power, k) > 0).mean() for k in range(1, 22)]
    assert 0.99 < expected[17] < expected[18] == 1
    assert topology.mixing_profile(walk, 21) == pytest.approx(expected, abs=0)


def test_mixing_ends_at_one_and_can_be_undone() -> None:
    assert topology.mixing_profile(topology.bernoulli(50, 50, 0.3), 6)[-3:] == (1, 1, 1)
    assert topology.mixing_profile(Layout([[0, 1], [0, 0]]), 3) == (0.25, 0, 0)
    assert topology.mixing(Layout([[1, 0, 1]]), 1) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: topology.random(4, 4), "density, fan_in: got None and None"),
        (lambda: topology.random(4, 4, density=0.5, fan_in=2), "exactly one"),
        (lambda: topology.random(4, 4, fan_in=5), "fan_in: got 5, expected an integer from 0 to 4"),
        (lambda: topology.random(4, 4, fan_in=-1), "fan_in: got -1"),
        (lambda: topology.random(4, 4, fan_in=1.5), "fan_in: got 1.5"),  # type: ignore[arg-type]
        (lambda: topology.random(4, 4, density=1.1), "density: got 1.1, expected a number from 0 to 1"),
        (lambda: topology.random(4, 4, density=float("nan")), "density: got nan"),
        (lambda: topology.random(4, 4, density="1"), "density: got '1'"),  # type: ignore[arg-type]
        (lambda: topology.random(4, 4, density=True), "density: got True"),
        (lambda: topology.random(0, 4, density=0.5), "rows: got 0"),
        (lambda: topology.random(4, True, density=0.5), "cols: got True"),
        (lambda: topology.random(2**16, 2**16, density=0.5), "at most 2147483647 blocks"),
        (lambda: topology.random(4, 4, density=0.5, seed=-1), "seed: got -1"),
        (lambda: topology.random(4, 4, density=0.5, seed=None), "seed: got None"),  # type: ignore[arg-type]
        (lambda: topology.bernoulli(4, 4, -0.1), "density: got -0.1"),
        (lambda: topology.banded(4, 4, 0), "width: got 0"),
        (lambda: topology.banded(4, 4, 9), "width: got 9"),
        (lambda: topology.block_diagonal(4, 6, 4), "groups: got 4, expected a divisor"),
        (lambda: topology.block_diagonal(4, 6, 5), "groups: got 5"),
        (lambda: topology.watts_strogatz(10, 3, 0.1), "k: got 3, expected an even number"),
        (lambda: topology.watts_strogatz(10, 10, 0.1), "k: got 10, expected an integer from 2 to 9"),
        (lambda: topology.watts_strogatz(10, 4, 2), "p: got 2"),
        (lambda: topology.watts_strogatz(0, 4, 0.1), "blocks: got 0"),
        (lambda: topology.barabasi_albert(8, 8), "m: got 8, expected an integer from 1 to 7"),
        (lambda: topology.barabasi_albert(8, 0), "m: got 0"),
        (lambda: topology.barabasi_albert(10**6, 8), "at most 2147483647 blocks"),
        (lambda: topology.mixing(Layout([[1]]), 0), "k: got 0"),
        (lambda: topology.mixing(Layout([[1, 0]]), 2), "expected a square layout for k = 2"),
    ],
)
def test_arguments_are_checked(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(BsgenError) as caught:
        call()
    assert words in str(caught.value)
    assert isinstance(caught.value, ArgumentError) or "at most" in words


def test_numpy_integers_are_integers() -> None:
    assert topology.banded(np.int64(5), np.int32(5), np.uint8(3)) == topology.banded(5, 5, 3)
