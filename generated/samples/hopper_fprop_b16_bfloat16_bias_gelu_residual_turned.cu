// y = x @ W for one block-sparse W [384, 320] and its epilogue, bfloat16.
// Layout 9ff04eadf856b447: 133 of 480 blocks of 16 x 16 (27.71 %).
// Plan: hopper, wgmma_bf16 turned, tile 256 x 128, 8 warps, panels of 32, 3 stages of 74 KiB, balanced groups.
//
// Persistent thread blocks walk tiles of kTileRows rows x kWarps * kSlots output blocks, groups of output blocks fastest. Warps of their own keep a
// ring of stages full: panels of activations, stored blocks, and a record of what to multiply. Each other warp owns all rows of kSlots
// output blocks; four multiply together, their 64 outputs the rows of a product and the rows of x its columns.

using u32 = unsigned int;

constexpr int kFeaturesOut = 320;  // of a row of y
constexpr int kBlock = 16;  // a block's side
constexpr int kWarps = 8, kSlots = 1, kLoaders = 128, kThreads = 32 * kWarps + kLoaders;  // warps that multiply, output blocks of each; threads that load
constexpr int kTileRows = 256;
constexpr int kTiles = 3;
constexpr int kStages = 3, kStageBytes = 75776, kBounds = kStageBytes - 48;  // a stage ends with its record, and that with bounds
constexpr int kPanelBytes = 16384;  // of a panel
constexpr int kScratchBytes = 512;  // of a warp, for 16 rows of 16 outputs
constexpr int kLoads = 20;  // entries of a stage in kLoadTable

// The address of shared memory as PTX instructions take it.
__device__ __forceinline__ u32 shared_address(const void* pointer) {
    return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

// One word, and two words, of shared memory.
__device__ __forceinline__ u32 load_shared(u32 address) {
    u32 word;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(address) : "memory");
    return word;
}

__device__ __forceinline__ uint2 load_shared_pair(u32 address) {
    uint2 words;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(words.x), "=r"(words.y) : "r"(address) : "memory");
    return words;
}

// Byte offset of a 16-byte chunk in a matrix of Chunks chunks a row, swizzled so that 8 rows of one chunk lie in different banks.
template <int Chunks>
__device__ __forceinline__ u32 swizzled(u32 row, u32 chunk) {
    constexpr u32 kSpread = Chunks < 8 ? Chunks : 8;
    return (row * Chunks + (chunk ^ (row / (8 / kSpread) % kSpread))) * 16;
}

// Four 8 x 8 matrices of 16-bit elements into shared memory (PTX: stmatrix, sm_90); lane l gives row l % 8 of matrix l / 8.
__device__ __forceinline__ void stmatrix_x4(u32 address, const u32 (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r[0]), "r"(r[1]), "r"(r[2]),
                 "r"(r[3]) : "memory");
}

// 16 bytes of shared memory.
__device__ __forceinline__ uint4 load_shared_chunk(u32 address) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address) : "memory");
    return v;
}

// 16 bytes to device memory.
__device__ __forceinline__ void store_global_chunk(void* global, uint4 v) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(global), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

// The same, each matrix transposed: lane l gives what becomes of column l % 8 of matrix l / 8.
__device__ __forceinline__ void stmatrix_x4_trans(u32 address, const u32 (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r[0]), "r"(r[1]), "r"(r[2]),
                 "r"(r[3]) : "memory");
}

// 16 bytes into shared memory.
__device__ __forceinline__ void store_chunk(u32 address, uint4 v) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
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
// max(v, 0), but NaN stays NaN (PTX: max.NaN, sm_80).
__device__ __forceinline__ float positive(float v) {
    float larger;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(v), "f"(0.0f));
    return larger;
}

__device__ __forceinline__ float ex2(float v) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(v));
    return power;
}

__device__ __forceinline__ float activate(float v) {
    // v * cdf(v) of the normal distribution, as max(v, 0) - |v| * cdf(-|v|). A minimax polynomial gives log2 of that last factor, to
    // 0.04 % of it for |v| up to 6, and falls without end beyond.
    const float z = fminf(fabsf(v), 64.0f);
    float p = -2.016838e-4f;
    p = fmaf(p, z, 4.4675966e-3f);
    p = fmaf(p, z, -4.283268e-2f);
    p = fmaf(p, z, -0.47278581f);
    p = fmaf(p, z, -1.1443996f);
    p = fmaf(p, z, -1.0005318f);
    return fmaf(-z, ex2(p), positive(v));
}

