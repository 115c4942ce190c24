"""What NVRTC and ptxas say about a compilation: facts of each kernel, warnings, and the source lines they mean."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_CONTEXT = 2
_MAX_EXCERPTS = 8

_ENTRY = re.compile(r"Compiling entry function '(\S+)'")
_PROPERTIES = re.compile(r"Function properties for (\S+)")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_BARRIERS = re.compile(r"used (\d+) barriers")
_SHARED = re.compile(r"(\d+) bytes smem")
_WARNING = re.compile(r"\bwarning\b|\(C\d{4,5}\)|\bC7\d{3}\b", re.IGNORECASE)
_TIMING = re.compile(r"^ptxas info\s*:\s*Compile time = ")


@dataclass(frozen=True)
class KernelFacts:
    """What ptxas says of one kernel: registers a thread; spills, stack, shared and constant memory in bytes.

    `spill_stores`, `spill_loads` and `stack` are for each thread, `static_shared` for each thread block; `constant`
    is the `__constant__` data of the whole binary, which all its kernels share.
    """

    name: str
    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    static_shared: int
    barriers: int
    constant: int = 0


def tidy(log: str) -> str:
    """The log without what differs from run to run (compile times), padding and blank ends."""
    lines = [line.rstrip() for line in log.replace("\0", "").splitlines()]
    return "\n".join(line for line in lines if not _TIMING.match(line)).strip()


def warnings(log: str) -> tuple[str, ...]:
    """The lines that warn, among them ptxas's C75xx remarks (serialised wgmma, ignored setmaxnreg)."""
    return tuple(line.strip() for line in log.splitlines() if _WARNING.search(line) and "-diag-suppress" not in line)


def kernel_facts(log: str, constant: int = 0) -> dict[str, KernelFacts]:
    """The facts of every kernel in a log made with `--ptxas-options=-v`, by name."""
    used: dict[str, str] = {}
    frames: dict[str, tuple[int, ...]] = {}
    entry = function = ""
    for line in log.splitlines():
        if match := _ENTRY.search(line):
            entry = match[1]
        elif match := _PROPERTIES.search(line):
            function = match[1]
        elif match := _STACK.search(line):
            frames[function] = tuple(map(int, match.groups()))
        elif _USED.search(line):
            used[entry] = line
    return {name: _facts(name, line, frames.get(name, (0, 0, 0)), constant) for name, line in used.items() if name}


def _facts(name: str, used: str, frame: tuple[int, ...], constant: int) -> KernelFacts:
    stack, stores, loads = frame
    return KernelFacts(
        name=name,
        registers=_number(_USED, used),
        spill_stores=stores,
        spill_loads=loads,
        stack=stack,
        static_shared=_number(_SHARED, used),
        barriers=_number(_BARRIERS, used),
        constant=constant,
    )


def _number(pattern: re.Pattern[str], line: str) -> int:
    match = pattern.search(line)
    return int(match[1]) if match else 0


def excerpts(log: str, file: str, text: str) -> str:
    """The numbered lines of `text` around every line that the log names in `file`; empty if it names none."""
    named = re.compile(rf"{re.escape(file)}\((\d+)\)\s*: (?:catastrophic )?error")
    return _excerpts(named, log, file, text)


def ptx_excerpts(log: str, ptx: str) -> str:
    """The numbered lines of `ptx` around every line that ptxas complains of; empty if there are none."""
    named = re.compile(r"ptx input, line (\d+); (?:error|fatal)")
    return _excerpts(named, log, "PTX", ptx)


def _excerpts(named: re.Pattern[str], log: str, title: str, text: str) -> str:
    lines = text.splitlines()
    marked = sorted({int(number) for number in named.findall(log)} & set(range(1, len(lines) + 1)))
    spans = list(_spans(marked[:_MAX_EXCERPTS], len(lines)))
    blocks = [_numbered(lines, span, marked, len(str(spans[-1][-1]))) for span in spans]
    return "\n".join([f"{title}:", "\n  ...\n".join(blocks)]) if blocks else ""


def _spans(marked: Sequence[int], end: int) -> Iterator[range]:
    """Ranges of line numbers around the marked ones, merged where they touch."""
    start = last = 0
    for line in marked:
        if last and line - _CONTEXT > last + 1:
            yield range(start, last + 1)
            start = 0
        start = start or max(1, line - _CONTEXT)
        last = min(end, line + _CONTEXT)
    if last:
        yield range(start, last + 1)


def _numbered(lines: Sequence[str], span: range, marked: Sequence[int], width: int) -> str:
    return "\n".join(f"{'>' if at in marked else ' '} {at:{width}d} | {lines[at - 1]}".rstrip() for at in span)
