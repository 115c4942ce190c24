"""Sources: what identifies them, what they say of themselves, and the templates that make them."""

from __future__ import annotations

import hashlib
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import jinja2
import numpy as np
import pytest
from problems import ARITHMETIC, BIG, HOPPER_KINDS, ROOT, bernoulli, cheapest, fingerprint, hub, portable, sample

from bsgen import emit
from bsgen.emit import Source, render
from bsgen.layout import Layout
from bsgen.plan import (
    MatMulPlan,
    Plan,
    candidates,
    choose,
    hopper,
    hopper_narrow,
    hopper_narrow_wgrad,
    hopper_shapes,
    hopper_wgrad,
    matmul,
)
from bsgen.plan.streamed import Kept
from bsgen.problem import BLOCK_SIZES, Activation, DType, Epilogue, Op, Precision, Problem

EVERYTHING = Epilogue(True, Activation.GELU, True)
BASE = Problem(Op.FPROP, bernoulli(6, 6, 0.4), 32, DType.FLOAT32)
PERTURBED = {
    "op": {"op": Op.DGRAD},
    "op, wgrad": {"op": Op.WGRAD},
    "block size": {"block_size": 16},
    "dtype": {"dtype": DType.BFLOAT16},
    "dtype, float16": {"dtype": DType.FLOAT16},
    "precision": {"precision": Precision.IEEE},
    "bias": {"epilogue": Epilogue(bias=True)},
    "residual": {"epilogue": Epilogue(residual=True)},
    "relu": {"epilogue": Epilogue(activation=Activation.RELU)},
    "gelu": {"epilogue": Epilogue(activation=Activation.GELU)},
    "silu": {"epilogue": Epilogue(activation=Activation.SILU)},
    "gate": {"gate": True},
    "axis": {"axis": 0},
    "layout": {"layout": bernoulli(6, 6, 0.4, seed=1)},
    "layout, one more row": {"layout": Layout(np.vstack([bernoulli(6, 6, 0.4).mask, np.zeros((1, 6), bool)]))},
    "layout, transposed": {"layout": bernoulli(6, 6, 0.4).transpose()},
}


def plans() -> list[Plan]:
    """One plan of every family, op, block size and arithmetic, and those with epilogues and reductions."""
    matrix = [Problem(op, BASE.layout, block, *kind) for op in Op for block in BLOCK_SIZES for kind in ARITHMETIC]
    finishing = [replace(BASE, epilogue=Epilogue(True, activation, True)) for activation in Activation]
    split = [split_plan(op, kind) for op in (Op.FPROP, Op.DGRAD) for kind in ARITHMETIC[1:]]
    rows = replace(BASE, op=Op.WGRAD, batch=100_000, layout=Layout([[1]]))
    return (
        [portable(problem, BIG) for problem in (*matrix, *finishing, rows)]
        + split
        + hopper_plans()
        + uncommon_plans()
        + gated_plans()
        + feature_first_plans()
        + float32_gradients()
    )


def hopper_plans() -> list[Plan]:
    """One of every kind, alone and in clusters, and those with epilogues and reductions."""
    found: list[Plan] = []
    for op, block, dtype in HOPPER_KINDS:
        problem = Problem(op, hub(150, 4 if op is Op.FPROP else 150), block, dtype)
        drafts = list(hopper.drafts(problem, BIG))
        chosen = [
            next(each for each in drafts if each.geometry.shape.cluster == size) for size in hopper_shapes.CLUSTERS
        ]
        chosen += [each for each in drafts if each.reductions][:1]
        chosen += [each for each in drafts if each.geometry.shape.paired][:1]
        chosen += [each for each in drafts if each.geometry.coupled][:1]
        found += [hopper.assemble(problem, BIG, each) for each in chosen]
    problem = Problem(Op.FPROP, hub(150, 4), 32, DType.BFLOAT16)
    across = next(draft for draft in hopper.drafts(problem, BIG, (2,)) if draft.geometry.shape.across > 1)
    found += [hopper.assemble(problem, BIG, draft) for draft in (across, next(hopper.drafts(problem, BIG, (1,), (2,))))]
    finishing = [Epilogue(True, activation, True) for activation in Activation]
    problems = [replace(BASE, dtype=DType.FLOAT16, epilogue=epilogue) for epilogue in finishing]
    gradients = [
        Problem(Op.WGRAD, BASE.layout, block, DType.FLOAT16, batch=16384) for block in hopper_wgrad.BLOCK_SIZES
    ]
    found += [cheapest(hopper, problem, BIG) for problem in problems]
    for problem in gradients:
        plans = list(hopper_wgrad.candidates(problem, BIG))
        found += [next(plan for plan in plans if (plan.splits > 1) == split) for split in (False, True)]
    return found