// Two neighbouring sums of a row -> two outputs.
__device__ __forceinline__ float2 finish(float2 v, float2 bias, float2 residual) {
    v.x += bias.x, v.y += bias.y;
    v.x = activate(v.x), v.y = activate(v.y);
    v.x += residual.x, v.y += residual.y;
    return v;
}

constexpr int kTileStages = 3;  // of each tile
__device__ const int __align__(16) kTargets[] = {
    5,13,1,11,10,8,16,-2147483647,0,17,3,2,18,15,-2147483647,-2147483647,
    7,19,9,6,4,12,14,-2147483647,
};  // [kTiles, kWarps, kSlots]: output block, ~p for partial sum p, or -2147483647 for none
// [stages, kLoads, 2], in chunks of 16 bytes but for features: place of the record, its size | the stage's size << 16; of each panel its
// first feature, 0; of each run of W its place, where it goes in the stage | its size << 16; of no load -1, 0
__device__ const int __align__(16) kLoadTable[] = {
    0,304349220,0,0,32,0,64,0,96,0,64,2101248,128,2101280,256,4198464,
    352,2101376,480,2101408,576,2101440,704,2101472,768,2101504,960,4198688,1056,2101600,1152,2101632,
    1280,4198816,1376,2101728,-1,0,-1,0,36,306446372,128,0,160,0,192,0,
    224,0,1536,2101248,1600,2101280,1760,4198464,1888,2101376,1952,2101408,2080,2101440,2144,2101472,
    2240,2101504,2304,2101536,2368,2101568,2432,2101600,2592,2101632,2656,4198816,2752,2101728,2848,2101760,
    72,298057764,256,0,288,0,320,0,352,0,3008,2101248,3104,2101280,3200,2101312,
    3360,2101344,3456,2101376,3552,2101408,3616,4198592,3776,2101504,3904,4198688,4096,2101600,4160,2101632,
    -1,0,-1,0,-1,0,-1,0,108,302252068,0,0,32,0,64,0,
    96,0,0,2101248,160,4198432,384,2101344,448,2101376,608,4198560,736,2101472,800,6295808,
    1088,4198752,1184,4198816,-1,0,-1,0,-1,0,-1,0,-1,0,-1,0,
    144,300154916,128,0,160,0,192,0,224,0,1504,2101248,1568,2101280,1696,2101312,
    1824,4198496,1984,4198560,2176,4198624,2336,2101536,2464,2101568,2528,4198752,2784,2101664,-1,0,
    -1,0,-1,0,-1,0,-1,0,180,302252068,256,0,288,0,320,0,
    352,0,2880,2101248,3072,2101280,3136,2101312,3232,2101344,3392,4198528,3680,6295744,3808,6295840,
    3968,4198784,4192,2101696,-1,0,-1,0,-1,0,-1,0,-1,0,-1,0,
    216,304349220,0,0,32,0,64,0,96,0,32,2101248,96,2101280,224,2101312,
    320,2101344,416,2101376,512,4198560,672,2101472,896,4198656,1024,2101568,1248,2101600,1344,2101632,
    1408,6295968,-1,0,-1,0,-1,0,252,295960612,128,0,160,0,192,0,
    224,0,1632,4198400,1728,2101312,1920,2101344,2048,2101376,2112,2101408,2272,2101440,2400,2101472,
    2496,2101504,2624,2101536,2720,2101568,2816,2101600,-1,0,-1,0,-1,0,-1,0,
    288,302252068,256,0,288,0,320,0,352,0,2912,6295552,3040,2101344,3168,2101376,
    3264,6295712,3488,4198656,3584,2101568,4032,4198752,4128,2101664,4224,2101696,-1,0,-1,0,
    -1,0,-1,0,-1,0,-1,0,
};

