"""Layouts to start from, and how fast they mix. The same arguments give the same layout; `seed` is any integer >= 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from bsgen.checks import integer, share
from bsgen.errors import ArgumentError
from bsgen.layout import Layout
from bsgen.masks import MAX_BLOCKS, check_shape

if TYPE_CHECKING:
    from networkx import Graph

Mask = npt.NDArray[np.bool_]


def random(rows: int, cols: int, *, density: float | None = None, fan_in: int | None = None, seed: int = 0) -> Layout:
    """Each column has the same number of blocks, in uniformly random rows.

    Give `fan_in`, the blocks of a column, or `density` in [0, 1], which rounds to round(density * rows) blocks of a
    column, but to at least one unless it is 0.
    """
    rows, cols = _extents(rows, cols)
    count, rng = _fan_in(rows, density, fan_in), np.random.default_rng(_seed(seed))
    mask = np.zeros((cols, rows), dtype=np.bool_)
    for column in mask if count else ():
        # Which keys are smallest does not depend on how NumPy partitions them, so the layout is stable.
        column[np.argpartition(rng.random(rows), count - 1)[:count]] = True
    return Layout(mask.T)


def bernoulli(rows: int, cols: int, density: float, seed: int = 0) -> Layout:
    """Each block is stored with probability `density`, independently of the others."""
    rows, cols = _extents(rows, cols)
    chance, rng = share("density", density), np.random.default_rng(_seed(seed))
    return Layout(rng.random((rows, cols)) < chance)


def banded(rows: int, cols: int, width: int) -> Layout:
    """`width` blocks of each column, centred on the diagonal from corner to corner and cut at the edges.

    An even width has its odd block below the diagonal. A layout higher than wide has empty rows unless `width` is at
    least rows / cols.
    """
    rows, cols = _extents(rows, cols)
    width = integer("width", width, 1, rows + cols)
    # floor((column + 1/2) * rows / cols - width / 2 + 1/2), in integers.
    top = ((2 * np.arange(cols, dtype=np.int64) + 1) * rows - (width - 1) * cols) // (2 * cols)
    row = np.arange(rows)[:, None]
    return Layout((row >= top) & (row < top + width))


def block_diagonal(rows: int, cols: int, groups: int) -> Layout:
    """`groups` equal dense rectangles along the diagonal, as of grouped layers; `groups` divides `rows` and `cols`."""
    rows, cols = _extents(rows, cols)
    groups = integer("groups", groups, 1, min(rows, cols))
    if rows % groups or cols % groups:
        raise ArgumentError(f"groups: got {groups}, expected a divisor of both rows ({rows}) and cols ({cols})")
    return Layout(np.arange(rows)[:, None] // (rows // groups) == np.arange(cols) // (cols // groups))


def watts_strogatz(blocks: int, k: int, p: float, seed: int = 0) -> Layout:
    """A small world (Watts and Strogatz 1998): a ring of `blocks`, each joined to its `k` nearest, rewired at rate `p`.

    The layout is square: the adjacency of the graph and the diagonal, (k + 1) * blocks in all. `k` is even and below
    `blocks`.
    """
    blocks, _ = _extents(blocks, blocks, "blocks")
    k = integer("k", k, 2, blocks - 1)
    if k % 2:
        raise ArgumentError(f"k: got {k}, expected an even number: half of the neighbours lie on each side of the ring")
    import networkx

    return Layout(_adjacency(networkx.watts_strogatz_graph(blocks, k, share("p", p), seed=_seed(seed))))


def barabasi_albert(blocks: int, m: int, seed: int = 0) -> Layout:
    """A scale-free small world (Barabasi and Albert 1999): each new node joins `m` earlier ones, the popular sooner.

    The layout is square: the adjacency of the graph, the diagonal, and a dense m x m corner, as in OpenAI's
    small-world LSTM (Gray, Radford and Kingma 2017). `m` is at least 1 and below `blocks`.
    """
    blocks, _ = _extents(blocks, blocks, "blocks")
    m = integer("m", m, 1, blocks - 1)
    import networkx

    mask = _adjacency(networkx.barabasi_albert_graph(blocks, m, seed=_seed(seed)))
    mask[:m, :m] = True
    return Layout(mask)


def mixing(layout: Layout, k: int) -> float:
    """The share of outputs that an input reaches after `k` layers of `layout`, averaged over inputs; exact.

    Input i reaches output j after k layers if there are blocks (i, a), (a, b), ..., (z, j), k in a row. So it is the
    share of nonzeros in the k-th power of the mask: the density for k = 1, and 1 when every input reaches every output.
    The layout must be square for k > 1.
    """
    return mixing_profile(layout, k)[-1]


def mixing_profile(layout: Layout, layers: int) -> tuple[float, ...]:
    """`mixing` after 1, 2, ..., `layers` layers."""
    layers = integer("k", layers, 1)
    rows, cols = layout.shape
    if layers > 1 and rows != cols:
        raise ArgumentError(f"layout: got {rows} x {cols} blocks, expected a square layout for k = {layers}; use k = 1")
    union: Callable[..., npt.NDArray[np.uint64]] = np.bitwise_or.reduce
    sources = [np.flatnonzero(row) for row in layout.mask]
    reached, shares = _packed(layout.mask), [layout.density]
    # Where every input reaches every output it does so for good: each row has a block, and that leads everywhere.
    while len(shares) < layers and shares[-1] < 1:
        reached = np.stack([union(reached[source], axis=0) for source in sources])
        shares.append(int(np.unpackbits(reached.view(np.uint8)).sum(dtype=np.int64)) / layout.size)
    return (*shares, *[1.0] * (layers - len(shares)))


def _packed(mask: Mask) -> npt.NDArray[np.uint64]:
    """Rows of bits, padded with zeros to whole words."""
    padded = np.pad(mask, ((0, 0), (0, -mask.shape[1] % 64)))
    return np.packbits(padded, axis=1).view(np.uint64)


def _adjacency(graph: Graph[Any]) -> Mask:
    """The symmetric adjacency of a graph on 0 .. n - 1, and the diagonal."""
    mask = np.eye(graph.number_of_nodes(), dtype=np.bool_)
    tails, heads = np.array(graph.edges, dtype=np.int64).T
    mask[tails, heads] = mask[heads, tails] = True
    return mask


def _fan_in(rows: int, density: float | None, fan_in: int | None) -> int:
    if (density is None) == (fan_in is None):
        raise ArgumentError(f"density, fan_in: got {density!r} and {fan_in!r}, expected exactly one of the two")
    if fan_in is not None:
        return integer("fan_in", fan_in, 0, rows)
    wanted = share("density", density)
    return max(round(wanted * rows), 1 if wanted else 0)


def _extents(rows: SupportsIndex, cols: SupportsIndex, name: str = "") -> tuple[int, int]:
    shape = integer(name or "rows", rows, 1, MAX_BLOCKS), integer(name or "cols", cols, 1, MAX_BLOCKS)
    check_shape(shape, "layout")
    return shape


def _seed(seed: SupportsIndex) -> int:
    return integer("seed", seed, 0)
