"""The runtime with real libraries: kinds of arrays, streams, graphs, threads, processes, devices, errors, host time."""

from __future__ import annotations

import os
import pickle
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from cases import Case, assert_close, compile_case, normal, poison, torch

import bsgen
from bsgen.runtime import driver

CASE = Case("random10", 32, "float16")
N = 200


@pytest.fixture(scope="module")
def mm() -> bsgen.MatMul:
    return compile_case(CASE)


@pytest.fixture(scope="module")
def operands(mm: bsgen.MatMul) -> dict[str, Any]:
    x, dy = (normal(N, f, dtype="float16", seed=s) for s, f in enumerate((mm.in_features, mm.out_features)))
    w = normal(*mm.weight_shape, dtype="float16", seed=2)
    return {"x": x, "dy": dy, "w": w, "y": mm(x, w), "dx": mm.dgrad(dy, w), "dw": mm.wgrad(x, dy)}


class Interface:
    """An array that has `__cuda_array_interface__` alone."""

    def __init__(self, tensor: Any, stream: int | None = None) -> None:
        self.tensor = tensor
        self.__cuda_array_interface__ = {**tensor.__cuda_array_interface__, "version": 3, "stream": stream}


class Producer:
    """An array that has DLPack alone, before version 1."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    def __dlpack_device__(self) -> Any:
        return self.tensor.__dlpack_device__()

    def __dlpack__(self, stream: int | None = None) -> Any:
        return self.tensor.__dlpack__(stream=stream)


def _through(mm: bsgen.MatMul, operands: dict[str, Any], convert: Any, back: Any) -> list[Any]:
    x, dy, w = (convert(operands[name]) for name in ("x", "dy", "w"))
    results = mm(x, w), mm.dgrad(dy, w), mm.wgrad(x, dy)
    for name, result in zip(("y", "dx", "dw"), results, strict=True):
        assert torch.equal(back(result), operands[name]), name
    return list(results)


def test_cupy(mm: bsgen.MatMul, operands: dict[str, Any]) -> None:
    cupy = pytest.importorskip("cupy")
    results = _through(mm, operands, cupy.from_dlpack, torch.from_dlpack)
    assert all(isinstance(result, cupy.ndarray) for result in results)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        w = mm.from_dense(mm.to_dense(cupy.from_dlpack(operands["w"])))
        y = mm(cupy.from_dlpack(operands["x"]), w)
        stream.synchronize()
    assert torch.equal(torch.from_dlpack(y), operands["y"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_jax(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax = pytest.importorskip("jax")
    if jax.default_backend() != "gpu":
        pytest.skip("JAX finds no GPU")
    mm = compile_case(Case("random10", 32, dtype))
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (N, mm.in_features), mm.weight_shape, (N, mm.out_features)
    x, w, dy = (jax.random.normal(k, s).astype(dtype) for k, s in zip(keys, shapes, strict=True))
    dense = torch.from_dlpack(mm.to_dense(w)).double()
    tx, ty = torch.from_dlpack(x).double(), torch.from_dlpack(dy).double()
    y, dx, dw = mm(x, w), mm.dgrad(dy, w), mm.wgrad(x, dy)
    assert all(isinstance(a, jax.Array) and a.dtype == x.dtype for a in (y, dx, dw))
    assert_close(torch.from_dlpack(y), tx @ dense, 5e-3)
    assert_close(torch.from_dlpack(dx), ty @ dense.T, 5e-3)
    assert bool((mm.from_dense(mm.to_dense(w)) == w).all())
    assert bool(jax.numpy.isfinite(dw.astype("float32")).all())
    with pytest.raises(bsgen.ArgumentError, match=r"outside jax\.jit"):
        jax.jit(mm)(x, w)
    with pytest.raises(bsgen.ArgumentError, match="immutable"):
        mm(x, w, out=y)


def test_numba(mm: bsgen.MatMul, operands: dict[str, Any]) -> None:
    cuda = pytest.importorskip("numba.cuda")
    results = _through(mm, operands, cuda.as_cuda_array, lambda a: torch.as_tensor(a, device="cuda"))
    assert all(cuda.is_cuda_array(result) for result in results)


@pytest.mark.parametrize("stream", [None, 1])
def test_cuda_array_interface(mm: bsgen.MatMul, operands: dict[str, Any], stream: int | None) -> None:
    _through(mm, operands, lambda t: Interface(t, stream), torch.from_dlpack)
    _through(mm, operands, lambda t: Interface(t, stream), lambda a: torch.as_tensor(a, device="cuda"))


def test_cuda_array_interface_waits_for_its_stream(mm: bsgen.MatMul, operands: dict[str, Any]) -> None:
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        x = operands["x"] + 0
    y = mm(Interface(x, side.cuda_stream), Interface(operands["w"]), stream=torch.cuda.Stream())
    assert torch.equal(torch.from_dlpack(y), operands["y"])


def test_dlpack(mm: bsgen.MatMul, operands: dict[str, Any]) -> None:
    results = _through(mm, operands, Producer, torch.from_dlpack)
    assert results[0].__dlpack_device__() == (2, 0)
    again = mm(Producer(operands["x"]), Producer(operands["w"]))
    assert torch.equal(
        torch.from_dlpack(mm.dgrad(again, Producer(operands["w"]))), mm.dgrad(operands["y"], operands["w"])
    )
    torch.cuda.synchronize()


def test_explicit_streams(mm: bsgen.MatMul, operands: dict[str, Any]) -> None:
    stream = torch.cuda.Stream()
    for handle in (stream, stream.cuda_stream):
        stream.wait_stream(torch.cuda.current_stream())
        y = mm(operands["x"], operands["w"], stream=handle)
        stream.synchronize()
        assert torch.equal(y, operands["y"])


def test_follows_the_current_stream(mm: bsgen.MatMul, operands: dict[str, Any]) -> None:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        x = operands["x"] * 1
        y = mm(x, operands["w"])
    side.synchronize()
    assert torch.equal(y, operands["y"])


def test_cuda_graph(mm: bsgen.MatMul, operands: dict[str, Any]) -> None:
    fresh = compile_case(CASE)
    fresh.warmup()
    x, w, dy = (torch.zeros_like(operands[name]) for name in ("x", "w", "dy"))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, dx, dw = fresh(x, w), fresh.dgrad(dy, w), fresh.wgrad(x, dy)
    for name, tensor in (("x", x), ("w", w), ("dy", dy)):
        tensor.copy_(operands[name])
    for result in (y, dx, dw):
        result.fill_(float("nan"))
    graph.replay()
    assert torch.equal(y, operands["y"])
    assert torch.equal(dx, operands["dx"])
    assert torch.equal(dw, operands["dw"])


def test_capture_before_warmup_is_refused(operands: dict[str, Any]) -> None:
    fresh = compile_case(CASE)
    stream = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        graph.capture_begin()
        out = torch.empty_like(operands["y"])
        with pytest.raises(bsgen.DriverError, match="warmup"):
            fresh(operands["x"], operands["w"], out=out)
        graph.capture_end()


def test_threads(mm: bsgen.MatMul, operands: dict[str, Any]) -> None:
    fresh = compile_case(CASE)
    scales = [2.0**-i for i in range(8)]

    def work(scale: float) -> bool:
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
            x = operands["x"] * scale
            results = [fresh(x, operands["w"]) for _ in range(50)]
            expected = mm(x, operands["w"])
            return all(torch.equal(result, expected) for result in results)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, scales))


def test_a_thread_with_no_context(mm: bsgen.MatMul, operands: dict[str, Any]) -> None:
    mm(operands["x"], operands["w"])
    with ThreadPoolExecutor(1) as pool:
        y = pool.submit(lambda: mm(operands["x"], operands["w"])).result()
    assert torch.equal(y, operands["y"])


def test_another_context_is_current(mm: bsgen.MatMul, operands: dict[str, Any]) -> None:
    mm(operands["x"], operands["w"])
    driver.call("cuCtxCreate", None, 0, 0)
    try:
        y = mm(operands["x"], operands["w"])
    finally:
        driver.call("cuCtxDestroy", driver.call("cuCtxGetCurrent"))
    torch.cuda.synchronize()
    assert torch.equal(y, operands["y"])


def test_the_same_addresses_with_new_values(mm: bsgen.MatMul, operands: dict[str, Any]) -> None:
    x, w = operands["x"].clone(), operands["w"].clone()
    for _ in range(3):
        x.copy_(torch.randn_like(x))
        w.copy_(torch.randn_like(w))
        assert torch.equal(mm(x, w), mm(x.clone(), w.clone()))


def test_pickle(mm: bsgen.MatMul, operands: dict[str, Any]) -> None:
    again = pickle.loads(pickle.dumps(mm))
    assert torch.equal(again(operands["x"], operands["w"]), operands["y"])


FORK = """
import multiprocessing
from bsgen.runtime import driver
def child(queue):
    try:
        driver.devices()
        queue.put("used it")
    except Exception as error:
        queue.put(f"{type(error).__name__}: {error}")