__device__ const int __align__(16) kRecords[] = {
    2,4192,1024,4256,1026,0,2048,0,2050,0,3072,0,3074,4576,2,0,
    1024,0,1026,0,2048,0,2050,0,3072,0,3074,0,2,4160,1024,0,
    1026,4288,2048,0,2050,4416,3072,4480,3074,0,2,4224,1024,0,1026,4320,
    2048,4384,2050,0,3072,0,3074,0,0,4096,1026,0,2050,4448,3072,4544,
    0,0,1026,0,2050,0,3072,4512,0,4128,1026,4352,2050,0,3072,0,
    0,0,1026,0,2050,0,3072,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,75200,75256,75312,75368,75424,75456,75488,75520,75552,0,0,0,
    0,4128,2,0,1024,0,1026,0,2048,0,2050,4416,3072,4480,3074,0,
    0,0,2,4192,1024,0,1026,4320,2048,0,2050,4448,3072,0,3074,4608,
    0,4096,2,0,1024,4224,1026,0,2048,4352,2050,0,3072,0,3074,0,
    0,0,2,0,1024,0,1026,4288,2048,0,2050,0,3072,4544,3074,0,
    2,0,1024,0,2048,0,3072,4512,2,4160,1024,4256,2048,0,3072,0,
    2,0,1024,0,2048,4384,3072,4576,2,0,1024,0,2048,0,3072,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,75200,75264,75328,75392,75456,75488,75520,75552,75584,0,0,0,
    0,0,1024,0,2048,4224,2050,0,3072,0,3074,4448,0,4096,1024,4160,
    2048,4320,2050,0,3072,4416,3074,0,0,0,1024,0,2048,0,2050,0,
    3072,0,3074,0,0,0,1024,0,2048,0,2050,4352,3072,4384,3074,0,
    2,0,1026,4192,2048,4288,3074,0,2,0,1026,0,2048,4256,3074,4480,
    2,4128,1026,0,2048,0,3074,0,2,0,1026,0,2048,0,3074,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,75200,75248,75296,75344,75392,75424,75456,75488,75520,0,0,0,
    0,4096,1024,4224,1026,0,2048,4384,3072,4480,0,4128,1024,0,1026,4352,
    2048,0,3072,0,0,0,1024,0,1026,4288,2048,4416,3072,4544,0,0,
    1024,0,1026,4256,2048,0,3072,4512,0,4160,2,0,1026,0,2050,0,
    0,0,2,4192,1026,4320,2050,4448,0,0,2,0,1026,0,2050,0,
    0,0,2,0,1026,0,2050,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,75200,75240,75280,75320,75360,75392,75424,75456,75488,0,0,0,
    0,4096,1024,4224,1026,0,2048,4352,2050,0,3072,4448,0,0,1024,4256,
    1026,4320,2048,0,2050,4416,3072,0,0,0,1024,0,1026,4288,2048,0,
    2050,4384,3072,4480,0,4128,1024,0,1026,0,2048,0,2050,0,3072,0,
    0,4160,2,4192,3072,4512,0,0,2,0,3072,0,0,0,2,0,
    3072,0,0,0,2,0,3072,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,75200,75248,75296,75344,75392,75416,75440,75464,75488,0,0,0,
    0,4096,2,0,1024,4160,2048,4224,2050,0,3072,4416,0,0,2,0,
    1024,4192,2048,4320,2050,4384,3072,0,0,0,2,0,1024,0,2048,0,
    2050,4352,3072,0,0,0,2,4128,1024,0,2048,4256,2050,0,3072,4448,
    2048,0,3072,4512,3074,4544,2048,4288,3072,4480,3074,0,2048,0,3072,0,
    3074,0,2048,0,3072,0,3074,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,75200,75248,75296,75344,75392,75416,75440,75464,75488,0,0,0,
    0,4096,2,0,1024,0,1026,4320,2048,4384,2050,0,3072,0,3074,4512,
    0,4160,2,4224,1024,0,1026,0,2048,0,2050,0,3072,4480,3074,4576,
    0,0,2,4192,1024,0,1026,0,2048,0,2050,0,3072,0,3074,4544,
    0,0,2,0,1024,4256,1026,0,2048,0,2050,4416,3072,4448,3074,0,
    0,0,1024,0,2048,4352,0,4128,1024,4288,2048,0,0,0,1024,0,
    2048,0,0,0,1024,0,2048,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,75200,75264,75328,75392,75456,75480,75504,75528,75552,0,0,0,
    0,4096,1026,4224,2048,4288,2050,0,3072,0,3074,4448,0,0,1026,0,
    2048,0,2050,4352,3072,0,3074,0,0,4128,1026,0,2048,0,2050,4320,
    3072,4384,3074,0,0,0,1026,0,2048,0,2050,0,3072,0,3074,0,
    2,4160,1024,4192,1026,0,3072,0,2,0,1024,0,1026,4256,3072,4416,
    2,0,1024,0,1026,0,3072,0,2,0,1024,0,1026,0,3072,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,75200,75248,75296,75344,75392,75424,75456,75488,75520,0,0,0,
    0,4128,1026,4288,2048,4384,3072,0,3074,4512,0,4192,1026,0,2048,0,
    3072,4448,3074,4544,0,0,1026,4320,2048,4416,3072,0,3074,0,0,4096,
    1026,4256,2048,4352,3072,0,3074,0,0,0,1024,4224,3074,4480,0,4160,
    1024,0,3074,0,0,0,1024,0,3074,0,0,0,1024,0,3074,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,75200,75240,75280,75320,75360,75384,75408,75432,75456,0,0,0,
};  // see multiply_stage

