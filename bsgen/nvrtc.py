"""Source -> Binary: compile one translation unit to a cubin with NVRTC, which needs neither a driver nor a GPU.

This is the only module that calls NVRTC. Its bindings are imported by the first compilation, not before: a warm
start finds its binaries on disk and never loads the compiler.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bsgen import elf, libnvrtc, nvrtc_log
from bsgen.errors import CompileError
from bsgen.nvrtc_log import KernelFacts

if TYPE_CHECKING:
    from bsgen.emit import Source

__all__ = ["FIXED_OPTIONS", "Binary", "KernelFacts", "compile", "supported", "version"]

# -default-device lets a translation unit have plain helper functions and tables; -minimal leaves out textures and
# device-side launches, which no kernel here uses; -no-cache, because NVRTC's own cache (12.9 and later, where there is
# a driver) gives cubins back without the log; -v makes ptxas report what `KernelFacts` holds.
FIXED_OPTIONS = ("-std=c++17", "-default-device", "-minimal", "-no-cache", "--ptxas-options=-v")


@dataclass(frozen=True)
class Binary:
    """A compiled source: the cubin for one architecture, facts of each kernel, and what the compiler said."""

    name: str
    arch: str
    compiler: str
    cubin: bytes
    kernels: tuple[KernelFacts, ...]
    log: str

    @property
    def warnings(self) -> tuple[str, ...]:
        """Lines of the log that warn, among them ptxas's remarks on serialised wgmma (C7510 and its kin)."""
        return nvrtc_log.warnings(self.log)

    def kernel(self, entry: str) -> KernelFacts:
        """The facts of one kernel by its entry name; it is one of `Source.entries`."""
        return next(kernel for kernel in self.kernels if kernel.name == entry)


def version() -> str:
    """The exact compiler build, as "nvrtc RELEASE (BUILD ID)", of the library loaded or to be loaded; needs no driver.

    `CompileError`, with the remedy, if NVRTC is not installed.
    """
    return libnvrtc.identity(libnvrtc.path())


def supported() -> tuple[int, ...]:
    """Compute capabilities times ten that the installed NVRTC compiles for; loads it."""
    nvrtc = _bindings()
    return tuple(map(int, _checked(nvrtc, nvrtc.nvrtcGetSupportedArchs())))


def compile(source: Source, arch: str) -> Binary:
    """Compile `source` for an architecture such as "sm_90a".

    `CompileError` shows the compiler's log with numbered source lines, or says how to get an NVRTC that knows `arch`.
    """
    nvrtc = _bindings()
    program = _Program(nvrtc, source.text, f"{source.name}.cu")
    try:
        options = (*FIXED_OPTIONS, f"--gpu-architecture={arch}", *source.options)
        if not program.compile(options):
            raise CompileError(_refusal(program, source, arch, options))
        return _binary(source, arch, program.cubin(), program.log())
    finally:
        program.destroy()


def _bindings() -> Any:
    libnvrtc.load()
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise CompileError(
            f"the bindings of NVRTC cannot be imported ({error}); install them with: "
            f'pip install "cuda-bindings>={libnvrtc.MAJOR},<{libnvrtc.MAJOR + 1}"'
        ) from None
    return nvrtc


def _checked(nvrtc: Any, result: tuple[Any, ...]) -> Any:
    """The value of a call of the bindings, which give (status,) or (status, value)."""
    if result[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CompileError(f"NVRTC failed: {result[0].name}; run `bsgen doctor` to see which library is in use")
    return result[1] if len(result) > 1 else None


class _Program:
    """An nvrtcProgram: the calls that compile() needs, each one line."""

    def __init__(self, nvrtc: Any, text: str, file: str) -> None:
        self._nvrtc = nvrtc
        self._handle = _checked(nvrtc, nvrtc.nvrtcCreateProgram(text.encode(), file.encode(), 0, [], []))

    def compile(self, options: tuple[str, ...]) -> bool:
        encoded = [option.encode() for option in options]
        status = self._nvrtc.nvrtcCompileProgram(self._handle, len(encoded), encoded)[0]
        self.status: str = status.name
        return bool(status == self._nvrtc.nvrtcResult.NVRTC_SUCCESS)

    def cubin(self) -> bytes:
        return self._read("CUBIN")

    def log(self) -> str:
        return nvrtc_log.tidy(self._read("ProgramLog").decode("utf-8", "replace"))

    def ptx(self) -> str:
        """The PTX that ptxas refused; empty if compilation failed before there was any."""
        try:
            return self._read("PTX").decode("utf-8", "replace").rstrip("\0")
        except CompileError:
            return ""

    def destroy(self) -> None:
        self._nvrtc.nvrtcDestroyProgram(self._handle)

    def _read(self, what: str) -> bytes:
        size = _checked(self._nvrtc, getattr(self._nvrtc, f"nvrtcGet{what}Size")(self._handle))
        # The bindings write into the bytes object that they are given.
        data = bytes(size)
        if size:
            _checked(self._nvrtc, getattr(self._nvrtc, f"nvrtcGet{what}")(self._handle, data))
        return data


def _binary(source: Source, arch: str, cubin: bytes, log: str) -> Binary:
    sizes = elf.section_sizes(cubin)
    constant = sum(size for name, size in sizes.items() if name.startswith(".nv.constant3"))
    facts = nvrtc_log.kernel_facts(log, constant)
    missing = [entry for entry in source.entries if entry not in facts]
    if missing:
        raise CompileError(
            f'{source.name}: compiled, but has no kernel {", ".join(missing)}; declare each as extern "C" __global__ '
            f"(found: {', '.join(facts) or 'none'})"
        )
    # The library really loaded, whatever was predicted before.
    compiler = libnvrtc.identity(libnvrtc.load())
    return Binary(source.name, arch, compiler, cubin, tuple(facts[entry] for entry in source.entries), log)


def _refusal(program: _Program, source: Source, arch: str, options: tuple[str, ...]) -> str:
    """Why NVRTC refused, most useful part last, where terminals leave it in sight."""
    log = program.log()
    if program.status == "NVRTC_ERROR_INVALID_OPTION":
        return _bad_option(log, arch, options)
    shown = nvrtc_log.excerpts(log, f"{source.name}.cu", source.text) or nvrtc_log.ptx_excerpts(log, program.ptx())
    head = f"{source.name}.cu does not compile for {arch} ({version()}, {program.status}):"
    return "\n".join(part for part in (head, log, shown) if part)


def _bad_option(log: str, arch: str, options: tuple[str, ...]) -> str:
    known = supported()
    number = arch.removeprefix("sm_").rstrip("af")
    if number.isdigit() and int(number) in known:
        return f"{version()} refuses an option ({log}); passed: {' '.join(options)}"
    return (
        f"{version()} does not know {arch}, it compiles for {', '.join(f'sm_{cc}' for cc in known)}; if {arch} is "
        f"newer, upgrade it with: pip install --upgrade nvidia-cuda-nvrtc"
    )
