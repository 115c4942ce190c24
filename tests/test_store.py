"""The disk cache: keys by perturbation, damage of every kind is a miss, no disk trouble ever raises from get or put."""

import dataclasses
import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from bsgen import cache_place, store
from bsgen.emit import Source
from bsgen.errors import CacheError
from bsgen.nvrtc import Binary, KernelFacts
from bsgen.store import Store

SOURCE = Source("name", "text", ("a", "b"), ("-x",))
KEY = store.key(SOURCE, "sm_90a", "nvrtc 1")
BINARY = Binary(
    name="fprop",
    arch="sm_90a",
    compiler="nvrtc 13.5.37 (feeb)",
    cubin=b"\x7fELF" + bytes(range(256)),
    kernels=(KernelFacts("fprop", 100, 0, 0, 8, 1024, 2, 4000), KernelFacts("reduce", 20, 0, 0, 0, 0, 1)),
    log="ptxas info: ünïcode \udcff\n",
)


@pytest.fixture
def cache(tmp_path):
    return Store(tmp_path / "cache")


@pytest.fixture(autouse=True)
def _warnings_start_afresh():
    store._warn_once.cache_clear()


def test_the_key_of_the_same_build_is_the_same():
    assert store.key(dataclasses.replace(SOURCE), "sm_90a", "nvrtc 1") == KEY
    assert len(KEY) == 64


@pytest.mark.parametrize(
    ("change", "arch", "compiler"),
    [
        ({"name": "other"}, "sm_90a", "nvrtc 1"),
        ({"text": "text "}, "sm_90a", "nvrtc 1"),
        ({"options": ()}, "sm_90a", "nvrtc 1"),
        ({"options": ("-x", "-x")}, "sm_90a", "nvrtc 1"),
        ({"options": ("-", "x")}, "sm_90a", "nvrtc 1"),
        ({"entries": ("b", "a")}, "sm_90a", "nvrtc 1"),
        ({"entries": ("ab",)}, "sm_90a", "nvrtc 1"),
        ({"entries": ("a",), "options": ("b", "-x")}, "sm_90a", "nvrtc 1"),
        ({}, "sm_90", "nvrtc 1"),
        ({}, "sm_90a", "nvrtc 2"),
        ({}, "sm_90anvrtc", " 1"),
    ],
)
def test_each_change_makes_another_key(change, arch, compiler):
    assert store.key(dataclasses.replace(SOURCE, **change), arch, compiler) != KEY


def test_the_key_holds_the_fixed_options_and_the_format(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(store, "FIXED_OPTIONS", ("-std=c++20",))
        assert store.key(SOURCE, "sm_90a", "nvrtc 1") != KEY
    monkeypatch.setattr(store, "FORMAT", store.FORMAT + 1)
    assert store.key(SOURCE, "sm_90a", "nvrtc 1") != KEY


def test_what_is_put_comes_back(cache):
    assert cache.get(KEY) is None
    assert cache.put(KEY, BINARY)
    assert cache.get(KEY) == BINARY
    (entry,) = cache.entries()
    assert (entry.key, entry.path, entry.size) == (KEY, cache.path(KEY), cache.size())
    assert [path.name for path in cache.folder.iterdir()] == [cache.path(KEY).name]


def test_the_folders_are_private(cache):
    cache.put(KEY, BINARY)
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (cache.root, cache.folder)} == {0o700}


def test_entries_are_the_same_bytes_each_time():
    assert store.encode(KEY, BINARY) == store.encode(KEY, BINARY)


def test_a_flipped_byte_anywhere_is_a_miss():
    data = bytearray(store.encode(KEY, BINARY))
    for at in range(len(data)):
        for mask in (0x01, 0x80):
            data[at] ^= mask
            with pytest.raises(ValueError):
                store.decode(KEY, bytes(data))
            data[at] ^= mask
    assert store.decode(KEY, bytes(data)) == BINARY


def test_a_truncated_or_longer_file_is_a_miss():
    data = store.encode(KEY, BINARY)
    for length in range(len(data)):
        with pytest.raises(ValueError):
            store.decode(KEY, data[:length])
    with pytest.raises(ValueError):
        store.decode(KEY, data + b"\0")


def test_a_broken_entry_is_a_miss_is_logged_and_goes_away(cache, caplog):
    cache.put(KEY, BINARY)
    cache.path(KEY).write_bytes(b"rubbish")
    with caplog.at_level(logging.WARNING, "bsgen"):
        assert cache.get(KEY) is None
    assert "is broken" in caplog.text
    assert cache.entries() == ()
    assert cache.put(KEY, BINARY)
    assert cache.get(KEY) == BINARY


def test_an_entry_under_another_name_is_a_miss(cache):
    cache.put(KEY, BINARY)
    other = "0" * 64
    cache.path(KEY).rename(cache.path(other))
    assert cache.get(other) is None


def test_a_sound_entry_of_another_shape_is_a_miss(monkeypatch):
    for facts in ([], {}, {"kernels": 3}, {"kernels": [{"name": "x"}]}, {"kernels": [], "surprise": 1}):
        monkeypatch.setattr(
            store.json, "dumps", lambda *_, facts=facts, **__: f'{{"key":"{KEY}","binary":{facts}}}'.replace("'", '"')
        )
        data = store.encode(KEY, BINARY)
        with pytest.raises(ValueError, match="not an entry of store format"):
            store.decode(KEY, data)


