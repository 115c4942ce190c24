"""Reading and making arrays of other libraries, as far as that needs no GPU."""

from __future__ import annotations

import gc
import sys
import weakref
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import bsgen
from bsgen.runtime import dlpack
from bsgen.runtime.arrays import CPU, framework_of, stream_handle
from bsgen.runtime.interchange import CudaArrayInterface, DLPack


class Owner:
    """Something that a capsule can keep alive."""


@pytest.mark.parametrize("version", [None, (1, 0)])
def test_reads_capsules(version: tuple[int, int] | None) -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for view, contiguous in ((array, True), (array.transpose(1, 0, 2), False), (array[:1], True), (array[:, :0], True)):
        found = dlpack.read(view.__dlpack__(max_version=version) if version else view.__dlpack__())
        assert found.shape == view.shape
        assert (found.dtype, found.device_type, found.contiguous) == ("float32", dlpack.CPU, contiguous)
        if view.size:
            assert found.pointer == view.ctypes.data


def test_refuses_what_is_no_capsule() -> None:
    with pytest.raises(ValueError, match="unused DLPack capsule"):
        dlpack.read(object())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_makes_capsules(dtype: str) -> None:
    owner = Owner()
    alive = weakref.ref(owner)
    capsule = dlpack.make(owner, 4096, (5, 0, 7), dtype, 3)
    del owner
    gc.collect()
    assert alive() is not None
    assert dlpack.read(capsule) == (4096, (5, 0, 7), dtype, dlpack.CUDA, 3, True)
    before = len(dlpack._exported)
    del capsule
    gc.collect()
    assert alive() is None
    assert len(dlpack._exported) == before - 1


def test_numpy_view() -> None:
    array = np.zeros((2, 3), ml_dtypes.bfloat16)
    view = framework_of(array, "x").view(array, "x")
    assert view == (array.ctypes.data, (2, 3), "bfloat16", CPU, True)


def test_recognises_by_protocol() -> None:
    both = SimpleNamespace(__dlpack__=None, __dlpack_device__=None, __cuda_array_interface__={})
    assert isinstance(framework_of(both, "x"), DLPack)
    only = type("Only", (), {"__cuda_array_interface__": {}})()
    assert isinstance(framework_of(only, "x"), CudaArrayInterface)


def test_failing_producer_is_named() -> None:
    class Failing:
        def __dlpack_device__(self) -> tuple[int, int]:
            return dlpack.CUDA, 0

        def __dlpack__(self, **_: Any) -> Any:
            raise BufferError("requires grad")

    with pytest.raises(bsgen.ArgumentError, match="x: Failing gave no DLPack capsule: requires grad"):
        framework_of(Failing(), "x").view(Failing(), "x")


STREAMS = [
    7,
    SimpleNamespace(cuda_stream=7),
    SimpleNamespace(ptr=7),
    type("Stream", (), {"__cuda_stream__": lambda self: (0, 7)})(),
]


@pytest.mark.parametrize("stream", STREAMS, ids=["int", "torch", "cupy", "protocol"])
def test_stream_handles(stream: object) -> None:
    assert stream_handle(stream) == 7


@pytest.mark.parametrize("stream", [True, "legacy", 1.0])
def test_bad_streams(stream: object) -> None:
    with pytest.raises(bsgen.ArgumentError, match="stream: got"):
        stream_handle(stream)


def test_looks_for_no_library_that_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("torch", "cupy", "jax", "numba"):
        monkeypatch.delitem(sys.modules, library, raising=False)
    with pytest.raises(bsgen.ArgumentError, match="x: got set"):
        framework_of(set(), "x")
    assert not {"torch", "cupy", "jax", "numba"} & set(sys.modules)
