"""Benchmarks: bsgen beside its peers, on the same data in the same process, each result checked before it is timed.

`suites` say what is timed, `run` times it, one `Measured` a case. PyTorch and a GPU are needed to run, not to list.
"""

from bsgen.bench.cases import SUITES, Case, Selection, select
from bsgen.bench.records import Measured, Row, Timing

__all__ = ["SUITES", "Case", "Measured", "Row", "Selection", "Timing", "select"]
