// dW = x @ dy.T at the stored blocks of one block-sparse W [1024, 1024], bfloat16.
// Layout 8714e3b41f42a1a1: 286 of 1024 blocks of 32 x 32 (27.93 %).
// Plan: hopper, wgmma_bf16, 12 tiles in bands of 32, 2 warpgroups of up to 12 units of 64 x 32, 5 stages of 32 rows, 22 panels, 11 splits of N.
//
// A tile is a group of blocks that share panels of x and dy; a thread block sums one over a part of the N rows. One warpgroup keeps a ring of
// stages full, kStageRows rows of every panel of the tile; each warpgroup multiplies the panels of its units, 64 features of x by a block of dy.

using u32 = unsigned int;

constexpr int kBlock = 32, kSteps = 2;  // a block's side; multiply steps along the rows of a stage
constexpr int kGroups = 2, kUnits = 12;  // warpgroups that multiply, units of each
constexpr int kThreads = 128 * (kGroups + 1);
constexpr int kStages = 5, kStageRows = 32, kPanels = 22;
constexpr int kFeatures = 32, kLineBytes = 64, kPanelBytes = kFeatures * kLineBytes, kStageBytes = kPanels * kPanelBytes;  // a line of a panel: kStageRows rows of a feature
constexpr int kUnitRows = 32;  // of dW, that lie together
constexpr int kTiles = 12, kSplits = 11;
constexpr u32 kPanelHigh = 2147483680u, kWeightsHigh = kPanelHigh;  // high word of the matrix descriptors (PTX: wgmma)
constexpr int kStep = 2;  // from a multiply step to the next, in 16 bytes

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
// 8 x 8 matrices of 16-bit elements (or 8 rows of 16 bytes) from shared memory (PTX: ldmatrix).
__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

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

// sums += a * B; a in registers, B [16, 32] where the low word of its descriptor, b, says.
__device__ __forceinline__ void wgmma(float (&sums)[16], const u32 (&a)[4], u32 b) {
    asm volatile(
        "{ .reg .b64 b; mov.b64 b, {%20, %21};\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
        "}, {%16, %17, %18, %19}, b, 1, 1, 1, 0; }"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]), "+f"(sums[5]), "+f"(sums[6]), "+f"(sums[7]),
          "+f"(sums[8]), "+f"(sums[9]), "+f"(sums[10]), "+f"(sums[11]), "+f"(sums[12]), "+f"(sums[13]), "+f"(sums[14]), "+f"(sums[15])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "n"(kWeightsHigh));
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
    20,16,16,16,18,21,19,22,15,14,22,17,
};

