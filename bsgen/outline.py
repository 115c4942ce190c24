"""How kernels of a plan are launched, as data: grids as functions of N, arguments in order, shared memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Made = TypeVar("Made", bound="DataclassInstance")


@dataclass(frozen=True)
class Grid:
    """A linear grid: `blocks` clusters of `cluster` thread blocks, times ceil(N / rows) when `rows` is not 0.

    A persistent grid has at most as many thread blocks as the GPU has multiprocessors.
    """

    blocks: int
    rows: int = 0
    persistent: bool = False
    cluster: int = 1

    def size(self, n: int, sms: int) -> int:
        """Thread blocks for N = `n` on a GPU of `sms` multiprocessors; 0 means there is nothing to launch."""
        clusters = self.blocks * (-(-n // self.rows) if self.rows else 1)
        return self.cluster * (min(clusters, sms // self.cluster) if self.persistent else clusters)


@dataclass(frozen=True)
class TensorMap:
    """How TMA reads an operand: a matrix of `rows` times `columns` (0 of either: N), in boxes; a row of a box is one swizzle line.

    Encoded for each call by cuTensorMapEncodeTiled; the kernel takes it as the argument `<name>_map`, of an operand that it sees in
    one way alone `<operand>_map`. Elements of float32 are rounded to TF32 on the way. What L2 does not have is fetched from device
    memory by `fetched` bytes, 64 or 128.
    """

    operand: str
    columns: int
    rows: int
    box_columns: int
    box_rows: int
    dtype: str
    name: str = ""
    fetched: int = 128

    @property
    def argument(self) -> str:
        """The kernel's name for it."""
        return f"{self.name or self.operand}_map"


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    `arguments` names the kernel's parameters in order. Pointers: x, dy, w, out, bias, residual, gate, dgate (written),
    workspace; 32-bit integers: n (rows of x, or its columns where features come first), accumulate (wgrad: 1 adds into out and
    dgate). dgrad's activations are called dy, wgrad has x and dy, and with gates w and dgate, which may be null together.
    `maps` are those of its arguments that are tensor maps. Where weights have gates, their product begins the workspace, and
    the kernel takes that for w. A `dependent` kernel waits by itself for the one ahead in its stream, so that it may be set up
    before that has ended (CUDA: programmatic dependent launch).
    """

    entry: str
    grid: Grid
    threads: int
    shared_memory: int
    arguments: tuple[str, ...]
    maps: tuple[TensorMap, ...] = ()
    dependent: bool = False


@dataclass(frozen=True)
class Workspace:
    """Scratch float32 elements that the launches of one call share: `fixed` and `per_row` for each of the N rows."""

    fixed: int = 0
    per_row: int = 0

    def elements(self, n: int) -> int:
        """float32 elements for N = `n`; 0 means no workspace is needed."""
        return self.fixed + self.per_row * n


@dataclass(frozen=True)
class Outline:
    """What running a plan's kernels takes, and what reports say of it; all that a warm start needs of a plan."""

    family: str
    summary: str
    launches: tuple[Launch, ...]
    workspace: Workspace
    seconds: float
    n: int

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Outline:
        """The outline that `dataclasses.asdict` gave `values` of."""
        launches = tuple(_launch(launch) for launch in values["launches"])
        return known(cls, {**values, "launches": launches, "workspace": known(Workspace, values["workspace"])})


def _launch(values: dict[str, Any]) -> Launch:
    maps = tuple(known(TensorMap, each) for each in values["maps"])
    made = {"grid": known(Grid, values["grid"]), "arguments": tuple(values["arguments"]), "maps": maps}
    return known(Launch, {**values, **made})


def known(kind: type[Made], values: Mapping[str, Any]) -> Made:
    """A dataclass from the fields that it has; those that a later bsgen added are ignored."""
    return kind(**{each.name: values[each.name] for each in fields(kind) if each.name in values})
