"""How long work on a GPU takes, by CUDA events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from bsgen.runtime import driver

WARM_UP = 3


def median_seconds(
    enqueue: Callable[[], object], device: int, stream: int, repeats: int = 15, inner: int = 10
) -> float:
    """Seconds of one `enqueue()` on `stream`: the median of `repeats` timings of `inner` calls, caches warm."""
    with driver.on(device), _event() as begin, _event() as end:
        for _ in range(WARM_UP):
            enqueue()
        return median(_milliseconds(enqueue, begin, end, stream, inner) / inner / 1e3 for _ in range(repeats))


def _milliseconds(enqueue: Callable[[], object], begin: Any, end: Any, stream: int, inner: int) -> float:
    driver.call("cuEventRecord", begin, stream)
    for _ in range(inner):
        enqueue()
    driver.call("cuEventRecord", end, stream)
    driver.call("cuEventSynchronize", end)
    return float(driver.call("cuEventElapsedTime", begin, end))


@contextmanager
def _event() -> Iterator[Any]:
    event = driver.call("cuEventCreate", 0)
    try:
        yield event
    finally:
        driver.call("cuEventDestroy", event)
