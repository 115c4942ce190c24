"""How much of W stays in L2 from one call to the next, where rows are few.

Each block of W is then read once or a few times a call, in the same order each time. W that L2 cannot hold would evict itself: the
oldest line goes, which is needed next. So a part of the blocks is loaded as usual, and the rest as what L2 evicts first: it takes
the place of its like, and the part stays. A network that runs the same weights again and again, as recurrent ones do, finds it
there.
"""

from __future__ import annotations

from typing import NamedTuple

from bsgen.problem import Problem
from bsgen.ranges import DEFAULT_ROWS

# Of the 50 MiB of L2 (H100, H200), of which activations, results and what is on its way take some.
HELD_BYTES = 36 << 20  # W of no more stays whole
KEPT_BYTES = 26 << 20  # and so much of larger ones: timed with 60 and 151 MB (tests/gpu/README.md)
STREAMED_ROWS = 64  # of N: what it was timed for
PARTS, RUN_PARTS = 32, 31  # of blocks; and of runs of them, which may begin at every 32nd block


class Kept(NamedTuple):
    """Block i of W, or a run that begins with it, is loaded as usual if i modulo `parts` is below `kept`."""

    kept: int
    parts: int = PARTS

    @property
    def text(self) -> str:
        """What a plan's summary says of it."""
        return f", {self.kept} of {self.parts} blocks kept in L2"


def kept_blocks(problem: Problem, parts: int = PARTS) -> Kept | None:
    """Which blocks L2 is to keep, if it has room for a part of them alone and rows are few. Gated weights are written anew in each
    call: none of the call before are to be found."""
    stored = _stored_bytes(problem)
    many = (problem.batch or DEFAULT_ROWS) > STREAMED_ROWS
    kept = parts * KEPT_BYTES // stored if stored > HELD_BYTES else 0
    return Kept(kept, parts) if kept and not many and not problem.gate else None


def kept_runs(problem: Problem) -> Kept | None:
    """The same of runs of blocks."""
    return kept_blocks(problem, RUN_PARTS)


def kept_bytes(problem: Problem, kept: Kept | None) -> int:
    """Of W that does not fit L2, what a call finds there all the same."""
    return _stored_bytes(problem) * kept.kept // kept.parts if kept else 0


def _stored_bytes(problem: Problem) -> int:
    return problem.layout.nnz * problem.block_size**2 * problem.dtype.itemsize
