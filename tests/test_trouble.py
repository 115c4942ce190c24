"""Machines that misbehave: full disks, places that cannot be written, wrong clocks; and programs that fork, or use many threads."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import bsgen
from bsgen import build, compiled, store
from bsgen.nvrtc import Binary
from bsgen.packs.building import build as build_pack
from bsgen.packs.spec import read_spec
from bsgen.store import Store

ROOT = Path(__file__).parent.parent
NOBODY = 65534
LAYOUT = [[1, 0, 1], [0, 1, 1]]

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A cache of the test's own, and nothing remembered."""
    for name in ("BSGEN_DISABLE_CACHE", "BSGEN_DISABLE_JIT", "BSGEN_PACK_PATH", "BSGEN_CACHE_SIZE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BSGEN_CACHE_DIR", str(tmp_path / "cache"))
    store._warn_once.cache_clear()
    build._state.forget()
    yield tmp_path / "cache"
    store._warn_once.cache_clear()
    build._state.forget()


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder of a user who may not write everywhere, and this process as that user: root may write to read-only folders."""
    folder = Path(tempfile.mkdtemp())
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, 0)  # the saved uid is the way back
        yield folder
        os.setresuid(0, 0, 0)
    else:
        yield folder
    folder.chmod(0o700)
    shutil.rmtree(folder)


def binary(name: str = "x", size: int = 1000) -> Binary:
    return Binary(name, "sm_90a", "nvrtc 1", b"\x7fELF" + bytes(size), (), "")


def key(i: int) -> str:
    return f"{i:064x}"


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# Disks that are full. A limit on the size of files stops a write halfway, as a full disk does, and needs no rights.

LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"


@posix
def test_a_write_that_stops_halfway_is_compiled_not_cached(place: Path) -> None:
    code = (
        f"{LIMITED}import bsgen\n"
        f"mm = bsgen.compile({LAYOUT}, 32, 'float16', 'fprop', 'sm_80')\n"
        "print(len(mm.binary('fprop').cubin))\n"
    )
    done = run(code)
    assert int(done.stdout) > 8192, done.stderr
    assert done.stderr.count("compiled, not cached") == 1
    assert "File too large" in done.stderr
    assert [path for path in (place / "binaries").iterdir() if path.suffix in (".tmp", ".bin")] == []
    assert Store(place).verify().bad == ()


@posix
def test_a_pack_that_does_not_fit_is_an_error_and_the_old_one_stays(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array(LAYOUT))
    (tmp_path / "spec.toml").write_text('[[module]]\nname = "a"\nlayout = "a.npy"\narch = "sm_80"\nrows = [64]\n')
    made = tmp_path / "a.bsp"
    made.write_bytes(b"the old one")
    code = f"from bsgen.cli import main\n{LIMITED}main(['pack', 'build', 'spec.toml', '-o', 'a.bsp', '-j', '1'])\n"
    done = run(f"import os; os.chdir({str(tmp_path)!r})\n{code}", PYTHONPATH=str(ROOT))
    assert done.returncode == 1
    assert "error: a.bsp: cannot be written (File too large)" in done.stderr
    assert made.read_bytes() == b"the old one"
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != "") == ["a.bsp", "a.npy", "spec.toml"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS])
@pytest.mark.parametrize("step", ["write_bytes", "replace", "mkdir"])
def test_whatever_fails_when_publishing(
    place: Path, step: str, code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk, a quota, a file system that went away."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    cache = Store(place)
    with monkeypatch.context() as patch:
        patch.setattr(Path, step, fail)
        assert not cache.put(key(1), binary())
        cache.put_request(key(1), "text")
        with cache.lock(key(1)):
            pass
    assert caplog.text.count("compiled, not cached") == 1
    assert cache.get(key(1)) is None
    assert cache.get_request(key(1)) is None
    assert [entry for entry in cache.entries() if entry.path.suffix != ".lock"] == []
    assert not list(place.rglob("*.tmp"))


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_whatever_fails_when_reading(place: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Store(place)
    cache.put(key(1), binary())
    cache.put_request(key(1), "text")
    with monkeypatch.context() as patch:

        def fail(*_: object) -> bytes:
            raise OSError(code, os.strerror(code))

        patch.setattr(Path, "read_bytes", fail)
        assert cache.get(key(1)) is None
        assert cache.get_request(key(1)) is None
    assert cache.get(key(1)) == binary(), "what could not be read for a while was not removed"
    assert cache.get_request(key(1)) == "text"


# Places that cannot be written


@posix
def test_a_read_only_cache_is_read(unprivileged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BSGEN_CACHE_DIR", str(unprivileged))
    Store(unprivileged).put(key(1), binary())
    for folder in (unprivileged / "binaries", unprivileged):
        folder.chmod(0o500)
    cache = store.default()
    assert cache is not None
    assert cache.get(key(1)) == binary()
    assert not cache.put(key(2), binary())
    with cache.lock(key(2)) as got:
        assert not got
    assert not cache.writable()
    assert cache.prune(1 << 30) == (0, 0)
    with pytest.raises(bsgen.CacheError, match="cannot be cleared"):
        cache.clear()
    (unprivileged / "binaries").chmod(0o700)


@posix
def test_a_read_only_root_before_ones_own(unprivileged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an administrator put on a disk that nobody writes to; broken entries there stay."""
    shared, own = unprivileged / "shared", unprivileged / "own"
    Store(shared).put(key(1), binary("shared"))
    Store(shared).path(key(2)).write_bytes(b"rubbish")
    for folder in (shared / "binaries", shared):
        folder.chmod(0o500)
    monkeypatch.setenv("BSGEN_CACHE_DIR", f"{shared}{os.pathsep}{own}")
    cache = store.default()
    assert cache is not None
    assert cache.get(key(1)) == binary("shared")
    assert cache.get(key(2)) is None
    assert cache.put(key(2), binary("own"))
    assert cache.get(key(2)) == binary("own")
    assert sorted(path.name for path in (shared / "binaries").iterdir()) == [f"{key(1)}.bin", f"{key(2)}.bin"]
    (shared / "binaries").chmod(0o700)
    shared.chmod(0o700)