def uncommon_plans() -> list[Plan]:
    """Hopper's kernels for narrow blocks, whatever the planner would choose: with an epilogue, turned, features first, split;
    of gradients; and weights of which L2 is to keep a part."""
    narrow = replace(BASE, dtype=DType.FLOAT16, block_size=16, epilogue=EVERYTHING)
    first = replace(narrow, layout=hub(150, 4), axis=0)
    split = next(plan for plan in hopper_narrow.candidates(first, BIG) if plan.reductions)
    gradients = [Problem(Op.WGRAD, BASE.layout, block, DType.FLOAT16, batch=16384) for block in (8, 16)]
    wgrad = [cheapest(hopper_narrow_wgrad, problem, BIG) for problem in gradients]
    few = replace(BASE, dtype=DType.BFLOAT16, batch=8)
    kept = [cheapest(family, replace(few, block_size=b), BIG) for family, b in ((hopper, 64), (hopper_narrow, 8))]
    many = replace(narrow, layout=bernoulli(20, 20, 0.6), batch=4096)
    turned = next(plan for plan in hopper_narrow.candidates(many, BIG) if plan.geometry.turned)
    streamed = [replace(plan, streamed=Kept(5)) for plan in kept]
    return [cheapest(hopper_narrow, narrow, BIG), turned, split, *wgrad, *streamed]


def gated_plans() -> list[Plan]:
    """With gates, of every op: portable, on CUDA cores, and Hopper's, with and without reductions."""
    problems = [replace(BASE, op=op, gate=True) for op in Op]
    found = [portable(replace(each, precision=precision), BIG) for each in problems for precision in Precision]
    found += [choose(replace(each, dtype=DType.BFLOAT16, batch=4096), BIG) for each in problems]
    skewed = Problem(Op.FPROP, hub(150, 4), 32, DType.FLOAT16, gate=True)
    return found + [
        next(plan for plan in family.candidates(skewed, BIG) if plan.reductions) for family in (hopper, matmul)
    ]


def feature_first_plans() -> list[Plan]:
    """With x [C, N]: every op and arithmetic, with epilogues and reductions."""
    kinds = [(32, *kind) for kind in ARITHMETIC] + [(8, *kind) for kind in ARITHMETIC[1:]]
    found = [choose(Problem(op, BASE.layout, *kind, axis=0), BIG) for op in Op for kind in kinds]
    split = [split_plan(Op.FPROP, kind, EVERYTHING, axis=0) for kind in ARITHMETIC]
    return [*found, *split, choose(replace(BASE, gate=True, axis=0, op=Op.WGRAD), BIG)]


def float32_gradients() -> list[Plan]:
    """dW in float32 of 16-bit activations, by each family."""
    problem = replace(BASE, op=Op.WGRAD, dtype=DType.BFLOAT16, wgrad_dtype=DType.FLOAT32)
    return [portable(problem, BIG), cheapest(hopper_wgrad, problem, BIG), choose(replace(problem, gate=True), BIG)]


def split_plan(op: Op, kind: tuple[DType, Precision], epilogue: Epilogue | None = None, axis: int = 1) -> MatMulPlan:
    """A plan that splits an output block."""
    mask = hub(150, 4).mask
    layout = Layout(mask if op is Op.FPROP else mask.T)
    problem = Problem(op, layout, 8, *kind, epilogue or Epilogue(), axis=axis)
    return next(plan for plan in candidates(problem, BIG) if isinstance(plan, MatMulPlan) and plan.reductions)


@pytest.fixture(scope="module")
def all_plans() -> list[Plan]:
    return plans()


def digests() -> list[str]:
    """Of the sources of a plan of each op, one of them split."""
    chosen = [choose(replace(BASE, op=op), BIG) for op in Op]
    sources = [render(plan) for plan in (*chosen, split_plan(Op.FPROP, ARITHMETIC[0], EVERYTHING))]
    return [hashlib.sha256(repr(source).encode()).hexdigest() for source in sources]


