"""What `bsgen doctor` finds out: what is installed, which GPUs there are, and what will work because of it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

import bsgen
from bsgen import cache_place, disasm, libnvrtc, nvrtc, store
from bsgen.emit import Source
from bsgen.errors import BsgenError
from bsgen.problem import TARGETS

REQUIRED = ("numpy", "ml_dtypes", "networkx", "jinja2", "click", "rich", "cuda-bindings", "cuda-core")
COMPILER = ("cuda-pathfinder", "nvidia-cuda-nvrtc", disasm.WHEEL)
FRAMEWORKS = ("torch", "jax", "cupy", "cupy-cuda13x", "cupy-cuda12x", "numba-cuda", "cryptography", "nvtx")

_PROBE = Source("probe", 'extern "C" __global__ void probe(int* x) { *x = 1; }\n', ("probe",))


@dataclass(frozen=True)
class Gpu:
    """A GPU: `arch` is None, and `problem` says why, where bsgen has no kernels for it. `memory` in bytes."""

    ordinal: int
    name: str
    arch: str | None
    memory: int
    sms: int
    problem: str | None = None


@dataclass(frozen=True)
class Driver:
    """The CUDA driver: the CUDA version it supports, its GPUs, and why none can be used."""

    version: str | None
    gpus: tuple[Gpu, ...]
    problem: str | None


@dataclass(frozen=True)
class Cache:
    """The disk cache: its place (None if it has none), and its state."""

    path: str | None
    enabled: bool
    writable: bool
    entries: int
    bytes: int


@dataclass(frozen=True)
class Pack:
    """A pack that `bsgen.compile` looks into: how many modules and kernels it has, for what, and why it cannot be used."""

    path: str
    modules: int
    kernels: int
    arches: tuple[str, ...]
    problem: str | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether something works here, and why or why not with the remedy."""

    what: str
    works: bool
    why: str


