"""Which NVRTC this process uses, or would use: found and identified exactly, without loading it.

Loading the library and its bindings takes longer than a whole warm start is allowed, and a cache key needs only the
library's identity. What is predicted here is checked against the truth when NVRTC is really loaded (`bsgen.nvrtc`).
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import site
import sys
from collections.abc import Iterator
from pathlib import Path

from bsgen import elf
from bsgen.errors import CompileError

MAJOR = 13
REMEDY = f'install it with: pip install "nvidia-cuda-nvrtc>={MAJOR},<{MAJOR + 1}"'

_WHEEL_FILE = f"nvidia/cu{MAJOR}/lib/libnvrtc.so.{MAJOR}"
_MAPPED = re.compile(r"\s(/.*/libnvrtc\.so\.(\d+)[\d.]*)$", re.MULTILINE)


def path() -> Path:
    """The NVRTC library that is loaded in this process, else the one that would be; `CompileError` if there is none."""
    return _loaded() or next(_installed(), None) or load()


def load() -> Path:
    """Load NVRTC the way its bindings do and give the file that it came from; `CompileError` if there is none."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        return Path(load_nvidia_dynamic_lib("nvrtc").abs_path)
    # The finder's own errors are RuntimeErrors, an absent finder is an ImportError; a damaged library is an OSError.
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CompileError(f"NVRTC {MAJOR} is not installed or cannot be loaded ({reason}); {REMEDY}") from None


def identity(library: Path) -> str:
    """The exact build of an NVRTC library: its release and a digest that every rebuild changes."""
    status = os.stat(library)
    return _identity(library, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _identity(library: Path, size: int, modified: int) -> str:
    return f"nvrtc {release(library)} ({(elf.build_id(library) or _digest(library))[:16]})"


def release(library: Path) -> str:
    """The release number, as exact as the files beside the library tell: 13.5.37, or 13.5, or 13."""
    real = library.resolve()
    named = real.name.partition(".so.")[2]
    if named.count(".") >= 2:
        return named
    return _wheel_release(real) or _builtins_release(real) or _major(real)


def _major(real: Path) -> str:
    return real.name.partition(".so.")[2].split(".")[0] or str(MAJOR)


def _wheel_release(real: Path) -> str | None:
    # A wheel puts nvidia/cu13/lib/libnvrtc.so.13 and nvidia_cuda_nvrtc-VERSION.dist-info under one folder.
    packages = next((folder.parent for folder in real.parents if folder.name == "nvidia"), None)
    folders = packages.glob("nvidia_cuda_nvrtc*-*.dist-info") if packages else []
    versions = [folder.name.removesuffix(".dist-info").rpartition("-")[2] for folder in folders]
    found = [version for version in versions if version.split(".")[0] == _major(real)]
    return found[0] if len(found) == 1 else None


def _builtins_release(real: Path) -> str | None:
    names = {file.name.partition(".so.")[2] for file in real.parent.glob("libnvrtc-builtins.so.*")}
    return max(names, key=len, default=None)


def _digest(library: Path) -> str:
    digest = hashlib.sha256()
    with library.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _loaded() -> Path | None:
    try:
        maps = Path("/proc/self/maps").read_text(errors="replace")
    except OSError:
        return None
    # A framework may have brought NVRTC 12; the bindings take 13 where both are loaded, as here.
    found = max(_MAPPED.findall(maps), key=lambda match: int(match[1]), default=None)
    return Path(found[0]) if found else None


def _installed() -> Iterator[Path]:
    return (file for folder in _package_folders() if (file := Path(folder, _WHEEL_FILE)).is_file())


def _package_folders() -> list[str]:
    # The order of cuda.pathfinder, so that what is predicted is what gets loaded.
    folders = site.getsitepackages()
    if site.ENABLE_USER_SITE:
        folders.insert(int(sys.prefix != sys.base_prefix), site.getusersitepackages())
    return folders
