"""How kernels of a plan are launched, as data: grids as functions of N, arguments in order, shared memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Grid:
    """A linear grid: `blocks` thread blocks, times ceil(N / rows) when `rows` is not 0."""

    blocks: int
    rows: int = 0

    def size(self, n: int) -> int:
        """Thread blocks for N = `n`; 0 means there is nothing to launch."""
        return self.blocks * (-(-n // self.rows) if self.rows else 1)


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    `arguments` names the kernel's parameters in order. Pointers: x, dy, w, out, bias, residual, workspace; 32-bit
    integers: n (rows of x), accumulate (wgrad: 1 adds into out). dgrad's activations are called dy, wgrad has x and dy.
    """

    entry: str
    grid: Grid
    threads: int
    shared_memory: int
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Workspace:
    """Scratch float32 elements that the launches of one call share: `fixed` and `per_row` for each of the N rows."""

    fixed: int = 0
    per_row: int = 0

    def elements(self, n: int) -> int:
        """float32 elements for N = `n`; 0 means no workspace is needed."""
        return self.fixed + self.per_row * n


@dataclass(frozen=True)
class Outline:
    """What running a plan's kernels takes, and what reports say of it; all that a warm start needs of a plan."""

    family: str
    summary: str
    launches: tuple[Launch, ...]
    workspace: Workspace
    seconds: float
    n: int

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Outline:
        """The outline that `dataclasses.asdict` gave `fields` of."""
        launches = [
            Launch(**{**launch, "grid": Grid(**launch["grid"]), "arguments": tuple(launch["arguments"])})
            for launch in fields["launches"]
        ]
        return cls(**{**fields, "launches": tuple(launches), "workspace": Workspace(**fields["workspace"])})
