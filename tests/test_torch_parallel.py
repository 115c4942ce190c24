"""Several processes on the CPU (gloo) train as one does."""

from __future__ import annotations

import socket

import numpy as np
import pytest

from bsgen import topology
from bsgen.errors import ArgumentError, LayoutError
from bsgen.layout import Layout


def test_split_is_balanced_by_blocks() -> None:
    layout = topology.barabasi_albert(64, 4, seed=0)
    for axis in (0, 1):
        parts = layout.split(axis, 4)
        np.testing.assert_array_equal(np.concatenate([part.mask for part in parts], axis=axis), layout.mask)
        sizes = [part.nnz for part in parts]
        even = [part.sum() for part in np.array_split(layout.mask, 4, axis=axis)]
        assert max(sizes) <= max(even)
        assert max(sizes) <= layout.nnz / 4 + max(layout.fan_in.max(), layout.fan_out.max())


def test_split_of_few_blocks_leaves_no_part_without_rows() -> None:
    mask = np.zeros((6, 5), bool)
    mask[0, 0] = True
    assert [part.shape for part in Layout(mask).split(0, 6)] == [(1, 5)] * 6
    assert sum(part.nnz for part in Layout(mask).split(1, 3)) == 1
    for axis, parts in ((0, 7), (1, 0), (1, True)):
        with pytest.raises(LayoutError, match="parts: got"):
            Layout(mask).split(axis, parts)
    with pytest.raises(LayoutError, match="axis: got 2"):
        Layout(mask).split(2, 2)


@pytest.mark.parametrize("way", ["tensor_parallel", "data_parallel", "fully_sharded"])
def test_the_losses_of_one_process(way: str) -> None:
    torch = pytest.importorskip("torch")
    import torch_ranks

    expected = torch_ranks.losses(
        model := torch.nn.Sequential(*torch_ranks.layers()), model.parameters(), *torch_ranks.data(16)
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(getattr(torch_ranks, way), (2, port, expected), nprocs=2)


def test_pairs_that_do_not_fit() -> None:
    pytest.importorskip("torch")
    import torch_ranks

    from bsgen.torch import BlockSparseLinear
    from bsgen.torch.parallel import parallelize

    first, _ = torch_ranks.layers()
    with pytest.raises(ArgumentError, match="second: takes 16 features in blocks of 8, expected 64"):
        parallelize(first, BlockSparseLinear(np.ones((2, 8), bool), 8))
    with pytest.raises(ArgumentError, match="second: has the activation 'relu'"):
        parallelize(first, BlockSparseLinear(np.ones((8, 8), bool), 8, activation="relu"))
