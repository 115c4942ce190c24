// dx = dy @ W.T for one block-sparse W [128, 128], float32.
// Layout 931e837531d927b6: 24 of 64 blocks of 16 x 16 (37.50 %).
// Plan: simt, fma_f32, tile 64 x 128, 4 x 1 warps, 3 stages of 25 KiB, panels of 32, balanced groups, 1 split outputs.
//
// A thread block computes kRows rows of kSlots output blocks. It walks the stages of its tile; each stage loads the
// activation panels and the pieces of W that its record names, then every warp multiplies, slot by slot.
// Shared memory holds matrices of up to 128 bytes a row, their 16-byte chunks swizzled by row.

using u32 = unsigned int;

constexpr int kFeaturesIn = 128, kFeaturesOut = 128;  // of a row of dy and of dx
constexpr int kBlock = 16, kChunk = 4;  // elements of a block's side, of a chunk
constexpr int kThreads = 128, kWarpsN = 1;  // 4 x kWarpsN warps
constexpr int kMTiles = 1, kNTiles = 2, kRows = 64;  // 16-row and 8-column steps of a warp
constexpr int kSlots = 8, kWarpSlots = 8;  // output blocks of the tile, of a warp
constexpr int kNoOutput = -2147483647;
constexpr int kTiles = 2;
constexpr int kDepth = 16;  // inputs of an operation
constexpr int kPieceChunks = 64, kPieceBytes = 1024;  // the weights of an operation
constexpr int kPieceRows = 16, kPieceColumns = 4, kLine = 4;  // in chunks; matrices of kLine chunks a row
constexpr int kPanel = 32, kPanelChunks = 8, kPanelBytes = 8192;  // elements, chunks of a line
constexpr int kLoadLines = 16, kLoadPasses = 4;  // lines of a panel that the thread block loads at once
constexpr int kPiecesAtOnce = 2;  // pieces that the thread block loads at once
constexpr int kStages = 3, kStageBytes = 25600;
constexpr int kRecordWords = 28, kRecordRing = 5;
constexpr int kSlotStarts = 2, kPanelIds = 11, kInputs = 13, kPieceStarts = 20;

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

using Element = float;

__device__ __forceinline__ float2 load_pair(const Element* p) { return *reinterpret_cast<const float2*>(p); }
__device__ __forceinline__ void store_pair(Element* p, float2 v) { *reinterpret_cast<float2*>(p) = v; }
// Two neighbouring sums of a row -> two outputs.
__device__ __forceinline__ float2 finish(float2 v) {
    return v;
}

__device__ const int __align__(16) kTileStages[] = {
    0,2,4,
};

__device__ const int __align__(16) kTargets[] = {
    3,2,0,5,7,-2147483647,-2147483647,-2147483647,4,-2,1,-1,-2147483647,-2147483647,-2147483647,-2147483647,
};  // [kTiles, kSlots]: output block, ~p for partial sum p, or kNoOutput
__device__ const int __align__(16) kRecords[] = {
    2,6,0,3,4,5,6,6,6,6,6,0,1,4,512,516,
    0,0,4,0,448,512,576,256,0,960,0,0,2,7,0,1,
    3,4,5,7,7,7,7,2,3,516,4,512,516,512,4,516,
    640,320,384,64,1024,1408,1472,0,2,7,0,2,4,5,7,7,
    7,7,7,0,1,0,516,512,516,4,0,4,704,768,1216,1280,
    128,1088,1152,0,2,4,0,2,3,4,4,4,4,4,4,2,
    3,0,516,512,4,0,0,0,832,896,1344,192,0,0,0,0,
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
        place = piece_offset(inside) + threadIdx.x / kPieceChunks * kPieceBytes;
    }

    static __device__ __forceinline__ u32 piece_offset(u32 inside) {
        const u32 piece_row = inside / kPieceColumns, column = inside % kPieceColumns;
        return column / kLine * (kPieceRows * kLine * 16) + swizzled<kLine>(piece_row, column % kLine);
    }

    __device__ __forceinline__ void issue(u32 stage, const int* record) const {
        const int operations = record[1];
        u32 to = stage + record[0] * kPanelBytes + place;
#pragma unroll 2
        for (int p = threadIdx.x / kPieceChunks; p < operations; p += kPiecesAtOnce, to += kPiecesAtOnce * kPieceBytes)
            cp_async_16(to, piece + static_cast<long long>(record[kPieceStarts + p]) * kChunk);
    }
};

// Plain loads from shared memory by 32-bit address (PTX: ld.shared).
__device__ __forceinline__ float load_shared(u32 address) {
    float value;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
    return value;
}

__device__ __forceinline__ float2 load_shared_2(u32 address) {
    float2 value;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(value.x), "=f"(value.y) : "r"(address) : "memory");
    return value;
}

__device__ __forceinline__ float4 load_shared_4(u32 address) {
    float4 v;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(address) : "memory");
    return v;
}

