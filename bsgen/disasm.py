"""What a cubin's machine code is made of: instructions of each kernel by mnemonic, as nvdisasm reads them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from bsgen.errors import ArgumentError

WHEEL = "nvidia-cuda-nvdisasm"

_NAMES = ("nvdisasm", "nvdisasm.exe")
_TIMEOUT = 300


@dataclass(frozen=True)
class KernelMix:
    """One kernel: how many instructions it has, and how many of each family (HMMA, LDSM, FFMA, ...), most first."""

    name: str
    instructions: int
    families: tuple[tuple[str, int], ...]

    def count(self, family: str) -> int:
        """Instructions of one family, such as "HMMA"."""
        return dict(self.families).get(family, 0)


@dataclass(frozen=True)
class Summary:
    """The disassembler used, and the kernels by name."""

    tool: str
    kernels: tuple[KernelMix, ...]


def find() -> Path | None:
    """The nvdisasm program: of the installed wheel, else on PATH."""
    return _in_wheel() or _on_path()


def why_unavailable() -> str | None:
    """Why nothing can be disassembled here, with the way out; None if it can."""
    return None if find() else f"nvdisasm is not installed; get it with: pip install {WHEEL}"


def summary(cubin: bytes) -> Summary | None:
    """The instruction mix of a cubin; None where nvdisasm is not installed (`why_unavailable` says so).

    `ArgumentError` if nvdisasm cannot read `cubin`.
    """
    tool = find()
    if tool is None:
        return None
    header, functions, *_ = _disassemble(tool, cubin)
    kernels = sorted((_mix(function) for function in functions), key=lambda kernel: kernel.name)
    return Summary(str(header.get("Producer", tool)), tuple(kernels))


def _disassemble(tool: Path, cubin: bytes) -> list[Any]:
    # nvdisasm reads files only.
    with tempfile.TemporaryDirectory(prefix="bsgen-") as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        try:
            done = subprocess.run(
                [tool, "--emit-json", file], capture_output=True, text=True, errors="replace", timeout=_TIMEOUT
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ArgumentError(f"{tool} cannot be run ({error}); reinstall it with: pip install {WHEEL}") from None
    if done.returncode:
        reason = (done.stderr.strip() or f"exit code {done.returncode}").replace(str(file), file.name).splitlines()[-1]
        raise ArgumentError(f"cubin: nvdisasm cannot read it ({reason}); expected a cubin, made by no newer CUDA")
    parsed: list[Any] = json.loads(done.stdout)
    return parsed


def _mix(function: dict[str, Any]) -> KernelMix:
    families = Counter(_family(entry) for entry in function["sass-instructions"] if not _is_padding(entry))
    ordered = sorted(families.items(), key=lambda item: (-item[1], item[0]))
    return KernelMix(function["function-name"], sum(families.values()), tuple(ordered))


def _family(instruction: dict[str, Any]) -> str:
    return str(instruction["opcode"]).split(".")[0]


def _is_padding(instruction: dict[str, Any]) -> bool:
    # ptxas fills lines and latencies with NOPs, and with instructions whose predicate is never true.
    return instruction["opcode"] == "NOP" or instruction.get("predicate") in ("@!PT", "@!UPT")


def _in_wheel() -> Path | None:
    try:
        files = metadata.files(WHEEL) or []
    except metadata.PackageNotFoundError:
        return None
    places = (Path(str(file.locate())) for file in files if file.name in _NAMES)
    return next((place for place in places if os.access(place, os.X_OK)), None)


def _on_path() -> Path | None:
    found = shutil.which("nvdisasm")
    return Path(found) if found else None
