"""How density falls during training."""

from __future__ import annotations

from dataclasses import dataclass

from bsgen.checks import integer, share
from bsgen.errors import ArgumentError


@dataclass(frozen=True)
class PolynomialSchedule:
    """final + (initial - final) * (1 - (step - begin) / (end - begin)) ** power between steps `begin` and `end`, changing each
    `every` steps (Zhu and Gupta 2017, "To prune, or not to prune", with power 3, of densities for sparsities).
    """

    final: float
    end: int
    initial: float = 1.0
    begin: int = 0
    every: int = 100
    power: float = 3.0

    def __post_init__(self) -> None:
        share("final", self.final)
        share("initial", self.initial)
        integer("every", self.every, 1)
        if not 0 <= self.begin < self.end:
            raise ArgumentError(f"begin, end: got {self.begin} and {self.end}, expected 0 <= begin < end")
        if self.final > self.initial:
            raise ArgumentError(f"final: got {self.final}, expected at most initial ({self.initial}): density falls")

    def density(self, step: int) -> float:
        """The density from step `step` on."""
        if step >= self.end:
            return self.final
        since = max(0, step - self.begin) // self.every * self.every
        left = 1 - since / (self.end - self.begin)
        return float(self.final + (self.initial - self.final) * left**self.power)

    def changes(self, step: int) -> bool:
        """Whether the density of `step` is another than that of the step before."""
        return step > 0 and self.density(step) != self.density(step - 1)
