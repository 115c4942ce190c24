"""A byte-level transformer whose feed-forward layers are dense or block-sparse."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bsgen.torch as bt
from bsgen import topology

BYTES = 256


@dataclass(frozen=True)
class Shape:
    """Sizes of a model. Feed-forward layers have `hidden` features; below density 1 they are block-sparse."""

    width: int
    layers: int
    heads: int
    context: int
    hidden: int
    density: float = 1.0
    block_size: int = 32


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.into = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, width] -> the same."""
        q, k, v = self.into(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


def feed_forward(shape: Shape, seed: int) -> nn.Module:
    """width -> hidden -> width with gelu; as many stored blocks in every column, at random places."""
    if shape.density >= 1:
        return nn.Sequential(nn.Linear(shape.width, shape.hidden), nn.GELU(), nn.Linear(shape.hidden, shape.width))
    inner, outer = shape.hidden // shape.block_size, shape.width // shape.block_size
    up = topology.random(outer, inner, density=shape.density, seed=seed)
    down = topology.random(inner, outer, density=shape.density, seed=seed + 1)
    return nn.Sequential(
        bt.BlockSparseLinear(up, shape.block_size, activation="gelu"), bt.BlockSparseLinear(down, shape.block_size)
    )


class Layer(nn.Module):
    """Attention and feed-forward, each on normalised inputs."""

    def __init__(self, shape: Shape, seed: int) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(shape), feed_forward(shape, seed)
        self.before_attention, self.before_mlp = nn.LayerNorm(shape.width), nn.LayerNorm(shape.width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, width] -> the same."""
        x = x + self.attention(self.before_attention(x))
        return x + self.mlp(self.before_mlp(x))


class LanguageModel(nn.Module):
    """Predicts the next byte of a text."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.shape = shape
        self.embedding, self.position = nn.Embedding(BYTES, shape.width), nn.Embedding(shape.context, shape.width)
        self.layers = nn.ModuleList(Layer(shape, seed + 2 * index) for index in range(shape.layers))
        self.norm, self.head = nn.LayerNorm(shape.width), nn.Linear(shape.width, BYTES)
        for embedding in (self.embedding, self.position):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, text: Tensor) -> Tensor:
        """Bytes [batch, time] -> logits of the byte after each [batch, time, 256]."""
        x = self.embedding(text) + self.position.weight[: text.shape[1]]
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(self.norm(x))
        return logits

    def bits_per_byte(self, text: Tensor) -> Tensor:
        """Mean over [batch, time + 1] bytes, each predicted from those before it."""
        logits = self(text[:, :-1]).float()
        return F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten()) / math.log(2)
