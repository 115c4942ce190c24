"""The disk cache of binaries: one self-checked file an entry; whatever goes wrong on the disk, no run stops for it.

An entry is  magic | format | header length | header (JSON) | cubin length | cubin | SHA-256 of all before it.
A file that fails any check is a miss and is removed. A place that cannot be written means "compiled, not cached".
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import secrets
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bsgen import cache_place, locks
from bsgen.errors import CacheError
from bsgen.nvrtc import FIXED_OPTIONS, Binary, KernelFacts

if TYPE_CHECKING:
    from bsgen.emit import Source

FORMAT = 1

_MAGIC = b"bsgenbin"
_PREFIX = struct.Struct("<8sIQ")
_LENGTH = struct.Struct("<Q")
_DIGEST = hashlib.sha256().digest_size
_FOLDER = "binaries"
BINARY = ".bin"  # what entries end in; and, next, what requests do
_REQUEST = ".json"
_TEMPORARY = ".tmp"
_LOCK = ".lock"
PRUNE_ONE_IN, PRUNE_TO = 16, 0.9  # puts that look at the size; the share of the limit that is left then
STALE_SECONDS = 3600.0
CLOCKS_DIFFER_SECONDS = 60.0  # of hosts that share a folder

_log = logging.getLogger("bsgen")


def key(source: Source, arch: str, compiler: str) -> str:
    """The name of an entry: a digest of everything that the binary's bytes and facts depend on."""
    digest = hashlib.sha256()
    for label, values in (
        ("store format", (str(FORMAT),)),
        ("name", (source.name,)),
        ("text", (source.text,)),
        ("fixed options", FIXED_OPTIONS),
        ("options", source.options),
        ("entries", source.entries),
        ("arch", (arch,)),
        ("compiler", (compiler,)),
    ):
        # Every field and every value has its length in front, so no two lists of fields run into the same bytes.
        for part in (label, str(len(values)), *values):
            data = part.encode("utf-8", "surrogatepass")
            digest.update(_LENGTH.pack(len(data)) + data)
    return digest.hexdigest()


def default() -> Store | None:
    """The store that compilations use, None if it is disabled, has no place, or others could write to it."""
    if cache_place.disabled():
        return None
    roots = cache_place.roots()
    if not roots:
        _warn_once("no home folder, so binaries are compiled but not cached; set BSGEN_CACHE_DIR to a folder")
        return None
    trusted = [root for root in roots if _is_trusted(root)]
    if not trusted or trusted[-1] != roots[-1]:
        return None
    try:
        limit = cache_place.limit()
    except ValueError as error:
        _warn_once(f"BSGEN_CACHE_SIZE: {error}; taking {cache_place.DEFAULT_LIMIT >> 30}G")
        limit = cache_place.DEFAULT_LIMIT
    return Store(trusted[-1], tuple(trusted[:-1]), limit)


def _is_trusted(root: Path) -> bool:
    for folder in (root, root / _FOLDER):
        reason = cache_place.why_untrusted(folder)
        if reason:
            _warn_once(f"the cache {folder} is not used: {reason}; or set BSGEN_CACHE_DIR to a folder of your own")
            return False
    return True


@dataclass(frozen=True)
class Entry:
    """A file of the store: its key, place and size in bytes."""

    key: str
    path: Path
    size: int


@dataclass(frozen=True)
class Verified:
    """What `Store.verify` found: entries that pass every check and those that do not."""

    good: tuple[Entry, ...]
    bad: tuple[Entry, ...]


