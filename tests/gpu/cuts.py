"""The emitted text of Hopper's kernels for fprop and dgrad with parts taken out, or with clocks written down (dissect.py).

Places are found by how they look: a kernel that has no such place is an error, not a kernel that does all that it did.
"""

from __future__ import annotations

import re
from collections.abc import Callable

WARPS, STAGES, MARKS = 24, 384, 4  # of a thread block that are written down, at most
WAITS, COMES, LEAVES, STORED = range(MARKS)  # what is written down of a stage; the last of a tile's last
MARK = """
__device__ __forceinline__ void mark(int stage, int what) {{
    if (threadIdx.x % 32 == 0 && stage < {stages})
        reinterpret_cast<long long*>({address}ull)
            [((blockIdx.x * {warps} + threadIdx.x / 32) * {stages}ll + stage) * {marks} + what] = clock64();
}}
"""
ALIAS = "using u32 = unsigned int;"


class Unknown(Exception):
    """The text has no such place."""


def changed(text: str, pattern: str, to: str, least: int = 1) -> str:
    """The text with every match replaced, of which there must be some."""
    text, count = re.subn(pattern, to, text)
    if count < least:
        raise Unknown(f"nothing in the kernel looks like {pattern}")
    return text


def without_loads(text: str) -> str:
    """Nothing arrives but the records."""
    if "load.y != 0" in text:  # narrow blocks
        text = changed(text, r"barrier_expect\(barrier, high \* 16\)", "barrier_expect(barrier, low * 16)")
        return changed(text, r"else if \(load\.(y != 0|x >= 0)\)", "else if (load.x == -2)", 2)
    text = changed(
        text, r"barrier_expect\(barrier, panels \* kPanelBytes \+ [^;]*;", "barrier_expect(barrier, kRecordBytes);"
    )
    return changed(text, r"if \(mine && lane > ", "if (load == -2 && lane > ", 2)


def without_multiplies(text: str) -> str:
    """Stages are given back as they come."""
    if "zeros, before);" in text:  # turned products of narrow blocks, which give back the stage before
        return changed(text, r"multiply_stage\(sums, [^;]*;", "give_back(before);")
    return changed(text, r"\n\s+multiply_stage\(sums, [^;]*;", "")


def without_stores(text: str) -> str:
    """Results go nowhere."""
    return changed(text, r"(\n +)(store\(sums[^;]*;)", r"\1if (n == -2) \2")


PARTS: dict[str, tuple[Callable[[str], str], ...]] = {
    "whole": (),
    "no loads": (without_loads,),
    "no multiplies": (without_multiplies,),
    "no stores": (without_stores,),
    "multiplies alone": (without_loads, without_stores),
    "loads alone": (without_multiplies, without_stores),
}


def marked(text: str, address: int) -> str:
    """With clocks written down, at an address of the GPU's memory."""
    text = changed(text, r"u32 parity = ([01]);", r"u32 parity = \1; int at = 0;", 2)
    loading = r"(barrier_wait\(empty \+ slot \* 8, parity\);\s+producers_sync(?:<\w+>)?\(\w*\);)"
    text = changed(text, loading, rf"mark(at, {WAITS}); \1 mark(at++, {COMES});")
    waiting = r"(barrier_wait\(full \+ slot \* 8, parity\);)"
    text = changed(text, waiting, rf"mark(at, {WAITS}); \1 mark(at, {COMES});")
    narrow = r"(if \(lane == 0\) barrier_arrive\(empty \+ slot \* 8\);)"
    turned, wide = r"(before = empty \+ slot \* 8;)", r"(    give_back\(empty, slot, parity\);)"
    leaving = next((each for each in (narrow, turned) if re.search(each, text)), wide)
    text = changed(text, leaving, rf"\1 mark(at++, {LEAVES});")
    text = changed(text, r"(\n +)(store\(sums[^;]*;)", rf"\1{{ \2 mark(at - 1, {STORED}); }}")
    return text.replace(ALIAS, ALIAS + MARK.format(address=address, stages=STAGES, warps=WARPS, marks=MARKS), 1)
