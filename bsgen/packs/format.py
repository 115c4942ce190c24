"""The bytes of a pack, format 1. Whoever made the file is not trusted: every length is checked before it is used.

    prefix    magic "bsgenpak" | format, 32 bits | length of the index, 64 bits, little endian
    index     JSON: what is in the pack, and offset, size and SHA-256 of every blob
    digest    SHA-256 of prefix and index
    blobs     back to back, without gaps: layouts (packed bits of the mask, row-major), kernels
    trailer   of a signed pack: magic "bsgensig" | public key, 32 bytes | Ed25519 signature of the digest, 64 bytes

A kernel's blob is  length of the header, 64 bits | header (JSON: outline, compiler, facts) | cubin. Offsets count from the first
blob. Every byte of a file is covered: by the digest, by a blob's SHA-256 in the index, or by the signature. Fields that a later
bsgen adds to JSON objects are ignored by an earlier one; anything else that changes is a new format, which an earlier one refuses.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from functools import lru_cache
from operator import mul
from typing import Any, NamedTuple

from bsgen.errors import PackError
from bsgen.nvrtc import Binary, KernelFacts
from bsgen.outline import Outline, known
from bsgen.problem import (
    TARGETS,
    parse_activation,
    parse_block_size,
    parse_dtype,
    parse_op,
    parse_precision,
    parse_wgrad_dtype,
)

FORMAT = 1
MAGIC, SIGNATURE_MAGIC = b"bsgenpak", b"bsgensig"
PREFIX = struct.Struct("<8sIQ")
LENGTH = struct.Struct("<Q")
DIGEST = hashlib.sha256().digest_size
TRAILER = struct.Struct("<8s32s64s")
MOST_INDEX_BYTES, MOST_ENTRIES, MOST_BLOB_BYTES, MOST_NAME = 1 << 28, 1 << 20, 1 << 31, 200
ARGUMENTS = frozenset({"x", "dy", "w", "out", "bias", "residual", "gate", "dgate", "workspace", "n", "accumulate"})
MOST_BLOCKS = 1 << 34  # of a layout: its mask would take 16 GiB


# Tuples where there are thousands of them: a frozen dataclass takes four times as long to make.
class Blob(NamedTuple):
    """Where bytes lie, counted from the first blob, and their SHA-256 in hexadecimal."""

    offset: int
    size: int
    sha256: str


class PackedLayout(NamedTuple):
    """A layout: its shape in blocks, and the packed bits of its mask."""

    rows: int
    cols: int
    blob: Blob


class Module(NamedTuple):
    """A named callable: the arguments of `bsgen.compile`; `layout` is a place in the index."""

    name: str
    layout: int
    block_size: int
    dtype: str
    precision: str
    bias: bool
    activation: str | None
    residual: bool
    ops: tuple[str, ...]
    gate: bool = False
    wgrad_dtype: str | None = None
    axis: int = 1


class PackedKernel(NamedTuple):
    """The kernels of one op of a module (a place in the index) for one architecture; planned for about `rows` rows."""

    module: int
    op: str
    arch: str
    rows: int
    blob: Blob


@dataclass(frozen=True)
class Index:
    """What a pack holds, and the bsgen that wrote it."""

    version: str
    layouts: tuple[PackedLayout, ...]
    modules: tuple[Module, ...]
    kernels: tuple[PackedKernel, ...]


def encode(index: Index, blobs: bytes) -> bytes:
    """The bytes of an unsigned pack; the same for the same content."""
    body = json.dumps(_plain(index), sort_keys=True, separators=(",", ":")).encode()
    head = PREFIX.pack(MAGIC, FORMAT, len(body)) + body
    return head + hashlib.sha256(head).digest() + blobs


def _plain(index: Index) -> dict[str, Any]:
    return {
        "bsgen": index.version,
        "layouts": [[layout.rows, layout.cols, *layout.blob] for layout in index.layouts],
        "modules": [module._asdict() for module in index.modules],
        "kernels": [[k.module, k.op, k.arch, k.rows, *k.blob] for k in index.kernels],
    }


def index_size(prefix: bytes, file_size: int) -> int:
    """Bytes of the index that follows a prefix; `PackError` if this is no pack, or of a newer format."""
    if len(prefix) < PREFIX.size or prefix[: len(MAGIC)] != MAGIC:
        raise PackError("not a pack (it does not start with bsgenpak); make one with `bsgen pack build`")
    _, version, size = PREFIX.unpack(prefix)
    if version != FORMAT:
        raise PackError(
            f"has format {version}, this bsgen reads format {FORMAT}: upgrade bsgen, or build the pack again"
        )
    if size > min(MOST_INDEX_BYTES, file_size - PREFIX.size - DIGEST):
        raise PackError(f"is truncated or damaged: an index of {size} bytes in a file of {file_size}; copy it again")
    return int(size)


def parse(prefix: bytes, body: bytes, digest: bytes) -> Index:
    """The index, once its digest holds; `PackError` names what is wrong."""
    if hashlib.sha256(prefix + body).digest() != digest:
        raise PackError("is damaged: the digest of its index does not match; copy it again")
    try:
        fields = json.loads(body)
        index = Index(
            _text(fields["bsgen"]),
            _layouts(_rows(fields["layouts"])),
            tuple(map(_module, _rows(fields["modules"]))),
            _kernels(_rows(fields["kernels"])),
        )
    except (KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
        raise PackError(
            f"has an index that is not of format {FORMAT} ({_reason(error)}); build the pack again"
        ) from None
    _check_places(index)
    return index


def blobs_size(index: Index) -> int:
    """Bytes of all blobs, which must lie back to back; `PackError` otherwise."""
    end = 0
    for offset, size in sorted({blob[:2] for blob in blobs(index)}):
        if offset != end:
            raise PackError(f"has blobs that overlap or leave a gap at byte {end}; build the pack again")
        end = offset + size
    return end


def blobs(index: Index) -> list[Blob]:
    """Every blob, as often as it is used."""
    return [layout.blob for layout in index.layouts] + [kernel.blob for kernel in index.kernels]


def encode_kernel(outline: Outline, binary: Binary) -> bytes:
    """The blob of a kernel. The compiler's log is left out: it names times and places."""
    header = {
        "outline": asdict(outline),
        "name": binary.name,
        "arch": binary.arch,
        "compiler": binary.compiler,
        "kernels": [asdict(facts) for facts in binary.kernels],
    }
    body = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    return LENGTH.pack(len(body)) + body + binary.cubin


