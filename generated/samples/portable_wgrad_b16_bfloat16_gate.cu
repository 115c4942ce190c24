// dW = gate * (x.T @ dy), and the gates' gradients, at the stored blocks of W [128, 128], bfloat16.
// Layout 931e837531d927b6: 24 of 64 blocks of 16 x 16 (37.50 %).
// Plan: portable, mma_bf16, 64 units of 16 x 16 on 8 warps, bands of 2, 3 stages of 32 rows, 5 panels of 32, 32 splits of N, gated.
//
// A thread block reduces one split of the N rows for the blocks of its tile. Each stage loads kStageRows rows of the panels
// of x and dy that the tile needs; every warp then adds to its units: blocks, 64 x 64 parts of blocks, or pairs of 8 x 8 blocks.
// Shared memory holds panels of 64 or 128 bytes a row, their 16-byte chunks swizzled by row.

using u32 = unsigned int;

constexpr int kFeaturesX = 128, kFeaturesY = 128;
constexpr int kBlock = 16, kChunk = 8;  // elements of a block's side, of a chunk
constexpr int kWarps = 8, kThreads = 256, kUnits = 8;  // units of a warp
constexpr int kMTiles = 1, kNTiles = 2, kStep = 16;  // 16-row and 8-column steps of a unit, rows of N a step
constexpr int kTiles = 4, kSplits = 32;
constexpr int kStageRows = 32, kStages = 3, kStageBytes = 10240;
constexpr int kPanels = 5, kPanel = 32, kPanelChunks = 4;  // panels of a tile, elements and chunks of a line
constexpr int kPanelBytes = 2048;
constexpr int kLoadLines = 32, kPanelsAtOnce = 2;
constexpr int kUnitWords = 5;

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
__device__ const int __align__(16) kPanelCounts[] = {
    5,4,5,5,
};

__device__ const int __align__(16) kPanelIds[] = {
    0,-1,1,2,3,1,-2,2,3,0,0,-3,1,2,3,0,
    -4,1,2,3,
};  // [kTiles, kPanels]: p is panel p of x, ~p panel p of dy
// [kTiles, kWarps, kUnits, kUnitWords]: chunks from the stage's start to x, to the second block's x, to dy; chunk of dW, of the second block; -1 for none
__device__ const int __align__(16) kUnitTable[] = {
    0,0,128,0,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,2,2,130,64,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    256,256,128,128,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,258,258,130,224,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    384,384,128,352,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,386,386,130,480,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    512,512,128,544,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,512,512,130,576,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    2,2,128,256,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,2,2,130,288,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    256,256,130,384,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,384,384,128,608,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    384,384,130,640,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    2,2,130,96,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,256,256,130,160,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    384,384,128,416,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,514,514,130,704,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    0,0,130,32,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,256,256,128,192,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    258,258,130,320,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,384,384,130,448,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    386,386,128,512,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,512,512,128,672,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    514,514,130,736,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
};

// The loads of a stage, kStageRows rows of the tile's panels, global -> shared. What depends on the thread alone is computed once.
struct Loads {
    const Element* x;  // this thread's chunk of panel 0 in its first row of the next stage
    const Element* dy;
    const Element* start;
    u32 to;  // where it goes, from the start of a panel
    int left;  // rows from this thread's first to the end

    __device__ __forceinline__ Loads(const Element* __restrict__ x_, const Element* __restrict__ dy_, int row0, int n) {
        const u32 column = threadIdx.x % kPanelChunks, row = threadIdx.x / kPanelChunks % kLoadLines;
        x = x_ + static_cast<long long>(row0 + row) * kFeaturesX + column * kChunk;
        dy = dy_ + static_cast<long long>(row0 + row) * kFeaturesY + column * kChunk;
        start = x_;
        to = swizzled<kPanelChunks>(row, column) + threadIdx.x / (kPanelChunks * kLoadLines) * kPanelBytes;
        left = n - row0 - static_cast<int>(row);
    }

