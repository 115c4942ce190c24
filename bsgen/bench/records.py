"""What a measurement says, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Timing:
    """Seconds of a call: the median of `repeats`, and the lowest and highest of them; how it was called."""

    seconds: float
    low: float
    high: float
    repeats: int
    method: str


@dataclass(frozen=True)
class Row:
    """One contender in one case. `error` is relative, in the Frobenius norm, against the float32 product. Rates count stored
    blocks; bytes are those that device memory must move once; `of_bound` is the model's least time over the time taken.
    """

    contender: str
    timing: Timing
    error: float
    tflops: float
    gbytes: float
    of_bound: float
    over_dense: float | None = None
    plan: str = ""
    predicted_seconds: float | None = None


@dataclass(frozen=True)
class Measured:
    """One case: rows in the order they ran, contenders that were left out and why, and what was asked."""

    case: str
    suite: str
    op: str
    dtype: str
    block_size: int
    n: int
    features: tuple[int, int]
    nnz: int
    density: float
    bound_seconds: float
    bound_limiter: str
    rows: tuple[Row, ...]
    left_out: dict[str, str] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    balanced: str | None = None

    def row(self, contender: str) -> Row | None:
        """The row of a contender."""
        return next((row for row in self.rows if row.contender == contender), None)

    def over(self, contender: str) -> float | None:
        """How many times faster bsgen is than a contender; None unless both were timed."""
        own, other = self.row("bsgen"), self.row(contender)
        return other.timing.seconds / own.timing.seconds if own and other else None

    @property
    def verdicts(self) -> dict[str, bool | None]:
        """Whether each floor was met; None if it could not be measured."""
        found = {peer: self.over(peer) for peer in self.floors}
        return {peer: None if value is None else value >= self.floors[peer] for peer, value in found.items()}

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "speed_up": {peer: self.over(peer) for peer in self.floors}, "met": self.verdicts}
