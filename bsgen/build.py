"""Source -> Binary through the caches: look up, lock, look up again, compile, publish."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from bsgen import nvrtc, store
from bsgen.nvrtc import Binary

if TYPE_CHECKING:
    from bsgen.emit import Source

_REMEMBERED = 64


def build(source: Source, arch: str) -> Binary:
    """The binary of `source` for `arch`: from this process, else from the disk cache, else compiled and published.

    Threads that ask for the same binary at once compile it once. `CompileError` as `bsgen.nvrtc.compile`.
    """
    key = store.key(source, arch, nvrtc.version())
    return _recall(key) or _build(key, source, arch)


def _build(key: str, source: Source, arch: str) -> Binary:
    with _state.lock(key):
        binary = _recall(key) or _load(key) or _compile(source, arch)
        _state.remember(key, binary)
        return binary


def _recall(key: str) -> Binary | None:
    return _state.recall(key)


def _load(key: str) -> Binary | None:
    cache = store.default()
    return cache.get(key) if cache else None


def _compile(source: Source, arch: str) -> Binary:
    binary = nvrtc.compile(source, arch)
    # Under the compiler that made it, which `version` could only predict before the library was loaded.
    if cache := store.default():
        cache.put(store.key(source, arch, binary.compiler), binary)
    return binary


class _State:
    """The binaries this process has seen last, and a lock for each one being made."""

    def __init__(self) -> None:
        self._binaries: OrderedDict[str, Binary] = OrderedDict()
        self.renew_locks()

    def renew_locks(self) -> None:
        """Fresh locks: a child process must not wait for a thread that stayed in its parent."""
        self._guard = threading.Lock()
        # Weak, so that a lock lives as long as someone holds or awaits it.
        self._locks: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()

    def lock(self, key: str) -> threading.Lock:
        """The lock of one key."""
        with self._guard:
            lock = self._locks.get(key)
            if lock is None:
                lock = self._locks[key] = threading.Lock()
            return lock

    def recall(self, key: str) -> Binary | None:
        """A remembered binary."""
        with self._guard:
            if key in self._binaries:
                self._binaries.move_to_end(key)
            return self._binaries.get(key)

    def remember(self, key: str, binary: Binary) -> None:
        """Remember a binary, and forget the one not used for longest."""
        with self._guard:
            self._binaries[key] = binary
            self._binaries.move_to_end(key)
            while len(self._binaries) > _REMEMBERED:
                self._binaries.popitem(last=False)

    def forget(self) -> None:
        """Forget every binary."""
        with self._guard:
            self._binaries.clear()


_state = _State()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_state.renew_locks)
