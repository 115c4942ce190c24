"""Tests run in several processes side by side: NumPy and PyTorch take one thread in each, or their threads wait for one another."""

from __future__ import annotations

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
