// dW = gate * (x.T @ dy), and the gates' gradients, at the stored blocks of one block-sparse W [256, 256], float16.
// Layout 931e837531d927b6: 24 of 64 blocks of 32 x 32 (37.50 %).
// Plan: hopper, wgmma_f16, 14 tiles in bands of 8, 3 warpgroups of up to 8 units of 64 x 32, 8 stages of 64 rows, 3 panels, 1 splits of N, gated.
//
// A tile is a group of blocks that share panels of x and dy; a thread block sums one. One warpgroup keeps a ring of
// stages full, kStageRows rows of every panel of the tile; each warpgroup multiplies the panels of its units, 64 features of x by a block of dy.

using u32 = unsigned int;

constexpr int kBlock = 32, kSteps = 4;  // a block's side; multiply steps along the rows of a stage
constexpr int kGroups = 3, kUnits = 8;  // warpgroups that multiply, units of each
constexpr int kThreads = 128 * (kGroups + 1);
constexpr int kStages = 8, kStageRows = 64, kPanels = 3;
constexpr int kRowBytes = 64, kPanelBytes = kStageRows * kRowBytes, kStageBytes = kPanels * kPanelBytes;
constexpr int kUnitRows = 32;  // of dW, that lie together
constexpr int kTiles = 14, kSplits = 1;
constexpr u32 kPanelHigh = 2147483680u, kWeightsHigh = kPanelHigh;  // high word of the matrix descriptors (PTX: wgmma)
constexpr int kStep = 16 * kRowBytes / 16;  // from a multiply step to the next, in 16 bytes

// The address of shared memory as PTX instructions take it.
__device__ __forceinline__ u32 shared_address(const void* pointer) {
    return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

// Barriers in shared memory that also count bytes (PTX: mbarrier, sm_90).
__device__ __forceinline__ void barrier_init(u32 barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Make initialised barriers visible to the copy engine.
__device__ __forceinline__ void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ __forceinline__ void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrive, and have the phase wait for `bytes` of copies as well.
__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Wait until the phase of this parity is complete.
__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
    asm volatile(
        "{ .reg .pred done;\n"
        "again_%=: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again_%=; }" ::"r"(barrier), "r"(parity) : "memory");
}

// Copies by the tensor memory accelerator (PTX: cp.async.bulk, sm_90); `barrier` counts their bytes.
struct alignas(64) TensorMap {
    unsigned long long words[16];
};

__device__ __forceinline__ void tma_prefetch(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// The box of a matrix that starts at (column, row), global -> shared; what lies outside the matrix becomes zeros.
__device__ __forceinline__ void tma_load(u32 shared, const TensorMap& map, int column, int row, u32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(shared),
        "l"(&map), "r"(column), "r"(row), "r"(barrier) : "memory");
}

// Consecutive bytes, a multiple of 16, global -> shared.
__device__ __forceinline__ void bulk_load(u32 shared, const void* global, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared),
                 "l"(global), "r"(bytes), "r"(barrier) : "memory");
}

// The warps that load meet (PTX: bar.sync): none is a stage behind another, where it would mistake one phase of a barrier for the next.
template <int Threads = 128>
__device__ __forceinline__ void producers_sync() {
    asm volatile("bar.sync 1, %0;" ::"n"(Threads) : "memory");
}

// Programmatic dependent launch (PTX: griddepcontrol). The kernel ahead in the stream may still run, until which has ended nothing may be
// read or written that is not this kernel's own; and the one behind may be set up from here on.
__device__ __forceinline__ void wait_for_kernel_ahead() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ __forceinline__ void let_kernel_behind_begin() { asm volatile("griddepcontrol.launch_dependents;"); }
// The multiply step of a warpgroup, 64 rows x 32 columns x 16 (PTX: wgmma, sm_90a). Asynchronous: fence before
// the first, commit after the last, wait before its registers or shared memory change.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Wait until at most `Pending` of the newest groups are still at work.
template <int Pending>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}

// The address in the low word of a matrix descriptor, in 16 bytes; that of shared memory has the rank in its cluster in the bits above.
__device__ __forceinline__ u32 matrix_address(u32 shared) {
    return (shared & 0x3ffff) / 16;
}