def decode_kernel(data: bytes) -> tuple[Outline, Binary]:
    """Outline and binary of a kernel's blob, whose digest was checked; `PackError` if it is not of this format."""
    try:
        (size,) = LENGTH.unpack_from(data)
        header, cubin = json.loads(data[LENGTH.size : LENGTH.size + size]), data[LENGTH.size + size :]
        kernels = tuple(_facts(facts) for facts in header["kernels"])
        names = _text(header["name"]), _text(header["arch"]), _text(header["compiler"])
        outline = Outline.from_json(header["outline"])
        _check_outline(outline, {facts.name for facts in kernels})
    except (struct.error, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise PackError(
            f"has a kernel that is not of format {FORMAT} ({_reason(error)}); build the pack again"
        ) from None
    if not cubin.startswith(b"\x7fELF"):
        raise PackError("has a kernel without a cubin; build the pack again")
    return outline, Binary(*names, cubin, kernels, "")


def _facts(row: Mapping[str, Any]) -> KernelFacts:
    facts = known(KernelFacts, row)
    _text(facts.name)
    if any(type(number) is not int or number < 0 for number in astuple(facts)[1:]):
        raise ValueError("facts of other types")
    return facts


def _check_outline(outline: Outline, entries: set[str]) -> None:
    """What a launch takes on trust: types, and limits of CUDA."""
    _text(outline.family)
    if type(outline.summary) is not str or type(outline.n) is not int or not isinstance(outline.seconds, int | float):
        raise ValueError("an outline of other types")
    numbers = [outline.workspace.fixed, outline.workspace.per_row]
    for launch in outline.launches:
        grid = launch.grid
        numbers += [grid.blocks, grid.rows, grid.cluster, launch.threads, launch.shared_memory]
        numbers += [
            number
            for each in launch.maps
            for number in (each.columns, each.rows, each.box_columns, each.box_rows, each.fetched)
        ]
        known = ARGUMENTS | {each.argument for each in launch.maps}
        if launch.entry not in entries or not launch.arguments or not known.issuperset(launch.arguments):
            raise ValueError("a launch of something else")
        if type(grid.persistent) is not bool or any(each.operand not in ARGUMENTS for each in launch.maps):
            raise ValueError("a launch of other types")
        for each in launch.maps:
            parse_dtype(_text(each.dtype))
            if each.fetched not in (64, 128):
                raise ValueError("a way to fetch that is none")
        if not (0 < grid.cluster <= 8 and 0 < launch.threads <= 1024 and 0 <= launch.shared_memory <= 1 << 18):
            raise ValueError("a launch that no GPU takes")
    if any(type(number) is not int or not 0 <= number < 1 << 40 for number in numbers):
        raise ValueError("a number out of range")


def _rows(value: Any) -> Sequence[Any]:
    if not isinstance(value, list) or len(value) > MOST_ENTRIES:
        raise ValueError("a list that is none, or too long")
    return value


def _columns(rows: Sequence[Any], *types: type) -> list[tuple[Any, ...]]:
    """The columns of rows that all have values of these types: checked by column, which takes a third of the time."""
    if not all(map(len(types).__eq__, map(len, rows))):
        raise ValueError("a row that is too short or too long")
    columns = list(zip(*rows, strict=True)) or [() for _ in types]
    if any(set(map(type, column)) - {kind} for column, kind in zip(columns, types, strict=True)):
        raise ValueError("a row of other types")
    return columns


def _blobs(offsets: Sequence[int], sizes: Sequence[int], digests: Sequence[str]) -> Iterator[Blob]:
    if min(offsets, default=0) < 0 or min(sizes, default=0) < 0 or max(sizes, default=0) > MOST_BLOB_BYTES:
        raise ValueError("a place that is none")
    if set(map(len, digests)) - {2 * DIGEST}:
        raise ValueError("a digest that is none")
    return map(Blob, offsets, sizes, digests)


def _layouts(table: Sequence[Any]) -> tuple[PackedLayout, ...]:
    rows, cols, *places = _columns(table, int, int, int, int, str)
    if min((*rows, *cols), default=1) < 1 or max(map(mul, rows, cols), default=1) > MOST_BLOCKS:
        raise ValueError("a layout of no size")
    return tuple(map(PackedLayout, rows, cols, _blobs(*places)))


def _module(row: Mapping[str, Any]) -> Module:
    name, layout, bias, residual = row["name"], row["layout"], row["bias"], row["residual"]
    # Packs of before there were gates, or another axis, say nothing of them.
    gate, gradients, axis = row.get("gate", False), row.get("wgrad_dtype"), row.get("axis", 1)
    if type(layout) is not int or not all(type(flag) is bool for flag in (bias, residual, gate)):
        raise ValueError("a module of other types")
    if type(axis) is not int or axis not in (0, 1):
        raise ValueError("an axis that is none")
    block_size, dtype, precision, activation, ops, gradients = _arithmetic(
        row["block_size"], row["dtype"], row["precision"], row["activation"], tuple(_rows(row["ops"])), gradients
    )
    kind = block_size, dtype, precision, bias, activation, residual, ops, gate, gradients, axis
    return Module(_text(name), layout, *kind)


@lru_cache(maxsize=64, typed=True)
def _arithmetic(
    block_size: Any, dtype: Any, precision: Any, activation: Any, ops: tuple[Any, ...], gradients: Any
) -> tuple[int, str, str, str | None, tuple[str, ...], str | None]:
    """Arguments of `bsgen.compile`, checked; most modules of a pack share them."""
    parsed, kind = parse_activation(activation), parse_dtype(_text(dtype))
    wide = parse_wgrad_dtype(gradients, kind)
    return (
        parse_block_size(block_size),
        str(kind),
        str(parse_precision(_text(precision))),
        str(parsed) if parsed else None,
        tuple(str(parse_op(_text(op))) for op in ops),
        str(wide) if wide else None,
    )


def _kernels(table: Sequence[Any]) -> tuple[PackedKernel, ...]:
    modules, ops, arches, rows, *places = _columns(table, int, str, str, int, int, int, str)
    if min(rows, default=1) < 1:
        raise ValueError("a kernel for no rows")
    return tuple(map(PackedKernel, modules, ops, arches, rows, _blobs(*places)))


def _check_places(index: Index) -> None:
    names = {module.name for module in index.modules}
    if len(names) != len(index.modules):
        raise PackError("has two modules of one name; build the pack again")
    for module in index.modules:
        if not 0 <= module.layout < len(index.layouts):
            raise PackError(f"module {module.name!r} has a layout that is not in the pack; build the pack again")
    for place in {kernel.module for kernel in index.kernels}:
        if not 0 <= place < len(index.modules):
            raise PackError("has a kernel of a module that is not in the pack; build the pack again")
    for layout in index.layouts:
        if layout.blob.size != -(-layout.rows * layout.cols // 8):
            raise PackError("has a layout whose mask is not as long as its shape says; build the pack again")


def _text(value: Any) -> str:
    if type(value) is not str or not 0 < len(value) <= MOST_NAME or not value.isprintable():
        raise ValueError(f"expected up to {MOST_NAME} printable characters")
    return value


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def known_arch(arch: str) -> bool:
    """Whether this bsgen knows an architecture by name."""
    return arch in TARGETS