@dataclass(frozen=True)
class Store:
    """Binaries in files under one root folder, and in others that are only read, before it. `get` and `put` never raise; the rest,
    which concern the one root, raise `CacheError`. `limit` is in bytes, 0 for none: beyond, what was not used for longest goes.
    """

    root: Path
    read_only: tuple[Path, ...] = ()
    limit: int = 0

    @property
    def folder(self) -> Path:
        """Where the entries are."""
        return self.root / _FOLDER

    def path(self, key: str) -> Path:
        """The file of an entry, there or not."""
        return self.folder / f"{key}{BINARY}"

    def get(self, key: str) -> Binary | None:
        """The binary of a key; None if there is no entry, it cannot be read, or it is broken (then it is removed)."""
        for path in self._places(f"{key}{BINARY}"):
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                _warn_once(f"cache entry {path} cannot be read ({error.strerror}); compiling instead")
                continue
            try:
                found = decode(key, data)
            except ValueError as error:
                _log.warning("cache entry %s is broken (%s); compiling again", path, error)
                self._remove(path)
                continue
            self._used(path)
            return found
        return None

    def put(self, key: str, binary: Binary) -> bool:
        """Publish a binary whole or not at all; False, with a warning in the log, where that cannot be done."""
        try:
            self._make()
            self._publish(self.path(key), encode(key, binary))
            self._keep_to_limit()
        except OSError as error:
            _warn_once(f"compiled, not cached: {self.folder} cannot be written ({error.strerror}); set BSGEN_CACHE_DIR")
            return False
        return True

    def get_request(self, key: str) -> str | None:
        """What was put for a request; None if nothing was, it cannot be read, or it is broken (then it is removed)."""
        for path in self._places(f"{key}{_REQUEST}"):
            try:
                text = request_text(path.read_bytes())
            except OSError:
                continue
            if text is not None:
                self._used(path)
                return text
            _log.warning("cache entry %s is broken; planning again", path)
            self._remove(path)
        return None

    def _places(self, name: str) -> list[Path]:
        return [root / _FOLDER / name for root in (*self.read_only, self.root)]

    def _remove(self, path: Path) -> None:
        if path.parent == self.folder:
            with contextlib.suppress(OSError):
                path.unlink()

    def _used(self, path: Path) -> None:
        """Note when an entry was used last, in its time of modification: reading alone leaves no trace on many file systems."""
        if self.limit and path.parent == self.folder:
            with contextlib.suppress(OSError):
                os.utime(path)

    def lock(self, key: str) -> contextlib.AbstractContextManager[bool]:
        """Held by one process at a time, while it makes what belongs to a key."""
        with contextlib.suppress(OSError):
            self._make()
        return locks.held(self.folder / f".{key}{_LOCK}")

    def put_request(self, key: str, text: str) -> None:
        """Publish text for a request, where that can be done: its SHA-256 on the first line, then the text."""
        data = text.encode()
        with contextlib.suppress(OSError):
            self._make()
            digest = hashlib.sha256(data).hexdigest().encode()
            self._publish(self.folder / f"{key}{_REQUEST}", digest + b"\n" + data)

    def entries(self) -> tuple[Entry, ...]:
        """Every entry, good or bad, by key: binaries, and what requests were compiled to."""
        return tuple(self._entries())

    def size(self) -> int:
        """Bytes that the entries take."""
        return sum(entry.size for entry in self._entries())

    def verify(self) -> Verified:
        """Read and check every entry; removes nothing."""
        checked = [(entry, _is_good(entry)) for entry in self._entries()]
        return Verified(
            good=tuple(entry for entry, good in checked if good),
            bad=tuple(entry for entry, good in checked if not good),
        )

    def prune(self, limit: int) -> tuple[int, int]:
        """Remove what was not used for longest until at most `limit` bytes are left, and what interrupted writers left an hour ago.

        Gives the number of entries removed, and their bytes.
        """
        now = time.time()
        used = sorted(self._entries(), key=lambda entry: _used_at(entry, now))
        size, removed, gone = sum(entry.size for entry in used), 0, 0
        for entry in used:
            if size - gone <= limit:
                break
            with contextlib.suppress(OSError):  # another process may be faster
                entry.path.unlink()
                removed, gone = removed + 1, gone + entry.size
        self._sweep()
        return removed, gone

    def _keep_to_limit(self) -> None:
        """Once in a while: listing a large folder takes longer than publishing one entry."""
        if self.limit and secrets.randbelow(PRUNE_ONE_IN) == 0:
            with contextlib.suppress(CacheError, OSError):
                if self.size() > self.limit:
                    self.prune(int(self.limit * PRUNE_TO))

    def _sweep(self) -> None:
        now = time.time()
        for path in self._files(_TEMPORARY, _LOCK):
            with contextlib.suppress(OSError):
                if abs(now - path.stat().st_mtime) > STALE_SECONDS:  # abs: a clock that was set back
                    path.unlink()

    def clear(self) -> int:
        """Remove every entry, and what interrupted writers left; gives the number of entries removed."""
        removed = 0
        try:
            for path in self._files(BINARY, _REQUEST, _TEMPORARY, _LOCK):
                path.unlink(missing_ok=True)
                removed += path.suffix in (BINARY, _REQUEST)
        except OSError as error:
            raise CacheError(f"{self.folder}: cannot be cleared ({error.strerror}); check who owns it") from None
        return removed

    def writable(self) -> bool:
        """Whether entries can be published: tried by writing an empty temporary file."""
        try:
            self._make()
            probe = self.folder / f".probe.{secrets.token_hex(8)}{_TEMPORARY}"
            probe.touch()
            probe.unlink()
        except OSError:
            return False
        return True

    def _make(self) -> None:
        # Step by step, because mkdir gives the mode to the last folder only.
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.mkdir(mode=0o700, exist_ok=True)

    def _publish(self, path: Path, data: bytes) -> None:
        # In the same folder, because a rename is atomic only inside one file system. No fsync: what a power cut tears
        # fails its digest and is compiled again.
        temporary = path.with_name(f".{path.stem}.{secrets.token_hex(8)}{_TEMPORARY}")
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def _entries(self) -> Iterator[Entry]:
        for path in self._files(BINARY, _REQUEST):
            # Another process may remove an entry while this one looks.
            with contextlib.suppress(OSError):
                yield Entry(path.stem, path, path.stat().st_size)

    def _files(self, *suffixes: str) -> list[Path]:
        try:
            return sorted(path for path in self.folder.iterdir() if path.suffix in suffixes)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CacheError(
                f"{self.folder}: cannot be listed ({error.strerror}); set BSGEN_CACHE_DIR to a folder you own"
            ) from None


