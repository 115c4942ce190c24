"""Packs that `bsgen.compile` looks into before it compiles: those of BSGEN_PACK_PATH, and those that wheels brought."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from bsgen.compiled import Compiled
from bsgen.errors import BsgenError
from bsgen.packs.pack import Pack
from bsgen.problem import Problem

GROUP = "bsgen.packs"  # entry points: NAME = a package that has .bsp files in it
SUFFIX = ".bsp"

_log = logging.getLogger("bsgen")


def find(problem: Problem, arch: str, path: str = "") -> Compiled | None:
    """The kernels of a problem in the packs of a search path, or without one in those that are installed.

    A pack that cannot be used is passed over, with a word in the log.
    """
    for pack in packs(path):
        try:
            found = pack.find(problem, arch)
        except BsgenError as error:
            _log.warning("passed over a kernel: %s", error)
            continue
        if found is not None:
            return found
    return None


@lru_cache(maxsize=8)
def packs(path: str) -> tuple[Pack, ...]:
    """The packs of a search path (files, or folders of .bsp files), or of installed wheels, opened once."""
    found: list[Pack] = []
    for _, pack in look(path):
        if isinstance(pack, Pack):
            found.append(pack)
        else:
            _log.warning("passed over a pack: %s", pack)
    return tuple(found)


def look(path: str) -> Iterator[tuple[Path, Pack | str]]:
    """Each file of a search path, or of installed wheels, with its pack, or with what is wrong."""
    for file in _files(path) if path else _installed():
        try:
            yield file, Pack(file)
        except BsgenError as error:
            yield file, str(error)


def _files(path: str) -> Iterator[Path]:
    for part in filter(None, path.split(os.pathsep)):
        place = Path(part).expanduser()
        if place.is_dir():
            yield from sorted(place.glob(f"*{SUFFIX}"))
        else:
            yield place


def _installed() -> Iterator[Path]:
    """Found by name alone: no package is imported for it."""
    from importlib.metadata import distributions

    for distribution in distributions():
        for point in distribution.entry_points:
            if point.group == GROUP:
                files = distribution.files or ()
                yield from (Path(str(distribution.locate_file(file))) for file in files if file.suffix == SUFFIX)
