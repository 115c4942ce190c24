// dx = dy @ W.T for one block-sparse W [512, 512], bfloat16.
// Layout f1f09799130ab004: 6 of 16 blocks of 128 x 128 (37.50 %).
// Plan: portable, mma_bf16, tile 128 x 128, 4 x 1 warps, 3 stages of 50 KiB, panels of 64, contiguous groups.
//
// A thread block computes kRows rows of kSlots output blocks. It walks the stages of its tile; each stage loads the
// activation panels and the pieces of W that its record names, then every warp multiplies, slot by slot.
// Shared memory holds matrices of up to 128 bytes a row, their 16-byte chunks swizzled by row.

using u32 = unsigned int;

constexpr int kFeaturesIn = 512, kFeaturesOut = 512;  // of a row of dy and of dx
constexpr int kBlock = 128, kChunk = 8;  // elements of a block's side, of a chunk
constexpr int kThreads = 128, kWarpsN = 1;  // 4 x kWarpsN warps
constexpr int kMTiles = 2, kNTiles = 16, kRows = 128;  // 16-row and 8-column steps of a warp
constexpr int kSlots = 1, kWarpSlots = 1;  // output blocks of the tile, of a warp
constexpr int kNoOutput = -2147483647;
constexpr int kTiles = 4;
constexpr int kDepth = 64, kStep = 16;  // inputs of an operation, of a multiply step
constexpr int kPieceChunks = 1024, kPieceBytes = 16384;  // the weights of an operation
constexpr int kPieceRows = 128, kPieceColumns = 8, kLine = 8;  // in chunks; matrices of kLine chunks a row
constexpr int kPanel = 64, kPanelChunks = 8, kPanelBytes = 16384;  // elements, chunks of a line
constexpr int kLoadLines = 16, kLoadPasses = 8;  // lines of a panel that the thread block loads at once
constexpr int kPiecePasses = 8;  // chunks of a piece that each thread loads
constexpr int kStages = 3, kStageBytes = 51200;
constexpr int kRecordWords = 12, kRecordRing = 5;
constexpr int kSlotStarts = 2, kPanelIds = 4, kInputs = 5, kPieceStarts = 6;

// The address of shared memory as PTX instructions take it.
__device__ __forceinline__ u32 shared_address(const void* pointer) {
    return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

// Have the compiler keep a pointer in registers instead of computing it again at each use.
template <class T>
__device__ __forceinline__ void keep(const T*& pointer) {
    asm volatile("" : "+l"(pointer));
}

// Byte offset of a 16-byte chunk in a matrix of Chunks chunks a row, swizzled so that 8 rows of one chunk lie in different banks.
template <int Chunks>
__device__ __forceinline__ u32 swizzled(u32 row, u32 chunk) {
    constexpr u32 kSpread = Chunks < 8 ? Chunks : 8;
    return (row * Chunks + (chunk ^ (row / (8 / kSpread) % kSpread))) * 16;
}

// 16 bytes, past L1 (PTX: cp.async, sm_80).
__device__ __forceinline__ void cp_async_16(u32 shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
}

// 16 bytes, or 16 zeros when `valid` is false.
__device__ __forceinline__ void cp_async_16_or_zeros(u32 shared, const void* global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(valid ? 16 : 0) : "memory");
}

__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait until at most `Pending` of this thread's newest groups are still on their way.
template <int Pending>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// Elements are bfloat16, kept as bits.
using Element = unsigned short;

__device__ __forceinline__ u32 pack(float low, float high) {
    u32 bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}

__device__ __forceinline__ float2 unpack(u32 bits) {
    return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u));
}

__device__ __forceinline__ float2 load_pair(const Element* p) { return unpack(*reinterpret_cast<const u32*>(p)); }
__device__ __forceinline__ void store_pair(Element* p, float2 v) { *reinterpret_cast<u32*>(p) = pack(v.x, v.y); }
// Two neighbouring sums of a row -> two outputs.
__device__ __forceinline__ float2 finish(float2 v) {
    return v;
}

__device__ const int __align__(16) kTileStages[] = {
    0,2,4,6,12,
};

__device__ const int __align__(16) kTargets[] = {
    0,1,2,3,
};  // [kTiles, kSlots]: output block, ~p for partial sum p, or kNoOutput
__device__ const int __align__(16) kRecords[] = {
    1,1,0,1,0,0,0,0,0,0,0,0,1,1,0,1,
    1,0,8,0,0,0,0,0,1,1,0,1,2,0,2048,0,
    0,0,0,0,1,1,0,1,3,0,2056,0,0,0,0,0,
    1,1,0,1,0,0,4096,0,0,0,0,0,1,1,0,1,
    1,0,4104,0,0,0,0,0,1,1,0,1,2,0,6144,0,
    0,0,0,0,1,1,0,1,3,0,6152,0,0,0,0,0,
    1,1,0,1,4,0,8192,0,0,0,0,0,1,1,0,1,
    5,0,8200,0,0,0,0,0,1,1,0,1,6,0,10240,0,
    0,0,0,0,1,1,0,1,7,0,10248,0,0,0,0,0,
};

