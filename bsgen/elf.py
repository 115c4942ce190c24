"""Just enough of ELF64 to name a shared library exactly and to weigh the sections of a cubin."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_MAGIC = b"\x7fELF\x02\x01"
_NOTE_SEGMENT = 4
_GNU_BUILD_ID = 3
_LONGEST_NOTES = 1 << 16  # bytes; a damaged header may claim any length
_MALFORMED = (struct.error, IndexError, OverflowError, ValueError)


def build_id(path: Path) -> str | None:
    """The linker's GNU build id of a shared library in hex, None if it has none or is not ELF64."""
    try:
        with path.open("rb") as file:
            return next(_build_ids(file), None)
    except (OSError, *_MALFORMED):
        return None


def section_sizes(elf: bytes) -> dict[str, int]:
    """Bytes of each section that holds data or asks for memory, by name; empty if `elf` is not ELF64."""
    if not elf.startswith(_MAGIC):
        return {}
    try:
        return dict(_sections(elf))
    except _MALFORMED:
        return {}


def _build_ids(file: BinaryIO) -> Iterator[str]:
    header = file.read(64)
    if not header.startswith(_MAGIC):
        return
    table, size, count = struct.unpack_from("<32xQ14xHH", header)
    file.seek(table)
    segments = file.read(size * count)
    for index in range(count):
        kind, offset, length = struct.unpack_from("<I4xQ16xQ", segments, index * size)
        if kind == _NOTE_SEGMENT:
            file.seek(offset)
            yield from _notes(file.read(min(length, _LONGEST_NOTES)))


def _notes(notes: bytes) -> Iterator[str]:
    at = 0
    while at + 12 <= len(notes):
        name, length, kind = struct.unpack_from("<III", notes, at)
        value = at + 12 + -(-name // 4) * 4
        if kind == _GNU_BUILD_ID and notes[at + 12 : at + 12 + name] == b"GNU\0" and value + length <= len(notes):
            yield notes[value : value + length].hex()
        at = value + -(-length // 4) * 4


def _sections(elf: bytes) -> Iterator[tuple[str, int]]:
    table, size, count, names = struct.unpack_from("<40xQ10xHHH", elf)
    headers = [struct.unpack_from("<II16xQQ", elf, table + index * size) for index in range(count)]
    strings = headers[names][2]
    for name, kind, _, length in headers:
        if length and kind:
            start = strings + name
            yield elf[start : elf.index(b"\0", start)].decode("utf-8", "replace"), length
