"""The disk cache among many: processes at once, kills at any moment, several roots, a cap, clocks, and people one does not know."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bsgen import cache_place, locks, store
from bsgen.nvrtc import Binary
from bsgen.store import Store

ROOT = Path(__file__).parent.parent
KILLS = int(os.environ.get("BSGEN_TEST_KILLS", "12"))  # half of them while compiling, half while publishing
CUBIN = b"\x7fELF" + bytes(1000)


@pytest.fixture(autouse=True)
def _place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("BSGEN_DISABLE_CACHE", "BSGEN_DISABLE_JIT", "BSGEN_PACK_PATH", "BSGEN_CACHE_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BSGEN_CACHE_DIR", str(tmp_path / "cache"))
    store._warn_once.cache_clear()
    yield
    store._warn_once.cache_clear()


def binary(name: str) -> Binary:
    return Binary(name, "sm_90a", "nvrtc 1", CUBIN, (), "")


def key(i: int) -> str:
    return f"{i:064x}"


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


COMPILE = """
import os, sys
from bsgen import nvrtc
real = nvrtc.compile
def counting(source, arch):
    os.write(1, b"compiled\\n")
    return real(source, arch)
nvrtc.compile = counting
import bsgen
mm = bsgen.compile([[1, 0, 1], [0, 1, 1]], 32, "float16", "fprop", "sm_80")
print(hash(mm.binary("fprop").cubin) and len(mm.binary("fprop").cubin))
"""


def test_sixteen_processes_compile_once() -> None:
    running = [start(COMPILE) for _ in range(16)]
    outputs = [process.communicate(timeout=120) for process in running]
    assert all(process.returncode == 0 for process in running), outputs
    lines = [line for out, _ in outputs for line in out.split()]
    assert lines.count("compiled") == 1
    assert len({line for line in lines if line != "compiled"}) == 1


COMPILE_WITHOUT_END = """
import itertools, bsgen
from bsgen import build, store
for width in itertools.count(1):
    bsgen.compile([[1] * (1 + width % 7), [0] * (1 + width % 7)], 8, "float16", "fprop", "sm_80")
    build._state.forget()
    if width % 7 == 0:
        store.default().clear()
    print("compiled", flush=True)
"""
PUBLISH_WITHOUT_END = """
import itertools
from bsgen import store
from bsgen.nvrtc import Binary
cache = store.default()
for i in itertools.count():
    name = f"{i % 40:064x}"
    cache.put(name, Binary(str(i), "sm_90a", "nvrtc 1", b"\\x7fELF" + bytes(i % 97 << 14), (), ""))
    cache.put_request(name, "x" * (i % 53 << 12))
    if i % 40 == 39:
        cache.prune(1 << 20)
    print("published", flush=True)
"""


@pytest.mark.parametrize(
    ("code", "longest"), [(COMPILE_WITHOUT_END, 0.8), (PUBLISH_WITHOUT_END, 0.1)], ids=["compile", "publish"]
)
def test_kills_at_any_moment_leave_good_entries(tmp_path: Path, code: str, longest: float) -> None:
    """BSGEN_TEST_KILLS=200 for the long version."""
    rng, cache = random.Random(0), Store(tmp_path / "cache")
    for _ in range(KILLS // 2):
        process = start(code)
        assert process.stdout is not None
        assert process.stdout.readline(), "it runs"
        time.sleep(rng.uniform(0, longest))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert cache.verify().bad == ()
    done = start(COMPILE).communicate(timeout=60)[0]
    assert done.split()[-1].isdigit(), "a lock that a dead process held is free"
    assert cache.clear() > 0
    assert list(cache.folder.iterdir()) == [], "nothing that the dead left behind stays"


def test_locks(tmp_path: Path) -> None:
    path, order = tmp_path / "lock", []

    def second() -> None:
        with locks.held(path) as got:
            order.append(("second", got))

    with locks.held(path) as got:
        assert got
        with locks.held(path, timeout=0.05) as again:
            assert not again, "held by another, also in this process"
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.1)
        order.append(("first", True))
    thread.join()
    assert order == [("first", True), ("second", True)]
    with locks.held(tmp_path / "nowhere" / "lock") as got:
        assert not got


def test_several_roots(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Read in order, broken entries of others left alone; written to the last only."""
    shared, own = tmp_path / "shared", tmp_path / "own"
    assert Store(shared).put(key(1), binary("shared"))
    Store(shared).put_request(key(2), "text")
    cache = Store(own, (shared,))
    found = cache.get(key(1))
    assert found is not None
    assert found.name == "shared"
    assert cache.get_request(key(2)) == "text"
    assert cache.put(key(3), binary("own"))
    assert Store(shared).get(key(3)) is None
    Store(shared).path(key(1)).write_bytes(b"rubbish")
    assert cache.get(key(1)) is None
    assert Store(shared).path(key(1)).exists()
    assert "is broken" in caplog.text
    assert cache.put(key(1), binary("own"))
    assert cache.get(key(1)) == binary("own")