// The tiles of a product: a row of tiles after the other, and in it group after group of output blocks.
struct Tiles {
    int rows, count;

    __device__ __forceinline__ explicit Tiles(int n) : rows((n + kTileRows - 1) / kTileRows), count(rows * kTiles) {}
    __device__ __forceinline__ int group(int tile) const { return tile % kTiles; }
    __device__ __forceinline__ int row(int tile) const { return tile / kTiles; }
};

// The stages of a ring's tiles, one after the other; the bounds of the next tile are read ahead.
struct Walk {
    const Tiles& tiles;
    int tile, stride, stage, last, next_stage, next_last;

    __device__ __forceinline__ Walk(const Tiles& tiles, int first, int stride) : tiles(tiles), tile(first - stride), stride(stride) {
        stage = last = 0;
        look_ahead();
        skip();
    }
    __device__ __forceinline__ bool more() const { return tile < tiles.count; }
    __device__ __forceinline__ void look_ahead() {
        const int group = tiles.group(min(tile + stride, tiles.count - 1));
        next_stage = group * kTileStages, next_last = next_stage + kTileStages;
    }
    __device__ __forceinline__ void skip() {
        while (stage == last && more()) {
            tile += stride, stage = next_stage, last = next_last;
            look_ahead();
        }
    }
    __device__ __forceinline__ void advance() { ++stage, skip(); }
};

// Fills the ring of stages, tile after tile: each thread one load of a stage. A warp issues its copies one after the other.
__device__ __forceinline__ void produce(const TensorMap& activations, const Element* __restrict__ w, u32 stages_base, u32 full, u32 empty, const Tiles& tiles, int first_tile, int stride) {
    const int mine = threadIdx.x % 32 * (kLoaders / 32) + threadIdx.x / 32 - kWarps;  // neighbouring loads are other warps', which issue side by side
    const auto fetch = [&](const Walk& walk) {
        return mine < kLoads && walk.more() ? reinterpret_cast<const int2*>(kLoadTable)[static_cast<long long>(walk.stage) * kLoads + mine] : make_int2(-1, 0);
    };
    Walk walk(tiles, first_tile, stride);
    int slot = 0;
    int2 ahead = fetch(walk);
    u32 parity = 1;
    wait_for_kernel_ahead();
    while (walk.more()) {
        const int2 load = ahead;
        const int row0 = tiles.row(walk.tile) * kTileRows;
        walk.advance();
        ahead = fetch(walk);  // arrives while the copies of this stage are issued
        const u32 stage = stages_base + slot * kStageBytes, barrier = full + slot * 8;
        const u32 low = load.y & 0xffff, high = static_cast<u32>(load.y) >> 16;
        barrier_wait(empty + slot * 8, parity);
        producers_sync<kLoaders>();
        if (mine == 0) {
            barrier_expect(barrier, high * 16);
            bulk_load(stage + kStageBytes - low * 16, kRecords + static_cast<long long>(load.x) * 4, low * 16, barrier);
        } else if (load.y != 0) {
            const void* from = w + static_cast<long long>(load.x) * 8;
            bulk_load(stage + low * 16, from, high * 16, barrier);
        } else if (load.x >= 0) {
            tma_load(stage + (mine - 1) * kPanelBytes, activations, load.x, row0, barrier);
        }
        if (++slot == kStages) slot = 0, parity ^= 1;
    }
}

