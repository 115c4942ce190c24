"""Ranges of N that a callable has a plan each for: what is best for one row is not for thousands."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace

from bsgen.problem import Problem

BOUNDS = (8, 32, 64, 256, 1024, 4096)  # the largest N of each range but the last
DEFAULT_ROWS, MANY_ROWS = 4096, 16384


def place(n: int) -> int:
    """Which range N = `n` is in."""
    return bisect_left(BOUNDS, n)


def main(problem: Problem) -> int:
    """The range of the problem's own hint."""
    return place(problem.batch or DEFAULT_ROWS)


def member(problem: Problem, index: int) -> Problem:
    """The problem as it is planned for a range: with its own hint in the hint's range, with the largest N in any other."""
    if index == main(problem):
        return problem
    return replace(problem, batch=BOUNDS[index] if index < len(BOUNDS) else MANY_ROWS)
