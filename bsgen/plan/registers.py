"""How a thread block of the Hopper kernels shares out its registers: the warps that load give theirs to those that multiply."""

from __future__ import annotations

from bsgen.plan.occupancy import REGISTERS

WARP, WARPGROUP_WARPS = 32, 4  # threads, and warps of what setmaxnreg is of
PRODUCER_REGISTERS, MOST_CONSUMER_REGISTERS = 32, 240
MOST_LAUNCH_REGISTERS = 128  # of a thread where few threads leave more than it needs


class SharedRegisters:
    """What has `consumer_groups` warpgroups that multiply and `loading_groups` that load: registers of a thread of each."""

    @property
    def consumer_groups(self) -> int:
        """Warpgroups that multiply."""
        raise NotImplementedError

    @property
    def loading_groups(self) -> int:
        """Warpgroups that load."""
        return 1

    @property
    def most_launch_registers(self) -> int:
        """The most registers of a thread at launch."""
        return MOST_LAUNCH_REGISTERS

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return WARP * WARPGROUP_WARPS * (self.consumer_groups + self.loading_groups)

    @property
    def launch_registers(self) -> int:
        """Registers of each thread at launch: what setmaxnreg may hand out again, no more, or the kernel hangs."""
        return min(self.most_launch_registers, REGISTERS // self.threads // 8 * 8)

    @property
    def consumer_registers(self) -> int:
        """Registers of a thread that multiplies, once those that load have given up theirs."""
        given_up = (self.launch_registers - self.producer_registers) * self.loading_groups
        return min(MOST_CONSUMER_REGISTERS, (self.launch_registers + given_up // self.consumer_groups) // 8 * 8)

    @property
    def producer_registers(self) -> int:
        """Registers of a thread that loads."""
        return PRODUCER_REGISTERS