// A value that all threads of a warp read alike: keeps what depends on it in uniform registers.
__device__ __forceinline__ u32 uniform(u32 value) {
    return __shfl_sync(~0u, value, 0);
}

__device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

constexpr u32 kPanelHigh = 2147483680u;  // high word of the matrix descriptor of a panel (PTX: wgmma)
constexpr int kOperationBytes = 8;

using Sums = float[kTileRows / 2];

// The multiply step of a warpgroup, 64 rows x 256 columns x 16 (PTX: wgmma, sm_90a). Asynchronous: fence before
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

// sums += a * B; a in registers, B [16, 256] where the low word of its descriptor, b, says.
__device__ __forceinline__ void wgmma(float (&sums)[128], const u32 (&a)[4], u32 b) {
    asm volatile(
        "{ .reg .b64 b; mov.b64 b, {%132, %133};\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
        "}, {%128, %129, %130, %131}, b, 1, 1, 1, 0; }"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]), "+f"(sums[5]), "+f"(sums[6]), "+f"(sums[7]),
          "+f"(sums[8]), "+f"(sums[9]), "+f"(sums[10]), "+f"(sums[11]), "+f"(sums[12]), "+f"(sums[13]), "+f"(sums[14]), "+f"(sums[15]),
          "+f"(sums[16]), "+f"(sums[17]), "+f"(sums[18]), "+f"(sums[19]), "+f"(sums[20]), "+f"(sums[21]), "+f"(sums[22]), "+f"(sums[23]),
          "+f"(sums[24]), "+f"(sums[25]), "+f"(sums[26]), "+f"(sums[27]), "+f"(sums[28]), "+f"(sums[29]), "+f"(sums[30]), "+f"(sums[31]),
          "+f"(sums[32]), "+f"(sums[33]), "+f"(sums[34]), "+f"(sums[35]), "+f"(sums[36]), "+f"(sums[37]), "+f"(sums[38]), "+f"(sums[39]),
          "+f"(sums[40]), "+f"(sums[41]), "+f"(sums[42]), "+f"(sums[43]), "+f"(sums[44]), "+f"(sums[45]), "+f"(sums[46]), "+f"(sums[47]),
          "+f"(sums[48]), "+f"(sums[49]), "+f"(sums[50]), "+f"(sums[51]), "+f"(sums[52]), "+f"(sums[53]), "+f"(sums[54]), "+f"(sums[55]),
          "+f"(sums[56]), "+f"(sums[57]), "+f"(sums[58]), "+f"(sums[59]), "+f"(sums[60]), "+f"(sums[61]), "+f"(sums[62]), "+f"(sums[63]),
          "+f"(sums[64]), "+f"(sums[65]), "+f"(sums[66]), "+f"(sums[67]), "+f"(sums[68]), "+f"(sums[69]), "+f"(sums[70]), "+f"(sums[71]),
          "+f"(sums[72]), "+f"(sums[73]), "+f"(sums[74]), "+f"(sums[75]), "+f"(sums[76]), "+f"(sums[77]), "+f"(sums[78]), "+f"(sums[79]),
          "+f"(sums[80]), "+f"(sums[81]), "+f"(sums[82]), "+f"(sums[83]), "+f"(sums[84]), "+f"(sums[85]), "+f"(sums[86]), "+f"(sums[87]),
          "+f"(sums[88]), "+f"(sums[89]), "+f"(sums[90]), "+f"(sums[91]), "+f"(sums[92]), "+f"(sums[93]), "+f"(sums[94]), "+f"(sums[95]),
          "+f"(sums[96]), "+f"(sums[97]), "+f"(sums[98]), "+f"(sums[99]), "+f"(sums[100]), "+f"(sums[101]), "+f"(sums[102]), "+f"(sums[103]),
          "+f"(sums[104]), "+f"(sums[105]), "+f"(sums[106]), "+f"(sums[107]), "+f"(sums[108]), "+f"(sums[109]), "+f"(sums[110]), "+f"(sums[111]),
          "+f"(sums[112]), "+f"(sums[113]), "+f"(sums[114]), "+f"(sums[115]), "+f"(sums[116]), "+f"(sums[117]), "+f"(sums[118]), "+f"(sums[119]),
          "+f"(sums[120]), "+f"(sums[121]), "+f"(sums[122]), "+f"(sums[123]), "+f"(sums[124]), "+f"(sums[125]), "+f"(sums[126]), "+f"(sums[127])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "n"(kPanelHigh));
}