    __device__ __forceinline__ void issue(u32 stage, const int* panels, int count) {
        stage += to;
#pragma unroll 2
        for (int p = threadIdx.x / (kPanelChunks * kLoadLines); p < count; p += kPanelsAtOnce, stage += kPanelsAtOnce * kPanelBytes) {
            const int id = panels[p];
            const bool of_x = id >= 0;
            const Element* from = (of_x ? x : dy) + (of_x ? id : ~id) * kPanel;
#pragma unroll
            for (int pass = 0; pass < kStageRows / kLoadLines; ++pass) {
                // Rows past the end are zeros; `start` stands in for their address.
                const bool valid = pass * kLoadLines < left;
                cp_async_16_or_zeros(stage + pass * (kLoadLines * kPanelChunks * 16), valid ? from : start, valid);
                from += kLoadLines * (of_x ? kFeaturesX : kFeaturesY);
            }
        }
        x += static_cast<long long>(kStageRows) * kFeaturesX;
        dy += static_cast<long long>(kStageRows) * kFeaturesY;
        left -= kStageRows;
    }
};

// d += a * b on tensor cores, 16 x 8 x 16, bfloat16 in, float32 sums (PTX: mma.sync.m16n8k16).
__device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

constexpr int kRowBytes = kPanelChunks * 16;

// Chunks further along a unit's features: inside a panel the swizzle makes that an exclusive or, then comes the next panel.
__device__ __forceinline__ u32 along(u32 address, int chunks) {
    return (address ^ chunks % kPanelChunks * 16) + chunks / kPanelChunks * kPanelBytes;
}

