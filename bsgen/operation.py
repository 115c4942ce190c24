"""`Operation`: one op of a layout, planned, compiled and callable."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bsgen import ranges
from bsgen.compiled import Compiled, compiled, planned
from bsgen.emit import Source, render
from bsgen.errors import ArgumentError
from bsgen.nvrtc import Binary
from bsgen.operands import contract_of
from bsgen.outline import Outline
from bsgen.problem import Problem, Target
from bsgen.runtime import annotate, context
from bsgen.runtime.arrays import CPU, Framework, View, framework_of, stream_handle
from bsgen.runtime.express import Express
from bsgen.runtime.host_arrays import NumPy
from bsgen.runtime.launch import Kernels
from bsgen.runtime.torch_arrays import Torch

if TYPE_CHECKING:
    from bsgen.plan import Plan


class _Call(NamedTuple):
    """The arrays of one call, looked at and found good."""

    arrays: Mapping[str, Any]
    frameworks: Mapping[str, Framework]
    views: Mapping[str, View]
    leading: str
    n: int
    shapes: Mapping[str, tuple[int, ...]]  # of the results

    @property
    def first(self) -> Any:
        """The activations; results are of their kind."""
        return self.arrays[self.leading]

    @property
    def primary(self) -> Framework:
        """The framework of the activations."""
        return self.frameworks[self.leading]

    @property
    def device(self) -> int:
        """Where all arrays are."""
        return self.views[self.leading].device

    @property
    def empty(self) -> bool:
        """Whether there is no result to compute."""
        return not self.n or 0 in self.shapes["out"]

    def arrive(self, stream: int) -> None:
        """Make the stream wait for arrays of other libraries, and of those that have streams of their own."""
        primary = self.primary
        for name, framework in self.frameworks.items():
            if framework is not primary or not framework.ordered:
                framework.arrive(self.arrays[name], self.device, stream)


class Variant:
    """Plan -> Source -> Binary -> Kernels of one problem, each made when first asked for; or those that `load` gets."""

    def __init__(self, problem: Problem, target: Target, load: Callable[[], Compiled] | None = None) -> None:
        self.problem, self.target, self._load = problem, target, load

    @cached_property
    def plan(self) -> Plan:
        """How it is done; made only when asked for, a warm start needs no more than its outline."""
        return planned(self.problem, self.target)

    @cached_property
    def _compiled(self) -> Compiled:
        return self._load() if self._load else compiled(self.problem, self.target, self.__dict__.get("plan"))

    @property
    def outline(self) -> Outline:
        """The launches, the workspace and the predicted time."""
        return self._compiled.outline

    @property
    def source(self) -> Source:
        """The CUDA text; does not compile it."""
        made = self.__dict__.get("_compiled")
        return made.source if made and made.source else render(self.plan)

    @property
    def binary(self) -> Binary:
        """The cubin and its facts; compiled, or found in the disk cache."""
        return self._compiled.binary

    @cached_property
    def kernels(self) -> Kernels:
        """What launches the binary."""
        return annotate.kernels(self.binary, self.outline.launches, self.outline.workspace)


class Operation(Variant):
    """One op of a layout. It is the variant for the problem's own hint of N; those for other ranges of N are made when a call
    first needs them. `packed` is how to get kernels that exist, by range of N: then no others are made.
    """

    def __init__(
        self, problem: Problem, target: Target, packed: Mapping[int, Callable[[], Compiled]] | None = None
    ) -> None:
        self._packed, main = packed, ranges.main(problem)
        if packed:
            found = ranges.nearest(packed, main)
            main = min(packed) if found is None else found
        super().__init__(problem, target, packed[main] if packed else None)
        self.contract = contract_of(problem)
        self._express: Express | None = None
        self._variants: dict[int, Variant] = {main: self}

    def variant(self, n: int) -> Variant:
        """What runs a call of N = `n` rows: of kernels for all N, those for about as many."""
        unit = self.problem.row_unit
        index = ranges.place(n, unit)
        if self._packed:
            nearest = ranges.nearest(self._packed, index)
            if nearest is None:
                raise ArgumentError(
                    f"{self.contract.leading}: got N = {n}, but the pack has kernels for multiples of {unit} alone: "
                    f"pad N, or build the pack again"
                )
            index = nearest
        found = self._variants.get(index)
        if found is None:  # of two threads that come here at once, both get the first one's
            load = self._packed[index] if self._packed else None
            found = self._variants.setdefault(index, Variant(ranges.member(self.problem, index), self.target, load))
        return found

    def __call__(self, arrays: Mapping[str, Any], out: Any = None, accumulate: bool = False, stream: Any = None) -> Any:
        """Check, then run where the arrays are: the result, which is `out` if given."""
        if self._express is not None and out is None and stream is None and not accumulate:
            result = self._express(arrays)
            if result is not None:
                return result
        return self.run(arrays, {"out": out}, accumulate, stream)["out"]

    def run(
        self, arrays: Mapping[str, Any], outs: Mapping[str, Any], accumulate: bool = False, stream: Any = None
    ) -> dict[str, Any]:
        """Check, then run where the arrays are: the results that `outs` names, which are the arrays there that are not None."""
        call = self._look(arrays, outs)
        views = dict(call.views)
        for name, out in outs.items():
            if out is not None:
                views[name] = self._check_out(name, out, call, views)
            elif accumulate:
                raise ArgumentError(f"accumulate: got True without {name}, expected the array to add into: pass {name}")
        if call.device == CPU:
            return self._run_on_cpu(call, outs, accumulate, stream)
        return self._run_on_gpu(call, outs, accumulate, stream)

    def prepare(self) -> None:
        """Compile now rather than at the first call on a GPU."""
        _ = self.kernels

    @property
    def rows(self) -> tuple[int, ...]:
        """A number of rows of each range that there is a variant for."""
        return tuple(
            ranges.member(self.problem, index).batch or ranges.DEFAULT_ROWS for index in sorted(self._variants)
        )

    def load(self, device: int, rows: Iterable[int]) -> None:
        """Compile and load the kernels for calls of so many rows onto a GPU, so that no such call has to."""
        variants = {id(variant): variant for variant in map(self.variant, rows)}.values()
        with ThreadPoolExecutor(max(1, len(variants))) as pool:
            for kernels in pool.map(lambda variant: variant.kernels, variants):
                kernels.load(device)

    def _look(self, arrays: Mapping[str, Any], results: Iterable[str]) -> _Call:
        frameworks = {name: framework_of(array, name) for name, array in arrays.items()}
        views = {name: frameworks[name].view(array, name) for name, array in arrays.items()}
        lead = self.contract.check(views)
        leading = self.contract.leading
        return _Call(arrays, frameworks, views, leading, math.prod(lead), self.contract.results(results, lead))

    def _check_out(self, name: str, out: Any, call: _Call, views: Mapping[str, View]) -> View:
        primary, framework = call.primary, framework_of(out, name)
        if not primary.mutable:
            raise ArgumentError(
                f"{name}: {primary.name} arrays are immutable: leave {name} and accumulate, use the result"
            )
        if framework is not primary:
            raise ArgumentError(
                f"{name}: got an array of {framework.name}, expected one of {primary.name}, as the inputs"
            )
        view = framework.view(out, name)
        self.contract.check_out(view, views, call.shapes[name], name)
        if not framework.writable(out):
            raise ArgumentError(f"{name}: is read-only: pass an array that may be written")
        return view

    def _run_on_cpu(self, call: _Call, outs: Mapping[str, Any], accumulate: bool, stream: Any) -> dict[str, Any]:
        for name, framework in call.frameworks.items():
            if not isinstance(framework, NumPy):
                raise ArgumentError(
                    f"{name}: got a {framework.name} array on the CPU, expected one on a GPU: move it there, "
                    "or pass NumPy arrays to run on the CPU"
                )
        if stream is not None:
            raise ArgumentError("stream: NumPy arrays run on the CPU, where there are no streams: leave it None")
        results = self._reference(call)
        for name, out in outs.items():
            if out is not None:
                result = results[name]
                out[...] = (
                    (out.astype(np.float32) + result.astype(np.float32)).astype(out.dtype) if accumulate else result
                )
                results[name] = out
        return results

    def _reference(self, call: _Call) -> dict[str, Any]:
        if call.empty:
            return {name: np.zeros(shape, self.contract.type_of(name).numpy) for name, shape in call.shapes.items()}
        from bsgen import reference

        rows, shape = self.contract.rows, self.contract.shape
        flat = {
            name: array.reshape(shape((call.n,), rows[name])) if name in rows else array
            for name, array in call.arrays.items()
        }
        found = reference.results(self.plan, flat)
        return {name: found[name].reshape(shape) for name, shape in call.shapes.items()}

    def _run_on_gpu(self, call: _Call, outs: Mapping[str, Any], accumulate: bool, stream: Any) -> dict[str, Any]:
        primary, device = call.primary, call.device
        handle = primary.stream(call.first, device) if stream is None else stream_handle(stream)
        call.arrive(handle)
        results = dict(outs)
        for name, shape in call.shapes.items():
            if results[name] is None:
                results[name] = primary.empty(shape, self.contract.type_of(name).value, device, handle)
            if not primary.ordered:
                primary.arrive(results[name], device, handle)
        pointers = {name: primary.pointer(result) for name, result in results.items()}
        self._enqueue(call, pointers, int(accumulate), handle)
        if stream is not None:
            primary.lent([*call.arrays.values(), *results.values()], device, handle)
        primary.finished(device, handle)
        if self._express is None and isinstance(primary, Torch) and 0 not in call.shapes["out"]:
            self._express = Express(self.contract, lambda n: self.variant(n).kernels, primary)
        return results

    def _enqueue(self, call: _Call, results: Mapping[str, int], accumulate: int, stream: int) -> None:
        if call.empty:
            if not accumulate:
                for name, shape in call.shapes.items():
                    size = math.prod(shape) * self.contract.type_of(name).itemsize
                    context.clear(call.device, results[name], size, stream)
            return
        operands = dict.fromkeys(self.contract.optional, 0)
        operands.update((name, view.pointer) for name, view in call.views.items())
        operands.update(results)
        operands["n"], operands["accumulate"] = call.n, accumulate
        # A name of its own keeps the workspace until everything that uses it is enqueued.
        workspace = None
        kernels = self.variant(call.n).kernels
        elements = kernels.workspace.elements(call.n)
        if elements:
            workspace = call.primary.empty((elements,), "float32", call.device, stream)
            operands["workspace"] = call.primary.pointer(workspace)
        kernels(call.device, stream, operands)
        del workspace
