"""How calls are timed, bsgen and peers alike: the GPU's time, without the host's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from bsgen.bench.records import Timing

Call = Callable[[], object]

WARM_UP, LEAST_REPEATS, MOST_REPEATS = 2, 5, 15
BATCH_SECONDS, BUDGET_SECONDS = 1e-3, 30e-3  # of a graph of several calls; of all repeats
MOST_CALLS = 20
FLUSH_BYTES = 256 << 20  # past the L2 of any GPU there is


@dataclass(frozen=True)
class Clock:
    """Times calls with L2 as the last call left it (warm), or with other data in it (`cold`)."""

    cold: bool = False

    @property
    def text(self) -> str:
        """What it does, for reports."""
        if self.cold:
            return "medians of single calls between CUDA events; L2 cold: 256 MiB are written before each call"
        return (
            "medians over CUDA events of replayed CUDA graphs, each of up to 20 calls (eager calls where a library cannot "
            "be captured); L2 warm: as the call before left it"
        )

    def time(self, call: Call) -> Timing:
        """Time a call that enqueues work on PyTorch's current stream."""
        for _ in range(WARM_UP):
            call()
        once = max(median(_apart(call, _nothing, 3)), 1e-7)
        if self.cold:
            flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
            return _timing(_apart(call, flush.zero_, _repeats(once)), "eager")
        calls = max(1, min(MOST_CALLS, round(BATCH_SECONDS / once)))
        batch, method = _capture(call, calls)
        return _timing([seconds / calls for seconds in _in_a_row(batch, _repeats(calls * once))], method)


def _nothing() -> None:
    """Nothing to do before a call."""


def _repeats(seconds: float) -> int:
    return max(LEAST_REPEATS, min(MOST_REPEATS, round(BUDGET_SECONDS / seconds)))


def _timing(times: list[float], method: str) -> Timing:
    return Timing(median(times), min(times), max(times), len(times), method)


def _in_a_row(call: Call, repeats: int) -> list[float]:
    """Seconds of each of several calls enqueued at once, after one that keeps the GPU busy meanwhile: no gap shows the host."""
    call()
    marks = [_mark()]
    for _ in range(repeats):
        call()
        marks.append(_mark())
    return _seconds(marks[:-1], marks[1:])


def _apart(call: Call, before: Call, repeats: int) -> list[float]:
    """Seconds of each of several calls with other work before each."""
    begins, ends = [], []
    for _ in range(repeats):
        before()
        begins.append(_mark())
        call()
        ends.append(_mark())
    return _seconds(begins, ends)


def _mark() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(begins: list[torch.cuda.Event], ends: list[torch.cuda.Event]) -> list[float]:
    torch.cuda.synchronize()
    return [float(begin.elapsed_time(end)) / 1e3 for begin, end in zip(begins, ends, strict=True)]


def _capture(call: Call, calls: int) -> tuple[Call, str]:
    """A replay of `calls` calls; or the calls themselves, where capturing fails."""

    def eager() -> None:
        for _ in range(calls):
            call()

    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            call()
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            eager()
        graph.replay()
        torch.cuda.synchronize()
    except RuntimeError:
        torch.cuda.synchronize()
        return eager, "eager"
    return graph.replay, "graph"
