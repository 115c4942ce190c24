// dW = x.T @ dy at the stored blocks of W [256, 256], float32.
// Layout 931e837531d927b6: 24 of 64 blocks of 32 x 32 (37.50 %).
// Plan: simt, fma_f32, 16 units of 32 x 32 on 8 warps, bands of 1, 3 stages of 64 rows, 5 panels of 32, 16 splits of N.
//
// A thread block reduces one split of the N rows for the blocks of its tile. Each stage loads kStageRows rows of the panels
// of x and dy that the tile needs; every warp then adds to its units: blocks, 64 x 64 parts of blocks, or pairs of 8 x 8 blocks.
// Shared memory holds panels of 64 or 128 bytes a row, their 16-byte chunks swizzled by row.

using u32 = unsigned int;

constexpr int kFeaturesX = 256, kFeaturesY = 256;
constexpr int kBlock = 32, kChunk = 4;  // elements of a block's side, of a chunk
constexpr int kWarps = 8, kThreads = 256, kUnits = 2;  // units of a warp
constexpr int kMTiles = 2, kNTiles = 4;  // 16-row and 8-column steps of a unit
constexpr int kTiles = 8, kSplits = 16;
constexpr int kStageRows = 64, kStages = 3, kStageBytes = 40960;
constexpr int kPanels = 5, kPanel = 32, kPanelChunks = 8;  // panels of a tile, elements and chunks of a line
constexpr int kPanelBytes = 8192;
constexpr int kLoadLines = 32, kPanelsAtOnce = 1;
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

using Element = float;

__device__ __forceinline__ float2 load_pair(const Element* p) { return *reinterpret_cast<const float2*>(p); }
__device__ __forceinline__ void store_pair(Element* p, float2 v) { *reinterpret_cast<float2*>(p) = v; }
__device__ const int __align__(16) kPanelCounts[] = {
    5,5,3,4,2,4,4,5,
};

__device__ const int __align__(16) kPanelIds[] = {
    0,-1,2,4,6,1,-2,3,5,6,3,-3,6,0,0,3,
    -4,4,6,0,4,-5,0,0,0,1,-6,2,7,0,2,-7,
    5,6,0,0,-8,3,4,7,
};  // [kTiles, kPanels]: p is panel p of x, ~p panel p of dy
// [kTiles, kWarps, kUnits, kUnitWords]: chunks from the stage's start to x, to the second block's x, to dy; chunk of dW, of the second block; -1 for none
__device__ const int __align__(16) kUnitTable[] = {
    0,0,512,0,-1,-1,-1,-1,-1,-1,1024,1024,512,1024,-1,-1,
    -1,-1,-1,-1,1536,1536,512,2816,-1,-1,-1,-1,-1,-1,2048,2048,
    512,4352,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    0,0,512,512,-1,-1,-1,-1,-1,-1,1024,1024,512,1792,-1,-1,
    -1,-1,-1,-1,1536,1536,512,3840,-1,-1,-1,-1,-1,-1,2048,2048,
    512,4608,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    0,0,512,2048,-1,-1,-1,-1,-1,-1,1024,1024,512,4864,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    0,0,512,2304,-1,-1,-1,-1,-1,-1,1024,1024,512,3072,-1,-1,
    -1,-1,-1,-1,1536,1536,512,5120,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    0,0,512,3328,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    0,0,512,768,-1,-1,-1,-1,-1,-1,1024,1024,512,1280,-1,-1,
    -1,-1,-1,-1,1536,1536,512,5632,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    0,0,512,1536,-1,-1,-1,-1,-1,-1,1024,1024,512,4096,-1,-1,
    -1,-1,-1,-1,1536,1536,512,5376,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    0,0,512,256,-1,-1,-1,-1,-1,-1,1024,1024,512,2560,-1,-1,
    -1,-1,-1,-1,1536,1536,512,3584,-1,-1,-1,-1,-1,-1,2048,2048,
    512,5888,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
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

constexpr int kRowBytes = kPanelChunks * 16;

// One stage of one unit on CUDA cores, its sums spread over the lanes as mma.sync spreads them: a lane owns x features g and
// g + 8 and dy columns 2t and 2t + 1 of each 16 x 8 step.
__device__ __forceinline__ void multiply(float (&sums)[kMTiles][kNTiles][4], u32 stage, const int* unit) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    // The features of a unit, chunk by chunk: inside a panel the swizzle makes a step an exclusive or, then comes the next panel.
    const auto at = [&](int offset, int chunk, int row) {
        const u32 panel = stage + chunk / kPanelChunks * kPanelBytes + row * kRowBytes;
        return panel + offset * 16 ^ swizzled<kPanelChunks>(row % 8, chunk % kPanelChunks) % kRowBytes;
    };
#pragma unroll 1
    for (int k = 0; k < kStageRows; k += 8) {
#pragma unroll
        for (int row = 0; row < 8; ++row) {
            float inputs[kMTiles][2];
#pragma unroll
            for (int m = 0; m < kMTiles; ++m)
#pragma unroll
                for (int half = 0; half < 2; ++half)
                    inputs[m][half] = load_shared(at(unit[0], m * 4 + g / 4 + half * 2, k + row) + g % 4 * 4);
#pragma unroll
            for (int j = 0; j < kNTiles; ++j) {
                const float2 gradients = load_shared_2(at(unit[2], j * 2 + t / 2, k + row) + t % 2 * 8);
#pragma unroll
                for (int m = 0; m < kMTiles; ++m)
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        sums[m][j][half * 2] = fmaf(inputs[m][half], gradients.x, sums[m][j][half * 2]);
                        sums[m][j][half * 2 + 1] = fmaf(inputs[m][half], gradients.y, sums[m][j][half * 2 + 1]);
                    }
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(kThreads, 1)
bsgen_wgrad_b32_float32_simt_931e837531d927b6(const Element* __restrict__ x, const Element* __restrict__ dy, float* __restrict__ partials, int n) {
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
                    *reinterpret_cast<float2*>(partials + static_cast<long long>(split) * 24576ll + start + j * 8) = v;
                }
            }
}

// The splits' partial sums, added in order.
extern "C" __global__ void __launch_bounds__(256)
bsgen_wgrad_b32_float32_simt_931e837531d927b6_reduce(const float* __restrict__ partials, Element* __restrict__ dw, int accumulate) {
    constexpr long long kElements = 24576;
    const long long i = (static_cast<long long>(blockIdx.x) * 256 + threadIdx.x) * 4;
    if (i >= kElements) return;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int s = 0; s < kSplits; ++s) {
        const float4 v = *reinterpret_cast<const float4*>(partials + s * kElements + i);
        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
    if (accumulate) {
        const float2 low = load_pair(dw + i), high = load_pair(dw + i + 2);
        sum.x += low.x, sum.y += low.y, sum.z += high.x, sum.w += high.y;
    }
    store_pair(dw + i, make_float2(sum.x, sum.y));
    store_pair(dw + i + 2, make_float2(sum.z, sum.w));
}
