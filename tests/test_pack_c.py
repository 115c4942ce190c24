"""`pack export-c`: what it writes compiles without warnings, and asks a stand-in for the driver for the launches of Python."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import bsgen
from bsgen.errors import ArgumentError
from bsgen.packs import building, load_pack
from bsgen.packs.c_export import TYPES, export
from bsgen.packs.spec import Wanted
from bsgen.problem import DType, Epilogue, Op, Problem, parse_target
from bsgen.runtime import driver, tensor_maps

CC = shutil.which("cc") or shutil.which("gcc")
SMS, CLUSTERS = 132, 60
LAYOUT = bsgen.Layout(
    bsgen.topology.random(40, 40, density=0.2, seed=1).mask & (np.arange(40) < 36)[:, None]
)  # some unused

pytestmark = pytest.mark.skipif(CC is None, reason="needs a C compiler")

# A driver that says what it is asked: functions are their names, device memory is the host's.
STUB = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static int context;
int cuInit(unsigned f) { return 0; }
int cuDevicePrimaryCtxRetain(void** c, int d) { *c = &context; return 0; }
int cuCtxSetCurrent(void* c) { return 0; }
int cuCtxGetCurrent(void** c) { *c = getenv("STUB_NO_CONTEXT") ? 0 : &context; return 0; }
int cuCtxGetDevice(int* d) { *d = 0; return 0; }
int cuDeviceGetAttribute(int* v, int a, int d) {
    const int capability = atoi(getenv("STUB_CC"));
    *v = a == 75 ? capability / 10 : a == 76 ? capability % 10 : SMS;
    return 0;
}
int cuMemAlloc_v2(uint64_t* p, size_t n) { *p = (uint64_t)(uintptr_t)calloc(1, n + 1); return 0; }
int cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t n) { memcpy((void*)(uintptr_t)to, from, n); return 0; }
int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t n) { memcpy(to, (void*)(uintptr_t)from, n); return 0; }
int cuMemsetD8Async(uint64_t p, unsigned char v, size_t n, void* s) {
    printf("clear %zu\n", n);
    memset((void*)(uintptr_t)p, v, n);
    return 0;
}
int cuModuleLoadData(void** m, const void* image) { *m = (void*)image; return memcmp(image, "\177ELF", 4) != 0; }
int cuModuleGetFunction(void** f, void* m, const char* name) { *f = strdup(name); return 0; }
int cuFuncSetAttribute(void* f, int a, int v) { return a != 8; }
int cuOccupancyMaxActiveClusters(int* n, void* f, const void* config) { *n = CLUSTERS; return 0; }
int cuTensorMapEncodeTiled(void* map, int type, uint32_t rank, void* at, const uint64_t* size, const uint64_t* stride,
                           const uint32_t* box, const uint32_t* one, int i, int swizzle, int p, int o) {
    const int numbers[] = {type, size[0], size[1], stride[0], box[0], box[1], swizzle, p};
    printf("map");
    for (int k = 0; k < 8; ++k) printf(" %d", numbers[k]);
    printf("\n");
    return 0;
}
int cuLaunchKernel(void* f, unsigned x, unsigned y, unsigned z, unsigned a, unsigned b, unsigned c, unsigned shared,
                   void* s, void** k, void** e) {
    printf("launch %s %u %u %u\n", (char*)f, x * y * z, a * b * c, shared);
    return 0;
}
"""