if __name__ == "__main__":
    driver.devices(), driver.primary_context(0)
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        process = context.Process(target=child, args=(queue,))
        process.start()
        print(method, queue.get(timeout=120), flush=True)
        process.join()
"""


def test_fork(tmp_path: Any) -> None:
    script = tmp_path / "fork_and_spawn.py"
    script.write_text(FORK)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    forked, spawned = done.stdout.splitlines()
    assert forked.startswith("fork DriverError")
    assert "spawn" in forked
    assert spawned == "spawn used it"


def test_another_device(mm: bsgen.MatMul, operands: dict[str, Any]) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    x, w, dy = (operands[name].to("cuda:1") for name in ("x", "w", "dy"))
    assert torch.cuda.current_device() == 0
    y, dw = mm(x, w), mm.wgrad(x, dy)
    assert y.device == x.device
    assert torch.equal(y.cpu(), operands["y"].cpu())
    assert torch.equal(dw.cpu(), operands["dw"].cpu())
    assert torch.cuda.current_device() == 0
    with pytest.raises(bsgen.ArgumentError, match="w: is on GPU 0, x on GPU 1"):
        mm(x, operands["w"])


def _bad_calls(mm: bsgen.MatMul, t: dict[str, Any]) -> list[tuple[str, Any]]:
    x, w, dy = t["x"], t["w"], t["dy"]
    wide = torch.zeros(N, 2 * mm.in_features, dtype=x.dtype, device="cuda")
    shifted = torch.zeros(x.numel() + 1, dtype=x.dtype, device="cuda")[1:].view_as(x)
    return [
        ("x: got shape", lambda out: mm(x[:, :-1], w, out=out)),
        ("x: got float32", lambda out: mm(x.float(), w, out=out)),
        ("another layout", lambda out: mm(x, w[:-1], out=out)),
        ("x: got a PyTorch array on the CPU", lambda out: mm(x.cpu(), w.cpu(), out=None)),
        ("w: is on the CPU", lambda out: mm(x, w.cpu(), out=out)),
        ("w: is on the CPU", lambda out: mm(x, w.cpu().numpy(), out=out)),
        ("x: is not contiguous", lambda out: mm(wide[:, : mm.in_features], w, out=out)),
        ("multiple of 16", lambda out: mm(shifted, w, out=out)),
        ("out: got shape", lambda out: mm(x[:3], w, out=out)),
        ("out: got float32", lambda out: mm.wgrad(x, dy, out=torch.zeros(mm.weight_shape, device="cuda"))),
        ("out: shares memory with dy", lambda out: mm.dgrad(out, w, out=out)),
        ("accumulate: got True without out", lambda out: mm.wgrad(x, dy, accumulate=True)),
        ("bias: got an array", lambda out: mm(x, w, bias=dy[0], out=out)),
        ("stream: got str", lambda out: mm(x, w, stream="s", out=out)),
        ("x: got list", lambda out: mm([1.0], w, out=out)),
    ]


def test_errors_launch_nothing(operands: dict[str, Any]) -> None:
    mask = np.eye(8, dtype=bool)
    mm = bsgen.compile(mask, 32, "float16")
    t = {
        "x": normal(N, 256, dtype="float16"),
        "dy": normal(N, 256, dtype="float16"),
        "w": normal(8, 32, 32, dtype="float16"),
    }
    out = poison(N, 256, dtype="float16")
    for text, call in _bad_calls(mm, t):
        with pytest.raises(bsgen.ArgumentError, match=text):
            call(out)
    torch.cuda.synchronize()
    assert bool(out.isnan().all())


def test_wrong_arch(operands: dict[str, Any]) -> None:
    own = driver.current_device().arch
    other = "sm_80" if own != "sm_80" else "sm_90a"
    mm = bsgen.compile(np.eye(2), 32, "float16", arch=other)
    x, w = normal(4, 64, dtype="float16"), normal(2, 32, 32, dtype="float16")
    with pytest.raises(bsgen.ArgumentError, match=f'arch="{own}"'):
        mm(x, w)
    with pytest.raises(bsgen.ArgumentError, match=f'arch="{own}"'):
        mm.warmup()


def test_devices() -> None:
    device = driver.current_device()
    assert device == driver.devices()[device.ordinal]
    assert device.sms == torch.cuda.get_device_properties(device.ordinal).multi_processor_count
    assert driver.driver_version() >= 13000
    with pytest.raises(bsgen.DriverError, match="CUDA_ERROR_INVALID_VALUE"):
        driver.call("cuMemAlloc", 0)


def test_gradients_flow_through_conversion(mm: bsgen.MatMul) -> None:
    dense = torch.randn(mm.in_features, mm.out_features, device="cuda", requires_grad=True)
    mm.to_dense(mm.from_dense(dense)).float().sum().backward()
    assert float(dense.grad.sum()) == mm.nnz * mm.block_size**2


def _enqueue_time(function: Any, calls: int = 200) -> float:
    times = []
    for _ in range(30):
        torch.cuda.synchronize()
        start = time.perf_counter_ns()
        for _ in range(calls):
            function()
        times.append((time.perf_counter_ns() - start) / calls / 1000)
    return statistics.median(times)


def test_host_time(mm: bsgen.MatMul, operands: dict[str, Any]) -> None:
    """Time to enqueue one call, median over batches of calls: at most 10 microseconds.

    On one CPU, since moving between them costs as much again. Where the machine is so slow that PyTorch's own x + x
    takes half of that time, twice x + x.
    """
    x, w = operands["x"][:16].contiguous(), operands["w"]
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cpus)})
    try:
        add, call = _enqueue_time(lambda: x + x), _enqueue_time(lambda: mm(x, w))
    finally:
        os.sched_setaffinity(0, cpus)
    print(f"host time of a call: {call:.2f} us (x + x: {add:.2f} us)")
    assert call <= max(10.0, 2 * add)
