"""What an SM can do at most of what the Hopper kernels do: copies that its warps issue, bytes from L2, multiplies beside reads.

    PYTHONPATH=. python3 tests/gpu/limits.py [--json FILE]

*Copies*: warps fill stages of a ring as the kernels do, a copy a lane, and nobody reads them; one thread block alone, and one on
every SM. *Multiplies*: four warpgroups, wgmma of 64 x 32 x 16 (or 64 x 64 x 16) with activations in registers and weights in shared
memory, beside `ldmatrix` of as many rows as two of them take, or of fewer. Clocks are the SM's own.
"""

from __future__ import annotations

import argparse
import ctypes
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bsgen import nvrtc
from bsgen.emit import Source, template_folder
from bsgen.outline import TensorMap
from bsgen.problem import TARGETS
from bsgen.runtime import context, driver
from bsgen.runtime.tensor_maps import Encoder

FEATURES, BLOCKS, BLOCK_BYTES = 12288, 384 * 38, 2048  # x [n, 12288]; W, 10 % of 12288 x 12288 in blocks of 32
TURNS, STAGES, SMS = 60, 3, TARGETS["sm_90a"].sms
DEVICE = ("address.cuh", "mbarrier.cuh", "tma.cuh")
COPIES = """
extern "C" __global__ void __launch_bounds__(kWarps * 32, 1)
copies(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, const unsigned char* raw, long long* clocks) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const u32 base = shared_address(shared), full = base + kStages * kStageBytes;
    if (threadIdx.x == 0) {
        for (int i = 0; i < kStages; ++i) barrier_init(full + i * 8, 1);
        barrier_init_fence();
    }
    __syncthreads();
    const int mine = threadIdx.x % 32 * kWarps + threadIdx.x / 32;
    const long long begin = clock64();
    for (int s = 0; s < kTurns; ++s) {
        const u32 slot = s % kStages, stage = base + slot * kStageBytes, barrier = full + slot * 8;
        if (s >= kStages) barrier_wait(barrier, (s / kStages + 1) & 1);
        __syncthreads();
        if (threadIdx.x == 0) barrier_expect(barrier, kPanels * kPanelBytes + kPieces * kPieceBytes);
        const u32 any = ((blockIdx.x * 977u + s) * 512u + mine) * 2654435761u >> 6;
        const u32 piece = any % kWeightPieces, place = stage + kPanels * kPanelBytes + (mine - kPanels) * kPieceBytes;
        if (mine < kPanels)
            tma_load(stage + mine * kPanelBytes, x, any % (kFeatures / kColumns) * kColumns, 0, barrier);
        else if (mine < kPanels + kPieces && kPieceColumns)
            tma_load(place, w, 0, piece * kPieceRows, barrier);
        else if (mine < kPanels + kPieces)
            bulk_load(place, raw + static_cast<long long>(piece) * kPieceBytes, kPieceBytes, barrier);
        __syncwarp();
    }
    for (int s = kTurns - kStages; s < kTurns; ++s) barrier_wait(full + s % kStages * 8, s / kStages & 1);
    if (threadIdx.x == 0) clocks[blockIdx.x] = clock64() - begin;
}
"""
MULTIPLIES = """
__device__ __forceinline__ void wgmma(float (&s)[kColumns / 2], const u32 (&a)[4], u32 b) {
    asm volatile("{ .reg .b64 b; mov.b64 b, {%WORDS, %HIGH};\\n"
        "wgmma.mma_async.sync.aligned.m64nCOLUMNSk16.f32.bf16.bf16 {SUMS}, {INPUTS}, b, 1, 1, 1, 1; }"
        : OUTPUTS : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "n"(8 * 64 / 16 | 2u << 30));
}
__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
extern "C" __global__ void __launch_bounds__(512, 1) multiplies(long long* clocks, float* out) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const u32 base = shared_address(shared);
    for (int i = threadIdx.x; i < kBytes / 4; i += 512) reinterpret_cast<u32*>(shared)[i] = 0x3f803f80;
    asm volatile("fence.proxy.async;" ::: "memory");
    const int group = __shfl_sync(~0u, threadIdx.x / 128, 0), lane = threadIdx.x % 32;
    const u32 r = threadIdx.x / 32 % 4 * 16 + lane % 16;
    const u32 rows = base + 65536 + group * 8192 + r * 64 + ((lane / 16 ^ r / 2 % 4) * 16);
    float sums[2][kColumns / 2] = {};
    u32 a[2][2][4] = {}, read[kReads + 1][4], kept = 0, at = 0;
    __syncthreads();
    const long long begin = clock64();
#pragma unroll 1
    for (int turn = 0; turn < kTurns; ++turn) {
        const u32 b = __shfl_sync(~0u, ((base & 0x3ffff) + group * 16384 + at) / 16, 0) + (2048 / 16 << 16);
        at = (at + 4096) % 16384;
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int k = 0; k < 2; ++k)
#pragma unroll
            for (int m = 0; m < 2; ++m)
                wgmma(sums[m], a[m][k], b + k * (16 * 64 / 16));
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#pragma unroll
        for (int i = 0; i < kReads; ++i) ldmatrix_x4(read[i], (rows ^ i % 2 * 32) + i / 2 * 4096);
#pragma unroll
        for (int i = 0; i < kReads; ++i) kept ^= read[i][0];
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x == 0) clocks[blockIdx.x] = clock64() - begin;
    float sum = kept == 0x1234567;
    for (int m = 0; m < 2; ++m)
        for (int i = 0; i < kColumns / 2; ++i) sum += sums[m][i];
    if (sum == 12345.f) out[threadIdx.x] = sum;
}
"""


