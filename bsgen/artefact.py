"""`Artefact`: one op compiled for one architecture, as the three files that `bsgen compile` writes and `inspect` reads.

NAME.cu is the source, NAME.cubin the binary, NAME.json the facts that a launcher or a reader needs: what was asked,
the plan, the launches with their arguments in order, the workspace, what ptxas said.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bsgen
from bsgen.errors import ArgumentError, BsgenError
from bsgen.files import reason, write_together
from bsgen.matmul import DEFAULT_ARCH
from bsgen.nvrtc import FIXED_OPTIONS
from bsgen.operation import Operation
from bsgen.outline import Launch
from bsgen.plan.dense_cost import dense_seconds
from bsgen.problem import DType, Precision, Problem
from bsgen.runtime import driver


@dataclass(frozen=True)
class Artefact:
    """The files of one op: `name` without suffix, the CUDA text, the cubin (None if only emitted), facts for JSON."""

    name: str
    source: bytes
    cubin: bytes | None
    facts: dict[str, Any]

    @classmethod
    def of(cls, operation: Operation, compiled: bool = True) -> Artefact:
        """Describe an operation, compiling it if it was not; `compiled=False` leaves the compiler out."""
        name, source = artefact_name(operation.problem, operation.target.arch), operation.source.text.encode()
        cubin = operation.binary.cubin if compiled else None
        files = {f"{name}.cu": source} | ({} if cubin is None else {f"{name}.cubin": cubin})
        return cls(name, source, cubin, _facts(name, operation, compiled) | {"files": _listed(files)})

    @property
    def files(self) -> dict[str, bytes]:
        """The bytes of each file, by file name."""
        facts = json.dumps(self.facts, indent=2).encode() + b"\n"
        cubin = {} if self.cubin is None else {f"{self.name}.cubin": self.cubin}
        return {f"{self.name}.cu": self.source, **cubin, f"{self.name}.json": facts}


def artefact_name(problem: Problem, arch: str) -> str:
    """The stem of a problem's files: all that tells it from other problems, so that none overwrites another's."""
    epilogue = problem.epilogue
    ieee = problem.dtype is DType.FLOAT32 and problem.precision is Precision.IEEE
    variants = (
        "ieee" if ieee else "",
        "bias" if epilogue.bias else "",
        str(epilogue.activation or ""),
        "residual" if epilogue.residual else "",
        "gate" if problem.gate else "",
        "axis0" if problem.feature_first else "",
        "dw32" if problem.wgrad_dtype else "",
        f"n{problem.batch}" if problem.batch else "",
    )
    parts = (str(problem.op), f"b{problem.block_size}", str(problem.dtype), *variants, arch, problem.layout.digest)
    return "_".join(filter(None, parts))


def write(artefacts: Iterable[Artefact], folder: str | os.PathLike[str]) -> list[Path]:
    """Write all files into `folder`, which is made if need be: all of them, or none and a `BsgenError`."""
    place = Path(folder)
    files = {place / name: data for artefact in artefacts for name, data in artefact.files.items()}
    make_folder(place)
    write_together(files)
    return list(files)


def make_folder(folder: Path) -> None:
    """Make a folder for output, with those above it; `ArgumentError` if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(
            f"{folder}: cannot be made a folder ({reason(error)}); give a folder that you may write to"
        ) from None


def default_arch() -> str:
    """The architecture of the current GPU; sm_90a where there is none that bsgen compiles for."""
    try:
        return driver.current_device().arch
    except BsgenError:
        return DEFAULT_ARCH


def _facts(name: str, operation: Operation, compiled: bool) -> dict[str, Any]:
    plan = operation.plan
    return {
        "name": name,
        "bsgen": bsgen.__version__,
        "arch": operation.target.arch,
        "problem": _problem(operation.problem),
        "layout": _layout(operation.problem),
        "plan": {"family": plan.family, "summary": plan.summary},
        "predicted": _prediction(operation),
        "workspace": asdict(plan.workspace),
        "launches": [_launch(launch) for launch in plan.launches],
        **(_compiled(operation) if compiled else {}),
    }


def _problem(problem: Problem) -> dict[str, Any]:
    activation = problem.epilogue.activation
    return {
        "op": str(problem.op),
        "block_size": problem.block_size,
        "dtype": str(problem.dtype),
        "precision": str(problem.precision),
        "bias": problem.epilogue.bias,
        "activation": str(activation) if activation else None,
        "residual": problem.epilogue.residual,
        "gate": problem.gate,
        "axis": problem.axis,
        "result_dtype": str(problem.result_dtype),
        "batch": problem.batch,
        "in_features": problem.in_features,
        "out_features": problem.out_features,
    }


def _layout(problem: Problem) -> dict[str, Any]:
    layout = problem.layout
    return {"digest": layout.digest, "shape": layout.shape, "nnz": layout.nnz, "density": layout.density}


def _prediction(operation: Operation) -> dict[str, Any]:
    cost = operation.plan.cost
    return {
        "seconds": cost.seconds,
        "dense_seconds": dense_seconds(operation.problem, operation.target, cost.n),
        "rows": cost.n,
    }


def _launch(launch: Launch) -> dict[str, Any]:
    """`blocks` thread blocks, in clusters of `cluster`, times ceil(N / rows) where that is not 0; at most what the GPU holds at
    once where `persistent`. Dynamic shared memory in bytes.
    """
    grid = launch.grid
    return {
        "entry": launch.entry,
        "blocks": grid.blocks * grid.cluster,
        "rows": grid.rows,
        "cluster": grid.cluster,
        "persistent": grid.persistent,
        "threads": launch.threads,
        "shared_memory": launch.shared_memory,
        "arguments": launch.arguments,
        "tensor_maps": [{"argument": each.argument, **asdict(each)} for each in launch.maps],
    }


def _compiled(operation: Operation) -> dict[str, Any]:
    binary = operation.binary
    return {
        "compiler": binary.compiler,
        "options": (*FIXED_OPTIONS, *operation.source.options),
        "kernels": [asdict(binary.kernel(launch.entry)) for launch in operation.plan.launches],
        "warnings": binary.warnings,
    }


def _listed(files: dict[str, bytes]) -> list[dict[str, Any]]:
    return [
        {"file": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
    ]
