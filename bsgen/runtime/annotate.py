"""BSGEN_NVTX=1: an NVTX range around the launches of each call, for Nsight Systems; needs the package nvtx."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

from bsgen.outline import Launch, Workspace
from bsgen.runtime.launch import Cubin, Kernels, Prepared

_log = logging.getLogger("bsgen")


def kernels(binary: Cubin, launches: Sequence[Launch], workspace: Workspace) -> Kernels:
    """`Kernels`, with ranges if they are asked for; nothing is asked at a call."""
    return (Annotated if _nvtx() else Kernels)(binary, launches, workspace)


@cache
def _nvtx() -> Any | None:
    if os.environ.get("BSGEN_NVTX", "") in ("", "0"):
        return None
    try:
        import nvtx
    except ImportError:
        _log.warning("BSGEN_NVTX is set, but nvtx is not installed, so there are no ranges: pip install nvtx")
        return None
    return nvtx


class Annotated(Kernels):
    """Kernels whose calls show as ranges with the name of the first kernel."""

    def prepare(self, device: int, stream: int, operands: dict[str, Any]) -> tuple[Prepared, ...]:
        """The launches as one, inside a range."""
        prepared = super().prepare(device, stream, operands)
        return (Prepared(partial(_inside, self.launches[0].entry, prepared), prepared),) if prepared else ()


def _inside(name: str, prepared: Sequence[Prepared]) -> tuple[Any]:
    """Enqueue launches in a range of that name; the first error, or the last call's none."""
    nvtx: Any = _nvtx()
    error: Any = 0
    with nvtx.annotate(name, domain="bsgen"):
        for launch in prepared:
            (error,) = launch.enqueue()
            if error:
                break
    return (error,)