// One stage of one unit. Both operands lie with the reduced rows one after the other, so fragments are transposed on the way.
__device__ __forceinline__ void multiply(float (&sums)[kMTiles][kNTiles][4], u32 stage, const int* unit) {
    const int lane = threadIdx.x % 32;
    // Lanes 0-7 point at reduced rows 0-7 of the first 8 features, 8-15 at those of the next 8, 16-31 at rows 8-15 of both.
    const int row = lane / 16 * 8 + lane % 8;
    const u32 a = stage + row * kRowBytes + unit[0] * 16 ^ swizzled<kPanelChunks>(row, lane / 8 % 2) % kRowBytes;
    // For dy, lanes 0-15 point at the 16 reduced rows of 8 columns, lanes 16-31 at those of the next 8.
    const u32 b = stage + lane % 16 * kRowBytes + unit[2] * 16 ^ swizzled<kPanelChunks>(lane % 16, lane / 16) % kRowBytes;
#pragma unroll 2
    for (int k = 0; k < kStageRows / kStep; ++k) {
        u32 inputs[kMTiles][4];
#pragma unroll
        for (int m = 0; m < kMTiles; ++m) ldmatrix_x4_trans(inputs[m], along(a, m * 2) + k * (16 * kRowBytes));
#pragma unroll
        for (int j = 0; j < kNTiles; j += 2) {
            u32 gradients[4];
            ldmatrix_x4_trans(gradients, along(b, j) + k * (16 * kRowBytes));
#pragma unroll
            for (int m = 0; m < kMTiles; ++m) {
                mma(sums[m][j], inputs[m], gradients[0], gradients[1]);
                mma(sums[m][j + 1], inputs[m], gradients[2], gradients[3]);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(kThreads, 2)
bsgen_wgrad_b16_bfloat16_portable_931e837531d927b6(const Element* __restrict__ x, const Element* __restrict__ dy, float* __restrict__ partials, int n) {
    extern __shared__ __align__(128) unsigned char shared[];
    const u32 stages_base = shared_address(shared);
    int* panels = reinterpret_cast<int*>(shared + kStages * kStageBytes);
    int* units = panels + kPanels;
    const int tile = blockIdx.x % kTiles, split = blockIdx.x / kTiles;
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    const int count = kPanelCounts[tile];

    // This split's rows: whole stages, shared out evenly.
    const int all_stages = (n + kStageRows - 1) / kStageRows;
    const int first = static_cast<int>(static_cast<long long>(all_stages) * split / kSplits);
    const int stages = static_cast<int>(static_cast<long long>(all_stages) * (split + 1) / kSplits) - first;

    for (int i = threadIdx.x; i < kPanels; i += kThreads) panels[i] = kPanelIds[tile * kPanels + i];
    for (int i = threadIdx.x; i < kWarps * kUnits * kUnitWords; i += kThreads)
        units[i] = kUnitTable[static_cast<long long>(tile) * (kWarps * kUnits * kUnitWords) + i];
    __syncthreads();
    const int* mine = units + warp * (kUnits * kUnitWords);

    Loads loads(x, dy, first * kStageRows, n);
    int stage_slot = 0;
    const auto fetch = [&](int i) {
        if (i < stages) loads.issue(stages_base + stage_slot * kStageBytes, panels, count);
        cp_async_commit();
        stage_slot = stage_slot + 1 == kStages ? 0 : stage_slot + 1;
    };
    for (int i = 0; i < kStages - 1; ++i) fetch(i);

    // Main loop: stage i has arrived and stage i - 1 has been consumed when all pass the barrier.
    float sums[kUnits][kMTiles][kNTiles][4] = {};
    int slot = 0;
    for (int i = 0; i < stages; ++i) {
        cp_async_wait<kStages - 2>();
        __syncthreads();
        fetch(i + kStages - 1);
        const u32 stage = stages_base + slot * kStageBytes;
#pragma unroll
        for (int u = 0; u < kUnits; ++u)
            if (mine[u * kUnitWords] >= 0) multiply(sums[u], stage, mine + u * kUnitWords);
        slot = slot + 1 == kStages ? 0 : slot + 1;
    }

    // Accumulators -> global.
#pragma unroll
    for (int u = 0; u < kUnits; ++u)
#pragma unroll
        for (int m = 0; m < kMTiles; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int place = mine[u * kUnitWords + 3];
                if (place < 0) continue;
                const int row = m * 16 + lane / 4 + half * 8;
                const long long start = static_cast<long long>(place) * kChunk + row * kBlock + lane % 4 * 2;
#pragma unroll
                for (int j = 0; j < kNTiles; ++j) {
                    float2 v = make_float2(sums[u][m][j][half * 2], sums[u][m][j][half * 2 + 1]);
                    *reinterpret_cast<float2*>(partials + static_cast<long long>(split) * 6144ll + start + j * 8) = v;
                }
            }
}

constexpr int kGateThreads = 256, kLanes = 64;  // threads; those that share a stored block
constexpr int kBlocks = 24, kBlockElements = kBlock * kBlock;

// Sums G of x.T @ dy, the splits' added in order -> dW = gate * G, and where W is given the gates' gradients, the sum of G * W over each block.
// A block whose gate is zero has no gradient of its weights; its gate does, so that it may open again.
extern "C" __global__ void __launch_bounds__(kGateThreads)
bsgen_wgrad_b16_bfloat16_portable_931e837531d927b6_reduce(const float* __restrict__ partials, const float* __restrict__ gate, const Element* __restrict__ w, Element* __restrict__ dw, float* __restrict__ dgate, int accumulate) {
    constexpr long long kSplitElements = 6144;
    const int block = blockIdx.x * (kGateThreads / kLanes) + threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
    float along = 0.0f;  // this thread's part of the sum of G * W
    if (block < kBlocks) {
        const float g = gate[block];
#pragma unroll 2
        for (int i = lane * 4; i < kBlockElements; i += kLanes * 4) {
            const long long place = static_cast<long long>(block) * kBlockElements + i;
            const float* from = partials + place;
            float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
            for (int s = 0; s < kSplits; ++s) {
                const float4 v = *reinterpret_cast<const float4*>(from + s * kSplitElements);
                sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
            }
            if (w) {
                const float2 low = load_pair(w + place), high = load_pair(w + place + 2);
                along += sum.x * low.x + sum.y * low.y + sum.z * high.x + sum.w * high.y;
            }
            sum = g == 0.0f ? make_float4(0.0f, 0.0f, 0.0f, 0.0f) : make_float4(g * sum.x, g * sum.y, g * sum.z, g * sum.w);
            if (accumulate) {
                const float2 low = load_pair(dw + place), high = load_pair(dw + place + 2);
                sum.x += low.x, sum.y += low.y, sum.z += high.x, sum.w += high.y;
            }
            store_pair(dw + place, make_float2(sum.x, sum.y));
            store_pair(dw + place + 2, make_float2(sum.z, sum.w));
        }
    }
    if (!dgate) return;

    // The lanes' parts, added in a fixed order.
#pragma unroll
    for (int step = 32 / 2; step > 0; step /= 2) along += __shfl_xor_sync(~0u, along, step);
    extern __shared__ float of_warps[];
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = along;
    __syncthreads();
    if (lane == 0) {
        along = 0.0f;
        for (int i = 0; i < kLanes / 32; ++i) along += of_warps[threadIdx.x / 32 + i];
    }
    if (lane == 0 && block < kBlocks) dgate[block] = accumulate ? dgate[block] + along : along;
}
