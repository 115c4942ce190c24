"""Files in and out: NumPy containers read without trust, results written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bsgen.errors import LayoutError

NPY_MAGIC = b"\x93NUMPY"
ZIP_MAGIC = b"PK"
PICKLE_MAGIC = b"\x80"
MAGIC_BYTES = 16
MOST_NPZ_BYTES = 1 << 32  # of the arrays of a .npz file: a few kilobytes may claim, and unpack to, far more

Arrays = dict[str, npt.NDArray[Any]]


def magic(path: Path) -> bytes:
    """The first bytes of a file, which say what it is; `LayoutError` if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(MAGIC_BYTES)
    except (OSError, ValueError) as error:
        raise LayoutError(f"{path}: cannot be read ({reason(error)}); give the path of a readable file") from None


def read_npy(path: Path) -> npt.NDArray[Any]:
    """The array of a .npy file; `LayoutError` if it holds a pickle or is truncated or damaged."""
    with _as_layout_error(path, ".npy", "numpy.save"):
        array: npt.NDArray[Any] = np.load(path, allow_pickle=False)
        return array


def read_npz(path: Path) -> Arrays:
    """Every array of a .npz file; `LayoutError` if one holds a pickle or the file is truncated or damaged."""
    with (
        _as_layout_error(path, ".npz", "numpy.savez or scipy.sparse.save_npz"),
        np.load(path, allow_pickle=False) as npz,
    ):
        # Other archives, such as PyTorch's checkpoints, may hold gigabytes of what is no array.
        members = [info for info in npz.zip.infolist() if info.filename.endswith(".npy")]
        size = sum(info.file_size for info in members)  # zipfile unpacks no more than an archive says
        if size > MOST_NPZ_BYTES:
            raise ValueError(f"its arrays take {size} bytes, expected at most {MOST_NPZ_BYTES}")
        names = [info.filename.removesuffix(".npy") for info in members]
        return {name: npz[name] for name in names}


@contextlib.contextmanager
def _as_layout_error(path: Path, kind: str, writer: str) -> Iterator[None]:
    try:
        yield
    # NumPy, zipfile and what they call raise a dozen types for bytes that they did not write, tokenize.TokenError among them.
    except Exception as error:
        if "allow_pickle" in str(error):
            raise pickle_error(path) from None
        raise LayoutError(
            f"{path}: a truncated or damaged {kind} file ({reason(error)}); write it again with {writer}"
        ) from None


def pickle_error(path: Path) -> LayoutError:
    """The refusal of a file that holds Python objects."""
    return LayoutError(f"{path}: holds pickled Python objects, which are never loaded; save a plain array")


def reason(error: BaseException) -> str:
    """An exception in one line."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(text.split())


def require_suffix(path: str | os.PathLike[str], suffix: str) -> Path:
    """`path`, which must end in `suffix`: a name that says something else would mislead whoever reads it."""
    result = Path(path)
    if result.suffix.lower() != suffix:
        raise LayoutError(f"{result}: the file written is a {suffix} file; give a name that ends in {suffix}")
    return result


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` at `path` whole or not at all; `LayoutError` if the place cannot be written."""
    write_together({path: data})


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write every file whole; `LayoutError`, and nothing changed, if one of the places cannot be written."""
    with contextlib.ExitStack() as stack:
        # All data is on disk under other names before the first name changes, so a full disk spoils nothing.
        ready = [(stack.enter_context(_temporary(path, data)), path) for path, data in files.items()]
        for temporary, path in ready:
            with _as_write_error(path):
                temporary.replace(os.path.realpath(path))


@contextlib.contextmanager
def _temporary(path: Path, data: bytes) -> Iterator[Path]:
    """`data` in a file beside `path`, which is gone afterwards unless it was renamed."""
    # A link is followed, as a plain write would; a device or folder must not be replaced by a file.
    place = Path(os.path.realpath(path))
    if place.exists() and not place.is_file():
        raise LayoutError(f"{path}: cannot be written (not a regular file); give the name of a file")
    # Not tempfile: its files are private (0600), and the result should have the user's usual permissions.
    temporary = place.with_name(f".{place.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        with _as_write_error(path), temporary.open("xb") as file:
            file.write(data)
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def _as_write_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LayoutError(
            f"{path}: cannot be written ({reason(error)}); give a file in an existing folder that you may write to"
        ) from None
