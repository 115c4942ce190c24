"""Pictures of a block mask: text for terminals, PNG for files. Neither hides a stored block."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bsgen.checks import integer

Mask = npt.NDArray[np.bool_]

PNG_SIDE = 768  # small layouts are magnified to about this many pixels
PNG_MAX_SIDE = 4096  # larger ones are averaged down to at most this many
PNG_GRID_FROM = 8  # pixels a block from which lines between blocks are drawn
WHITE, GRID, BLACK = 255, 208, 16


@dataclass(frozen=True)
class Charset:
    """What a text picture is drawn with.

    `frame` is corners and sides as in "┌─┐│└┘". `cell` is the rows and columns of blocks that one character shows
    exactly, and `glyphs` that character for each pattern of them, bit i being block i in row-major order.
    `shades` stand for rising density, the first for none at all.
    """

    frame: str
    cell: tuple[int, int]
    glyphs: str
    shades: str


UNICODE = Charset("┌─┐│└┘", (2, 1), " ▀▄█", " ░▒▓█")
ASCII = Charset("+-+|++", (1, 1), ".#", " .:+#")


def text(mask: Mask, width: int, height: int, charset: Charset) -> str:
    """`mask` in a frame with a line of explanation: block by block where it fits `width` x `height` characters.

    A larger mask is drawn as density: each character averages a rectangle of blocks, on the scale that the line of
    explanation gives, and is blank only where no block is stored.
    """
    width, height = integer("width", width, 1), integer("height", height, 1)
    rows, cols = mask.shape
    if rows <= height * charset.cell[0] and cols <= width * charset.cell[1]:
        return _framed(_exact(mask, charset), _exact_legend(charset), charset)
    # A character is about twice as high as wide.
    step = max(-(-cols // width), -(-rows // (2 * height)))
    density = local_density(mask, 2 * step, step)
    scale = _scale(mask, density, charset)
    return _framed(_shaded(density, scale, charset), _shaded_legend(scale, step, charset), charset)


def local_density(mask: Mask, height: int, width: int) -> npt.NDArray[np.float64]:
    """The share of stored blocks in each rectangle of `height` x `width` blocks (those at the edges may be smaller)."""
    rows, cols = mask.shape
    tops, lefts = np.arange(0, rows, height), np.arange(0, cols, width)
    stored = np.add.reduceat(np.add.reduceat(mask, tops, axis=0, dtype=np.int64), lefts, axis=1)
    area = np.outer(np.diff(tops, append=rows), np.diff(lefts, append=cols))
    density: npt.NDArray[np.float64] = stored / area
    return density


def _exact(mask: Mask, charset: Charset) -> list[str]:
    height, width = charset.cell
    rows, cols = mask.shape
    padded = np.pad(mask, ((0, -rows % height), (0, -cols % width)))
    tiles = padded.reshape(len(padded) // height, height, -1, width).transpose(0, 2, 1, 3)
    patterns = tiles.reshape(*tiles.shape[:2], -1) @ (1 << np.arange(height * width))
    return ["".join(charset.glyphs[pattern] for pattern in line) for line in patterns]


def _exact_legend(charset: Charset) -> str:
    height, width = charset.cell
    if height * width == 1:
        return f"a character is one block, {charset.glyphs[-1]} stored"
    return f"a character is {height} x {width} blocks, the filled part stored"


def _scale(mask: Mask, density: npt.NDArray[np.float64], charset: Charset) -> npt.NDArray[np.float64]:
    """The highest density of each shade but the last: halves of the densest, or of four times the mean if that is less.

    The cap keeps one dense corner from bleaching the rest of a sparse layout.
    """
    top = min(float(np.max(density)), 4 * float(np.mean(mask)))
    return np.array([top / 2**halvings for halvings in range(len(charset.shades) - 2, 0, -1)], dtype=np.float64)


def _shaded(density: npt.NDArray[np.float64], scale: npt.NDArray[np.float64], charset: Charset) -> list[str]:
    levels = np.where(density > 0, 1 + np.searchsorted(scale, density), 0)
    return ["".join(charset.shades[level] for level in line) for line in levels]


def _shaded_legend(scale: npt.NDArray[np.float64], step: int, charset: Charset) -> str:
    shades = " < ".join(
        f"{shade} <= {100 * limit:.2g} %" for shade, limit in zip(charset.shades[1:], scale, strict=False)
    )
    return f"a character is {2 * step} x {step} blocks, blank: none stored, {shades} < {charset.shades[-1]}"


def _framed(lines: list[str], legend: str, charset: Charset) -> str:
    left_top, level, right_top, side, left_bottom, right_bottom = list(charset.frame)
    edge = level * len(lines[0])
    body = [f"{side}{line}{side}" for line in lines]
    return "\n".join([left_top + edge + right_top, *body, left_bottom + edge + right_bottom, legend])


def png(mask: Mask) -> bytes:
    """A grey PNG of `mask`: stored blocks dark, with a grid where there is room for one."""
    longest = max(mask.shape)
    step, scale = -(-longest // PNG_MAX_SIDE), max(1, PNG_SIDE // longest)
    pixels = _grey(local_density(mask, step, step)) if step > 1 else _magnified(mask, scale)
    return _encode(pixels)


def _grey(density: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    # GRID is the lightest that a pixel with any stored block gets, so that a lone block stays visible.
    shade = np.where(density > 0, GRID - density * (GRID - BLACK), WHITE)
    return shade.astype(np.uint8)


def _magnified(mask: Mask, scale: int) -> npt.NDArray[np.uint8]:
    pixels = np.where(mask, BLACK, WHITE).astype(np.uint8).repeat(scale, axis=0).repeat(scale, axis=1)
    if scale >= PNG_GRID_FROM:
        pixels[scale - 1 :: scale] = GRID
        pixels[:, scale - 1 :: scale] = GRID
        pixels = np.pad(pixels, ((1, 0), (1, 0)), constant_values=GRID)
    return pixels


def _encode(pixels: npt.NDArray[np.uint8]) -> bytes:
    """PNG, 8-bit greyscale, no filter (W3C PNG specification, sections 5 and 11)."""
    height, width = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    lines = np.pad(pixels, ((0, 0), (1, 0)))  # filter type 0 before each line
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 3)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