def test_another_format_is_a_miss(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(store, "FORMAT", store.FORMAT + 1)
        newer = store.encode(KEY, BINARY)
    with pytest.raises(ValueError, match="not an entry of store format 1"):
        store.decode(KEY, newer)


def test_verify_tells_good_from_bad_and_clear_removes_all(cache):
    cache.put(KEY, BINARY)
    cache.put("f" * 64, BINARY)
    cache.path("e" * 64).write_bytes(cache.path(KEY).read_bytes())
    (cache.folder / ".half.1234.tmp").write_bytes(b"left by an interrupted writer")
    found = cache.verify()
    assert [entry.key for entry in found.good] == sorted([KEY, "f" * 64])
    assert [entry.key for entry in found.bad] == ["e" * 64]
    assert cache.clear() == 3
    assert list(cache.folder.iterdir()) == []
    assert (cache.entries(), cache.size(), cache.clear()) == ((), 0, 0)


@pytest.mark.parametrize("shape", ["file as root", "file as parent", "folder as entry", "name too long"])
def test_a_place_that_cannot_be_written_never_raises(tmp_path, shape, caplog):
    cache = Store(tmp_path / "cache")
    if shape == "file as root":
        cache.root.touch()
    elif shape == "file as parent":
        cache.root.touch()
        cache = Store(cache.root / "deeper")
    elif shape == "folder as entry":
        cache.path(KEY).mkdir(parents=True)
    else:
        cache = Store(tmp_path / ("x" * 300))
    assert cache.get(KEY) is None
    assert not cache.put(KEY, BINARY)
    assert not cache.put(KEY, BINARY)
    assert caplog.text.count("compiled, not cached") == 1
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".tmp"]
    assert cache.writable() == (shape == "folder as entry")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_place_never_raises(tmp_path):
    tmp_path.chmod(0o500)
    cache = Store(tmp_path)
    assert cache.get(KEY) is None
    assert not cache.put(KEY, BINARY)
    tmp_path.chmod(0o700)


def test_a_full_disk_leaves_nothing_behind(cache, monkeypatch):
    def full(path, data):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.Path, "write_bytes", full)
    assert not cache.put(KEY, BINARY)
    assert list(cache.folder.iterdir()) == []


def test_listing_what_is_no_folder_is_a_cache_error(tmp_path):
    (tmp_path / "binaries").touch()
    for action in (Store(tmp_path).entries, Store(tmp_path).verify, Store(tmp_path).clear, Store(tmp_path).size):
        with pytest.raises(CacheError, match="cannot be"):
            action()


def test_the_place(monkeypatch, tmp_path):
    for name in ("BSGEN_CACHE_DIR", "XDG_CACHE_HOME", "BSGEN_DISABLE_CACHE", "BSGEN_CACHE_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_place.roots() == (Path("/home/someone/.cache/bsgen"),)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert cache_place.roots() == (Path("/home/someone/.cache/bsgen"),)
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_place.roots() == (Path("/xdg/bsgen"),)
    monkeypatch.setenv("BSGEN_CACHE_DIR", "~/mine")
    assert cache_place.roots() == (Path("/home/someone/mine"),)
    monkeypatch.setenv("BSGEN_CACHE_DIR", f"/shared{os.pathsep}{tmp_path}")
    assert store.default() == Store(tmp_path, (Path("/shared"),), cache_place.DEFAULT_LIMIT)
    monkeypatch.setenv("BSGEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("BSGEN_CACHE_SIZE", "0")
    assert store.default() == Store(tmp_path)
    monkeypatch.setenv("BSGEN_DISABLE_CACHE", "0")
    assert store.default() == Store(tmp_path)
    monkeypatch.setenv("BSGEN_DISABLE_CACHE", "1")
    assert store.default() is None


def test_no_home_means_no_store(monkeypatch, caplog):
    for name in ("BSGEN_CACHE_DIR", "XDG_CACHE_HOME", "BSGEN_DISABLE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    # What expanduser gives where HOME is unset and the user has no entry in the password file.
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert cache_place.roots() == ()
    assert store.default() is None
    assert "no home folder" in caplog.text


def test_two_processes_publish_one_key_and_readers_see_whole_entries(cache):
    script = (
        "import sys\nfrom pathlib import Path\nsys.path.insert(0, sys.argv[2])\n"
        "from test_store import BINARY, KEY, Store\ncache = Store(Path(sys.argv[1]))\n"
        "for _ in range(300):\n    assert cache.put(KEY, BINARY)\n    assert cache.get(KEY) == BINARY\n"
    )
    command = [sys.executable, "-c", script, str(cache.root), os.path.dirname(__file__)]
    writers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    seen = []
    while any(writer.poll() is None for writer in writers):
        seen.append(cache.get(KEY))
    for writer in writers:
        assert writer.returncode == 0, writer.stderr.read()
        writer.stderr.close()
    assert set(seen) <= {None, BINARY}
    assert seen.count(None) < len(seen) or not seen
    assert len(list(cache.folder.iterdir())) == 1