// The record of a stage, global -> shared.
__device__ __forceinline__ void load_record(u32 record, int stage) {
#pragma unroll
    for (int i = 0; i < kRecordWords / 4; i += kThreads) {
        const int chunk = i + threadIdx.x;
        if (chunk < kRecordWords / 4) cp_async_16(record + chunk * 16, kRecords + static_cast<long long>(stage) * kRecordWords + chunk * 4);
    }
}

// The panels of a stage, global -> shared: a line is a row. What depends on the thread alone is computed once.
struct Activations {
    const Element* rows[kLoadPasses];  // this thread's chunk of panel 0 in each row that it loads
    u32 place;                         // where it goes, from the start of a panel

    __device__ __forceinline__ Activations(const Element* __restrict__ dy, int row0, int n) {
        const u32 line = threadIdx.x / kPanelChunks, column = threadIdx.x % kPanelChunks;
#pragma unroll
        for (int pass = 0; pass < kLoadPasses; ++pass) {
            // Rows past the end are loads of the last one: their sums are never stored.
            const int r = min(row0 + static_cast<int>(line) + pass * kLoadLines, n - 1);
            rows[pass] = dy + static_cast<long long>(r) * kFeaturesIn + column * kChunk;
            keep(rows[pass]);
        }
        place = swizzled<kPanelChunks>(line, column);
    }

    __device__ __forceinline__ void issue(u32 stage, const int* record) const {
        const int panels = record[0];
        u32 to = stage + place;
#pragma unroll 2
        for (int p = 0; p < panels; ++p, to += kPanelBytes) {
            const int panel = record[kPanelIds + p];
#pragma unroll
            for (int pass = 0; pass < kLoadPasses; ++pass)
                if (kRows % kLoadLines == 0 || static_cast<int>(threadIdx.x) / kPanelChunks + pass * kLoadLines < kRows)
                    cp_async_16(to + pass * (kLoadLines * kPanelChunks * 16), rows[pass] + panel * kPanel);
        }
    }
};

// The pieces of W of a stage, after its panels, global -> shared.
struct Weights {
    const Element* piece;  // this thread's chunk of a piece at the start of W
    u32 place;             // where it goes, from the start of the pieces

    __device__ __forceinline__ explicit Weights(const Element* __restrict__ w) {
        const u32 inside = threadIdx.x % kPieceChunks;
        piece = w + (inside / kPieceColumns * (kBlock / kChunk) + inside % kPieceColumns) * kChunk;
        keep(piece);
        place = piece_offset(inside);
    }

    static __device__ __forceinline__ u32 piece_offset(u32 inside) {
        const u32 piece_row = inside / kPieceColumns, column = inside % kPieceColumns;
        return column / kLine * (kPieceRows * kLine * 16) + swizzled<kLine>(piece_row, column % kLine);
    }

    __device__ __forceinline__ void issue(u32 stage, const int* record) const {
        const int operations = record[1];
        u32 to = stage + record[0] * kPanelBytes + place;
#pragma unroll 1
        for (int p = 0; p < operations; ++p, to += kPieceBytes) {
            const Element* from = piece + static_cast<long long>(record[kPieceStarts + p]) * kChunk;
#pragma unroll
            for (int pass = 0; pass < kPiecePasses; ++pass) {
                constexpr int kPassRows = kThreads / kPieceColumns;
                const u32 there = kPassRows % 8 == 0 ? to + pass * (kPassRows * kLine * 16)
                                                     : to - place + piece_offset(threadIdx.x + pass * kThreads);
                cp_async_16(there, from + pass * (kPassRows * kBlock));
            }
        }
    }
};

// d += a * b on tensor cores, 16 x 8 x 16, bfloat16 in, float32 sums (PTX: mma.sync.m16n8k16).
__device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 8 x 8 matrices of 16-bit elements (or 8 rows of 16 bytes) from shared memory (PTX: ldmatrix).
__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

// One operation: this warp's rows of kDepth inputs, at a, times one output block of weights, at b. Both are this lane's
// addresses; the swizzle turns a step along the chunks of a row into an exclusive or.
__device__ __forceinline__ void multiply(float (&sums)[kMTiles][kNTiles][4], u32 a, u32 b) {
#pragma unroll 1
    for (int k = 0; k < kDepth / kStep; ++k) {
        u32 inputs[kMTiles][4];
#pragma unroll
        for (int m = 0; m < kMTiles; ++m) ldmatrix_x4(inputs[m], (a ^ k * 32) + m * (16 * kPanelChunks * 16));
#pragma unroll
        for (int j = 0; j < kNTiles; j += 2) {
            u32 weights[4];
            ldmatrix_x4(weights, (b ^ k * 32) + j * (8 * kLine * 16));
#pragma unroll
            for (int m = 0; m < kMTiles; ++m) {
                mma(sums[m][j], inputs[m], weights[0], weights[1]);
                mma(sums[m][j + 1], inputs[m], weights[2], weights[3]);
            }
        }
    }
}

