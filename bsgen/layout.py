"""`Layout`: which blocks of a weight matrix are stored. Everything else in bsgen starts from one."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from bsgen.errors import LayoutError
from bsgen.files import require_suffix, write_atomic
from bsgen.masks import as_mask, cuts, read_mask


@dataclass(frozen=True)
class Spread:
    """How evenly blocks fall on rows or columns; `imbalance` is max / mean, 1 when even (or when there are none)."""

    min: int
    mean: float
    max: int
    imbalance: float

    @classmethod
    def of(cls, counts: npt.NDArray[np.int64]) -> Spread:
        """The spread of `counts`, blocks of each row or column."""
        mean, most = float(counts.mean()), int(np.max(counts))
        return cls(int(np.min(counts)), mean, most, most / mean if mean else 1.0)


@dataclass(frozen=True)
class Statistics:
    """Facts of a layout, in blocks: `fan_in` is over columns (outputs), `fan_out` over rows (inputs)."""

    rows: int
    cols: int
    nnz: int
    density: float
    fan_in: Spread
    fan_out: Spread
    empty_rows: int
    empty_columns: int

    @property
    def imbalance(self) -> float:
        """The larger max / mean of the two spreads."""
        return max(self.fan_in.imbalance, self.fan_out.imbalance)

    def as_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries of numbers, for JSON."""
        return {**asdict(self), "imbalance": self.imbalance}


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Layout:
    """A block mask [C/b, K/b]: rows are input blocks, columns are output blocks, True is a stored block.

    `Layout(mask)` takes any 2-D array of 0 and 1 (or bool), nested lists, scipy sparse and CPU PyTorch tensors, and
    copies it; `Layout.load` takes files as well. Equal masks are equal layouts, whatever they came from. A layout with
    no stored block is valid; one without rows or columns, or with other values, raises `LayoutError`.
    """

    mask: npt.NDArray[np.bool_]

    def __init__(self, mask: object) -> None:
        own = as_mask(mask)
        own.setflags(write=False)
        object.__setattr__(self, "mask", own)

    @classmethod
    def load(cls, source: object) -> Layout:
        """The layout in a .npy or .npz file (scipy.sparse.save_npz too) or of an array; else `LayoutError`."""
        if isinstance(source, Layout):
            return source
        return cls(read_mask(source) if isinstance(source, str | os.PathLike) else source)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, in blocks."""
        rows, cols = self.mask.shape
        return rows, cols

    @property
    def size(self) -> int:
        """All blocks, stored or not."""
        return self.mask.size

    @cached_property
    def nnz(self) -> int:
        """Stored blocks."""
        return int(np.count_nonzero(self.mask))

    @property
    def density(self) -> float:
        """Stored blocks / all blocks."""
        return self.nnz / self.size

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal characters that name the content: SHA-256 over the labelled shape and the packed bits."""
        rows, cols = self.shape
        head = f"bsgen layout 1: {rows} x {cols}\0".encode()
        return hashlib.sha256(head + np.packbits(self.mask).tobytes()).hexdigest()[:16]

    @cached_property
    def blocks(self) -> npt.NDArray[np.int32]:
        """[nnz, 2] row and column of each stored block, row-major: the order of the weights."""
        return _read_only(np.argwhere(self.mask).astype(np.int32))

    @cached_property
    def fan_in(self) -> npt.NDArray[np.int64]:
        """[columns] blocks of each column: the inputs that an output block reads."""
        return _read_only(np.count_nonzero(self.mask, axis=0).astype(np.int64))

    @cached_property
    def fan_out(self) -> npt.NDArray[np.int64]:
        """[rows] blocks of each row: the outputs that an input block feeds."""
        return _read_only(np.count_nonzero(self.mask, axis=1).astype(np.int64))

    def transpose(self) -> Layout:
        """The layout of W.T."""
        return Layout(self.mask.T)

    def split(self, axis: int, parts: int) -> tuple[Layout, ...]:
        """Cut into `parts` layouts of neighbouring rows (`axis` 0) or columns (1), so that the fullest has as few blocks as can be.

        For tensor parallelism: `cuts` gives the same for the counts of several layouts together. Raises `LayoutError` for more
        parts than rows or columns.
        """
        if axis not in (0, 1):
            raise LayoutError(f"axis: got {axis!r}, expected 0 (rows) or 1 (columns)")
        bounds = cuts(self.fan_out if axis == 0 else self.fan_in, parts)
        slices = [slice(begin, end) for begin, end in pairwise(bounds)]
        return tuple(Layout(self.mask[part] if axis == 0 else self.mask[:, part]) for part in slices)

    def statistics(self) -> Statistics:
        """Density, blocks a row and column, imbalance, empty rows and columns."""
        rows, cols = self.shape
        empty_rows, empty_columns = (int(np.count_nonzero(counts == 0)) for counts in (self.fan_out, self.fan_in))
        fan_in, fan_out = Spread.of(self.fan_in), Spread.of(self.fan_out)
        return Statistics(rows, cols, self.nnz, self.density, fan_in, fan_out, empty_rows, empty_columns)

    def text(self, width: int = 72, height: int = 40, ascii: bool = False) -> str:
        """A picture for a terminal, at most `width` x `height` characters inside its frame; see `picture.text`."""
        from bsgen import picture

        return picture.text(self.mask, width, height, picture.ASCII if ascii else picture.UNICODE)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the mask as a .npy file of bool; `LayoutError` if it cannot be written, and then nothing is."""
        buffer = io.BytesIO()
        np.save(buffer, self.mask, allow_pickle=False)
        write_atomic(require_suffix(path, ".npy"), buffer.getvalue())

    def save_png(self, path: str | os.PathLike[str]) -> None:
        """Draw the mask as a grey PNG, stored blocks dark; small layouts are magnified, huge ones averaged."""
        from bsgen import picture

        write_atomic(require_suffix(path, ".png"), picture.png(self.mask))

    def __eq__(self, other: object) -> bool:
        return np.array_equal(self.mask, other.mask) if isinstance(other, Layout) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        rows, cols = self.shape
        return f"Layout({rows} x {cols} blocks, {self.nnz} stored, density {self.density:.4g}, digest {self.digest})"

    def __reduce__(self) -> tuple[type[Layout], tuple[npt.NDArray[np.bool_]]]:
        # NumPy forgets the read-only flag in a pickle or a deep copy; going through __init__ sets it again.
        return Layout, (self.mask,)


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.setflags(write=False)
    return array