class Stage(NamedTuple):
    """What is copied: panels of x, of rows and features; pieces of W, in boxes of so many features, or (0) as runs of bytes."""

    name: str
    panels: int
    rows: int
    columns: int
    pieces: int = 0
    piece_bytes: int = BLOCK_BYTES
    piece_columns: int = 32


STAGES_TIMED = (
    Stage("panels of 64 rows x 64 bytes", 18, 64, 32),
    Stage("panels of 64 rows x 128 bytes", 9, 64, 64),
    Stage("panels of 128 rows x 64 bytes", 9, 128, 32),
    Stage("panels of 8 rows x 64 bytes", 32, 8, 32),
    Stage("blocks of 32 rows x 64 bytes", 0, 64, 32, 32),
    Stage("blocks as 16 rows x 128 bytes", 0, 64, 32, 32, BLOCK_BYTES, 64),
    Stage("blocks as runs of 2048 bytes", 0, 64, 32, 32, BLOCK_BYTES, 0),
    Stage("12 panels of 64 rows x 64 bytes, 12 blocks", 12, 64, 32, 12),
    Stage("96 runs of 256 bytes", 0, 64, 32, 96, 256, 0),
    Stage("12 panels of 32 rows x 128 bytes, 96 runs of 256 bytes", 12, 32, 64, 96, 256, 0),
)


def kernel(text: str, entry: str, shared_memory: int, constants: Mapping[str, int]) -> Any:
    """A kernel of the text, with constants before it."""
    device = "".join((template_folder() / "device" / name).read_text() for name in DEVICE)
    lines = "".join(f"constexpr int {name} = {value};\n" for name, value in constants.items())
    binary = nvrtc.compile(Source(entry, f"using u32 = unsigned int;\n{device}{lines}{text}", (entry,)), "sm_90a")
    return context.load(0, binary.cubin, {entry: shared_memory})[entry]


def clocks(
    function: Any, blocks: int, threads: int, shared_memory: int, arguments: list[Any], out: torch.Tensor
) -> float:
    """Of a thread block, the mean over all, of the second of two launches."""
    pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
    for _ in range(2):
        driver.call(
            "cuLaunchKernel", function, blocks, 1, 1, threads, 1, 1, shared_memory, 0, ctypes.addressof(pointers), 0
        )
    torch.cuda.synchronize()
    return float(out[:blocks].double().mean())


