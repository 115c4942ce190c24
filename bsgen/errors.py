"""The errors bsgen raises: each names the argument, what came, what was expected, and the way out."""

from __future__ import annotations


class BsgenError(Exception):
    """Base of every error that bsgen raises on purpose."""


class LayoutError(BsgenError, ValueError):
    """A layout, or a file or option that should give one, is not usable."""


class ArgumentError(BsgenError, ValueError):
    """An argument of a public function has the wrong rank, shape, dtype, device or value."""


class CompileError(BsgenError, RuntimeError):
    """NVRTC or ptxas refused the source, or NVRTC itself is missing."""


class PlanError(BsgenError, ValueError):
    """No plan of any family fits the problem on the target."""


class DriverError(BsgenError, RuntimeError):
    """The CUDA driver is missing, found no usable GPU, or a call to it failed."""


class CacheError(BsgenError, RuntimeError):
    """The disk cache cannot be used for what was asked of it explicitly."""


class PackError(BsgenError, RuntimeError):
    """A pack is damaged, of another format, not trusted, or does not hold what was asked of it."""
