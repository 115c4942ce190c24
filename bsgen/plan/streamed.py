"""How much of W stays in L2 from one call to the next, where rows are few.

Each block of W is then read once or a few times a call, in the same order each time. W that L2 cannot hold would evict itself: the
oldest line goes, which is needed next. So a part of the blocks is loaded as usual, and the rest as what L2 evicts first: it takes
the place of its like, and the part stays. A network that runs the same weights again and again, as recurrent ones do, finds it
there. What other kernels keep in L2 stays, too.
"""

from __future__ import annotations

from typing import NamedTuple

from bsgen.problem import Problem
from bsgen.ranges import DEFAULT_ROWS

# Of the 50 MiB of L2 (H100, H200), of which activations, results and what is on its way take some.
HELD_BYTES = 36 << 20  # W of no more stays whole
KEPT_BYTES = 26 << 20  # and so much of larger ones: timed with 60, 90 and 151 MB (tests/gpu/README.md)
STREAMED_ROWS = 256  # of N: activations stay in L2, and tiles hardly outnumber the SMs
PARTS = 32


class Kept(NamedTuple):
    """Block i of W is loaded as usual if i modulo `parts` is below `kept`."""

    kept: int
    parts: int = PARTS

    @property
    def text(self) -> str:
        """What a plan's summary says of it."""
        return f", {self.kept} of {self.parts} blocks kept in L2"


def kept_blocks(problem: Problem) -> Kept | None:
    """Which blocks L2 is to keep, if it has no room for all of them and rows are few."""
    stored = _stored_bytes(problem)
    if stored <= HELD_BYTES or (problem.batch or DEFAULT_ROWS) > STREAMED_ROWS:
        return None
    return Kept(PARTS * KEPT_BYTES // stored)


def kept_bytes(problem: Problem) -> int:
    """Of W that does not fit L2, what a call finds there all the same."""
    found = kept_blocks(problem)
    return _stored_bytes(problem) * found.kept // found.parts if found else 0


def _stored_bytes(problem: Problem) -> int:
    return problem.layout.nnz * problem.block_size**2 * problem.dtype.itemsize
