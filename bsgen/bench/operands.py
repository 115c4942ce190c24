"""Random operands of a case on the GPU, its dense product, and its sparse matrix as other libraries store it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from bsgen.operands import contract_of
from bsgen.problem import DType, Epilogue, Op, Problem

Tensor: TypeAlias = Any  # a torch.Tensor
SEED = 7


@contextmanager
def full_float32() -> Iterator[None]:
    """PyTorch multiplies float32 without TF32 inside."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@dataclass(frozen=True)
class BlockRows:
    """The sparse matrix A of out.T = A @ activations.T, in order of block rows: W.T for fprop, W for dgrad."""

    shape: tuple[int, int]  # in blocks
    block: int
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: Tensor  # [nnz, b, b]

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Where each block row begins, and the end."""
        return np.concatenate([[0], np.cumsum(np.bincount(self.rows, minlength=self.shape[0]))])

    @property
    def places(self) -> NDArray[np.int64]:
        """The position of each block in its row."""
        return np.arange(len(self.rows)) - self.starts[self.rows]


class Operands:
    """Normally distributed x, dy and w of a problem with N = `n` rows, features where its axis says, and what each op must give."""

    def __init__(self, problem: Problem, n: int) -> None:
        self.problem, self.n, self.op = problem, n, problem.op
        self.dtype: torch.dtype = getattr(torch, problem.dtype.value)
        generator = torch.Generator("cuda").manual_seed(SEED)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, device="cuda", generator=generator).to(self.dtype)

        contract = contract_of(replace(problem, op=Op.WGRAD, epilogue=Epilogue()))
        self.x, self.dy = (normal(*contract.shape((n,), contract.rows[name])) for name in ("x", "dy"))
        self.bias, self.residual = normal(problem.out_features), torch.empty(0)
        if problem.epilogue.residual:
            self.residual = normal(*contract.shape((n,), problem.out_features))
        self.w = normal(problem.layout.nnz, problem.block_size, problem.block_size)
        self.blocks = torch.as_tensor(np.argwhere(problem.layout.mask)).cuda()

    @cached_property
    def dense(self) -> Tensor:
        """W [C, K] with zeros where no block is stored."""
        (rows, columns), b = self.problem.layout.shape, self.problem.block_size
        dense = torch.zeros(rows, columns, b, b, dtype=self.dtype, device="cuda")
        dense[self.blocks[:, 0], self.blocks[:, 1]] = self.w
        return dense.permute(0, 2, 1, 3).reshape(rows * b, columns * b).contiguous()

    @property
    def activations(self) -> Tensor:
        """What W is multiplied with in fprop and dgrad."""
        return self.x if self.op is Op.FPROP else self.dy

    @property
    def columns(self) -> Tensor:
        """The same as a matrix [features, N]."""
        return self.activations if self.problem.feature_first else self.activations.T.contiguous()

    @property
    def result_shape(self) -> tuple[int, ...]:
        """Of the op's result."""
        return tuple({Op.FPROP: self.dy.shape, Op.DGRAD: self.x.shape, Op.WGRAD: self.w.shape}[self.op])

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """The dense product that the op stands for."""
        if self.problem.feature_first:
            return {
                Op.FPROP: (self.dense.T, self.x),
                Op.DGRAD: (self.dense, self.dy),
                Op.WGRAD: (self.x, self.dy.T),
            }[self.op]
        return {
            Op.FPROP: (self.x, self.dense),
            Op.DGRAD: (self.dy, self.dense.T),
            Op.WGRAD: (self.x.T, self.dy),
        }[self.op]

    @cached_property
    def expected(self) -> Tensor:
        """The result in full float32."""
        with full_float32():
            left, right = self.factors
            return self.finished(self.stored(left.float() @ right.float()))

    def finished(self, product: Tensor) -> Tensor:
        """A product with the problem's epilogue, in the product's type."""
        epilogue, functions = self.problem.epilogue, torch.nn.functional
        if epilogue.bias:
            bias = self.bias[:, None] if self.problem.feature_first else self.bias
            product = product + bias.to(product.dtype)
        if epilogue.activation:
            product = getattr(functions, str(epilogue.activation))(product)
        return product + self.residual.to(product.dtype) if epilogue.residual else product

    def stored(self, product: Tensor) -> Tensor:
        """Of a dense weight gradient the stored blocks; other products as they are."""
        if self.op is not Op.WGRAD:
            return product
        (rows, columns), b = self.problem.layout.shape, self.problem.block_size
        tiles = product.reshape(rows, b, columns, b).permute(0, 2, 1, 3)
        return tiles[self.blocks[:, 0], self.blocks[:, 1]].contiguous()

    def error(self, result: Tensor) -> float:
        """Relative difference from what is expected, in the Frobenius norm; NaN where the result has one."""
        return float((result.float() - self.expected).norm() / self.expected.norm().clamp(min=1e-30))

    @property
    def tolerance(self) -> float:
        """The largest error that rounding explains."""
        return {DType.FLOAT16: 2e-3, DType.BFLOAT16: 1e-2, DType.FLOAT32: 2e-3}[self.problem.dtype]

    @cached_property
    def block_rows(self) -> BlockRows:
        """The sparse matrix for libraries that multiply from the left."""
        mask, b = self.problem.layout.mask, self.problem.block_size
        coordinates = np.argwhere(mask)
        if self.op is Op.DGRAD:
            return BlockRows(mask.shape, b, coordinates[:, 0], coordinates[:, 1], self.w)
        order = np.lexsort((coordinates[:, 0], coordinates[:, 1]))
        values = self.w[torch.as_tensor(order).cuda()].transpose(1, 2).contiguous()
        return BlockRows(mask.shape[::-1], b, coordinates[order, 1], coordinates[order, 0], values)

    def pointers(self, **more: Any) -> dict[str, int]:
        """Addresses by the names that launches use, and N."""
        tensors = {"x": self.x, "dy": self.dy, "w": self.w, "bias": self.bias, "residual": self.residual, **more}
        return {name: tensor.data_ptr() for name, tensor in tensors.items()} | {"n": self.n, "accumulate": 0}
