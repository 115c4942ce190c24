"""bsgen.torch on two GPUs over NCCL: data parallel, fully sharded and tensor parallel training has the losses of one GPU."""

from __future__ import annotations

import functools

import pytest
from cases import torch

pytest.importorskip("torch")

import two_gpus

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < two_gpus.RANKS, reason="needs two GPUs")


@functools.cache
def losses(place: two_gpus.Place) -> list[float]:
    """Of one GPU, which also leaves its kernels in the disk cache for the ranks."""
    return two_gpus.alone(place)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("way", two_gpus.WAYS)
def test_the_losses_of_one_gpu(way: str, kind: str) -> None:
    place = two_gpus.Place("nccl", "cuda", kind)
    expected = losses(place)
    assert expected[-1] < 0.7 * expected[0]
    two_gpus.start(two_gpus.WAYS[way], place, expected)