// A warp's part of W^T for a multiply step, 16 outputs x 16 inputs, is four matrices of 8 x 8 (PTX: ldmatrix): of the first 8 inputs for 8
// outputs and 8 more, then of the other inputs.
struct Lane {
    u32 weights;  // from a stored block's start to the 16 bytes that this lane points at, a row of matrix lane / 8
    __device__ __forceinline__ explicit Lane(int lane) : weights((lane / 16 * 8 + lane % 8) * 32 + lane / 8 % 2 * 16) {}
};

// A warp's part of giving a stage back, whose barrier may be none.
__device__ __forceinline__ void give_back(u32 barrier) {
    __syncwarp();  // every lane has read its last
    if (barrier != 0 && threadIdx.x % 32 == 0) barrier_arrive(barrier);
}

// The operations of this warp, of which each other of its warpgroup has as many. One is a multiply step's inputs in row 0 of their panel,
// and the warp's stored block, in 16 bytes from the start of the stage; 0, where the panels begin, for none. At `bounds` lie the first
// and where the last ends, in bytes of the stage. Beside the last come some that are safe to load. The last is still at work in the end:
// the stage `before` is given back when its own is done, as this one's first is at work.
__device__ __forceinline__ void multiply_stage(Sums& sums, const Lane& lane, u32 stage, u32 bounds, u32 zeros, u32 before) {
    const u32 first = load_shared(bounds), weights = stage + lane.weights;
    u32 count = uniform(load_shared(bounds + 4) - first) / kOperationBytes;
    if (count == 0) {
        wgmma_wait<0>();
        give_back(before);
        return;
    }
    const u32 panels = matrix_address(stage);
    u32 at = stage + first;
    const auto load_fragments = [&](u32 (&w)[4], u32 block) {
        ldmatrix_x4_trans(w, block ? weights + block * 16 : zeros);
    };
    // An operation's fragments load while the one before is multiplied, into registers that the one before that has left.
    uint2 now = load_shared_pair(at), next = load_shared_pair(at + kOperationBytes);
    u32 begin[4], even[4], odd[4];
    load_fragments(begin, now.y);
    const auto turn = [&](const u32 (&w)[4], u32 (&then)[4]) {
        const u32 inputs = uniform(now.x);
        now = next, at += kOperationBytes;
        next = load_shared_pair(at + kOperationBytes);
        wgmma_fence();
        wgmma(sums, w, panels + inputs);
        wgmma_commit();
        wgmma_wait<1>();
        load_fragments(then, now.y);
    };
    turn(begin, even);
    give_back(before);
    if (--count == 0) {
        wgmma_wait<0>();  // its registers are those of the next stage's first
        return;
    }
    while (true) {
        turn(even, odd);
        if (--count == 0) break;
        turn(odd, even);
        if (--count == 0) break;
    }
}