def wanted(name: str, *ops: Op, epilogue: Epilogue | None = None, dtype: DType = DType.BFLOAT16) -> Wanted:
    problems = tuple(
        Problem(op, LAYOUT, 32, dtype, epilogue=(epilogue or Epilogue()) if op is Op.FPROP else Epilogue())
        for op in ops
    )
    return Wanted(name, problems, (parse_target("sm_90a"), parse_target("sm_80")), (8, 16384))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C of a pack, its example for fprop and for wgrad built, and the stand-in."""
    place = tmp_path_factory.mktemp("c")
    for name, modules in (
        ("fprop", [wanted("ffn.0", Op.FPROP, epilogue=Epilogue(bias=True, residual=True)), wanted("b-2", Op.DGRAD)]),
        ("wgrad", [wanted("w", Op.WGRAD, dtype=DType.FLOAT16)]),
    ):
        pack = load_pack(building.build(modules, place / f"{name}.bsp", processes=1))
        export(pack, place / name)
        sources = [str(place / name / file) for file in ("example.c", "bsgen_kernels.c")]
        flags = ["-std=gnu99", "-O1", "-Wall", "-Wextra", "-Werror"]
        subprocess.run([str(CC), *flags, "-o", str(place / name / "example"), *sources, "-ldl"], check=True)
    stub = place / "stub.c"
    stub.write_text(STUB)
    defines = [f"-DSMS={SMS}", f"-DCLUSTERS={CLUSTERS}"]
    subprocess.run(
        [str(CC), "-shared", "-fPIC", *defines, "-w", "-o", str(place / "libcuda.so.1"), str(stub)], check=True
    )
    return place


def run(folder: Path, name: str, n: int, capability: int = 90, **more: str) -> subprocess.CompletedProcess[str]:
    """The example on inputs of N rows."""
    pack = load_pack(folder / f"{name}.bsp")
    mm = next(iter(pack.values()))
    names = ["x", "w", "bias", "residual"] if name == "fprop" else ["x", "dy"]
    sizes = {
        "x": n * mm.in_features, "dy": n * mm.out_features, "w": mm.nnz * 1024,
        "bias": mm.out_features, "residual": n * mm.out_features,
    }  # fmt: skip
    files = []
    for each in names:
        files.append(folder / f"{each}.bin")
        np.ones(max(0, sizes[each]), np.uint16).tofile(files[-1])
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "STUB_CC": str(capability), **more}
    command = [str(folder / name / "example"), str(n), str(folder / "out.bin"), *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("n", [1, 8, 9, 5000])
@pytest.mark.parametrize(("capability", "arch"), [(90, "sm_90a"), (80, "sm_80"), (89, "sm_80")])
@pytest.mark.parametrize("name", ["fprop", "wgrad"])
def test_launches_are_those_of_python(folder: Path, name: str, capability: int, arch: str, n: int) -> None:
    done = run(folder, name, n, capability)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    pack = load_pack(folder / f"{name}.bsp")
    module = next(iter(pack))
    outline = pack.get_for(module, arch).operation(name).variant(n if n <= 8 else 16384).outline
    found = [line[1:] for line in lines if line[0] == "launch"]
    expected = []
    for launch in outline.launches:
        sms = CLUSTERS * launch.grid.cluster if launch.grid.cluster > 1 else SMS
        expected.append([launch.entry, *map(str, (launch.grid.size(n, sms), launch.threads, launch.shared_memory))])
    assert found == expected
    maps = [list(map(int, line[1:])) for line in lines if line[0] == "map"]
    types = {"float16": 6, "bfloat16": 9}
    assert maps == [
        [
            types[m.dtype],
            m.columns,
            m.rows or n,
            m.columns * 2,
            m.box_columns,
            m.box_rows,
            2 if m.box_columns == 32 else 3,
            {64: 1, 128: 2}[m.fetched],
        ]
        for launch in outline.launches
        for m in launch.maps
    ]
    features = {"fprop": n * 1280, "wgrad": LAYOUT.nnz * 1024}[name]
    assert (folder / "out.bin").stat().st_size == 2 * features


def test_a_kernel_that_sees_activations_in_two_ways(folder: Path) -> None:
    """And with weights and a residual by as many tensor maps as there may be."""
    outline = load_pack(folder / "fprop.bsp").get_for("ffn.0", "sm_90a").operation("fprop").variant(16384).outline
    assert [m.argument for m in outline.launches[0].maps] == ["x_map", "x_pairs_map", "w_map", "residual_map"]


def test_no_rows(folder: Path) -> None:
    """Nothing to do, but for sums over nothing."""
    assert "launch" not in run(folder, "fprop", 0).stdout
    assert f"clear {LAYOUT.nnz * 2048}" in run(folder, "wgrad", 0).stdout


def test_errors(folder: Path) -> None:
    for done, words in (
        (run(folder, "fprop", 4, capability=75), "no kernel for this GPU"),
        (run(folder, "fprop", 4, capability=100), "no kernel for this GPU"),
        (run(folder, "fprop", 4, STUB_NO_CONTEXT="1"), "no CUDA context is current"),
        (run(folder, "fprop", -1), "cannot read"),
    ):
        assert done.returncode == 1
        assert words in done.stderr


def test_the_header_is_cpp_too(folder: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    header = folder / "fprop" / "bsgen_kernels.h"
    subprocess.run([compiler, "-x", "c++", "-fsyntax-only", "-Wall", "-Werror", str(header)], check=True)
    text = header.read_text()
    inputs = ", ".join(f"const void* {name}" for name in ("x", "w", "bias", "residual"))
    assert f"bsgen_status bsgen_ffn_0_fprop(void* stream, int n, {inputs}, void* y, void* workspace" in text
    assert "bsgen_b_2_dgrad" in text


def test_two_modules_with_one_name_in_c(tmp_path: Path) -> None:
    pack = load_pack(
        building.build([wanted("a.b", Op.FPROP), wanted("a-b", Op.FPROP)], tmp_path / "p.bsp", processes=1)
    )
    with pytest.raises(ArgumentError, match="two modules are bsgen_a_b_fprop in C"):
        export(pack, tmp_path / "c")


def test_types_of_tensor_maps_are_those_of_the_driver() -> None:
    """float32 as TFLOAT32, in C as in Python: of FLOAT32 tensor cores would cut bits off."""
    kinds = driver.bindings().CUtensorMapDataType
    found = {name: int(getattr(kinds, f"CU_TENSOR_MAP_DATA_TYPE_{kind}")) for name, kind in tensor_maps.KINDS.items()}
    assert found == TYPES
    assert tensor_maps.KINDS["float32"] == "TFLOAT32"
