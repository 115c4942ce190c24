"""The encoder of all-MiniLM-L6-v2 in plain PyTorch: BERT, mean pooling, and its word pieces."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bsgen.errors import ArgumentError

WORD = re.compile(r"\w+|[^\w\s]")


class BertLayer(nn.Module):
    """Attention and feed-forward, each added to its input and then normalised."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, hidden = config["hidden_size"], config["intermediate_size"]
        self.heads = config["num_attention_heads"]
        self.query, self.key, self.value, self.attended = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.after_attention, self.after_mlp = (nn.LayerNorm(width, config["layer_norm_eps"]) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[batch, time, width], which places hold words [batch, 1, 1, time] -> [batch, time, width]."""
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        x = self.after_attention(x + self.attended(mixed))
        return self.after_mlp(x + self.down(F.gelu(self.up(x))))


class SentenceEncoder(nn.Module):
    """Words to one embedding of length 1 for each sentence."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.words = nn.Embedding(config["vocab_size"], width)
        self.positions = nn.Embedding(config["max_position_embeddings"], width)
        self.types = nn.Embedding(config["type_vocab_size"], width)
        self.norm = nn.LayerNorm(width, config["layer_norm_eps"])
        self.layers = nn.ModuleList(BertLayer(config) for _ in range(config["num_hidden_layers"]))

    def forward(self, words: Tensor) -> Tensor:
        """Word pieces [batch, time], 0 where there is none -> [batch, width]."""
        there = words != 0
        x = self.norm(self.words(words) + self.positions.weight[: words.shape[1]] + self.types.weight[0])
        for layer in self.layers:
            x = layer(x, there[:, None, None])
        weights = there.to(x.dtype)[..., None]
        return F.normalize((x * weights).sum(1) / weights.sum(1), dim=-1)


NAMES = {
    "embeddings.word_embeddings": "words",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "types",
    "embeddings.LayerNorm": "norm",
    "encoder.layer.": "layers.",
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "attended",
    "attention.output.LayerNorm": "after_attention",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "after_mlp",
}


def load(folder: Path) -> SentenceEncoder:
    """The trained model of a folder with config.json and model.safetensors, in float32."""
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise ArgumentError("model: needs safetensors, which is not installed; pip install 'bsgen[examples]'") from None
    state = {_renamed(name): tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    model = SentenceEncoder(json.loads((folder / "config.json").read_text()))
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    model.eval()
    return model


def _renamed(name: str) -> str:
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name


class WordPieces:
    """Lower-case words cut greedily into the longest pieces of a vocabulary."""

    def __init__(self, folder: Path) -> None:
        pieces = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        self.places = {piece: place for place, piece in enumerate(pieces)}

    def __call__(self, sentences: Sequence[str], length: int) -> Tensor:
        """Word pieces [sentences, length] between [CLS] and [SEP], then zeros."""
        rows = torch.zeros(len(sentences), length, dtype=torch.long)
        for row, sentence in zip(rows, sentences, strict=True):
            plain = unicodedata.normalize("NFD", sentence.lower())
            words = WORD.findall("".join(c for c in plain if unicodedata.category(c) != "Mn"))
            found = [self.places["[CLS]"], *(piece for word in words for piece in self._pieces(word))][: length - 1]
            row[: len(found) + 1] = torch.tensor([*found, self.places["[SEP]"]])
        return rows

    def _pieces(self, word: str) -> list[int]:
        found, begin = [], 0
        while begin < len(word):
            prefix = "##" if begin else ""
            ends = (end for end in range(len(word), begin, -1) if prefix + word[begin:end] in self.places)
            end = next(ends, None)
            if end is None:
                return [self.places["[UNK]"]]
            found.append(self.places[prefix + word[begin:end]])
            begin = end
        return found
