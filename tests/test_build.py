"""build: memory, then disk, then one compilation however many threads ask."""

import os
import subprocess
import sys
import threading
import time

import pytest

from bsgen import build as build_module
from bsgen import nvrtc, store
from bsgen.build import build
from bsgen.emit import Source
from bsgen.errors import CompileError

SOURCE = Source("small", 'extern "C" __global__ void f(int* x) { *x = 7; }\n', ("f",))


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """The sources that NVRTC was given, with an empty memory and an empty disk cache."""
    monkeypatch.setenv("BSGEN_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("BSGEN_DISABLE_CACHE", raising=False)
    build_module._state.forget()
    calls = []
    real = nvrtc.compile

    def counted(source, arch):
        calls.append((source.name, arch))
        time.sleep(0.05)
        return real(source, arch)

    monkeypatch.setattr(nvrtc, "compile", counted)
    yield calls
    build_module._state.forget()


def test_compiles_once_then_remembers(compiled):
    first = build(SOURCE, "sm_90a")
    assert build(SOURCE, "sm_90a") is first
    assert compiled == [("small", "sm_90a")]


def test_a_new_process_finds_it_on_disk(compiled):
    first = build(SOURCE, "sm_90a")
    build_module._state.forget()
    assert build(SOURCE, "sm_90a") == first
    assert len(compiled) == 1


def test_each_architecture_is_its_own(compiled):
    assert build(SOURCE, "sm_90").arch == "sm_90"
    assert build(SOURCE, "sm_80").arch == "sm_80"
    assert len(compiled) == 2


def test_a_broken_entry_is_compiled_and_published_again(compiled):
    first = build(SOURCE, "sm_90a")
    (entry,) = store.default().entries()
    entry.path.write_bytes(entry.path.read_bytes()[:-1])
    build_module._state.forget()
    assert build(SOURCE, "sm_90a") == first
    assert len(compiled) == 2
    assert len(store.default().verify().good) == 1


def test_without_a_disk_cache_it_still_compiles_once(compiled, monkeypatch):
    monkeypatch.setenv("BSGEN_DISABLE_CACHE", "1")
    build(SOURCE, "sm_90a")
    build(SOURCE, "sm_90a")
    assert len(compiled) == 1


def test_a_cache_that_cannot_be_written_does_not_stop_it(compiled, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("BSGEN_CACHE_DIR", str(tmp_path / "file"))
    assert build(SOURCE, "sm_90a").cubin


def test_eight_threads_compile_once(compiled):
    barrier = threading.Barrier(8)
    found = []

    def ask():
        barrier.wait()
        found.append(build(SOURCE, "sm_90a"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(compiled) == 1
    assert len(found) == 8
    assert len({id(binary) for binary in found}) == 1


def test_a_failure_is_not_remembered_and_frees_the_lock(compiled):
    broken = Source("broken", "nonsense\n", ())
    for _ in range(2):
        with pytest.raises(CompileError):
            build(broken, "sm_90a")
    assert len(compiled) == 2
    assert store.default().entries() == ()


def test_what_is_published_is_under_the_compiler_that_made_it(compiled, monkeypatch):
    real = nvrtc.version()
    monkeypatch.setattr(nvrtc, "version", lambda: "nvrtc predicted wrongly")
    build(SOURCE, "sm_90a")
    (entry,) = store.default().entries()
    assert entry.key == store.key(SOURCE, "sm_90a", real)


def test_memory_is_bounded(compiled, monkeypatch):
    monkeypatch.setattr(build_module, "_REMEMBERED", 1)
    first = build(SOURCE, "sm_90a")
    build(SOURCE, "sm_80")
    assert build(SOURCE, "sm_90a") is not first


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_does_not_wait_for_its_parents_threads(tmp_path):
    script = """
import os, sys, threading
from bsgen import build as module, nvrtc, store
from bsgen.emit import Source
source = Source("s", "text", ())
nvrtc.version = lambda: "nvrtc"
nvrtc.compile = lambda source, arch: nvrtc.Binary(source.name, arch, "nvrtc", b"", (), "")
key = store.key(source, "sm_90a", "nvrtc")
with module._state.lock(key), module._state._guard:
    child = os.fork()
    if not child:
        module.build(source, "sm_90a")
        os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    env = {**os.environ, "BSGEN_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], env=env, timeout=30, check=True)
