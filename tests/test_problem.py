"""What a problem or a target refuses before any planning."""

from __future__ import annotations

import numpy as np
import pytest

from bsgen import plan, topology
from bsgen.errors import ArgumentError, PlanError
from bsgen.layout import Layout
from bsgen.problem import TARGETS, DType, Epilogue, Op, Problem, parse_block_size, parse_dtype, parse_op, parse_target


@pytest.mark.parametrize("op", [Op.DGRAD, Op.WGRAD])
def test_only_fprop_has_an_epilogue(op: Op) -> None:
    layout = topology.random(4, 4, density=0.5)
    with pytest.raises(ArgumentError, match=f"for {op}, expected none"):
        Problem(op, layout, 32, DType.BFLOAT16, epilogue=Epilogue(bias=True))
    assert Problem(Op.FPROP, layout, 32, DType.BFLOAT16, epilogue=Epilogue(bias=True)).epilogue.bias


def test_weights_past_the_reach_of_the_tables_are_refused() -> None:
    problem = Problem(Op.FPROP, Layout(np.ones((1024, 1024), bool)), 128, DType.FLOAT32)
    with pytest.raises(PlanError, match="less than 32 GiB of weights"):
        plan.choose(problem, TARGETS["sm_90a"])


@pytest.mark.parametrize(
    ("parse", "value"),
    [
        (parse_op, "forward"),
        (parse_dtype, "int8"),
        (parse_block_size, 24),
        (parse_block_size, True),
        (parse_target, "sm_70"),
    ],
)
def test_unknown_names_say_what_is_known(parse: object, value: object) -> None:
    assert callable(parse)
    with pytest.raises(ArgumentError, match="expected one of"):
        parse(value)