// One operation on CUDA cores, its sums spread over the lanes as mma.sync spreads them: a lane owns rows g and g + 8 and
// columns 2t and 2t + 1 of each 16 x 8 step. a points at row g of the inputs, b at the start of the weights.
__device__ __forceinline__ void multiply(float (&sums)[kMTiles][kNTiles][4], u32 a, u32 b) {
    const int t = threadIdx.x % 4;
#pragma unroll 1
    for (int chunk = 0; chunk < kDepth / kChunk; ++chunk) {
        float inputs[kMTiles][2][4];
#pragma unroll
        for (int m = 0; m < kMTiles; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float4 v = load_shared_4((a ^ chunk * 16) + (m * 16 + half * 8) * (kPanelChunks * 16));
                inputs[m][half][0] = v.x, inputs[m][half][1] = v.y, inputs[m][half][2] = v.z, inputs[m][half][3] = v.w;
            }
#pragma unroll
        for (int j = 0; j < kNTiles; ++j) {
            float weights[4][2];
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                const float4 v = load_shared_4(b + swizzled<kLine>(j * 8 + t * 2 + c, chunk));
                weights[0][c] = v.x, weights[1][c] = v.y, weights[2][c] = v.z, weights[3][c] = v.w;
            }
#pragma unroll
            for (int m = 0; m < kMTiles; ++m)
#pragma unroll
                for (int k = 0; k < 4; ++k)
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        sums[m][j][i] = fmaf(inputs[m][i / 2][k], weights[k][i % 2], sums[m][j][i]);
        }
    }
}

// The operations of a stage that fall to this warp.
__device__ __forceinline__ void multiply_stage(float (&sums)[kWarpSlots][kMTiles][kNTiles][4], u32 stage, const int* record, int warp_m, int warp_n) {
    const int g = threadIdx.x % 32 / 4;
    const u32 rows = stage + (warp_m * (kMTiles * 16) + g) * (kPanelChunks * 16);
    const u32 swizzle = swizzled<kPanelChunks>(g, 0) % (kPanelChunks * 16);
    const u32 weights = stage + record[0] * kPanelBytes;
    const int* starts = record + kSlotStarts + warp_n * kWarpSlots;
    int operation = starts[0];
#pragma unroll
    for (int s = 0; s < kWarpSlots; ++s) {
        const int end = starts[s + 1];
#pragma unroll 1
        for (; operation < end; ++operation)
            multiply(sums[s], rows + record[kInputs + operation] * 16 ^ swizzle, weights + operation * kPieceBytes);
    }
}

// Accumulators -> global: the epilogue for finished outputs, float32 for partial sums.
__device__ __forceinline__ void store(const float (&sums)[kWarpSlots][kMTiles][kNTiles][4], const int* targets, int row0, int n,
                                      Element* __restrict__ dx, float* __restrict__ workspace) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2 * kMTiles; ++half) {
        const int m = half / 2, i = half % 2 * 2, row = row0 + half * 8 + lane / 4;
        if (row >= n) return;
#pragma unroll
        for (int s = 0; s < kWarpSlots; ++s) {
            const int target = targets[s];
            if (target == kNoOutput) continue;
            if (target < 0) {
                float* partial = workspace + (static_cast<long long>(~target) * n + row) * kBlock + lane % 4 * 2;
#pragma unroll
                for (int j = 0; j < kNTiles; ++j)
                    *reinterpret_cast<float2*>(partial + j * 8) = make_float2(sums[s][m][j][i], sums[s][m][j][i + 1]);
                continue;
            }
#pragma unroll
            for (int j = 0; j < kNTiles; ++j) {
                const int column = target * kBlock + j * 8 + lane % 4 * 2;
                const long long place = static_cast<long long>(row) * kFeaturesOut + column;
                store_pair(dx + place, finish(make_float2(sums[s][m][j][i], sums[s][m][j][i + 1])));
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(kThreads, 2)
bsgen_dgrad_b16_float32_simt_931e837531d927b6(const Element* __restrict__ dy, const Element* __restrict__ w, Element* __restrict__ dx, float* __restrict__ workspace, int n) {
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

    store(sums, kTargets + tile * kSlots + warp_n * kWarpSlots, row0 + warp_m * (kMTiles * 16), n, dx, workspace);
}

// Split outputs: their partial sums, added in order, and the epilogue. [kSplits, 3]: output block, first partial sum, count.
__device__ const int __align__(16) kReductions[] = {
    6,0,2,
};

constexpr int kSplits = 1, kReduceRows = 32, kReduceThreads = 256;

extern "C" __global__ void __launch_bounds__(kReduceThreads)
bsgen_dgrad_b16_float32_simt_931e837531d927b6_reduce(Element* __restrict__ dx, const float* __restrict__ workspace, int n) {
    const int* reduction = kReductions + blockIdx.x % kSplits * 3;
    const int row = blockIdx.x / kSplits * kReduceRows + threadIdx.x / (kBlock / 2), inside = threadIdx.x % (kBlock / 2) * 2;
    if (row >= n) return;
    float2 sum = make_float2(0.0f, 0.0f);
    for (int p = 0; p < reduction[2]; ++p) {
        const float2 v = *reinterpret_cast<const float2*>(workspace + (static_cast<long long>(reduction[1] + p) * n + row) * kBlock + inside);
        sum.x += v.x, sum.y += v.y;
    }
    const int column = reduction[0] * kBlock + inside;
    const long long place = static_cast<long long>(row) * kFeaturesOut + column;
    store_pair(dx + place, finish(sum));
}