// Accumulators -> global: the epilogue for finished outputs, float32 for partial sums. A warp holds 16 outputs of all rows; 16 rows at a time.
__device__ __forceinline__ void store(const Sums& sums, const int (&targets)[kSlots], int row0, int n, Element* __restrict__ y, const Element* __restrict__ bias, const Element* __restrict__ residual, u32 scratch) {
    const int lane = threadIdx.x % 32;
    const int held[2] = {lane / 4, lane / 4 + 8};  // the outputs that this lane has sums of, in their blocks
    float biases[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) biases[half] = unpack(bias[max(targets[half * (kSlots - 1)], 0) * kBlock + held[half]]).x;
    // Which 8 outputs this lane stores, of which of 16 rows, and where the row lies in scratch that it points at of matrix l / 8.
    const int mine = lane % 2 ? targets[kSlots - 1] : targets[0], row = row0 + lane / 2;
    const u32 matrices = scratch + swizzled<2>(lane / 16 * 8 + lane % 8, lane / 8 % 2), chunks = scratch + swizzled<2>(lane / 2, lane % 2);
    const long long place = static_cast<long long>(row) * kFeaturesOut + max(mine, 0) * kBlock + lane % 2 * 8;
    const auto load_residual = [&](int rows) {
        uint4 chunk = {};
        if (row + rows < n && mine >= 0) chunk = *reinterpret_cast<const uint4*>(residual + place + static_cast<long long>(rows) * kFeaturesOut);
        return chunk;
    };
    uint4 ahead = load_residual(0);
#pragma unroll
    for (int rows = 0; rows < kTileRows; rows += 16) {
        // Through shared memory, so that each lane has what belongs to its sums.
        u32 residuals[4];
        store_chunk(chunks, ahead);
        if (rows + 16 < kTileRows) ahead = load_residual(rows + 16);
        __syncwarp();
        ldmatrix_x4_trans(residuals, matrices);
        __syncwarp();
        u32 words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {  // 8 outputs, then 8 more, of 8 rows; then of the next 8
            const int half = i % 2;
            const float* two = sums + (rows / 8 + i / 2) * 4 + half * 2;
            const float2 v = finish(make_float2(two[0], two[1]), make_float2(biases[half], biases[half]), unpack(residuals[i]));
            words[i] = pack(v.x, v.y);
        }
        // Through shared memory, so that each lane stores 16 bytes of a row.
        stmatrix_x4_trans(matrices, words);
        __syncwarp();
        const uint4 chunk = load_shared_chunk(chunks);
        __syncwarp();
        if (row + rows < n && mine >= 0) store_global_chunk(y + place + static_cast<long long>(rows) * kFeaturesOut, chunk);
    }
}

extern "C" __global__ void __launch_bounds__(kThreads, 1)
bsgen_fprop_b16_bfloat16_hopper_9ff04eadf856b447(const __grid_constant__ TensorMap x_map, const Element* __restrict__ w, Element* __restrict__ y, const Element* __restrict__ bias, const Element* __restrict__ residual, int n) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const u32 stages_base = shared_address(shared), full = stages_base + kStages * kStageBytes, empty = full + kStages * 8;
    const u32 zeros = empty + kStages * 8 + kWarps * kScratchBytes;  // 16 bytes, in the place of blocks that are not stored
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    const int first_tile = blockIdx.x, stride = gridDim.x;
    const Tiles tiles(n);

    if (threadIdx.x == 0) {
        let_kernel_behind_begin();
        tma_prefetch(x_map);
        for (int i = 0; i < kStages; ++i) barrier_init(full + i * 8, 1), barrier_init(empty + i * 8, kWarps);
        barrier_init_fence();
        store_chunk(zeros, uint4{});
    }
    __syncthreads();

    if (warp >= kWarps) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
        produce(x_map, w, stages_base, full, empty, tiles, first_tile, stride);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 176;");
        wait_for_kernel_ahead();
        const int lane = threadIdx.x % 32;
        const u32 scratch = empty + kStages * 8 + warp * kScratchBytes;
        const Lane places(lane);
        int slot = 0;
        u32 parity = 0;
        for (int tile = first_tile; tile < tiles.count; tile += stride) {
            const int group = tiles.group(tile), row0 = tiles.row(tile) * kTileRows;
            int targets[kSlots];  // read long before they are needed
#pragma unroll
            for (int s = 0; s < kSlots; ++s) {
                targets[s] = kTargets[(group * kWarps + warp) * kSlots + s];
                asm volatile("" : "+r"(targets[s]));
            }
            Sums sums = {};
            u32 before = 0;  // the barrier of the stage that is to be given back next
            int last = kTileStages;
            asm volatile("" : "+r"(last));  // a loop of one turn would be none, and its multiplies be ordered otherwise
            for (int s = 0; s < last; ++s) {
                const u32 stage = stages_base + slot * kStageBytes;
                barrier_wait(full + slot * 8, parity);
                multiply_stage(sums, places, stage, stage + kBounds + warp * 4, zeros, before);
                before = empty + slot * 8;
                if (++slot == kStages) slot = 0, parity ^= 1;
            }
            wgmma_wait<0>();
            give_back(before);
            store(sums, targets, row0, n, y, bias, residual, scratch);
        }
    }
}