@pytest.mark.parametrize("seed", ["0", "1", "random"])
def test_the_same_bytes_in_every_process(seed: str) -> None:
    script = "import test_emit; print(*test_emit.digests(), sep='\\n')"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, check=True, text=True)
    assert done.stdout.split() == digests()


def test_one_self_contained_translation_unit(all_plans: list[Plan]) -> None:
    for plan in all_plans:
        text = render(plan).text
        assert "#include" not in text
        assert "{{" not in text
        assert "//%" not in text
        assert "<%" not in text
        assert text.isascii()
        assert text.endswith("\n")
        assert not re.search(r"[ \t]+$", text, re.MULTILINE), f"trailing space in {plan.entry}"


def test_it_opens_by_saying_what_it_is(all_plans: list[Plan]) -> None:
    plain = {Op.FPROP: "y = x @ W", Op.DGRAD: "dx = dy @ W.T", Op.WGRAD: "dW = x.T @ dy"}
    turned = {Op.FPROP: "y = W.T @ x", Op.DGRAD: "dx = W @ dy", Op.WGRAD: "dW = x @ dy.T"}
    gated = {Op.FPROP: "y = x @ (gate * W)", Op.DGRAD: "dx = dy @ (gate * W).T", Op.WGRAD: "dW = gate * (x.T @ dy)"}
    for plan in all_plans:
        products = gated if plan.problem.gate else plain
        if plan.problem.feature_first:
            products = turned if not plan.problem.gate else {Op.WGRAD: "dW = gate * (x @ dy.T)"}
        problem, layout = plan.problem, plan.problem.layout
        opening = "".join(re.match(r"(//.*\n)+", render(plan).text).group())
        assert opening.startswith(f"// {products[problem.op]}")
        for fact in (
            layout.digest,
            f"{layout.nnz} of {layout.size} blocks of {problem.block_size} x {problem.block_size}",
            f"{100 * layout.density:.2f} %",
            f"[{problem.in_features}, {problem.out_features}]",
            str(problem.dtype),
            f"{plan.family}, {plan.summary}",
        ):
            assert fact in opening


@pytest.mark.parametrize("change", PERTURBED.values(), ids=list(PERTURBED))
def test_whatever_the_numbers_depend_on_changes_the_source(change: dict[str, Any]) -> None:
    before, after = render(choose(BASE, BIG)), render(choose(replace(BASE, **change), BIG))
    assert before.text != after.text
    assert render(choose(replace(BASE), BIG)) == before


def test_no_two_plans_share_a_source() -> None:
    for op in Op:
        found = sample(list(candidates(replace(BASE, op=op, layout=bernoulli(20, 20, 0.3)), BIG)), 8)
        assert len({render(plan).text for plan in found}) == len({fingerprint(plan) for plan in found}) > 1


def test_each_entry_is_a_kernel_with_the_arguments_of_its_launch(all_plans: list[Plan]) -> None:
    for plan in all_plans:
        source = render(plan)
        assert source.name == plan.entry
        assert source.entries == tuple(launch.entry for launch in plan.launches)
        assert source.text.count('extern "C" __global__') == len(source.entries)
        kernels = source.text.split('extern "C" __global__')[1:]
        for launch in plan.launches:
            (kernel,) = (each for each in kernels if f"\n{launch.entry}(" in each)
            waits = "wait_for_kernel_ahead" in (source.text if launch.entry == plan.entry else kernel)
            assert launch.dependent == waits, "set up early, it must wait by itself"
            names = list(launch.arguments)
            if plan.problem.gate and plan.problem.op is not Op.WGRAD and launch.entry == plan.entry:
                at = names.index("workspace_map") if "workspace_map" in names else 1
                names[at] = names[at].replace("workspace", "w")  # gate * W, which begins it
            assert parameters(source, launch.entry) == [spelled(name, plan) for name in names]


def parameters(source: Source, entry: str) -> list[str]:
    """Names of a kernel's parameters; integers as int NAME."""
    (found,) = re.findall(rf"\n{entry}\(([^)]*)\)", source.text)
    kinds = ("*", "TensorMap ")
    return [
        (parameter.split()[-1] if any(kind in parameter for kind in kinds) else parameter).strip()
        for parameter in found.split(",")
    ]


def spelled(argument: str, plan: Plan) -> str:
    """What a kernel calls an argument of its launch."""
    if argument in ("n", "accumulate"):
        return f"int {argument}"
    if argument == "workspace" and plan.problem.op is Op.WGRAD:
        return "partials"
    result = {Op.FPROP: "y", Op.DGRAD: "dx", Op.WGRAD: "dw"}[plan.problem.op]
    return result if argument == "out" else argument


