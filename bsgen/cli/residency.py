"""Occupancy: how many thread blocks of a kernel an SM holds at once, and what stops it from holding more."""

from __future__ import annotations

from dataclasses import dataclass

from bsgen.plan.occupancy import REGISTERS, by_shared_memory
from bsgen.problem import TARGETS

WARP = 32
# Warps and thread blocks that an SM takes, by compute capability (CUDA C++ Programming Guide, technical specifications).
SM_LIMITS = {80: (64, 32), 86: (48, 16), 89: (48, 24), 90: (64, 32), 100: (64, 32), 103: (64, 32), 120: (48, 24)}
REGISTERS_A_STEP = 256  # that a warp is given at a time


@dataclass(frozen=True)
class Residency:
    """Thread blocks that an SM holds at once, their warps, the most warps there could be, and what the limit is."""

    blocks: int
    warps: int
    most_warps: int
    limit: str

    def __str__(self) -> str:
        share = self.warps / self.most_warps
        blocks = f"{self.blocks} thread block{'' if self.blocks == 1 else 's'}"
        return f"{blocks} an SM, {self.warps} of {self.most_warps} warps ({share:.0%}); the limit is {self.limit}"


def residency(arch: str, threads: int, registers: int, shared_memory: int) -> Residency | None:
    """Of a kernel with so many registers a thread and bytes of shared memory; None for an architecture unknown here."""
    target = TARGETS.get(arch)
    if target is None or threads < 1:
        return None
    most_warps, most_blocks = SM_LIMITS[target.capability]
    warps = -(-threads // WARP)
    allotted = -(-registers * WARP // REGISTERS_A_STEP) * REGISTERS_A_STEP * warps
    limits = {
        "registers": REGISTERS // allotted if allotted else most_blocks,
        "shared memory": by_shared_memory(shared_memory, target),
        "warps": most_warps // warps,
        "thread blocks": most_blocks,
    }
    blocks = min(limits.values())
    names = [name for name, most in limits.items() if most == blocks]
    return Residency(blocks, blocks * warps, most_warps, " and ".join(names))
