"""Ranges of N that a callable has a plan each for: what is best for one row is not for thousands.

Where features come first, kernels that read lines of N elements by TMA need N to be a multiple of 16 bytes, the problem's
`row_unit`; any other N has ranges of its own, which come after those.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import replace

from bsgen.problem import Problem

BOUNDS = (8, 32, 64, 128, 256, 512, 1024, 2048, 4096)  # the largest N of each range but the last
SIZES = len(BOUNDS) + 1
DEFAULT_ROWS, MANY_ROWS = 4096, 16384


def place(n: int, unit: int = 1) -> int:
    """Which range N = `n` is in, where kernels may want a multiple of `unit`."""
    return bisect_left(BOUNDS, n) + (SIZES if n % unit else 0)


def main(problem: Problem) -> int:
    """The range of the problem's own hint."""
    return place(problem.batch or DEFAULT_ROWS, problem.row_unit)


def member(problem: Problem, index: int) -> Problem:
    """The problem as it is planned for a range: with its own hint in the hint's range, with the largest N in any other."""
    if index == main(problem):
        return problem
    return replace(problem, batch=largest(index))


def largest(index: int) -> int:
    """The largest N of a range (of the last, one of many); where multiples are ranges apart, one that is none."""
    size, odd = index % SIZES, index >= SIZES
    return (BOUNDS[size] if size < len(BOUNDS) else MANY_ROWS) - odd


def members(unit: int) -> tuple[int, ...]:
    """An N of each range."""
    return tuple(map(largest, range(SIZES if unit == 1 else 2 * SIZES)))


def alike(n: int, unit: int) -> tuple[int, ...]:
    """The ranges that serve every N up to as many as `n`, multiples of `unit` and others."""
    return (place(n),) if unit == 1 else (place(n), place(n) + SIZES)


def nearest(known: Iterable[int], index: int) -> int | None:
    """The range there is that serves a range and is closest; of two the one of more rows. None: those are for multiples alone."""
    serving = [each for each in known if each >= SIZES or index < SIZES]  # what takes any N takes multiples, too

    def distance(each: int) -> tuple[int, bool, int]:
        return abs(each % SIZES - index % SIZES), each // SIZES != index // SIZES, -each

    return min(serving, key=distance, default=None)
