"""Where the disk cache is, whom it is trusted to, and how large it may grow: what the environment says of it.

BSGEN_CACHE_DIR names folders, separated as in PATH: all are read, in order, and the last is written. BSGEN_CACHE_SIZE caps what is
written; BSGEN_DISABLE_CACHE turns it all off.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

DEFAULT_LIMIT = 4 << 30
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:I?B)?\s*", re.IGNORECASE)


def roots() -> tuple[Path, ...]:
    """The folders, that to write last: BSGEN_CACHE_DIR, else bsgen in XDG_CACHE_HOME, else ~/.cache/bsgen; none without a home."""
    chosen = [part for part in os.environ.get("BSGEN_CACHE_DIR", "").split(os.pathsep) if part]
    if chosen:
        return tuple(Path(os.path.abspath(os.path.expanduser(part))) for part in chosen)
    # The XDG specification tells programs to ignore a relative path.
    shared = os.environ.get("XDG_CACHE_HOME", "")
    cache = shared if os.path.isabs(shared) else os.path.expanduser("~/.cache")
    return (Path(cache, "bsgen"),) if os.path.isabs(cache) else ()


def disabled() -> bool:
    """Whether BSGEN_DISABLE_CACHE asks for no disk cache at all."""
    return os.environ.get("BSGEN_DISABLE_CACHE", "") not in ("", "0")


def limit() -> int:
    """Bytes that the written folder may hold, 0 for any number: BSGEN_CACHE_SIZE, such as 500M; `ValueError` for other words."""
    text = os.environ.get("BSGEN_CACHE_SIZE", "")
    return parse_size(text) if text.strip() else DEFAULT_LIMIT


def parse_size(text: str) -> int:
    """Bytes of a size such as 500M, 1.5GiB or 0; `ValueError` for other words."""
    found = SIZE.fullmatch(text)
    if not found:
        raise ValueError(f"got {text!r}, expected a size such as 500M or 4G, or 0 for no limit")
    return int(float(found[1]) * UNITS[found[2].upper()])


def why_untrusted(folder: Path) -> str | None:
    """Who else could put kernels into a folder; None if nobody, or if it is not there yet."""
    if os.name != "posix":
        return None
    try:
        facts = folder.stat()
    except OSError:
        return None
    if facts.st_uid not in (os.getuid(), 0):
        return f"it belongs to another user (uid {facts.st_uid})"
    if facts.st_mode & 0o022:
        return f"others may write to it (mode {facts.st_mode & 0o777:o}): chmod go-w {folder}"
    return None
