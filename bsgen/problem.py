"""What is asked (`Problem`) and what it is for (`Target`): plain, frozen, printable."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import ml_dtypes
import numpy as np

from bsgen.errors import ArgumentError
from bsgen.layout import Layout

BLOCK_SIZES = (8, 16, 32, 64, 128)


class Op(str, Enum):
    """The three products of one layout, for x [N, C], W [C, K], dy [N, K]; where features come first, x [C, N] and dy [K, N]."""

    FPROP = "fprop"
    DGRAD = "dgrad"
    WGRAD = "wgrad"

    def __str__(self) -> str:
        return self.value


class DType(str, Enum):
    """Element types of activations and weights."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"

    def __str__(self) -> str:
        return self.value

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return 4 if self is DType.FLOAT32 else 2

    @property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy dtype (bfloat16 from ml_dtypes)."""
        dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16 if self is DType.BFLOAT16 else self.value)
        return dtype


class Precision(str, Enum):
    """How float32 inputs are multiplied; 16-bit types have tensor cores only."""

    TENSOR = "tensor"
    IEEE = "ieee"

    def __str__(self) -> str:
        return self.value


class Activation(str, Enum):
    """The function an fprop epilogue applies after the bias; gelu is the exact (erf) one."""

    RELU = "relu"
    GELU = "gelu"
    SILU = "silu"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Epilogue:
    """fprop writes activation(x @ W + bias) + residual; absent parts are left out of the kernel."""

    bias: bool = False
    activation: Activation | None = None
    residual: bool = False


@dataclass(frozen=True)
class Problem:
    """One op of one layout: everything that the numbers depend on, and a hint for N.

    With `gate` a float32 for each stored block multiplies it, and wgrad gives the gates' gradients, too. `wgrad_dtype` is that of
    wgrad's result where it is not `dtype`: float32. `axis` is the activations' dimension of features: 1 of [N, C], 0 of [C, N].
    """

    op: Op
    layout: Layout
    block_size: int
    dtype: DType
    precision: Precision = Precision.TENSOR
    epilogue: Epilogue = field(default_factory=Epilogue)
    batch: int | None = None
    gate: bool = False
    wgrad_dtype: DType | None = None
    axis: int = 1

    def __post_init__(self) -> None:
        if self.wgrad_dtype and (self.op is not Op.WGRAD or self.wgrad_dtype is self.dtype):
            raise ArgumentError(f"wgrad_dtype: got {self.wgrad_dtype} for {self.op} of {self.dtype}, expected None")
        if self.op is not Op.FPROP and self.epilogue != Epilogue():
            raise ArgumentError(f"epilogue: got {self.epilogue} for {self.op}, expected none: only fprop has one")

    @property
    def result_dtype(self) -> DType:
        """The type of the result."""
        return self.wgrad_dtype or self.dtype

    @property
    def feature_first(self) -> bool:
        """Whether activations are [features, N]."""
        return self.axis == 0

    @property
    def row_unit(self) -> int:
        """What N must be a multiple of for the fastest kernels."""
        return row_unit(self.dtype, self.axis)

    @property
    def in_features(self) -> int:
        """C: the rows of W."""
        return self.layout.shape[0] * self.block_size

    @property
    def out_features(self) -> int:
        """K: the columns of W."""
        return self.layout.shape[1] * self.block_size

    def flops(self, n: int) -> float:
        """Multiply-adds on stored blocks, counted twice, for N = `n` rows."""
        return 2.0 * n * self.layout.nnz * self.block_size**2


@dataclass(frozen=True)
class Target:
    """An architecture and the limits that plans must keep to (CUDA C++ Programming Guide, table of compute capabilities)."""

    arch: str
    shared_memory: int
    sms: int
    clock: float
    hbm: float

    @property
    def capability(self) -> int:
        """Compute capability times ten: 90 for sm_90 and sm_90a."""
        return int(self.arch[3:].rstrip("af"))


# Shared memory a block may opt in to (bytes); SMs, boost clock (Hz) and HBM rate (bytes/s) of the
# family's largest common card, for the cost model only.
TARGETS = {
    target.arch: target
    for target in (
        Target("sm_80", 163 * 1024, 108, 1.41e9, 1.9e12),
        Target("sm_86", 99 * 1024, 84, 1.70e9, 0.9e12),
        Target("sm_89", 99 * 1024, 142, 2.50e9, 0.9e12),
        Target("sm_90", 227 * 1024, 132, 1.75e9, 4.3e12),
        Target("sm_90a", 227 * 1024, 132, 1.75e9, 4.3e12),
        Target("sm_100a", 227 * 1024, 148, 1.85e9, 7.0e12),
        Target("sm_103a", 227 * 1024, 148, 1.85e9, 7.0e12),
        Target("sm_120a", 99 * 1024, 170, 2.40e9, 1.7e12),
    )
}


def _member(kind: type[Enum], value: object, argument: str) -> Any:
    try:
        return kind(str(value))
    except ValueError:
        known = ", ".join(repr(member.value) for member in kind)
        raise ArgumentError(f"{argument}: got {value!r}, expected one of {known}") from None


def parse_op(value: object) -> Op:
    """`Op` from its name."""
    member: Op = _member(Op, value, "op")
    return member


def parse_dtype(value: object) -> DType:
    """`DType` from its name, or from a NumPy or PyTorch dtype."""
    name = str(value).removeprefix("torch.") if not isinstance(value, type) else np.dtype(value).name
    member: DType = _member(DType, name, "dtype")
    return member


def parse_wgrad_dtype(value: object, dtype: DType) -> DType | None:
    """float32 for the gradients of 16-bit weights; None for the weights' own `dtype`, by that name or by None."""
    wanted = dtype if value is None else _member(DType, str(value).removeprefix("torch."), "wgrad_dtype")
    if wanted not in (dtype, DType.FLOAT32):
        raise ArgumentError(f"wgrad_dtype: got {value!r}, expected None, '{dtype}' or 'float32'")
    return None if wanted is dtype else wanted


def parse_precision(value: object) -> Precision:
    """`Precision` from its name."""
    member: Precision = _member(Precision, value, "precision")
    return member


def row_unit(dtype: DType, axis: int) -> int:
    """What N must be a multiple of for the fastest kernels: where features come first, elements of 16 bytes."""
    return 1 if axis else 16 // dtype.itemsize


def parse_axis(value: object) -> int:
    """The dimension of features: 0 (x [C, N]) or 1 (x [N, C])."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or int(value) not in (0, 1):
        raise ArgumentError(
            f"axis: got {value!r}, expected 0 (features first, x [C, N]) or 1 (features last, x [N, C])"
        )
    return int(value)


def parse_activation(value: object) -> Activation | None:
    """`Activation` from its name, or None."""
    return None if value is None else _member(Activation, value, "activation")


def parse_block_size(value: object) -> int:
    """One of the block sizes that kernels exist for."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or int(value) not in BLOCK_SIZES:
        raise ArgumentError(f"block_size: got {value!r}, expected one of {', '.join(map(str, BLOCK_SIZES))}")
    return int(value)


def parse_target(arch: object) -> Target:
    """The `Target` of an architecture name."""
    target = TARGETS.get(str(arch))
    if target is None:
        raise ArgumentError(f"arch: got {arch!r}, expected one of {', '.join(TARGETS)}")
    return target
