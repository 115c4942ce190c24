"""bsgen: a compiler for block-sparse matrix products. A fixed layout in, CUDA kernels made for it out.

Importing it loads neither the CUDA driver nor NVRTC, and touches no GPU.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bsgen.errors import (
    ArgumentError,
    BsgenError,
    CacheError,
    CompileError,
    DriverError,
    LayoutError,
    PlanError,
)
from bsgen.layout import Layout
from bsgen.matmul import MatMul, compile

if TYPE_CHECKING:
    from bsgen import topology

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "BsgenError",
    "CacheError",
    "CompileError",
    "DriverError",
    "Layout",
    "LayoutError",
    "MatMul",
    "PlanError",
    "__version__",
    "compile",
    "topology",
]


def __getattr__(name: str) -> Any:
    """Submodules that are slow to import, on first use: topology needs networkx."""
    if name == "topology":
        return import_module("bsgen.topology")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
