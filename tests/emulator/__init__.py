"""Runs emitted kernels on the host: their text with its inline assembly replaced, compiled as C++ (see machine.h)."""

from __future__ import annotations

import functools
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bsgen.emit import render
from bsgen.outline import Launch
from bsgen.plan import Plan
from bsgen.problem import DType

COMPILER = shutil.which("g++")
HERE = Path(__file__).parent
FUNCTION = re.compile(
    r"(?:^template <[^\n]*>\n)?^__device__ __forceinline__ (?P<head>[^\n]*?(?P<name>\w+)\([^\n]*\)) \{", re.MULTILINE
)
SHARED = (
    "extern __shared__ __align__(1024) unsigned char shared[];",
    "extern __shared__ __align__(128) unsigned char shared[];",
)
WARPS = "float* const of_warps = reinterpret_cast<float*>(&self->block->shared[0]);"
SMS = 5  # of the machine that is made up: few, so that persistent thread blocks walk several tiles


def run(
    plan: Plan, operands: Mapping[str, np.ndarray[Any, Any]], shape: tuple[int, ...], seed: int = 0, **integers: int
) -> Any:
    """The result, of `shape`, of every launch of a plan on the operands; `integers` are n and accumulate."""
    out = np.full(shape, np.nan, plan.problem.result_dtype.numpy)
    return results(plan, {"out": out, **operands}, ("out",), seed, **integers)["out"]