def test_what_was_not_used_for_longest_goes(tmp_path: Path) -> None:
    cache = Store(tmp_path / "cache", limit=1 << 30)
    for i in range(10):
        cache.put(key(i), binary("x"))
        os.utime(cache.path(key(i)), (1000 + i, 1000 + i))
    size = cache.path(key(0)).stat().st_size
    assert cache.get(key(0)) is not None, "used now"
    removed, gone = cache.prune(3 * size)
    assert (removed, gone) == (7, 7 * size)
    assert {entry.key for entry in cache.entries()} == {key(0), key(8), key(9)}
    assert cache.prune(3 * size) == (0, 0)


def test_the_cap_holds_under_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1000 entries from four threads; readers see whole entries or none."""
    monkeypatch.setattr(store, "PRUNE_ONE_IN", 4)
    limit = 60 * 1500
    cache, wrong = Store(tmp_path / "cache", limit=limit), []

    def work(first: int) -> None:
        for i in range(first, first + 250):
            cache.put(key(i), binary(str(i)))
            found = cache.get(key(i))
            if found is not None and found.name != str(i):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(1000 * t,)) for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert cache.verify().bad == ()
    assert cache.size() <= 1.5 * limit


def test_clocks_that_are_wrong(tmp_path: Path) -> None:
    """Entries and leftovers from the future, as another host's clock or one set back makes them."""
    cache = Store(tmp_path / "cache")
    cache.put(key(1), binary("x"))
    future = time.time() + 10 * store.STALE_SECONDS
    os.utime(cache.path(key(1)), (future, future))
    for name, age in ((".a.tmp", future), (".b.lock", future), (".c.tmp", time.time())):
        (cache.folder / name).touch()
        os.utime(cache.folder / name, (age, age))
    cache.prune(1 << 30)
    assert sorted(path.name for path in cache.folder.iterdir()) == [".c.tmp", f"{key(1)}.bin"]


@pytest.mark.skipif(os.name != "posix", reason="needs modes of files")
@pytest.mark.parametrize("mode", [0o777, 0o775, 0o702])
def test_a_folder_that_others_write_to_is_refused(tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "cache"
    root.mkdir()
    root.chmod(mode)
    assert store.default() is None
    assert f"others may write to it (mode {mode:o}): chmod go-w" in caplog.text
    root.chmod(0o755)
    assert store.default() is not None
    (root / "binaries").mkdir()
    (root / "binaries").chmod(mode)
    assert store.default() is None


def test_another_users_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    owner = folder.stat().st_uid
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    reason = cache_place.why_untrusted(folder)
    assert owner == 0 or reason is not None
    assert owner == 0 or "another user" in str(reason)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("500M", 500 << 20), ("4G", 4 << 30), ("1.5 GiB", 3 << 29), ("12kb", 12 << 10), ("7", 7)],
)
def test_sizes(text: str, size: int) -> None:
    assert cache_place.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1", "4X", "1e9", "4 G B"])
def test_sizes_that_are_none(text: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="expected a size such as 500M"):
        cache_place.parse_size(text)
    if text:
        monkeypatch.setenv("BSGEN_CACHE_SIZE", text)
        made = store.default()
        assert made is not None
        assert made.limit == cache_place.DEFAULT_LIMIT
        assert "BSGEN_CACHE_SIZE" in caplog.text
