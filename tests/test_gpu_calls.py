"""What calls on a GPU hand to the kernels, with arrays and kernels that stand in for those of a GPU."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import bsgen
from bsgen import operation
from bsgen.errors import ArgumentError
from bsgen.outline import Grid, Launch, TensorMap, Workspace
from bsgen.runtime import arrays, launch
from bsgen.runtime.arrays import Framework, View
from bsgen.runtime.express import Express
from bsgen.runtime.launch import Prepared

LAYOUT = bsgen.topology.random(4, 5, density=0.5, seed=1)
B, N = 16, 40


class Array:
    """Memory that is only an address."""

    made = 1 << 20

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self.shape, self.dtype = shape, dtype
        self.pointer = Array.made
        Array.made += 1 << 20

    # As Express looks at a tensor.
    def get_device(self) -> int:
        return 0

    def is_contiguous(self) -> bool:
        return True

    def data_ptr(self) -> int:
        return self.pointer

    def new_empty(self, shape: Any, dtype: str | None = None) -> Array:
        return Array(shape if isinstance(shape, tuple) else (shape,), dtype or self.dtype)


class Frame(Framework):
    """Deals with such arrays."""

    def view(self, array: Array, argument: str) -> View:
        return View(array.pointer, array.shape, array.dtype, 0, True)

    def empty(self, shape: tuple[int, ...], dtype: str, device: int, stream: int) -> Array:
        return Array(shape, dtype)


class Kernels:
    """Notes what it is launched with."""

    workspace = Workspace(fixed=7, per_row=1)

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.prepared, self.entered = 0, 0
        self.error = 0

    def prepare(self, device: int, stream: int, operands: dict[str, Any]) -> tuple[Prepared, ...]:
        self.prepared += 1

        def enqueue() -> tuple[int]:
            if not self.error:
                self.calls.append(dict(operands))
            return (self.error,)

        return (Prepared(enqueue, None),)

    def enqueue(self, device: int, prepared: tuple[Prepared, ...]) -> None:
        self.entered, self.error = self.entered + 1, 0
        for each in prepared:
            each.enqueue()

    def __call__(self, device: int, stream: int, operands: dict[str, Any]) -> None:
        self.calls.append(dict(operands))


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    found = Kernels()
    monkeypatch.setitem(arrays._by_type, Array, Frame())
    monkeypatch.setattr(operation.Variant, "kernels", found)
    return found


def make(**options: Any) -> tuple[bsgen.MatMul, dict[str, Array]]:
    mm = bsgen.compile(LAYOUT, B, "bfloat16", arch="sm_80", **options)
    shapes = {"x": (N, mm.in_features), "dy": (N, mm.out_features)}
    shapes = {name: shape if mm.axis else shape[::-1] for name, shape in shapes.items()} | {"w": mm.weight_shape}
    made = {name: Array(shape, "bfloat16") for name, shape in shapes.items()}
    return mm, {**made, "gate": Array((mm.nnz,), "float32")}


def bound(operands: dict[str, Any], *names: str) -> list[int]:
    return [operands[name] for name in names]


def test_without_gates(kernels: Kernels) -> None:
    mm, a = make()
    y, dx, dw = mm(a["x"], a["w"]), mm.dgrad(a["dy"], a["w"]), mm.wgrad(a["x"], a["dy"])
    assert [set(call) for call in kernels.calls] == [
        {"x", "w", "out", "workspace", "n", "accumulate"},
        {"dy", "w", "out", "workspace", "n", "accumulate"},
        {"x", "dy", "out", "workspace", "n", "accumulate"},
    ]
    assert [call["out"] for call in kernels.calls] == [y.pointer, dx.pointer, dw.pointer]
    assert (y.shape, dx.shape, dw.shape) == ((N, mm.out_features), (N, mm.in_features), mm.weight_shape)
    assert {array.dtype for array in (y, dx, dw)} == {"bfloat16"}


def test_gates(kernels: Kernels) -> None:
    mm, a = make(gate=True)
    mm(a["x"], a["w"], gate=a["gate"])
    mm.dgrad(a["dy"], a["w"], gate=a["gate"])
    for call, activations in zip(kernels.calls, ("x", "dy"), strict=True):
        pointers = [a[name].pointer for name in (activations, "w", "gate")]
        assert bound(call, activations, "w", "gate", "n", "accumulate") == [*pointers, N, 0]
    assert mm.wgrad(a["x"], a["dy"], gate=a["gate"]).shape == mm.weight_shape
    assert bound(kernels.calls[-1], "gate", "w", "dgate") == [a["gate"].pointer, 0, 0]


def test_gate_gradients(kernels: Kernels) -> None:
    mm, a = make(gate=True)
    dw, dgate = mm.gate_grad(a["x"], a["dy"], a["w"], a["gate"])
    assert (dw.shape, dw.dtype, dgate.shape, dgate.dtype) == (mm.weight_shape, "bfloat16", (mm.nnz,), "float32")
    call = kernels.calls[-1]
    assert bound(call, "w", "out", "dgate", "accumulate") == [a["w"].pointer, dw.pointer, dgate.pointer, 0]
    again = mm.gate_grad(a["x"], a["dy"], a["w"], a["gate"], out=(dw, dgate), accumulate=True)
    assert again == (dw, dgate)
    assert bound(kernels.calls[-1], "out", "dgate", "accumulate") == [dw.pointer, dgate.pointer, 1]
    same = Array((mm.nnz,), "float32")
    same.pointer = dw.pointer
    with pytest.raises(ArgumentError, match="dgate: shares memory with out"):
        mm.gate_grad(a["x"], a["dy"], a["w"], a["gate"], out=(dw, same))
    assert len(kernels.calls) == 2


def test_no_rows_clear_every_result(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    mm, a = make(gate=True)
    cleared: list[tuple[int, int]] = []
    monkeypatch.setattr(
        operation.context, "clear", lambda device, pointer, size, stream: cleared.append((pointer, size))
    )
    none = Array((0, mm.in_features), "bfloat16"), Array((0, mm.out_features), "bfloat16")
    dw, dgate = mm.gate_grad(*none, a["w"], a["gate"])
    assert cleared == [(dw.pointer, mm.nnz * B * B * 2), (dgate.pointer, mm.nnz * 4)]
    mm.gate_grad(*none, a["w"], a["gate"], out=(dw, dgate), accumulate=True)
    assert len(cleared) == 2
    assert kernels.calls == []


def quick(mm: bsgen.MatMul, op: str, kernels: Kernels, **changes: Any) -> Express:
    """The quick way of an op."""
    framework = SimpleNamespace(
        plain_types=frozenset({Array}),
        dtypes={name: name for name in ("float16", "bfloat16", "float32")},
        current=lambda device: 0,
        fresh=None,
        current_device=lambda: 0,
    )
    framework.__dict__.update(changes)
    return Express(mm.operation(op).contract, lambda n: kernels, framework)


@pytest.mark.parametrize(("gate", "axis"), [(False, 1), (True, 1), (False, 0), (True, 0)])
@pytest.mark.parametrize("op", ["fprop", "dgrad", "wgrad"])
def test_the_quick_way_binds_what_the_other_does(kernels: Kernels, op: str, gate: bool, axis: int) -> None:
    mm, a = make(gate=gate, axis=axis)
    express = quick(mm, op, kernels)
    names = {"fprop": ("x", "w"), "dgrad": ("dy", "w"), "wgrad": ("x", "dy")}[op]
    given = {name: a[name] for name in (*names, *["gate"] * gate)}
    out = express(given)
    slow = mm.operation(op)(given)
    fast, general = kernels.calls
    assert (out.shape, out.dtype) == (slow.shape, slow.dtype)
    rows = {"fprop": mm.out_features, "dgrad": mm.in_features}
    assert out.shape == (((N, rows[op]) if axis else (rows[op], N)) if op in rows else mm.weight_shape)
    assert general["n"] == N
    assert set(fast) == set(general)
    for name in set(fast) - {"out", "workspace"}:
        assert fast[name] == general[name]
    if gate:
        assert express({**given, "gate": Array((mm.nnz,), "bfloat16")}) is None
        assert express({**given, "gate": Array((mm.nnz + 1,), "float32")}) is None
    for name in names:
        assert express({**given, name: Array(a[name].shape[::-1], "bfloat16")}) is None


def test_the_quick_way_prepares_a_call_once(kernels: Kernels) -> None:
    mm, a = make()
    same = Array((N, mm.out_features), "bfloat16")
    express = quick(mm, "fprop", kernels, fresh=lambda shape, strides, dtype: same)
    scratch = Array((47,), "float32")
    a["x"].new_empty = lambda shape, dtype: scratch  # type: ignore[method-assign]
    for _ in range(3):
        assert express({"x": a["x"], "w": a["w"]}) is same
    assert (kernels.prepared, len(kernels.calls)) == (1, 3)
    for name in ("x", "w"):
        moved = {**a, name: Array(a[name].shape, "bfloat16")}
        moved["x"].new_empty = a["x"].new_empty  # type: ignore[method-assign]
        express({"x": moved["x"], "w": moved["w"]})
        assert kernels.calls[-1][name] == moved[name].pointer
    assert kernels.prepared == 3


def test_the_quick_way_enters_the_context_where_a_launch_fails(kernels: Kernels) -> None:
    mm, a = make()
    express = quick(mm, "fprop", kernels)
    assert express(a) is not None
    assert kernels.entered == 0
    kernels.error = 201
    assert express(a) is not None
    assert (kernels.entered, len(kernels.calls)) == (1, 2)
    elsewhere = quick(mm, "fprop", kernels, current_device=lambda: 1)
    assert elsewhere(a) is not None
    assert (kernels.entered, len(kernels.calls)) == (2, 3)


def test_the_quick_way_takes_any_rank(kernels: Kernels) -> None:
    mm, a = make()
    express = quick(mm, "fprop", kernels)
    for lead in ((), (5,), (5, 8), (2, 2, 10)):
        y = express({"x": Array((*lead, mm.in_features), "bfloat16"), "w": a["w"]})
        assert y.shape == (*lead, mm.out_features)
        assert kernels.calls[-1]["n"] == int(np.prod(lead))
    assert express({"x": Array((), "bfloat16"), "w": a["w"]}) is None
    assert express({"x": Array((0, mm.in_features), "bfloat16"), "w": a["w"]}) is None


def test_the_quick_way_leaves_what_is_not_aligned(kernels: Kernels) -> None:
    mm, a = make()
    express = quick(mm, "fprop", kernels)
    for name in ("x", "w"):
        moved = Array(a[name].shape, "bfloat16")
        moved.pointer += 8
        assert express({**a, name: moved}) is None
    assert kernels.prepared == 0
    assert kernels.calls == []


def test_tensor_maps_are_encoded_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[tuple[Any, ...]] = []

    class Enumeration:
        def __getattr__(self, name: str) -> str:
            return name

    cuda = SimpleNamespace(
        cuuint64_t=int,
        cuuint32_t=int,
        **dict.fromkeys(
            [f"CUtensorMap{kind}" for kind in ("Swizzle", "DataType", "Interleave", "L2promotion", "FloatOOBfill")],
            Enumeration(),
        ),
    )
    for name in ("_defaults", "_enumerations", "_promotion"):  # without what they keep
        monkeypatch.setattr(launch.tensor_maps, name, getattr(launch.tensor_maps, name).__wrapped__)
    monkeypatch.setattr(launch.driver, "bindings", lambda: cuda)
    room = ctypes.create_string_buffer(bytes(range(128)), 128)
    answer = SimpleNamespace(getPtr=lambda: ctypes.addressof(room))
    monkeypatch.setattr(launch.tensor_maps.driver, "call", lambda *given: (encoded.append(given), answer)[1])
    for fetched in (128, 64):
        encode = launch.tensor_maps.Encoder(TensorMap("x", 64, 0, 32, 8, "bfloat16", fetched=fetched))
        assert encode(4096, 5) == bytes(range(128))
        assert encode.kept == {(4096, 5): bytes(range(128))}
        assert encoded.pop() == (
            "cuTensorMapEncodeTiled", "CU_TENSOR_MAP_DATA_TYPE_BFLOAT16", 2, 4096, [64, 5], [128], [32, 8], [1, 1],
            "CU_TENSOR_MAP_INTERLEAVE_NONE", "CU_TENSOR_MAP_SWIZZLE_64B", f"CU_TENSOR_MAP_L2_PROMOTION_L2_{fetched}B",
            "CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE",
        )  # fmt: skip


def test_arguments_lie_where_their_pointers_say(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[tuple[Any, ...]] = []
    cuda = SimpleNamespace(
        cuLaunchKernelEx=lambda *arguments: (launched.append(arguments), 0)[1:],
        CUlaunchConfig=SimpleNamespace,
        CUstream=int,
        cuTensorMapEncodeTiled=None,
    )
    monkeypatch.setattr(launch.driver, "bindings", lambda: cuda)
    monkeypatch.setattr(launch.tensor_maps.Encoder, "_encode", lambda self, address, *_: bytes([address]) * 128)
    maps = (TensorMap("x", 64, 0, 64, 8, "bfloat16"),)
    grid = Grid(blocks=3, rows=16, cluster=2)
    wanted = Launch("kernel", grid, 96, 1024, ("x_map", "out", "n", "w"), maps)
    loaded = launch._Loaded(wanted, "function", 0)
    values = {"x": 7, "out": 1 << 40, "n": 33, "w": 5}
    first, second = (list(loaded.prepare(9, {**values, "out": out})) for out in (1 << 40, 1 << 41))
    for prepared, out in ((first, 1 << 40), (second, 1 << 41)):
        assert prepared[0].enqueue() == (0,)
        configuration, function, address, extra = launched[-1]
        assert (function, extra) == ("function", 0)
        assert (configuration.gridDimX, configuration.blockDimX, configuration.hStream) == (3 * 2 * 3, 96, 9)
        assert (configuration.sharedMemBytes, configuration.attrs) == (1024, [])
        pointers = (ctypes.c_uint64 * 4).from_address(address)
        assert ctypes.string_at(pointers[0], 128) == bytes([7]) * 128
        assert ctypes.c_uint64.from_address(pointers[1]).value == out
        assert ctypes.c_int32.from_address(pointers[2]).value == 33
        assert ctypes.c_uint64.from_address(pointers[3]).value == 5
    assert list(loaded.prepare(9, {**values, "n": 0})) == []
    many = launch._Loaded(replace(wanted, grid=replace(grid, rows=1)), "function", 0)
    with pytest.raises(ArgumentError, match="thread blocks"):
        list(many.prepare(9, {**values, "n": 2**31 - 2**17}))
