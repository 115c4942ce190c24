"""What runs in a benchmark: bsgen's plans, and the peers as their makers mean them to be called."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from bsgen.bench.cusparse import Product
from bsgen.bench.operands import Operands, Tensor
from bsgen.compiled import Compiled
from bsgen.problem import DType, Epilogue, Op
from bsgen.runtime.launch import Kernels

MOST_CSR_ELEMENTS = 1 << 25  # beyond, building the matrix and one product take seconds
SMALLEST_TRITON_BLOCK = 16

# A call that enqueues the op, and where its result lies then, in the shape that `Operands.expected` has.
Work = tuple[Callable[[], object], Callable[[], Tensor]]


class LeftOut(Exception):
    """A contender that does not take part in a case; the text says why."""


@contextmanager
def compiled_plan(operands: Operands, made: Compiled) -> Iterator[Work]:
    """A plan of bsgen; results poisoned with NaN first."""
    outline, n = made.outline, operands.n
    kernels = Kernels(made.binary, outline.launches, outline.workspace)
    out = torch.full(operands.result_shape, float("nan"), dtype=operands.dtype, device="cuda")
    workspace = torch.full((max(1, outline.workspace.elements(n)),), float("nan"), device="cuda")
    pointers = operands.pointers(out=out, workspace=workspace)
    yield lambda: kernels(0, torch.cuda.current_stream().cuda_stream, pointers), lambda: out


@contextmanager
def dense(operands: Operands) -> Iterator[Work]:
    """cuBLAS, through torch.matmul; float32 on TF32 tensor cores, as bsgen's. An epilogue is PyTorch's, operation by operation."""
    left, right = operands.factors
    out = torch.empty(left.shape[0], right.shape[1], dtype=operands.dtype, device="cuda")
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        results: list[Tensor] = []

        def finished() -> None:
            results[:] = [operands.finished(torch.matmul(left, right))]

        if operands.problem.epilogue == Epilogue():
            yield lambda: torch.matmul(left, right, out=out), lambda: operands.stored(out)
        else:
            yield finished, lambda: results[0]
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _cusparse(format_name: str) -> Callable[[Operands], Any]:
    @contextmanager
    def product(operands: Operands) -> Iterator[Work]:
        _require_product(operands)
        elements = operands.problem.layout.nnz * operands.problem.block_size**2
        if format_name == "csr" and elements > MOST_CSR_ELEMENTS:
            raise LeftOut(f"{elements} stored elements, at most {MOST_CSR_ELEMENTS} are tried as CSR")
        call = Product(format_name, operands.block_rows, operands.columns)
        try:
            yield call, lambda: call.out if operands.problem.feature_first else call.out.T
        finally:
            call.close()

    return product


def _torch_bsr(tuned: bool) -> Callable[[Operands], Any]:
    @contextmanager
    def product(operands: Operands) -> Iterator[Work]:
        """torch.nn.functional.linear with a weight [K, C] in BSR, which is how PyTorch offers its Triton kernel."""
        _require_product(operands)
        if operands.problem.feature_first:
            raise LeftOut("takes features last")
        if operands.problem.block_size < SMALLEST_TRITON_BLOCK:
            raise LeftOut(f"its kernel needs blocks of at least {SMALLEST_TRITON_BLOCK}")
        a = operands.block_rows
        size = (a.shape[0] * a.block, a.shape[1] * a.block)
        starts, columns = (torch.as_tensor(index, dtype=torch.int32).cuda() for index in (a.starts, a.columns))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "sparse BSR support is in beta"
            weight = torch.sparse_bsr_tensor(starts, columns, a.values, size)
        if tuned:
            _tune_torch(weight, operands.activations)
        results: list[Tensor] = []

        def call() -> None:
            results[:] = [torch.nn.functional.linear(operands.activations, weight)]

        yield call, lambda: results[0]

    return product


def _tune_torch(weight: Tensor, activations: Tensor) -> None:
    from torch.sparse._triton_ops_meta import optimize_bsr_dense_addmm

    rows, columns = weight.shape
    with contextlib.redirect_stdout(None):
        b = weight.values().shape[-1]
        optimize_bsr_dense_addmm(rows, columns, len(activations), b, b, dtype=weight.dtype, verbose=False)


def _require_product(operands: Operands) -> None:
    if operands.op is Op.WGRAD:
        raise LeftOut("has no product sampled at blocks")
    if operands.problem.epilogue != Epilogue():
        raise LeftOut("has no epilogue")


def _float16_only(contender: Callable[[Operands], Any]) -> Callable[[Operands], Any]:
    def checked(operands: Operands) -> Any:
        if operands.problem.dtype is DType.FLOAT32:
            raise LeftOut("would multiply in full float32, not TF32")
        return contender(operands)

    return checked


# Peers by the names that options and tables use.
PEERS: Mapping[str, Callable[[Operands], Any]] = {
    "dense": dense,
    "blocked-ell": _float16_only(_cusparse("blocked-ell")),
    "bsr": _cusparse("bsr"),
    "csr": _cusparse("csr"),
    "torch-bsr": _torch_bsr(tuned=False),
    "torch-bsr-tuned": _torch_bsr(tuned=True),
}