__device__ const int __align__(16) kPanelTable[] = {
    0,64,128,192,256,320,352,384,448,512,576,640,704,768,800,832,
    896,960,-1,-385,0,0,32,96,160,192,256,320,384,544,640,704,
    864,928,992,-33,-65,-929,0,0,0,0,0,0,96,128,192,256,
    352,416,448,544,640,672,704,768,992,-97,-961,-993,0,0,0,0,
    0,0,128,160,192,256,288,320,576,608,640,704,736,768,-129,-257,
    -641,-769,0,0,0,0,0,0,32,64,160,192,224,256,416,448,
    512,608,640,736,832,928,960,-161,-193,-289,0,0,0,0,0,96,
    128,224,256,352,384,448,480,512,544,608,640,736,768,832,864,896,
    992,-225,-513,0,0,160,192,256,288,352,384,448,608,640,704,736,
    800,832,896,-321,-577,-705,-833,0,0,0,32,96,128,160,288,352,
    416,448,480,512,576,640,672,704,768,832,864,928,992,-353,-417,-481,
    0,32,96,256,320,352,416,576,640,672,896,928,992,-545,-801,0,
    0,0,0,0,0,0,0,32,192,224,384,416,512,608,704,736,
    896,928,-609,-737,0,0,0,0,0,0,0,0,64,96,128,192,
    224,256,288,320,352,416,448,480,576,608,704,736,832,864,960,992,
    -673,-865,0,64,128,192,256,320,384,448,512,576,640,704,768,832,
    896,960,-897,0,0,0,0,0,
};  // [tiles, kPanels]: first feature of a panel of x, ~feature for one of dy
__device__ const int __align__(16) kUnitCounts[] = {
    6,6,7,7,7,7,6,6,7,7,6,6,7,7,7,7,
    6,5,5,5,7,6,4,4,
};  // [tiles, kGroups]
__device__ const int __align__(16) kUnitTable[] = {
    8388608,2304,0,2560,8389120,2304,10112,12800,8389760,2304,19712,20992,16778880,2304,28416,29952,
    8388608,2432,384,2944,41944192,2432,20096,29696,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388864,2304,5120,7296,8389504,2304,15488,17664,8390016,2304,23168,25600,8390656,2304,31488,34048,
    16777984,2432,14464,18432,8390656,2432,31872,34432,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388608,1664,1408,3456,8389120,1664,10240,12928,8390016,1664,32896,34944,8388864,1920,7168,8960,
    33555200,1920,16384,31360,16777344,1792,3584,7552,8389632,1792,23296,25728,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388864,1664,6400,7424,33555200,1664,15616,30848,8388608,1920,2432,4736,8389120,1920,11776,13952,
    8390016,1920,33920,36224,25166336,1792,10368,20608,1536,1792,35072,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388608,1664,3712,5248,8389248,1664,16512,17792,1536,1664,35200,-1,16777472,1920,9216,15360,
    16778368,1920,25472,29568,16777216,1792,4864,9088,16778240,1792,24832,27264,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    16777472,1664,7680,14080,16778368,1664,24960,28544,8388608,1920,4992,6272,8389248,1920,17536,19072,
    1536,1920,36480,-1,33554816,1792,11904,20864,1536,1792,36352,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    33554432,1536,5376,12032,8389888,1536,27392,28672,25166464,1664,13184,23808,8388608,1920,5888,7040,
    33555328,1920,23040,29312,25166208,1792,11008,21504,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8389248,1536,13056,21120,16777472,1664,7936,12160,8389888,1664,27776,28928,8389248,1920,13568,21760,
    8388608,1792,5760,6912,16778112,1792,22656,26496,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388608,1920,1536,2688,8389376,1920,16640,17920,8390272,1920,33024,34176,8389248,2176,10752,16768,
    16778496,2176,23936,30080,8388736,2048,2816,6528,8389760,2048,22144,23552,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8389120,1920,9344,10496,8389888,1920,23424,27520,33554432,2176,1664,9600,16778112,2176,18048,22400,
    1664,2176,33152,-1,41943424,2048,7808,19840,1792,2048,34304,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388608,2432,128,3840,8389120,2432,10624,14208,16778368,2432,19968,22272,16779008,2432,28800,30976,
    8388608,2560,512,4224,41944320,2560,20736,30336,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388864,2432,5504,9472,16777984,2432,15744,19200,8390144,2432,23680,27648,8390784,2432,31616,35328,
    8389376,2560,15872,18560,8390784,2560,32000,35712,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388608,1920,256,6656,8389632,1920,22528,24064,25165824,2048,768,10880,8389888,2048,26240,27904,
    8388992,2176,11136,12544,16778624,2176,28288,30592,33555072,2304,15104,24576,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    41943296,1920,8064,18176,1792,1920,31744,-1,25166336,2048,12416,18688,1792,2048,32256,-1,
    33555200,2176,16000,26752,8388864,2304,8576,11392,16778496,2304,27008,29824,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388608,2432,1792,3968,41943936,2432,18304,25088,8390784,2432,33280,35456,67109248,2688,6784,24320,
    8390528,2688,30208,31104,8389120,2560,12288,14592,8389760,2560,20224,21248,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    25166080,2432,5632,14336,8390272,2432,25856,29056,8388608,2688,1920,4096,8390272,2688,26112,29184,
    8390784,2688,33408,35584,16777984,2560,16896,19328,16778624,2560,24192,25984,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    16777216,1664,640,4352,8389376,1664,17024,21376,16778496,1664,32128,35840,8388864,1792,4608,11264,
    16778112,1792,21888,25344,1536,1792,36096,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8389120,1664,13312,14720,8389632,1664,24448,25216,8388608,1792,1152,2304,8389120,1792,13696,14976,
    8389888,1792,32640,33792,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388608,1536,896,2048,8389248,1536,17152,20352,8389888,1536,32384,33536,8388864,1664,8448,9984,
    8389504,1664,22912,26880,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388864,1536,8192,9728,8389632,1536,26368,28032,8388608,1664,1024,2176,8389120,1664,16128,17280,
    8389888,1664,32512,33664,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388608,2560,3072,4480,8389504,2560,13440,14848,8390144,2560,21632,22784,8390656,2560,30464,31232,
    16777216,2688,3200,6016,16777984,2688,12672,15232,2304,2688,34688,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388992,2560,8320,9856,8389888,2560,18816,19456,8390400,2560,26624,28160,8390912,2560,34560,35968,
    16777600,2688,8704,11520,16778368,2688,17408,19584,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388608,2048,1280,3328,8389120,2048,11648,13824,8389632,2048,20480,22016,8390144,2048,29440,30720,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388864,2048,6144,8832,8389376,2048,16256,18944,8389888,2048,24704,27136,8390400,2048,32768,34816,
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
        if (panel < panels) tma_load(stages_base + slot * kStageBytes + panel * kPanelBytes, load < 0 ? dy : x, stage * kStageRows, load < 0 ? ~load : load, barrier);
        if (++slot == kStages) slot = 0, parity ^= 1;
    }
}

