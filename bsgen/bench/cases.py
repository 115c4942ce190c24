"""What is timed: cases, in suites, as data. Listing them needs neither a GPU nor PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product

import numpy as np

from bsgen import topology
from bsgen.errors import ArgumentError
from bsgen.layout import Layout
from bsgen.problem import BLOCK_SIZES, Activation, DType, Epilogue, Op, Problem

DENSITIES = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0)
ROWS = (64, 256, 1024, 4096, 16384)
SIZES = (4096, 12288)
BLOCKS, MANY = 576, 8  # of the small-world LSTM (Gray, Radford and Kingma 2017)
CONSTANT_BLOCKS = 56 * 45  # stored blocks of the layouts that grow at constant parameters
SEED = 1


@dataclass(frozen=True)
class Case:
    """One product to time. `floors` are the least speed-ups over peers that are asked of it; `balanced` names the case of the same
    suite that its rate is compared with.
    """

    suite: str
    layout_name: str
    make: Callable[[], Layout] = field(repr=False, compare=False)
    n: int
    block_size: int = 32
    op: Op = Op.FPROP
    dtype: DType = DType.BFLOAT16
    floors: Mapping[str, float] = field(default_factory=dict, hash=False)
    balanced: str | None = None
    epilogue: Epilogue = field(default_factory=Epilogue)

    @property
    def name(self) -> str:
        """What tables call it: unique within a suite."""
        return f"{self.layout_name} b{self.block_size} N={self.n} {self.op} {self.dtype}{f' {self.finish}' * bool(self.finish)}"

    @property
    def finish(self) -> str:
        """The parts of the epilogue."""
        parts = ("bias" * self.epilogue.bias, self.epilogue.activation, "residual" * self.epilogue.residual)
        return " ".join(str(part) for part in parts if part)

    @cached_property
    def layout(self) -> Layout:
        """The layout, made when first asked for."""
        return self.make()

    @property
    def problem(self) -> Problem:
        """What is compiled, with N as the hint."""
        return Problem(self.op, self.layout, self.block_size, self.dtype, epilogue=self.epilogue, batch=self.n)


def random_layout(size: int, block: int, density: float) -> tuple[str, Callable[[], Layout]]:
    """A `size` x `size` matrix with as many blocks in every column, at random places."""
    side = size // block
    name = f"random {size} x {size} {density:.2%}"
    return name, lambda: topology.random(side, side, density=density, seed=SEED)


def random(block_sizes: Iterable[int]) -> Iterator[Case]:
    """Random layouts at every density, N and size: the curve of speed-up over dense against density."""
    for size, n, block, density in product(SIZES, ROWS, block_sizes, DENSITIES):
        yield Case("random", *random_layout(size, block, density), n, block)


def small_world(block_sizes: Iterable[int]) -> Iterator[Case]:
    """The 2017 layouts: scale-free, and rings with a fifth of the links at random that widen at constant parameters."""
    for n in (64, 4096):
        yield Case("small-world", "barabasi-albert 18432", _barabasi_albert, n)
        for width in range(1, 7):
            blocks, k = 56 * width, _ring_degree(width)
            yield Case("small-world", f"watts-strogatz {32 * blocks}", _ring(blocks, k, 0.2), n)


def _ring_degree(width: int) -> int:
    """Even neighbours of a block, so that 56 * width blocks in a row have about CONSTANT_BLOCKS in all."""
    return max(2, 2 * round((CONSTANT_BLOCKS / (56 * width) - 1) / 2))


def skewed(block_sizes: Iterable[int]) -> Iterator[Case]:
    """Layouts with much-used columns beside balanced ones with as many blocks."""
    for name, make in (
        ("barabasi-albert 18432", _barabasi_albert),
        ("power-law columns 18432", lambda: power_law(BLOCKS, 9792)),
        ("one full column 18432", lambda: one_full_column(BLOCKS, 9792)),
    ):
        twin = f"balanced as {name}"
        yield Case("skewed", twin, _twin(make), 4096)
        case = Case("skewed", name, make, 4096)
        yield replace(case, balanced=case.name.replace(name, twin, 1))


def structure(block_sizes: Iterable[int]) -> Iterator[Case]:
    """Layouts whose neighbouring columns share inputs, beside random ones of the same density, 10 %."""
    for n in (4096, 16384):
        base = Case("structure", *random_layout(4096, 32, 0.1), n)
        yield base
        yield Case("structure", "banded 4096", lambda: topology.banded(128, 128, 13), n, balanced=base.name)
        yield Case("structure", "watts-strogatz 4096", _ring(128, 12, 0.2), n, balanced=base.name)


def grouped(block_sizes: Iterable[int]) -> Iterator[Case]:
    """A dense layer, and layers in groups, whose blocks along the diagonal are dense."""
    for block, groups, n in product(block_sizes, (1, 4, 16), (256, 4096, 16384)):
        name = f"in {groups} groups 4096" if groups > 1 else "dense 4096"
        yield Case("grouped", name, _in_groups(4096 // block, groups), n, block)


def _in_groups(side: int, groups: int) -> Callable[[], Layout]:
    return lambda: topology.block_diagonal(side, side, groups)


def epilogue(block_sizes: Iterable[int]) -> Iterator[Case]:
    """What a bias, an activation and a residual add to a product, as they are in a transformer's feed-forward layers."""
    gelu = Activation.GELU
    for size, n in ((4096, 64), (4096, 4096), (4096, 16384), (12288, 4096)):
        base = Case("epilogue", *random_layout(size, 32, 0.1), n)
        yield base
        for finish in (Epilogue(True), Epilogue(True, gelu), Epilogue(True, None, True), Epilogue(True, gelu, True)):
            yield replace(base, epilogue=finish, balanced=base.name)


