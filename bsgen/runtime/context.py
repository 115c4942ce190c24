"""What is done in the primary context of a device: load kernels, order streams, allocate, clear, wait."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bsgen.errors import DriverError
from bsgen.runtime import driver


def load(ordinal: int, cubin: bytes, shared_memory: Mapping[str, int]) -> dict[str, Any]:
    """The kernels of a cubin, ready to launch: `shared_memory` names them, with the dynamic bytes of each.

    Modules stay loaded for the life of the process: a captured graph may replay a kernel long after its owner is gone.
    """
    with driver.on(ordinal):
        module = driver.call("cuModuleLoadData", cubin)
        return {entry: _function(module, entry, size) for entry, size in shared_memory.items()}


def _function(module: Any, entry: str, shared_memory: int) -> Any:
    function = driver.call("cuModuleGetFunction", module, entry.encode())
    # Without this a lazily loading driver would do it at the first launch, which a capturing stream forbids.
    driver.call("cuFuncLoad", function)
    attributes = driver.bindings().CUfunction_attribute
    maximum = attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    driver.call("cuFuncSetAttribute", function, maximum, shared_memory)
    return function


def resident_clusters(ordinal: int, function: Any, size: int, threads: int, shared_memory: int) -> int:
    """How many clusters of `size` thread blocks of a kernel the device runs at once; not all SMs can pair up."""
    cuda = driver.bindings()
    attribute = cuda.CUlaunchAttribute()
    attribute.id = cuda.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
    dimension = attribute.value.clusterDim
    dimension.x, dimension.y, dimension.z = size, 1, 1
    config = cuda.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = size, 1, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
    config.sharedMemBytes, config.attrs, config.numAttrs = shared_memory, [attribute], 1
    with driver.on(ordinal):
        return int(driver.call("cuOccupancyMaxActiveClusters", function, config))


def forbid_capture(ordinal: int, stream: int) -> None:
    """Raise `DriverError` if `stream` is being captured: kernels cannot be loaded then."""
    with driver.on(ordinal):
        status = driver.call("cuStreamIsCapturing", stream)
    if int(status):
        raise DriverError(
            "the stream is being captured into a CUDA graph, and the kernels are not loaded yet: "
            "call warmup(), or the op itself with as many rows, once before the capture"
        )


def order(ordinal: int, before: int, after: int) -> None:
    """Make the stream `after` wait for the work that the stream `before` has now."""
    if before == after:
        return
    with driver.on(ordinal):
        event = driver.call("cuEventCreate", int(driver.bindings().CUevent_flags.CU_EVENT_DISABLE_TIMING))
        try:
            driver.call("cuEventRecord", event, before)
            driver.call("cuStreamWaitEvent", after, event, 0)
        finally:
            driver.call("cuEventDestroy", event)


def wait(ordinal: int, stream: int) -> None:
    """Block the calling thread until the stream has done its work."""
    with driver.on(ordinal):
        driver.call("cuStreamSynchronize", stream)


def allocate(ordinal: int, size: int, stream: int) -> int:
    """`size` bytes of device memory, usable in the order of `stream`; 0 for none."""
    if not size:
        return 0
    with driver.on(ordinal):
        return int(driver.call("cuMemAllocAsync", size, stream))


def free(ordinal: int, pointer: int, stream: int) -> None:
    """Give memory of `allocate` back once `stream` has come this far."""
    if pointer:
        with driver.on(ordinal):
            driver.call("cuMemFreeAsync", pointer, stream)


def clear(ordinal: int, pointer: int, size: int, stream: int) -> None:
    """Set `size` bytes to zero, in the order of `stream`."""
    if size:
        with driver.on(ordinal):
            driver.call("cuMemsetD8Async", pointer, 0, size, stream)


def owner(pointer: int) -> int:
    """The number of the GPU that an address belongs to; for address 0 (an empty array) the current one."""
    current = driver.current_device().ordinal
    if not pointer:
        return current
    with driver.on(current):
        attribute = driver.bindings().CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        return int(driver.call("cuPointerGetAttribute", attribute, pointer))
