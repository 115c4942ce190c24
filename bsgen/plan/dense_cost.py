"""What the same product costs dense, through cuBLAS: so that reports can say when a layout is too full to gain."""

from __future__ import annotations

from bsgen.plan.cost import LAUNCH_SECONDS, overlapped
from bsgen.problem import DType, Precision, Problem, Target

# FLOP/s that cuBLAS sustains with 16-bit inputs on large matrices. sm_90: measured on an H200 (8192^3, bfloat16, 700 to 790);
# the others are two thirds to three quarters of the makers' peak rates, and have not been measured.
RATES = {
    "sm_80": 230e12,
    "sm_86": 55e12,
    "sm_89": 120e12,
    "sm_90": 740e12,
    "sm_90a": 740e12,
    "sm_100a": 1500e12,
    "sm_103a": 1600e12,
    "sm_120a": 170e12,
}
SLOWER = {Precision.TENSOR: 2.0, Precision.IEEE: 15.0}  # float32: TF32 tensor cores, and CUDA cores


def dense_seconds(problem: Problem, target: Target, n: int) -> float:
    """Predicted seconds of the dense product for N = `n` rows: its arithmetic, or its traffic with device memory."""
    elements = problem.in_features * problem.out_features
    rate = RATES[target.arch] / (SLOWER[problem.precision] if problem.dtype is DType.FLOAT32 else 1.0)
    moved = problem.dtype.itemsize * (elements + n * (problem.in_features + problem.out_features))
    return overlapped(2.0 * n * elements / rate, moved / target.hbm) + LAUNCH_SECONDS
