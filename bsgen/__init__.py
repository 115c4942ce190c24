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
    PackError,
    PlanError,
)
from bsgen.layout import Layout
from bsgen.logs import configure
from bsgen.matmul import MatMul, compile

if TYPE_CHECKING:
    from bsgen import topology
    from bsgen.packs import load_pack

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
    "PackError",
    "PlanError",
    "__version__",
    "compile",
    "load_pack",
    "topology",
]

configure()


def __getattr__(name: str) -> Any:
    """What is slow to import, or seldom needed, on first use: topology needs networkx."""
    if name == "topology":
        return import_module("bsgen.topology")
    if name == "load_pack":
        return import_module("bsgen.packs").load_pack
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