// sums += A * B; A [64, 16] and B [16, 32] where the low words of their descriptors say.
__device__ __forceinline__ void wgmma(float (&sums)[16], u32 a, u32 b) {
    asm volatile(
        "{ .reg .b64 b; mov.b64 b, {%17, %18};\n"
        ".reg .b64 a; mov.b64 a, {%16, %19};\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
        "}, a, b, 1, 1, 1, 1, 1; }"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]), "+f"(sums[5]), "+f"(sums[6]), "+f"(sums[7]),
          "+f"(sums[8]), "+f"(sums[9]), "+f"(sums[10]), "+f"(sums[11]), "+f"(sums[12]), "+f"(sums[13]), "+f"(sums[14]), "+f"(sums[15])
        : "r"(a), "r"(b), "n"(kWeightsHigh), "n"(kPanelHigh));
}

// Elements are float16, kept as bits.
using Element = unsigned short;

__device__ __forceinline__ u32 pack(float low, float high) {
    u32 bits;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}

__device__ __forceinline__ float2 unpack(u32 bits) {
    float2 value;
    asm("{ .reg .f16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high; }"
        : "=f"(value.x), "=f"(value.y) : "r"(bits));
    return value;
}

__device__ __forceinline__ float2 load_pair(const Element* p) { return unpack(*reinterpret_cast<const u32*>(p)); }
__device__ __forceinline__ void store_pair(Element* p, float2 v) { *reinterpret_cast<u32*>(p) = pack(v.x, v.y); }
__device__ const int __align__(16) kPanelCounts[] = {
    3,3,3,3,3,3,2,2,3,2,3,2,3,3,
};

__device__ const int __align__(16) kPanelTable[] = {
    0,64,-1,128,192,-1,32,96,-33,160,192,-33,96,192,-65,96,
    128,-97,192,-97,0,128,-129,0,32,64,-161,224,-161,0,64,160,
    -193,192,-193,0,0,96,-225,128,224,-225,
};  // [tiles, kPanels]: first feature of a panel of x, ~feature for one of dy
__device__ const int __align__(16) kUnitCounts[] = {
    1,0,0,1,0,0,1,0,0,1,0,0,1,0,0,1,
    0,0,1,0,0,1,0,0,1,0,0,1,0,0,1,0,
    0,1,0,0,1,0,0,1,0,0,
};  // [tiles, kGroups]
__device__ const int __align__(16) kUnitTable[] = {
    16777216,512,0,512,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    16777216,512,1408,2176,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    16777216,512,256,896,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    16777216,512,1920,2304,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    16777216,512,1024,2432,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    16777216,512,1152,1536,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    0,256,2560,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    0,256,1664,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    16777216,512,384,640,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    0,256,2816,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    16777216,512,768,2048,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    0,256,2688,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    16777216,512,128,1280,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    16777216,512,1792,2944,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
};  // [tiles, kGroups, kUnits, 4]: descriptors of x.T and dy, chunks of dW where its first and second block begin

// Fills the ring with stages first ... last - 1 of a tile's rows; four warps, whose lanes load a panel each.
__device__ __forceinline__ void produce(const TensorMap& x, const TensorMap& dy, u32 stages_base, u32 full, u32 empty, int tile, int first, int last) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, panel = lane * 4 + warp, panels = kPanelCounts[tile];
    const int load = panel < panels ? kPanelTable[tile * kPanels + panel] : 0;
    int slot = 0;
    u32 parity = 1;
    wait_for_kernel_ahead();
    for (int stage = first; stage < last; ++stage) {
        const u32 barrier = full + slot * 8;
        barrier_wait(empty + slot * 8, parity);
        producers_sync();
        if (panel == 0) barrier_expect(barrier, panels * kPanelBytes);
        if (panel < panels) tma_load(stages_base + slot * kStageBytes + panel * kPanelBytes, load < 0 ? dy : x, load < 0 ? ~load : load, stage * kStageRows, barrier);
        if (++slot == kStages) slot = 0, parity ^= 1;
    }
}

using Sums = float[kUnits][kBlock / 2];

