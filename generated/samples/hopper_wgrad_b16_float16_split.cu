// dW = x.T @ dy at the stored blocks of one block-sparse W [384, 256], float16.
// Layout 6af3ae58f8370c92: 144 of 384 blocks of 16 x 16 (37.50 %).
// Plan: hopper, wgmma_f16, 6 tiles in bands of 3, 3 warpgroups of up to 2 units of 64 x 128, 8 stages of 32 rows, 4 panels, 16 splits of N, of which blocks of 16 are kept.
//
// A tile is a group of blocks that share panels of x and dy; a thread block sums one over a part of the N rows. One warpgroup keeps a ring of
// stages full, kStageRows rows of every panel of the tile; each warpgroup multiplies the panels of its units, 64 features of x by 128 of dy, and keeps the stored blocks.

using u32 = unsigned int;

constexpr int kBlock = 128, kSteps = 2;  // features of dy of a unit; multiply steps along the rows of a stage
constexpr int kSide = 16, kAcross = kBlock / kSide, kDown = 64 / kSide;  // a stored block's side; blocks across and down a unit
constexpr int kGroups = 3, kUnits = 2;  // warpgroups that multiply, units of each
constexpr int kThreads = 128 * (kGroups + 1);
constexpr int kStages = 8, kStageRows = 32, kPanels = 4;
constexpr int kRowBytes = 128, kPanelBytes = kStageRows * kRowBytes, kStageBytes = kPanels * kPanelBytes;
constexpr int kTiles = 6, kSplits = 16;
constexpr u32 kPanelHigh = 1073741888u, kWeightsHigh = kPanelHigh;  // high word of the matrix descriptors (PTX: wgmma)
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
// The multiply step of a warpgroup, 64 rows x 128 columns x 16 (PTX: wgmma, sm_90a). Asynchronous: fence before
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

// sums += A * B; A [64, 16] and B [16, 128] where the low words of their descriptors say.
__device__ __forceinline__ void wgmma(float (&sums)[64], u32 a, u32 b) {
    asm volatile(
        "{ .reg .b64 b; mov.b64 b, {%65, %66};\n"
        ".reg .b64 a; mov.b64 a, {%64, %67};\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, a, b, 1, 1, 1, 1, 1; }"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]), "+f"(sums[5]), "+f"(sums[6]), "+f"(sums[7]),
          "+f"(sums[8]), "+f"(sums[9]), "+f"(sums[10]), "+f"(sums[11]), "+f"(sums[12]), "+f"(sums[13]), "+f"(sums[14]), "+f"(sums[15]),
          "+f"(sums[16]), "+f"(sums[17]), "+f"(sums[18]), "+f"(sums[19]), "+f"(sums[20]), "+f"(sums[21]), "+f"(sums[22]), "+f"(sums[23]),
          "+f"(sums[24]), "+f"(sums[25]), "+f"(sums[26]), "+f"(sums[27]), "+f"(sums[28]), "+f"(sums[29]), "+f"(sums[30]), "+f"(sums[31]),
          "+f"(sums[32]), "+f"(sums[33]), "+f"(sums[34]), "+f"(sums[35]), "+f"(sums[36]), "+f"(sums[37]), "+f"(sums[38]), "+f"(sums[39]),
          "+f"(sums[40]), "+f"(sums[41]), "+f"(sums[42]), "+f"(sums[43]), "+f"(sums[44]), "+f"(sums[45]), "+f"(sums[46]), "+f"(sums[47]),
          "+f"(sums[48]), "+f"(sums[49]), "+f"(sums[50]), "+f"(sums[51]), "+f"(sums[52]), "+f"(sums[53]), "+f"(sums[54]), "+f"(sums[55]),
          "+f"(sums[56]), "+f"(sums[57]), "+f"(sums[58]), "+f"(sums[59]), "+f"(sums[60]), "+f"(sums[61]), "+f"(sums[62]), "+f"(sums[63])
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
    4,4,4,4,4,4,
};