def paper(block_sizes: Iterable[int]) -> Iterator[Case]:
    """The figure of 2017: 12288 x 12288, N = 32, at densities that fall by a quarter each."""
    for power in range(17):
        yield Case("paper", *random_layout(12288, 32, 0.75**power), 32)


ELL, DENSE = "blocked-ell", "dense"
Cell = dict[float, tuple[float | None, float | None]]
# size, N, b: density -> least speed-up over Blocked-ELL (None: not asked) and over dense, on one H200.
FLOORS: dict[tuple[int, int, int], Cell] = {
    (4096, 16384, 32): {0.01: (1.5, 9.5), 0.05: (1.9, 5.8), 0.1: (2.1, 3.7), 0.2: (2.3, 2.1), 0.5: (2.2, 1.1)},
    (4096, 4096, 32): {0.05: (1.6, 4.6), 0.1: (1.6, 3.0), 0.2: (1.7, 2.0), 0.5: (1.9, 1.1)},
    (4096, 16384, 64): {0.05: (1.7, 7.0), 0.1: (2.0, 4.5), 0.2: (2.0, 2.7), 0.5: (2.0, 1.3)},
    (12288, 4096, 32): {0.01: (1.5, 17.0), 0.05: (2.0, 6.5), 0.1: (2.0, 3.6), 0.2: (2.0, 2.2)},
    (4096, 8192, 128): {1.0: (None, 0.92)},
}


def floors(block_sizes: Iterable[int]) -> Iterator[Case]:
    """The cells that bsgen promises a least speed-up for."""
    yield from _asked("floors", FLOORS, Op.FPROP)


# The same for small blocks and small N (fprop), and for wgrad. The paper's figure of 2017 is 6.7 at about 10 %.
SMALL_FLOORS: dict[tuple[int, int, int], Cell] = {
    (4096, 16384, 16): {0.01: (2.0, 5.0), 0.05: (2.2, 3.2), 0.1: (2.4, 2.0), 0.2: (2.4, 1.3), 0.5: (2.5, 0.7)},
    (4096, 16384, 8): {0.01: (None, 4.5), 0.05: (None, 2.4), 0.1: (None, 1.5), 0.2: (None, 0.9), 0.5: (None, None)},
    (4096, 64, 32): {0.01: (1.2, 3.0), 0.05: (1.5, 3.0), 0.1: (1.8, 2.6), 0.2: (2.0, 1.8)},
    (12288, 64, 32): {0.01: (1.7, 13.0), 0.05: (1.8, 8.5), 0.1: (1.9, 5.5), 0.2: (2.0, 3.4)},
    (12288, 64, 16): {0.05: (None, 5.0)},
    (12288, 64, 8): {0.05: (None, 5.0)},
    (12288, 32, 32): {0.1: (None, 6.7)},
    (12288, 1, 32): {0.2: (None, None)},
    (12288, 8, 32): {0.2: (None, None)},
}
WGRAD_FLOORS: dict[tuple[int, int, int], Cell] = {
    (4096, 16384, 32): {0.05: (None, 4.0), 0.1: (None, 2.8), 0.2: (None, 1.6), 0.5: (None, 0.9)},
    (4096, 16384, 16): {0.1: (None, 1.6), 0.5: (None, None)},
    (4096, 16384, 8): {0.1: (None, 1.0), 0.5: (None, None)},
}


def small(block_sizes: Iterable[int]) -> Iterator[Case]:
    """Small blocks and small N: the ground of 2017."""
    yield from _asked("small", SMALL_FLOORS, Op.FPROP)