def copies(stage: Stage, warps: int) -> Iterator[dict[str, Any]]:
    """Bytes a clock and SM, alone and everywhere."""
    panel_bytes = stage.rows * stage.columns * 2
    total = stage.panels * panel_bytes + stage.pieces * stage.piece_bytes
    stage_bytes = -(-total // 1024) * 1024
    piece_rows = stage.piece_bytes // (2 * stage.piece_columns) if stage.piece_columns else 0
    constants = {
        "kWarps": warps, "kStages": STAGES, "kStageBytes": stage_bytes, "kTurns": TURNS, "kFeatures": FEATURES,
        "kPanels": stage.panels, "kPanelBytes": panel_bytes, "kColumns": stage.columns,
        "kPieces": stage.pieces, "kPieceBytes": stage.piece_bytes, "kPieceColumns": stage.piece_columns, "kPieceRows": piece_rows,
        "kWeightPieces": BLOCKS * BLOCK_BYTES // stage.piece_bytes,
    }  # fmt: skip
    shared_memory = STAGES * stage_bytes + 1024
    function = kernel(COPIES, "copies", shared_memory, constants)
    x = torch.zeros(stage.rows, FEATURES, dtype=torch.bfloat16, device="cuda")
    w = torch.zeros(BLOCKS * BLOCK_BYTES // 2, dtype=torch.bfloat16, device="cuda")
    out = torch.zeros(SMS, dtype=torch.int64, device="cuda")
    columns = stage.piece_columns or 32
    views = (
        (TensorMap("x", FEATURES, 0, stage.columns, stage.rows, "bfloat16"), x),
        (TensorMap("w", columns, len(w) // columns, columns, piece_rows or 32, "bfloat16"), w),
    )
    maps = [ctypes.create_string_buffer(Encoder(view)(data.data_ptr(), stage.rows), 128) for view, data in views]
    arguments = [*maps, ctypes.c_void_p(w.data_ptr()), ctypes.c_void_p(out.data_ptr())]
    for blocks in (1, SMS):
        taken = clocks(function, blocks, 32 * warps, shared_memory, arguments, out) / TURNS
        yield {
            "stage": stage.name, "warps": warps, "sms": blocks, "clocks": taken, "bytes_a_clock": total / taken,
            "clocks_a_copy": taken / (stage.panels + stage.pieces),
        }  # fmt: skip


def multiplies(columns: int, reads: int) -> dict[str, Any]:
    """Clocks of an SM for four wgmma and so many `ldmatrix` a warp."""
    half = columns // 2
    text = MULTIPLIES
    for name, value in {
        "%WORDS": f"%{half + 4}", "%HIGH": f"%{half + 5}", "COLUMNS": str(columns),
        "SUMS": ", ".join(f"%{i}" for i in range(half)), "INPUTS": ", ".join(f"%{half + i}" for i in range(4)),
        "OUTPUTS": ", ".join(f'"+f"(s[{i}])' for i in range(half)),
    }.items():  # fmt: skip
        text = text.replace(name, value)
    turns, shared_memory = 2000, 160 * 1024
    constants = {
        "kColumns": columns,
        "kReads": reads,
        "kTurns": turns,
        "kBytes": shared_memory,
    }
    function = kernel(text, "multiplies", shared_memory, constants)
    out, sums = torch.zeros(SMS, dtype=torch.int64, device="cuda"), torch.zeros(512, device="cuda")
    arguments = [ctypes.c_void_p(out.data_ptr()), ctypes.c_void_p(sums.data_ptr())]
    taken = (
        clocks(function, SMS, 512, shared_memory, arguments, out) / turns / 4
    )  # of one warpgroup's turn, all four at work
    return {"columns": columns, "ldmatrix": reads, "clocks": taken}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.zeros(1, device="cuda")  # the context that all this runs in
    rows = [
        row
        for stage in STAGES_TIMED
        for warps in (4, 8, 16)
        if stage.panels + stage.pieces <= 32 * warps
        for row in copies(stage, warps)
    ]
    for row in rows:
        print(
            f"{row['stage']:56} {row['warps']:2} warps, {row['sms']:3} SMs: {row['bytes_a_clock']:6.1f} bytes a clock and SM, "
            f"{row['clocks_a_copy']:5.1f} clocks a copy"
        )
    beside = [multiplies(columns, reads) for columns in (32, 64) for reads in (0, 1, 2, 4)]
    for row in beside:
        what = f"4 wgmma of 64 x {row['columns']} x 16 and {row['ldmatrix']} ldmatrix.x4 of each warp"
        print(f"{what}: {row['clocks']:6.1f} clocks")
    if args.json:
        document = {"gpu": torch.cuda.get_device_name(), "copies": rows, "multiplies": beside}
        args.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