@posix
def test_a_home_that_cannot_be_written() -> None:
    """/proc takes no new folders, not even from root."""
    code = f"import bsgen; print(len(bsgen.compile({LAYOUT}, 32, 'float16', 'fprop', 'sm_80').binary('fprop').cubin))"
    done = run(code, HOME="/proc", BSGEN_CACHE_DIR="")
    assert int(done.stdout) > 1000, done.stderr
    assert done.stderr.count("compiled, not cached: /proc/.cache/bsgen/binaries cannot be written") == 1
    assert len(done.stderr.splitlines()) == 1
    doctor = run("from bsgen.cli import main; main(['doctor'])", HOME="/proc", BSGEN_CACHE_DIR="")
    assert "/proc/.cache/bsgen cannot be written; set BSGEN_CACHE_DIR" in doctor.stdout
    assert doctor.returncode == 0


# Clocks


def test_an_entry_of_the_future_does_not_outlive_all_others(place: Path) -> None:
    """A clock was set back: what it stamped before counts as used when that is first noticed, and ages from then on."""
    cache, now = Store(place), time.time()
    for i in range(4):
        cache.put(key(i), binary())
    size = cache.path(key(0)).stat().st_size
    os.utime(cache.path(key(0)), (now + 1e6, now + 1e6))
    os.utime(cache.path(key(1)), (0, 0))
    cache.prune(3 * size)
    assert {entry.key for entry in cache.entries()} == {key(0), key(2), key(3)}, "the oldest went"
    assert abs(cache.path(key(0)).stat().st_mtime - now) < 60
    for i in (2, 3):
        os.utime(cache.path(key(i)), (now + 10, now + 10))
    cache.prune(2 * size)
    assert {entry.key for entry in cache.entries()} == {key(2), key(3)}


