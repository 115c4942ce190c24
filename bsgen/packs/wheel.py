"""A pack as a pure-data wheel: `pip install` puts it where `bsgen.compile` finds it (entry point group bsgen.packs)."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import zipfile
from pathlib import Path

import bsgen
from bsgen.errors import ArgumentError
from bsgen.files import write_atomic
from bsgen.packs.pack import Pack
from bsgen.packs.search import GROUP

NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
VERSION = re.compile(r"[0-9]+(\.[0-9]+)*([a-z]+[0-9]+)?")
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip file knows: the same bytes each time


def write_wheel(pack: Pack, name: str, version: str, folder: str | os.PathLike[str]) -> Path:
    """Write NAME-VERSION-py3-none-any.whl into a folder (PEP 427); `ArgumentError` for a name or version that pip would refuse."""
    if not NAME.fullmatch(name):
        raise ArgumentError(f"name: got {name!r}, expected letters, digits, '-', '_' and '.', as PyPI takes them")
    if not VERSION.fullmatch(version):
        raise ArgumentError(f"version: got {version!r}, expected one such as 1.0 or 2.1rc1")
    package = re.sub(r"[-_.]+", "_", name).lower()
    info = f"{package}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: bsgen kernels: {', '.join(list(pack)[:8])}\n"
    files = {
        f"{package}/__init__.py": f'"""Kernels for bsgen {bsgen.__version__}."""\n'.encode(),
        f"{package}/{pack.path.name}": pack.path.read_bytes(),
        f"{info}/METADATA": f"{metadata}Requires-Dist: bsgen\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: bsgen\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[{GROUP}]\n{package} = {package}\n".encode(),
    }
    lines = [f"{path},sha256={_digest(data)},{len(data)}" for path, data in files.items()]
    files[f"{info}/RECORD"] = ("\n".join([*lines, f"{info}/RECORD,,"]) + "\n").encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files.items():
            entry = zipfile.ZipInfo(path, EPOCH)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, data)
    place = Path(folder) / f"{package}-{version}-py3-none-any.whl"
    write_atomic(place, buffer.getvalue())
    return place


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
