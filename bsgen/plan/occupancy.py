"""How many thread blocks an SM holds at once."""

from __future__ import annotations

from bsgen.problem import Target

REGISTERS = 65536  # of an SM, since sm_70
RESERVED_BYTES = 1024  # of shared memory, that the system takes for each thread block
OTHER_REGISTERS = {True: 64, False: 112}  # of a thread, beside its accumulators: with tensor cores, without


def by_registers(threads: int, accumulators: int, tensor: bool) -> int:
    """Thread blocks whose registers fit an SM."""
    return REGISTERS // ((accumulators + OTHER_REGISTERS[tensor]) * threads)


def by_shared_memory(shared_memory: int, target: Target) -> int:
    """Thread blocks of `shared_memory` bytes that fit an SM."""
    return (target.shared_memory + RESERVED_BYTES) // (shared_memory + RESERVED_BYTES)


def shared_memory_of(blocks: int, target: Target) -> int:
    """Bytes of shared memory each of `blocks` thread blocks of an SM may have."""
    return (target.shared_memory + RESERVED_BYTES) // blocks - RESERVED_BYTES
