"""Locks between processes, so that many that start at once do not all do the same work. No answer depends on them: where a file
system has none, or the holder takes too long, work is done twice.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

TIMEOUT_SECONDS = 60.0
POLL_SECONDS = 0.02


@contextlib.contextmanager
def held(path: Path, timeout: float = TIMEOUT_SECONDS) -> Iterator[bool]:
    """Hold the lock of a file, which is made if need be, while the block runs; whether it was got. The kernel lets go of it when a
    process dies, however it does.

    The file is removed afterwards. Who waits for it then gets the lock of a file that is gone, beside who comes later: both find
    what the first one made.
    """
    with contextlib.ExitStack() as stack:
        got = False
        try:
            import fcntl

            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, file)  # closing it lets go
            got = _acquired(lambda: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB), timeout)
        except (ImportError, OSError):
            pass
        yield got
        if got:
            with contextlib.suppress(OSError):
                path.unlink()


def _acquired(attempt: Callable[[], None], timeout: float) -> bool:
    end = time.monotonic() + timeout
    while True:
        try:
            attempt()
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(POLL_SECONDS)
        else:
            return True