// Accumulators -> partial sums [units, 64, kBlock], float32.
__device__ __forceinline__ void store(const Sums& sums, int count, float* __restrict__ partials) {
    const int lane = threadIdx.x % 32, top = threadIdx.x / 32 % 4 * 16 + lane / 4, left = lane % 4 * 2;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
        if (u >= count) break;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float* to = partials + (u * 64 + top + half * 8) * kBlock + left;
#pragma unroll
            for (int j = 0; j < kBlock / 8; ++j) *reinterpret_cast<float2*>(to + j * 8) = make_float2(sums[u][j * 4 + half * 2], sums[u][j * 4 + half * 2 + 1]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(kThreads, 1)
bsgen_wgrad_b32_float16_hopper_931e837531d927b6(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap dy_map, float* __restrict__ partials, int n) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const u32 stages_base = shared_address(shared), full = stages_base + kStages * kStageBytes, empty = full + kStages * 8;
    const int group = __shfl_sync(~0u, threadIdx.x / 128, 0), stages = (n + kStageRows - 1) / kStageRows;
    const int tile = blockIdx.x % kTiles, split = blockIdx.x / kTiles;
    const int first = static_cast<long long>(stages) * split / kSplits, last = static_cast<long long>(stages) * (split + 1) / kSplits;
    if (threadIdx.x == 0) {
        let_kernel_behind_begin();
        tma_prefetch(x_map), tma_prefetch(dy_map);
        for (int i = 0; i < kStages; ++i) barrier_init(full + i * 8, 1), barrier_init(empty + i * 8, kGroups * 4);
        barrier_init_fence();
    }
    __syncthreads();

    if (group == kGroups) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
        produce(x_map, dy_map, stages_base, full, empty, tile, first, last);
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 160;");
    const int lane = threadIdx.x % 32, mine = tile * kGroups + group, count = __shfl_sync(~0u, kUnitCounts[mine], 0);
    const int* units = kUnitTable + mine * (kUnits * 4);
    const u32 base = matrix_address(stages_base);
    u32 left[kUnits], right[kUnits];
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
        const int2 unit = *reinterpret_cast<const int2*>(units + u * 4);
        left[u] = __shfl_sync(~0u, base + unit.x, 0), right[u] = __shfl_sync(~0u, base + unit.y, 0);
    }
    Sums sums = {};
    wait_for_kernel_ahead();
    int slot = 0, before = -1;
    u32 parity = 0;
    for (int stage = first; stage < last; ++stage) {
        barrier_wait(full + slot * 8, parity);
        const u32 at = slot * (kStageBytes / 16);
        wgmma_fence();
#pragma unroll
        for (int u = 0; u < kUnits; ++u)
            if (u < count) {
#pragma unroll
                for (int k = 0; k < kSteps; ++k) wgmma(sums[u], left[u] + at + k * kStep, right[u] + at + k * kStep);
            }
        wgmma_commit();
        wgmma_wait<1>();
        if (before >= 0 && lane == 0) barrier_arrive(empty + before * 8);  // its multiplications are done
        before = slot;
        if (++slot == kStages) slot = 0, parity ^= 1;
    }
    wgmma_wait<0>();
    store(sums, count, partials + (static_cast<long long>(blockIdx.x) * kGroups + group) * (kUnits * 64 * kBlock));
}

__device__ const int __align__(16) kSumPlaces[] = {
    0,18432,3072,12288,32,12320,15360,3104,6144,7680,18464,1536,7712,10752,19968,4608,
    15392,1568,4640,6176,9216,16896,13824,20000,
};  // [blocks, kBlock / kUnitRows]: row of a split's sums where those of kUnitRows rows of a block begin
constexpr int kGateThreads = 256, kLanes = 256;  // threads; those that share a stored block
constexpr int kBlocks = 24, kBlockElements = kBlock * kBlock;

// Sums G of x.T @ dy, the splits' added in order -> dW = gate * G, and where W is given the gates' gradients, the sum of G * W over each block.
// A block whose gate is zero has no gradient of its weights; its gate does, so that it may open again.
extern "C" __global__ void __launch_bounds__(kGateThreads)
bsgen_wgrad_b32_float16_hopper_931e837531d927b6_reduce(const float* __restrict__ partials, const float* __restrict__ gate, const Element* __restrict__ w, Element* __restrict__ dw, float* __restrict__ dgate, int accumulate) {
    constexpr long long kSplitElements = 688128;
    const int block = blockIdx.x * (kGateThreads / kLanes) + threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
    float along = 0.0f;  // this thread's part of the sum of G * W
    if (block < kBlocks) {
        const float g = gate[block];
#pragma unroll 2
        for (int i = lane * 4; i < kBlockElements; i += kLanes * 4) {
            const long long place = static_cast<long long>(block) * kBlockElements + i;
            const int row = i / kBlock;
            const float* from = partials + (static_cast<long long>(kSumPlaces[block * (kBlock / kUnitRows) + row / kUnitRows]) + row % kUnitRows) * kBlock + i % kBlock;
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