// The operations of a stage that fall to this warp.
__device__ __forceinline__ void multiply_stage(float (&sums)[kWarpSlots][kMTiles][kNTiles][4], u32 stage, const int* record, int warp_m, int warp_n) {
    const int lane = threadIdx.x % 32;
    // Lanes 0-15 point at 16 rows of inputs, lanes 16-31 at the same rows one chunk further.
    const u32 rows = stage + (warp_m * (kMTiles * 16) + lane % 16) * (kPanelChunks * 16);
    const u32 swizzle = swizzled<kPanelChunks>(lane % 16, lane / 16) % (kPanelChunks * 16);
    const u32 weights = stage + record[0] * kPanelBytes + swizzled<kLine>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
    const int* starts = record + kSlotStarts + warp_n * kWarpSlots;
    const int* inputs = record + kInputs;
    int operation = starts[0];
    u32 ahead = inputs[operation];  // read one round ahead, to keep its latency out of the chain
#pragma unroll
    for (int s = 0; s < kWarpSlots; ++s) {
        const int end = starts[s + 1];
#pragma unroll 1
        while (operation < end) {
            const u32 a = rows + ahead * 16 ^ swizzle, b = weights + operation * kPieceBytes;
            ahead = inputs[++operation];
            multiply(sums[s], a, b);
        }
    }
}

// Accumulators -> global: the epilogue for finished outputs, float32 for partial sums.
__device__ __forceinline__ void store(const float (&sums)[kWarpSlots][kMTiles][kNTiles][4], const int* targets, int row0, int n,
                                      Element* __restrict__ dx) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2 * kMTiles; ++half) {
        const int m = half / 2, i = half % 2 * 2, row = row0 + half * 8 + lane / 4;
        if (row >= n) return;
#pragma unroll
        for (int s = 0; s < kWarpSlots; ++s) {
            const int target = targets[s];
            if (target == kNoOutput) continue;
#pragma unroll
            for (int j = 0; j < kNTiles; ++j) {
                const int column = target * kBlock + j * 8 + lane % 4 * 2;
                const long long place = static_cast<long long>(row) * kFeaturesOut + column;
                store_pair(dx + place, finish(make_float2(sums[s][m][j][i], sums[s][m][j][i + 1])));
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(kThreads, 1)
bsgen_dgrad_b128_bfloat16_portable_f1f09799130ab004(const Element* __restrict__ dy, const Element* __restrict__ w, Element* __restrict__ dx, int n) {
    extern __shared__ __align__(128) unsigned char shared[];
    const u32 stages_base = shared_address(shared), records_base = stages_base + kStages * kStageBytes;
    const int* records = reinterpret_cast<const int*>(shared + kStages * kStageBytes);
    const int tile = blockIdx.x % kTiles, row0 = blockIdx.x / kTiles * kRows;
    const int first = kTileStages[tile], stages = kTileStages[tile + 1] - first;
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), warp_m = warp / kWarpsN, warp_n = warp % kWarpsN;

    const Activations activations(dy, row0, n);
    const Weights weights(w);

    // Issue the loads of stage i, and of the record that will be needed when it has arrived. Slots of the two rings go round.
    int stage_slot = 0, record_slot = 0, next_record = kStages - 1;
    const auto fetch = [&](int i) {
        if (i < stages) {
            const u32 stage = stages_base + stage_slot * kStageBytes;
            activations.issue(stage, records + record_slot * kRecordWords);
            weights.issue(stage, records + record_slot * kRecordWords);
        }
        if (i + kStages - 1 < stages) load_record(records_base + next_record * (kRecordWords * 4), first + i + kStages - 1);
        cp_async_commit();
        stage_slot = stage_slot + 1 == kStages ? 0 : stage_slot + 1;
        record_slot = record_slot + 1 == kRecordRing ? 0 : record_slot + 1;
        next_record = next_record + 1 == kRecordRing ? 0 : next_record + 1;
    };

    // Prologue: the first records, then the first stages.
    for (int i = 0; i < kStages - 1 && i < stages; ++i) load_record(records_base + i * kRecordWords * 4, first + i);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    for (int i = 0; i < kStages - 1; ++i) fetch(i);

    // Main loop: stage i has arrived and stage i - 1 has been consumed when all pass the barrier.
    float sums[kWarpSlots][kMTiles][kNTiles][4] = {};
    int slot = 0, record = 0;
    for (int i = 0; i < stages; ++i) {
        cp_async_wait<kStages - 2>();
        __syncthreads();
        fetch(i + kStages - 1);
        multiply_stage(sums, stages_base + slot * kStageBytes, records + record * kRecordWords, warp_m, warp_n);
        slot = slot + 1 == kStages ? 0 : slot + 1;
        record = record + 1 == kRecordRing ? 0 : record + 1;
    }

    store(sums, kTargets + tile * kSlots + warp_n * kWarpSlots, row0 + warp_m * (kMTiles * 16), n, dx);
}