def test_locks_ask_no_clock(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who dies lets go of a lock at once; a file from the future, or the far past, is as good as any."""
    cache = Store(place)
    cache.put(key(1), binary())
    for stamp in (0.0, time.time() + 1e7):
        (cache.folder / f".{key(1)}.lock").touch()
        os.utime(cache.folder / f".{key(1)}.lock", (stamp, stamp))
        begin = time.monotonic()
        with cache.lock(key(1)) as got:
            assert got
            monkeypatch.setattr(time, "time", lambda: 0.0)
        assert time.monotonic() - begin < 1
        monkeypatch.undo()
        assert [path.suffix for path in cache.folder.iterdir()] == [".bin"], "nothing stays"


# Many at once

READ_AND_WRITE = """
import sys
from pathlib import Path
from bsgen.nvrtc import Binary
from bsgen.store import Store
cache, wrong = Store(Path(sys.argv[1])), 0
for turn in range(3):
    for i in range(1000):
        found = cache.get(f"{i:064x}")
        wrong += found is not None and found.name != str(i)
        if found is None and i % 3 == 0:
            wrong += not cache.put(f"{i:064x}", Binary(str(i), "sm_90a", "nvrtc 1", b"\\x7fELF" + bytes(1000), (), ""))
print("wrong", wrong)
"""


def test_a_thousand_entries_pruned_under_load(place: Path) -> None:
    """Two processes read and write while this one prunes."""
    cache = Store(place)
    for i in range(1000):
        cache.put(key(i), binary(str(i)))
    size = cache.path(key(0)).stat().st_size
    command = [sys.executable, "-c", READ_AND_WRITE, str(place)]
    others = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
    kept = 1000
    while any(other.poll() is None for other in others):
        kept = max(20, kept // 2)
        cache.prune(kept * size)
        time.sleep(0.05)
    assert [other.communicate()[0] for other in others] == ["wrong 0\n"] * 2
    cache.prune(20 * size)
    assert len(cache.entries()) <= 20
    assert cache.verify().bad == ()
    assert not list(cache.folder.glob(".*.tmp"))


@posix
def test_fork_after_use(tmp_path: Path) -> None:
    """Children of a process that compiled, opened a pack and ran threads: they compile, find and run as ever."""
    np.save(tmp_path / "a.npy", np.array(LAYOUT))
    (tmp_path / "spec.toml").write_text('[[module]]\nname = "a"\nlayout = "a.npy"\narch = "sm_80"\nrows = [64]\n')
    pack = build_pack(read_spec(tmp_path / "spec.toml"), tmp_path / "a.bsp", processes=1)
    code = f"""
import os, warnings
import numpy as np, bsgen
from bsgen import build
warnings.simplefilter("ignore")  # of forks in processes with threads
pack = bsgen.load_pack({str(pack)!r})
mm = bsgen.compile({LAYOUT}, 16, "float16", arch="sm_80")
used = pack["a"].binary("fprop")
def work(width):
    made = bsgen.compile(np.ones((2, width)), 16, "float16", ("fprop", "dgrad"), "sm_80")
    assert made.binary("fprop").cubin and pack["a"].binary("fprop").cubin == used.cubin
    x = np.ones((3, made.in_features), np.float16)
    assert (made(x, made.from_dense(np.ones((32, 16 * width), np.float16))) == 32).all()
children = []
for width in (2, 3):
    child = os.fork()
    if not child:
        work(width)
        os._exit(0)
    children.append(child)
work(4)
print([os.waitpid(child, 0)[1] for child in children])
"""
    done = run(code)
    assert done.stdout == "[0, 0]\n", done.stderr


def test_eight_threads_compile_and_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """All layouts by all threads: each is compiled once, and every result is right."""
    made: list[str] = []
    real = compiled.assemble

    def counted(plan: object) -> object:
        made.append(repr(plan)[:20])
        return real(plan)  # type: ignore[arg-type]

    monkeypatch.setattr(compiled, "assemble", counted)
    masks = [bsgen.topology.random(3, 2 + i, density=0.5, seed=i) for i in range(3)]
    barrier, wrong = threading.Barrier(8), list[str]()

    def work(seed: int) -> None:
        barrier.wait()
        rng = np.random.default_rng(seed)
        for turn in range(3):
            mm = bsgen.compile(masks[(seed + turn) % 3], 16, "float32", ("fprop", "wgrad"), "sm_80")
            x, dense = (rng.standard_normal((n, mm.in_features)).astype(np.float32) for n in (5, mm.out_features))
            w = mm.from_dense(dense.T)
            if not np.allclose(mm(x, w), x @ mm.to_dense(w), rtol=2e-2, atol=2e-2):
                wrong.append(f"fprop {seed}")
            if mm.wgrad(x, mm(x, w)).shape != w.shape:
                wrong.append(f"wgrad {seed}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(made) == 6, "three layouts, two ops"


def test_what_is_compiled_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "bsgen"):
        for _ in range(2):
            bsgen.compile(LAYOUT, 16, "float16", "fprop", "sm_80")
    assert caplog.text.count("compiled bsgen_fprop") == 1