def test_the_entry_names_op_block_type_family_and_layout(all_plans: list[Plan]) -> None:
    for plan in all_plans:
        problem = plan.problem
        kind = f"{problem.op}_b{problem.block_size}_{problem.dtype}_{plan.family}"
        assert plan.entry == f"bsgen_{kind}_{problem.layout.digest}"
        assert plan.entry in render(plan).entries


def test_a_layout_with_no_blocks() -> None:
    empty = replace(BASE, layout=Layout(np.zeros((2, 3), bool)))
    assert len(render(choose(empty, BIG)).entries) == 1
    assert render(choose(replace(empty, op=Op.WGRAD), BIG)).entries == ()


@pytest.mark.parametrize(("dtype", "terms", "near_by"), [(DType.FLOAT16, 7, 2e-5), (DType.BFLOAT16, 5, 4e-4)], ids=str)
def test_gelu_of_16_bit_results_is_exact_to_their_precision(dtype: DType, terms: int, near_by: float) -> None:
    """The polynomial as it stands in the kernel, in float32, against erf: within a fifth of what rounding may cost."""
    text = render(portable(replace(BASE, dtype=dtype, epilogue=EVERYTHING), BIG)).text
    first, *rest = (np.float32(c) for c in re.findall(r"(?:float p = |fmaf\(p, z, )(-?[\d.e-]+)f", text))
    assert len(rest) == terms
    v = np.linspace(-60, 60, 120_001, dtype=np.float32)
    z = abs(v)
    p = np.full_like(v, first)
    for coefficient in rest:
        p = p * z + coefficient
    gelu = np.maximum(v, 0) - z * np.exp2(p)
    exact = np.array([0.5 * x * math.erfc(-x / math.sqrt(2)) for x in v.tolist()])
    near = z <= 6
    np.testing.assert_allclose(gelu[near], exact[near], rtol=near_by, atol=1e-12)
    np.testing.assert_allclose(gelu[~near], exact[~near], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("activation", [Activation.RELU, Activation.GELU], ids=str)
def test_activations_keep_nan(activation: Activation) -> None:
    """By max.NaN, which gives NaN where either is; max does not."""
    text = render(portable(replace(BASE, dtype=DType.FLOAT16, epilogue=Epilogue(activation=activation)), BIG)).text
    assert "max.NaN.f32" in text
    assert "fmaxf(" not in text


def test_undefined_names_are_errors() -> None:
    environment = emit.environment()
    assert environment.undefined is jinja2.StrictUndefined
    for text in ("{{ nothing }}", "//% if nothing\n//% endif\n", "{{ plan.nothing }}"):
        with pytest.raises(jinja2.UndefinedError):
            environment.from_string(text).render(plan=object())


def test_no_arithmetic_on_layouts_or_loops_over_blocks_in_templates() -> None:
    """Tables are written by the one macro; else only the registers of one instruction are counted out."""
    loops = {
        file.name
        for file in emit.template_folder().rglob("*.j2")
        for line in file.open()
        if re.match(r"\s*//% *for ", line)
    }
    assert loops - {"bsgen_kernels.c.j2", "bsgen_kernels.h.j2"} == {"tables.j2", "wgmma.cuh.j2"}


def test_every_template_is_used(all_plans: list[Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    loader, loaded = emit.environment().loader, set()
    read = jinja2.FileSystemLoader.get_source

    def reading(self: jinja2.FileSystemLoader, environment: jinja2.Environment, template: str) -> Any:
        loaded.add(template)
        return read(self, environment, template)

    assert loader is not None
    monkeypatch.setattr(jinja2.FileSystemLoader, "get_source", reading)
    emit.environment.cache_clear()
    for plan in all_plans:
        render(plan)
    folder = emit.template_folder()
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    files = {name for name in files if not name.startswith("c/")}  # not of kernels, but of what `pack export-c` writes
    assert files == loaded, f"never used: {sorted(files - loaded)}"


def test_words_of_a_table() -> None:
    assert list(emit.words(np.zeros((0, 3), np.int32))) == ["0,"]
    assert list(emit.words(np.arange(3, dtype=np.int32))) == ["0,1,2,"]
    lines = list(emit.words(np.arange(40, dtype=np.int32).reshape(8, 5)))
    assert [int(word) for line in lines for word in line.split(",") if word] == list(range(40))