__device__ const int __align__(16) kPanelTable[] = {
    0,64,-1,-65,128,192,-1,-65,256,320,-1,-65,0,64,-129,-193,
    128,192,-129,-193,256,320,-129,-193,
};  // [tiles, kPanels]: first feature of a panel of x, ~feature for one of dy
__device__ const int __align__(16) kUnitCounts[] = {
    1,1,0,1,1,0,1,1,0,1,1,0,1,1,0,1,
    1,0,
};  // [tiles, kGroups]
__device__ const int __align__(16) kKept[] = {
    0,-1,-1,-1,1,-1,-1,-1,-1,4,5,-1,-1,-1,-1,-1,
    8,9,10,11,12,13,14,15,-1,-1,-1,-1,-1,-1,24,25,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    28,-1,-1,-1,29,-1,-1,-1,-1,-1,32,-1,-1,33,-1,-1,
    36,-1,37,-1,38,-1,39,-1,-1,-1,-1,44,-1,-1,45,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    48,-1,-1,-1,49,-1,-1,-1,-1,52,53,-1,-1,-1,-1,-1,
    56,57,58,59,60,61,62,63,-1,-1,-1,-1,-1,-1,72,73,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    76,-1,-1,-1,77,-1,-1,-1,-1,-1,80,-1,-1,81,-1,-1,
    84,-1,85,-1,86,-1,87,-1,-1,-1,-1,92,-1,-1,93,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    96,-1,-1,-1,97,-1,-1,-1,-1,100,101,-1,-1,-1,-1,-1,
    104,105,106,107,108,109,110,111,-1,-1,-1,-1,-1,-1,120,121,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    124,-1,-1,-1,125,-1,-1,-1,-1,-1,128,-1,-1,129,-1,-1,
    132,-1,133,-1,134,-1,135,-1,-1,-1,-1,140,-1,-1,141,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    2,-1,-1,-1,3,-1,-1,-1,-1,6,7,-1,-1,-1,-1,-1,
    16,17,18,19,20,21,22,23,-1,-1,-1,-1,-1,-1,26,27,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    30,-1,-1,-1,31,-1,-1,-1,-1,-1,34,-1,-1,35,-1,-1,
    40,-1,41,-1,42,-1,43,-1,-1,-1,-1,46,-1,-1,47,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    50,-1,-1,-1,51,-1,-1,-1,-1,54,55,-1,-1,-1,-1,-1,
    64,65,66,67,68,69,70,71,-1,-1,-1,-1,-1,-1,74,75,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    78,-1,-1,-1,79,-1,-1,-1,-1,-1,82,-1,-1,83,-1,-1,
    88,-1,89,-1,90,-1,91,-1,-1,-1,-1,94,-1,-1,95,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    98,-1,-1,-1,99,-1,-1,-1,-1,102,103,-1,-1,-1,-1,-1,
    112,113,114,115,116,117,118,119,-1,-1,-1,-1,-1,-1,122,123,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    126,-1,-1,-1,127,-1,-1,-1,-1,-1,130,-1,-1,131,-1,-1,
    136,-1,137,-1,138,-1,139,-1,-1,-1,-1,142,-1,-1,143,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
};  // [tiles, kGroups, kUnits, kDown, kAcross]: which stored block it is, or -1
__device__ const int __align__(16) kUnitTable[] = {
    0,16777728,0,-1,-1,-1,-1,-1,256,16777728,1024,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,0,16777728,4096,-1,-1,-1,-1,-1,
    256,16777728,5120,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    0,16777728,8192,-1,-1,-1,-1,-1,256,16777728,9216,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,0,16777728,2048,-1,-1,-1,-1,-1,
    256,16777728,3072,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    0,16777728,6144,-1,-1,-1,-1,-1,256,16777728,7168,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,0,16777728,10240,-1,-1,-1,-1,-1,
    256,16777728,11264,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
};  // [tiles, kGroups, kUnits, 4]: descriptors of x.T and dy, two of no use

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
bsgen_wgrad_b16_float16_hopper_6af3ae58f8370c92(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap dy_map, float* __restrict__ partials, int n) {
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

// The splits' partial sums, added in order; a thread block for each unit.
extern "C" __global__ void __launch_bounds__(256)
bsgen_wgrad_b16_float16_hopper_6af3ae58f8370c92_reduce(const float* __restrict__ partials, Element* __restrict__ dw, int accumulate) {
    constexpr int kUnitElements = 64 * kBlock;
    constexpr long long kSplitElements = 294912;
    if (static_cast<int>(blockIdx.x) % kUnits >= kUnitCounts[blockIdx.x / kUnits]) return;
    wait_for_kernel_ahead();
    const float* from = partials + static_cast<long long>(blockIdx.x) * kUnitElements;
    const int* blocks = kKept + blockIdx.x * (kDown * kAcross);
    for (int i = threadIdx.x * 4; i < kUnitElements; i += 256 * 4) {
        const int row = i / kBlock, column = i % kBlock, block = blocks[row / kSide * kAcross + column / kSide];
        if (block < 0) continue;
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
        for (int s = 0; s < kSplits; ++s) {
            const float4 v = *reinterpret_cast<const float4*>(from + s * kSplitElements + i);
            sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
        }
        Element* to = dw + static_cast<long long>(block) * (kSide * kSide) + row % kSide * kSide + column % kSide;
        if (accumulate) {
            const float2 low = load_pair(to), high = load_pair(to + 2);
            sum.x += low.x, sum.y += low.y, sum.z += high.x, sum.w += high.y;
        }
        store_pair(to, make_float2(sum.x, sum.y));
        store_pair(to + 2, make_float2(sum.z, sum.w));
    }
}
