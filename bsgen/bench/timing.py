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
        once = _elapsed(call)
        return self._cold(call, once) if self.cold else self._warm(call, once)

    def _warm(self, call: Call, once: float) -> Timing:
        calls = max(1, min(MOST_CALLS, round(BATCH_SECONDS / once)))
        batch, method = _capture(call, calls)
        return _timing([_elapsed(batch) / calls for _ in range(_repeats(calls * once))], method)

    def _cold(self, call: Call, once: float) -> Timing:
        flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
        return _timing([_elapsed(call, flush.zero_) for _ in range(_repeats(once))], "eager")


def _repeats(seconds: float) -> int:
    return max(LEAST_REPEATS, min(MOST_REPEATS, round(BUDGET_SECONDS / seconds)))


def _timing(times: list[float], method: str) -> Timing:
    return Timing(median(times), min(times), max(times), len(times), method)


def _elapsed(call: Call, before: Call | None = None) -> float:
    if before:
        before()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


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