def encode(key: str, binary: Binary) -> bytes:
    """The bytes of an entry."""
    facts = {field.name: getattr(binary, field.name) for field in dataclasses.fields(binary) if field.name != "cubin"}
    facts["kernels"] = [dataclasses.asdict(kernel) for kernel in binary.kernels]
    header = json.dumps({"key": key, "binary": facts}, sort_keys=True).encode()
    body = b"".join((_PREFIX.pack(_MAGIC, FORMAT, len(header)), header, _LENGTH.pack(len(binary.cubin)), binary.cubin))
    return body + hashlib.sha256(body).digest()


def decode(key: str, data: bytes) -> Binary:
    """The binary in an entry's bytes; `ValueError` says which check failed."""
    body, digest = data[:-_DIGEST], data[-_DIGEST:]
    if hashlib.sha256(body).digest() != digest:
        raise ValueError("its digest does not match its content")
    try:
        return _parse(key, body)
    # The digest holds, so this was written as it is: by another version of bsgen, or for another key.
    except (struct.error, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an entry of store format {FORMAT} ({error})") from None


def _parse(key: str, body: bytes) -> Binary:
    magic, version, length = _PREFIX.unpack_from(body)
    if (magic, version) != (_MAGIC, FORMAT):
        raise ValueError(f"not an entry of store format {FORMAT}")
    start = _PREFIX.size + length
    header = json.loads(body[_PREFIX.size : start])
    if header["key"] != key:
        raise ValueError("it belongs to another key")
    cubin = body[start + _LENGTH.size :]
    if _LENGTH.unpack_from(body, start) != (len(cubin),):
        raise ValueError("its cubin is not as long as it says")
    facts = header["binary"]
    kernels = tuple(KernelFacts(**kernel) for kernel in facts.pop("kernels"))
    return Binary(**facts, kernels=kernels, cubin=cubin)


def _used_at(entry: Entry, now: float) -> tuple[float, str]:
    """When an entry was used last, and its key; of one that is gone: long ago. One of the future, which a clock that was wrong has
    made, would outlive all others: it counts as used now.
    """
    try:
        used = entry.path.stat().st_mtime
        if used > now + CLOCKS_DIFFER_SECONDS:
            os.utime(entry.path, (now, now))
    except OSError:
        return 0.0, entry.key
    return min(used, now), entry.key


def _is_good(entry: Entry) -> bool:
    try:
        data = entry.path.read_bytes()
        if entry.path.suffix == _REQUEST:
            return request_text(data) is not None
        decode(entry.key, data)
    except (OSError, ValueError):
        return False
    return True


def request_text(data: bytes) -> str | None:
    """The text of a request's file; None if its digest does not match."""
    digest, _, text = data.partition(b"\n")
    return text.decode() if hashlib.sha256(text).hexdigest().encode() == digest else None


@functools.lru_cache(maxsize=64)
def _warn_once(message: str) -> None:
    _log.warning("%s", message)
