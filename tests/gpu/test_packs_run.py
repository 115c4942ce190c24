"""Packs on a GPU: bit-identical to what is compiled there, with no compiler in sight, and out of the C example."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cases import assert_close, normal, torch

import bsgen
from bsgen.packs import building, load_pack
from bsgen.packs.c_export import export
from bsgen.packs.spec import Wanted
from bsgen.problem import DType, Op, Problem, parse_target
from bsgen.runtime import driver

LAYOUT = bsgen.topology.random(24, 20, density=0.3, seed=1)
ROOT = Path(__file__).parent.parent.parent
BATCHES = (1, 64, 1000)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = parse_target(driver.current_device().arch)
    problems = tuple(Problem(op, LAYOUT, 32, DType.BFLOAT16) for op in Op)
    return building.build(
        [Wanted("w", problems, (target,), (8, 64, 1024))], tmp_path_factory.mktemp("pack") / "p.bsp", 1
    )


def results(mm: bsgen.MatMul, n: int) -> list[object]:
    shapes = (n, mm.in_features), (n, mm.out_features), mm.weight_shape
    x, dy, w = (normal(*shape, dtype="bfloat16", seed=seed) for seed, shape in enumerate(shapes))
    return [mm(x, w), mm.dgrad(dy, w), mm.wgrad(x, dy)]


@pytest.mark.parametrize("n", BATCHES)
def test_the_same_bits_as_compiled(file: Path, n: int) -> None:
    packed, fresh = load_pack(file)["w"], bsgen.compile(LAYOUT)
    for ours, theirs in zip(results(packed, n), results(fresh, n), strict=True):
        assert torch.equal(ours, theirs)


def test_with_no_compiler(file: Path) -> None:
    code = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "jinja2" or name == "cuda.bindings.nvrtc":
            raise ImportError(name)
sys.meta_path.insert(0, Missing())
import bsgen, torch
mm = bsgen.load_pack({str(file)!r})["w"]
x = torch.ones(64, mm.in_features, device="cuda", dtype=torch.bfloat16)
print(float(mm(x, torch.ones(*mm.weight_shape, device="cuda", dtype=torch.bfloat16)).sum()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert float(done.stdout) == 64 * LAYOUT.nnz * 1024


def test_a_pack_built_where_there_was_no_gpu() -> None:
    """The committed sample of the format, by another build of the compiler."""
    if driver.current_device().arch != "sm_90a":
        pytest.skip("needs a Hopper GPU")
    mm = load_pack(ROOT / "tests" / "data" / "format1.bsp")["scattered"]
    dtype = str(mm.dtype)
    x, w = (normal(*shape, dtype=dtype, seed=1) for shape in ((100, mm.in_features), mm.weight_shape))
    assert_close(mm(x, w), x.double() @ mm.to_dense(w).double(), 5e-3)


@pytest.mark.parametrize("n", BATCHES)
def test_the_c_example(file: Path, tmp_path: Path, n: int) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    export(load_pack(file), tmp_path)
    command = [compiler, "-std=gnu99", "-O1", "-o", "example", "example.c", "bsgen_kernels.c", "-ldl"]
    subprocess.run(command, check=True, cwd=tmp_path)
    mm = load_pack(file)["w"]
    x, w = (normal(*shape, dtype="bfloat16", seed=1) for shape in ((n, mm.in_features), mm.weight_shape))
    for name, tensor in (("x", x), ("w", w)):
        tensor.cpu().view(torch.int16).numpy().tofile(tmp_path / f"{name}.bin")
    subprocess.run(["./example", str(n), "out.bin", "x.bin", "w.bin"], check=True, cwd=tmp_path, env=dict(os.environ))
    data = torch.frombuffer(bytearray((tmp_path / "out.bin").read_bytes()), dtype=torch.bfloat16).cuda()
    assert torch.equal(data.reshape(n, -1), mm(x, w))