using Sums = float[kUnits][kBlock / 2];

// One stage of one unit. A warp's 16 features of x pass through registers, half of which the step before still reads.
__device__ __forceinline__ void multiply(float (&sums)[kBlock / 2], u32 (&a)[2][4], u32 stage, u32 place) {
    const u32 from = stage + (place & 0xffff) * 16, right = matrix_address(stage) + (place >> 16);
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
        wgmma_wait<1>();
        ldmatrix_x4(a[k % 2], from ^ k * (kStep * 16));
        wgmma_fence();
        wgmma(sums, a[k % 2], right + k * kStep);
        wgmma_commit();
    }
}

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
bsgen_wgrad_b32_bfloat16_hopper_8714e3b41f42a1a1(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap dy_map, float* __restrict__ partials, int n) {
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
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int lane = threadIdx.x % 32, mine = tile * kGroups + group, count = __shfl_sync(~0u, kUnitCounts[mine], 0);
    const int* units = kUnitTable + mine * (kUnits * 4);
    // Warps 0 and 1 multiply the first block of a unit, 2 and 3 the second. Where this lane's chunk of a fragment lies in a panel (PTX: ldmatrix), swizzled.
    const u32 second = threadIdx.x / 64 % 2, feature = threadIdx.x / 32 % 2 * 16 + lane % 16;
    const u32 chunk = feature * (kLineBytes / 16) + (lane / 16 ^ feature / 2 % 4);
    u32 places[kUnits];  // chunks from a stage's start to this lane's of x in the low half of the word, to dy in the high half
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
        const int2 unit = *reinterpret_cast<const int2*>(units + u * 4);
        places[u] = (unit.x & 0xffff) + second * (unit.x >> 16) + chunk | unit.y << 16;
    }
    Sums sums = {};
    wait_for_kernel_ahead();
    int slot = 0;
    u32 parity = 0;
    for (int stage = first; stage < last; ++stage) {
        barrier_wait(full + slot * 8, parity);
        u32 a[2][4];
#pragma unroll
        for (int u = 0; u < kUnits; ++u) {
            if (u >= count) break;
            u32 place = places[u];
            asm volatile("" : "+r"(place));  // else its halves have a register each
            multiply(sums[u], a, stages_base + slot * kStageBytes, place);
        }
        wgmma_wait<0>();
        __syncwarp();  // every lane has read its last
        if (lane == 0) barrier_arrive(empty + slot * 8);
        if (++slot == kStages) slot = 0, parity ^= 1;
    }
    store(sums, count, partials + (static_cast<long long>(blockIdx.x) * kGroups + group) * (kUnits * 64 * kBlock));
}

// The splits' partial sums, added in order; a thread block for each unit.
extern "C" __global__ void __launch_bounds__(256)
bsgen_wgrad_b32_bfloat16_hopper_8714e3b41f42a1a1_reduce(const float* __restrict__ partials, Element* __restrict__ dw, int accumulate) {
    constexpr int kUnitElements = 64 * kBlock;
    constexpr long long kSplitElements = 589824;
    if (static_cast<int>(blockIdx.x) % kUnits >= kUnitCounts[blockIdx.x / kUnits]) return;
    wait_for_kernel_ahead();
    const float* from = partials + static_cast<long long>(blockIdx.x) * kUnitElements;
    const int* words = kUnitTable + blockIdx.x * 4;
    for (int i = threadIdx.x * 4; i < kUnitElements; i += 256 * 4) {
        const int row = i / kBlock, place = words[2 + row / kUnitRows];
        if (place < 0) continue;
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
        for (int s = 0; s < kSplits; ++s) {
            const float4 v = *reinterpret_cast<const float4*>(from + s * kSplitElements + i);
            sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
        }
        Element* to = dw + static_cast<long long>(place) * 8 + row % kUnitRows * kBlock + i % kBlock;
        if (accumulate) {
            const float2 low = load_pair(to), high = load_pair(to + 2);
            sum.x += low.x, sum.y += low.y, sum.z += high.x, sum.w += high.y;
        }
        store_pair(to, make_float2(sum.x, sum.y));
        store_pair(to + 2, make_float2(sum.z, sum.w));
    }
}
