"""Checks of plain numbers that come in as arguments."""

from __future__ import annotations

import operator
from typing import SupportsIndex

import numpy as np

from bsgen.errors import ArgumentError


def integer(name: str, value: object, low: int, high: int | None = None) -> int:
    """`value` as an int in [low, high]; `ArgumentError`, which calls it `name`, if it is none."""
    wanted = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise ArgumentError(f"{name}: got {value!r}, expected {wanted}")
    number = operator.index(value)
    if number < low or (high is not None and number > high):
        raise ArgumentError(f"{name}: got {number}, expected {wanted}")
    return number


def share(name: str, value: object) -> float:
    """`value` as a float in [0, 1]; `ArgumentError`, which calls it `name`, if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value <= 1:
        raise ArgumentError(f"{name}: got {value!r}, expected a number from 0 to 1")
    return float(value)