def weight_gradient(block_sizes: Iterable[int]) -> Iterator[Case]:
    """wgrad, with its promised speed-ups over the dense product."""
    yield from _asked("wgrad", WGRAD_FLOORS, Op.WGRAD)


def _asked(suite: str, table: Mapping[tuple[int, int, int], Cell], op: Op) -> Iterator[Case]:
    for (size, n, block), cells in table.items():
        for density, asked in cells.items():
            least = {peer: value for peer, value in zip((ELL, DENSE), asked, strict=True) if value is not None}
            yield Case(suite, *random_layout(size, block, density), n, block, op, floors=least)


SUITES: dict[str, Callable[[Iterable[int]], Iterator[Case]]] = {
    "random": random,
    "small-world": small_world,
    "skewed": skewed,
    "structure": structure,
    "grouped": grouped,
    "paper": paper,
    "floors": floors,
    "small": small,
    "wgrad": weight_gradient,
    "epilogue": epilogue,
}


@dataclass(frozen=True)
class Selection:
    """Which cases of which suites; an empty filter takes all (of the suite random: b = 32). An op replaces the suite's."""

    suites: tuple[str, ...] = ("random",)
    block_sizes: tuple[int, ...] = ()
    densities: tuple[float, ...] = ()
    rows: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    op: Op | None = None
    dtype: DType = DType.BFLOAT16


def select(selection: Selection) -> list[Case]:
    """The cases, in the order of their suites.

    Raises:
        ArgumentError: a suite or block size that does not exist, or filters that leave nothing.
    """
    for name in selection.suites:
        if name not in SUITES:
            raise ArgumentError(f"suite: got {name!r}, expected one of {', '.join(SUITES)}")
    for block in selection.block_sizes:
        if block not in BLOCK_SIZES:
            raise ArgumentError(f"block_size: got {block}, expected one of {', '.join(map(str, BLOCK_SIZES))}")
    made = (case for name in selection.suites for case in SUITES[name](selection.block_sizes or (32,)))
    asked = (case for case in made if _wanted(case, selection))
    cases = [replace(case, op=selection.op or case.op, dtype=selection.dtype) for case in asked]
    cases = [case for case in cases if case.op is Op.FPROP or not case.finish]  # only fprop has an epilogue
    if not cases:
        raise ArgumentError(f"filters: no case of {', '.join(selection.suites)} is left; see --list without filters")
    return [_follow(case, selection) for case in cases]


def _wanted(case: Case, selection: Selection) -> bool:
    """Whether a case passes every filter; its layout is made only if a filter asks about it."""
    if selection.block_sizes and case.block_size not in selection.block_sizes:
        return False
    if selection.rows and case.n not in selection.rows:
        return False
    if selection.sizes and case.layout.shape[0] * case.block_size not in selection.sizes:
        return False
    return not selection.densities or any(abs(case.layout.density - d) <= 0.1 * d for d in selection.densities)


def _follow(case: Case, selection: Selection) -> Case:
    """The case with the name of its balanced twin under another op or dtype."""
    if case.balanced is None:
        return case
    twin = case.balanced.replace(f"{Op.FPROP} {DType.BFLOAT16}", f"{case.op} {selection.dtype}")
    return replace(case, balanced=twin)


def power_law(blocks: int, nnz: int) -> Layout:
    """Columns whose numbers of blocks fall as 1 / rank, in a random order; about `nnz` blocks in all."""
    rng, rank = np.random.default_rng(SEED), np.arange(1, blocks + 1)
    counts = np.clip(np.round(nnz / (rank * (1 / rank).sum())), 1, blocks).astype(int)
    mask = np.zeros((blocks, blocks), bool)
    for column, count in zip(rng.permutation(blocks).tolist(), counts.tolist(), strict=True):
        mask[rng.permutation(blocks)[:count], column] = True
    return Layout(mask)


def one_full_column(blocks: int, nnz: int) -> Layout:
    """One full column; every other one has as many blocks as the rest of `nnz` allows."""
    mask = topology.random(blocks, blocks, fan_in=(nnz - blocks) // (blocks - 1), seed=SEED).mask.copy()
    mask[:, blocks // 3] = True
    return Layout(mask)


def _barabasi_albert() -> Layout:
    return topology.barabasi_albert(BLOCKS, MANY, seed=0)


def _ring(blocks: int, k: int, p: float) -> Callable[[], Layout]:
    return lambda: topology.watts_strogatz(blocks, k, p, seed=SEED)


def _twin(make: Callable[[], Layout]) -> Callable[[], Layout]:
    """A random layout with as many blocks, evenly over its columns."""

    def balanced() -> Layout:
        layout = make()
        rows, columns = layout.shape
        return topology.random(rows, columns, fan_in=round(layout.nnz / columns), seed=SEED)

    return balanced