def results(
    plan: Plan, operands: Mapping[str, np.ndarray[Any, Any]], written: Sequence[str], seed: int = 0, **integers: int
) -> dict[str, Any]:
    """What every launch of a plan leaves in the operands that are `written`; those that are not there are null."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arrays = {name: np.ascontiguousarray(array) for name, array in operands.items()}
        arrays["workspace"] = np.full(max(1, plan.workspace.elements(integers["n"])), np.nan, np.float32)
        for name, array in arrays.items():
            (folder / name).write_bytes(array.tobytes() or b"\0")
        program = _program(render(plan).text, _main(plan, written), plan.problem.dtype)
        numbers = " ".join(map(str, _numbers(plan, integers)))
        subprocess.run([program, name, str(seed)], check=True, cwd=folder, timeout=600, input=numbers, text=True)
        found = {
            name: (np.frombuffer((folder / name).read_bytes(), arrays[name].dtype), arrays[name]) for name in written
        }
        return {name: flat[: array.size].reshape(array.shape) for name, (flat, array) in found.items()}


def _numbers(plan: Plan, integers: Mapping[str, int]) -> list[int]:
    return [
        integers["n"],
        integers.get("accumulate", 0),
        *(launch.grid.size(integers["n"], SMS) for launch in plan.launches),
    ]


def host_text(text: str) -> str:
    """A kernel as C++: no inline assembly, no declarations that only CUDA knows."""
    for line in SHARED:
        text = text.replace(line, "unsigned char* const shared = self->block->shared;")
    text = text.replace("extern __shared__ float of_warps[];", WARPS)
    text = re.sub(r'^ *asm volatile\("setmaxnreg[^\n]*\n', "", text, flags=re.MULTILINE)
    text = re.sub(r"^struct alignas\(64\) TensorMap \{.*?^\};\n", "", text, flags=re.MULTILINE | re.DOTALL)
    parts, position = [], 0
    for found in FUNCTION.finditer(text):
        if found.start() < position:
            continue
        end = _end_of_body(text, found.end())
        if "asm" in text[found.end() : end] or found["name"] in ("unpack", "shared_address"):
            parts += [
                text[position : found.start()],
                _substitute(found["name"], found["head"], text[found.end() : end]),
            ]
            position = end
    return "".join([*parts, text[position:]])


def _end_of_body(text: str, begin: int) -> int:
    depth, quoted = 1, False
    for place in range(begin, len(text)):
        character = text[place]
        if character == '"':
            quoted = not quoted
        elif not quoted and character in "{}":
            depth += 1 if character == "{" else -1
            if depth == 0:
                return place + 1
    raise AssertionError("a function without an end")


def _substitute(name: str, head: str, body: str) -> str:
    """What stands for a function of assembly here: mostly the one of its name in machine.h."""
    if name == "shared_address":
        return "inline u32 shared_address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }"
    if name == "load_shared":
        cast = "__uint_as_float(ld_word(address))" if head.startswith("float") else "ld_word(address)"
        return f"inline {head} {{ return {cast}; }}"
    if name != "wgmma":
        return ""
    flags = re.search(r"b, 1, 1, 1((?:, [01])*);", body)
    assert flags is not None
    transposed = [word == "1" for word in flags[1].split(", ")[1:]]
    item = 4 if "tf32" in body else 2
    high = "kPanelHigh" if '"n"(kWeightsHigh)' not in body else "kWeightsHigh"
    right = f"Matrix{{b, {high}, {str(bool(transposed and transposed[-1])).lower()}, {item}}}"
    if "const u32 (&a)[4]" in head:
        return f"inline {head} {{ wgmma_registers(sums, a, {right}); }}"
    a_high = "a_high" if "u32 a_high" in head else "kPanelHigh"
    left = f"Matrix{{a, {a_high}, {str(len(transposed) == 2 and transposed[0]).lower()}, {item}}}"
    return f"inline {head} {{ wgmma_shared(sums, {left}, {right}); }}"


def _main(plan: Plan, written: Sequence[str]) -> str:
    """A program that reads the operands from files of their names, launches, and writes some of them back."""
    names = {name for launch in plan.launches for name in launch.arguments if not name.endswith("_map")}
    mapped = {tensor_map.operand for launch in plan.launches for tensor_map in launch.maps}
    pointers = sorted((names | mapped | {"out", "workspace"}) - {"n", "accumulate"})
    lines = [
        '    int n, accumulate; std::scanf("%d %d", &n, &accumulate);',
        "    const unsigned seed = std::atoi(given[2]);",
    ]
    lines += [f'    Operand {name}("{name}");' for name in pointers]
    for launch in plan.launches:
        lines += _launch(plan, launch)
    lines += [f"    {name}.write();" for name in written]
    return "int main(int, char** given) {\n" + "\n".join(lines) + "\n}\n"


def _launch(plan: Plan, launch: Launch) -> list[str]:
    item, lines = plan.problem.dtype.itemsize, ["    {", '        unsigned blocks_; std::scanf("%u", &blocks_);']
    for m in launch.maps:
        sizes = f"{m.columns or 'n'}, {m.rows or 'n'}, {m.box_columns}, {m.box_rows}, {item}"
        lines.append(f"        const TensorMap {m.argument}{{{m.operand}.data(), {sizes}}};")
    arguments = ", ".join(
        name if name in ("n", "accumulate") or name.endswith("_map") else f"{name}.as()" for name in launch.arguments
    )
    lines.append(
        f"        launch(blocks_, {launch.threads}, {launch.grid.cluster}, seed, [&] {{ {launch.entry}({arguments}); }});"
    )
    return [*lines, "    }"]


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Where programs are, and what each of them is made with: machine.h compiled ahead, and machine.cpp."""
    folder = tempfile.TemporaryDirectory()
    _compile("-x", "c++-header", "-o", f"{folder.name}/machine.h.gch", str(HERE / "machine.h"))
    _compile("-O2", "-c", "-o", f"{folder.name}/machine.o", str(HERE / "machine.cpp"))
    return folder


def _program(text: str, main: str, dtype: DType) -> Path:
    """The compiled program of a kernel, made once."""
    types = "".join(f"#define {kind.name} {int(kind is dtype)}\n" for kind in DType)
    whole = f'#include "machine.h"\n{types}#include "device.h"\n{host_text(text)}{main}'
    folder = Path(_folder().name)
    program = folder / hashlib.sha256(whole.encode()).hexdigest()[:16]
    if not program.exists():
        source = program.with_suffix(".cpp")
        source.write_text(whole)
        _compile("-I", str(HERE), "-o", str(program), str(source), str(folder / "machine.o"))
    return program


def _compile(*arguments: str) -> None:
    command = [str(COMPILER), "-std=c++20", "-O1", "-w", "-fno-strict-aliasing", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]