@dataclass(frozen=True)
class Diagnosis:
    """Everything that doctor shows."""

    packages: dict[str, str | None]
    nvrtc: str | None
    nvrtc_file: str | None
    nvdisasm: str | None
    driver: Driver
    cache: Cache
    settings: dict[str, str]
    packs: tuple[Pack, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def healthy(self) -> bool:
        """Whether the main job works: to compile kernels, and to run them at least on the CPU."""
        return all(verdict.works for verdict in self.verdicts if verdict.what in (COMPILE, RUN_CPU))


COMPILE = "compile kernels"
RUN_CPU = "run on the CPU"
RUN_GPU = "run on a GPU"
REMEMBER = "keep binaries on disk"
DISASSEMBLE = "disassemble kernels"
SIGN = "sign packs, check signatures"
PACKS = "find kernels in packs"


def examine() -> Diagnosis:
    """Look at this machine and Python environment; raises nothing."""
    driver, cache, packs = _driver(), _cache(), tuple(_packs())
    found, file = _nvrtc()
    tool = disasm.find()
    verdicts = (
        _can_compile(), _can_run_cpu(), _can_run_gpu(driver), _can_remember(cache), _can_disassemble(), _can_sign(),
        *([_can_find(packs)] if packs else []),
    )  # fmt: skip
    settings = {name: value for name, value in sorted(os.environ.items()) if name.startswith("BSGEN_")}
    return Diagnosis(
        dict(_packages()), found, file, str(tool) if tool else None, driver, cache, settings, packs, verdicts
    )


def _packages() -> Iterator[tuple[str, str | None]]:
    yield "python", platform.python_version()
    yield "bsgen", bsgen.__version__
    for name in (*REQUIRED, *COMPILER):
        yield name, _installed(name)
    for name in FRAMEWORKS:
        # Nobody needs every framework, so only those that are there are worth a line.
        if version := _installed(name):
            yield name, version


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _nvrtc() -> tuple[str | None, str | None]:
    try:
        return nvrtc.version(), str(libnvrtc.path())
    except BsgenError:
        return None, None


def _driver() -> Driver:
    try:
        driver = import_module("bsgen.runtime.driver")
        number = driver.driver_version()
        version = f"{number // 1000}.{number % 1000 // 10}" if isinstance(number, int) else number
        problem = driver.why_unavailable()
        return Driver(version, () if problem else tuple(map(_gpu, driver.devices())), problem)
    # A broken driver or package must not keep doctor from telling about the rest.
    except Exception as error:
        return Driver(None, (), f"the CUDA driver cannot be asked ({error}); reinstall cuda-bindings or the driver")


def _gpu(device: object) -> Gpu:
    arch = problem = None
    try:
        arch = getattr(device, "arch", None)
    except BsgenError as error:
        problem = str(error)
    ordinal, name, memory, sms = (getattr(device, field) for field in ("ordinal", "name", "memory", "sms"))
    return Gpu(ordinal, name, arch, memory, sms, problem)


def _cache() -> Cache:
    roots = cache_place.roots()
    root = roots[-1] if roots else None
    if root is None:
        return Cache(None, not cache_place.disabled(), False, 0, 0)
    place = store.Store(root)
    try:
        entries = place.entries()
    except BsgenError:
        entries = ()
    return Cache(
        str(root), not cache_place.disabled(), place.writable(), len(entries), sum(entry.size for entry in entries)
    )


def _packs() -> Iterator[Pack]:
    from bsgen.packs import search

    for path in dict.fromkeys((os.environ.get("BSGEN_PACK_PATH", ""), "")):
        for file, pack in search.look(path):
            if isinstance(pack, str):
                yield Pack(str(file), 0, 0, (), pack)
            else:
                arches = sorted({kernel.arch for kernel in pack.index.kernels})
                yield Pack(str(file), len(pack), len(pack.index.kernels), tuple(arches))


def _can_compile() -> Verdict:
    try:
        nvrtc.compile(_PROBE, "sm_80")
        known = nvrtc.supported()
    except BsgenError as error:
        return Verdict(COMPILE, False, str(error))
    unknown = [arch for arch, target in TARGETS.items() if target.capability not in known]
    if unknown:
        remedy = "for these: pip install --upgrade nvidia-cuda-nvrtc"
        return Verdict(COMPILE, True, f"a test kernel compiles; but not for {', '.join(unknown)}; {remedy}")
    return Verdict(COMPILE, True, f"a test kernel compiles; for {', '.join(TARGETS)}")


def _can_run_cpu() -> Verdict:
    try:
        import_module("bsgen.reference")
    except ImportError as error:
        return Verdict(RUN_CPU, False, f"{error}; reinstall with: pip install --force-reinstall bsgen")
    return Verdict(RUN_CPU, True, "NumPy arrays run a kernel's plan on the CPU, slowly: to check, not to train")


def _can_run_gpu(driver: Driver) -> Verdict:
    usable = [gpu for gpu in driver.gpus if gpu.arch]
    if usable:
        return Verdict(RUN_GPU, True, "; ".join(f"{gpu.ordinal}: {gpu.name} ({gpu.arch})" for gpu in usable))
    problems = [gpu.problem for gpu in driver.gpus if gpu.problem]
    return Verdict(RUN_GPU, False, driver.problem or "; ".join(problems) or "no GPU was found; look at nvidia-smi")


def _can_remember(cache: Cache) -> Verdict:
    if not cache.enabled:
        return Verdict(REMEMBER, False, "BSGEN_DISABLE_CACHE is set: every process compiles anew; unset it")
    if cache.path is None:
        return Verdict(REMEMBER, False, "there is no home folder; set BSGEN_CACHE_DIR to a folder you may write to")
    if not cache.writable:
        return Verdict(
            REMEMBER, False, f"{cache.path} cannot be written; set BSGEN_CACHE_DIR to a folder you may write to"
        )
    reason = cache_place.why_untrusted(Path(cache.path))
    if reason:
        return Verdict(
            REMEMBER, False, f"{cache.path} is not used: {reason}; or set BSGEN_CACHE_DIR to a folder of your own"
        )
    return Verdict(REMEMBER, True, f"in {cache.path}")


def _can_disassemble() -> Verdict:
    problem = disasm.why_unavailable()
    return Verdict(DISASSEMBLE, problem is None, problem or "nvdisasm is installed")


def _can_sign() -> Verdict:
    if _installed("cryptography"):
        return Verdict(SIGN, True, "cryptography is installed")
    return Verdict(SIGN, False, "cryptography is not installed; get it with: pip install 'bsgen[sign]'")


def _can_find(packs: tuple[Pack, ...]) -> Verdict:
    problems = [pack.problem for pack in packs if pack.problem]
    found = f"{sum(pack.kernels for pack in packs)} kernels in {len(packs) - len(problems)} packs"
    return Verdict(PACKS, not problems, "; ".join([*problems, found]))
