"""DLPack capsules by ctypes (https://dmlc.github.io/dlpack): read any, make the unversioned kind."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

CPU, CUDA, CUDA_MANAGED = 1, 2, 13
NO_SYNCHRONISATION = -1
_FLOAT, _BFLOAT = 2, 4
_PLAIN, _VERSIONED = b"dltensor", b"dltensor_versioned"
_KINDS = {0: "int", 1: "uint", _FLOAT: "float", _BFLOAT: "bfloat", 5: "complex", 6: "bool"}
_CODES = {"float16": (_FLOAT, 16), "bfloat16": (_BFLOAT, 16), "float32": (_FLOAT, 32)}


class _Tensor(ctypes.Structure):
    """DLTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))


class _ManagedVersioned(ctypes.Structure):
    """DLManagedTensorVersioned."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", _Deleter),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


def _python(name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(ctypes.pythonapi, name)
    function.restype, function.argtypes = result, arguments
    return function


_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_new = _python("PyCapsule_New", ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _Destructor)
# A capsule under destruction has no references left: as a py_object it would come back to life, so it goes by address.
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


class Described(NamedTuple):
    """What a capsule says of its tensor; `dtype` as NumPy names it."""

    pointer: int
    shape: tuple[int, ...]
    dtype: str
    device_type: int
    device_id: int
    contiguous: bool


def read(capsule: Any) -> Described:
    """Describe a capsule, without taking it over: it keeps the tensor, and releases it when it is dropped."""
    address = id(capsule)
    if _is_valid(address, _VERSIONED):
        managed: Any = ctypes.cast(_pointer(address, _VERSIONED), ctypes.POINTER(_ManagedVersioned))
    elif _is_valid(address, _PLAIN):
        managed = ctypes.cast(_pointer(address, _PLAIN), ctypes.POINTER(_Managed))
    else:
        raise ValueError("__dlpack__ returned something that is not an unused DLPack capsule")
    return _described(managed.contents.tensor)


def _described(tensor: Any) -> Described:
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else _row_major(shape)
    kind, bits = _KINDS.get(tensor.code, f"type{tensor.code}_"), tensor.bits
    dtype = f"{kind}{bits}" if tensor.lanes == 1 else f"{kind}{bits}x{tensor.lanes}"
    pointer = (tensor.data or 0) + tensor.byte_offset
    return Described(pointer, shape, dtype, tensor.device_type, tensor.device_id, is_row_major(shape, strides))


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for length in reversed(shape):
        strides.append(step)
        step *= length
    return tuple(reversed(strides))


def is_row_major(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether `strides` (in elements) are those of a row-major array."""
    if 0 in shape:
        return True
    return all(n == 1 or have == want for n, have, want in zip(shape, strides, _row_major(shape), strict=True))


_exported: dict[int, tuple[Any, ...]] = {}


def _forget(address: int) -> None:
    _exported.pop(address, None)


def _destroy(capsule: int) -> None:
    """A capsule that nobody took over (a consumer renames it) releases its tensor itself."""
    if _is_valid(capsule, _PLAIN):
        _forget(_pointer(capsule, _PLAIN))


_deleter, _destructor = _Deleter(_forget), _Destructor(_destroy)


def make(owner: object, pointer: int, shape: tuple[int, ...], dtype: str, device: int) -> Any:
    """A capsule of a row-major CUDA tensor that keeps `owner` alive until its consumer is done."""
    code, bits = _CODES[dtype]
    extents = (ctypes.c_int64 * len(shape))(*shape)
    strides = (ctypes.c_int64 * len(shape))(*_row_major(shape))
    tensor = _Tensor(pointer, CUDA, device, len(shape), code, bits, 1, extents, strides, 0)
    managed = _Managed(tensor, None, _deleter)
    address = ctypes.addressof(managed)
    _exported[address] = (managed, extents, strides, owner)
    return _new(address, _PLAIN, _destructor)
