// y = x @ W for one block-sparse W [128, 512], bfloat16.
// Layout 73440e3754c806df: 304 of 1024 blocks of 8 x 8 (29.69 %).
// Plan: hopper, mma_bf16, tile 16 x 128, 8 warps, 8 that load, panels of 64, 3 stages of 74 KiB, contiguous groups, 13 of 31 blocks kept in L2.
//
// Persistent thread blocks walk tiles of kTileRows rows x kWarps * kSlots output blocks, groups of output blocks fastest. Warps of their own keep a
// ring of stages full: panels of activations, stored blocks, and a record of what to multiply. Each other warp owns all rows of kSlots
// output blocks; it follows the operations of its slots and gives the stage back, as fast as it can for itself.

using u32 = unsigned int;

constexpr int kFeaturesOut = 512;  // of a row of y
constexpr int kBlock = 8, kMTiles = 1, kNTiles = 1;  // a block's side; 16-row and 8-column steps
constexpr int kWarps = 8, kSlots = 2, kLoaders = 256, kThreads = 32 * kWarps + kLoaders;  // warps that multiply, output blocks of each; threads that load
constexpr int kTileRows = 16;
constexpr int kTiles = 4;
constexpr int kStages = 3, kStageBytes = 75776, kBounds = kStageBytes - 80;  // a stage ends with its record, and that with bounds
constexpr int kRowBytes = 128, kPanelBytes = 2048;  // of a panel
constexpr int kScratchBytes = 512;  // of a warp, for 16 rows of 16 outputs
constexpr int kKept = 13, kParts = 31;  // of W, which does not fit L2: the other blocks are evicted first, so that these stay for the next call
constexpr int kLoads = 19;  // entries of a stage in kLoadTable

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

// How L2 is to treat lines that are read once: it evicts them first (PTX: createpolicy, cache hints of cp.async.bulk).
__device__ __forceinline__ unsigned long long evict_first() {
    unsigned long long policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

// bulk_load of lines that L2 evicts first.
__device__ __forceinline__ void bulk_load_evicted(u32 shared, const void* global, u32 bytes, u32 barrier, unsigned long long policy) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(shared),
                 "l"(global), "r"(bytes), "r"(barrier), "l"(policy) : "memory");
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
// Two neighbouring sums of a row -> two outputs.
__device__ __forceinline__ float2 finish(float2 v) {
    return v;
}

constexpr int kTileStages = 1;  // of each tile
__device__ const int __align__(16) kTargets[] = {
    0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,
    16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,
    32,33,34,35,36,37,38,39,40,41,42,43,44,45,46,47,
    48,49,50,51,52,53,54,55,56,57,58,59,60,61,62,63,
};  // [kTiles, kWarps, kSlots]: output block, ~p for partial sum p, or -2147483647 for none
// [stages, kLoads, 2], in chunks of 16 bytes but for features: place of the record, its size | the stage's size << 16; of each panel its
// first feature, 0; of each run of W its place, where it goes in the stage | its size << 16; of no load -1, 0
__device__ const int __align__(16) kLoadTable[] = {
    0,57802802,0,0,64,0,0,2097408,176,2621728,320,2097480,440,3146088,632,2621848,
    792,2097600,904,3670496,1136,1573400,1248,3146288,1480,1573472,1584,2097784,1736,2622104,1912,1573568,
    2032,2097880,2176,3670776,2360,1049392,50,63373367,0,0,64,0,32,3670272,216,2097464,
    352,1573208,488,3670384,672,2621864,824,1573328,960,4719080,1160,1573424,1296,4719176,1504,1573520,
    1616,3146408,1776,3146456,1936,2622216,2064,2622256,2232,2622296,2376,1049472,105,54460463,0,0,
    64,0,88,3670272,248,2621752,376,1573216,544,2621816,712,1573280,848,1573304,1032,2097616,
    1184,2097648,1368,2097680,1528,2097712,1664,1573456,1824,2622056,1976,1049232,2104,2622112,2272,3670728,
    2392,1049344,152,64487480,0,0,64,0,144,2097408,288,2097440,400,2621760,584,3146088,
    736,3670424,872,2097616,1064,4719088,1216,2097720,1400,5243480,1560,1573544,1688,3146432,1864,3146480,
    1992,2622240,2144,2097992,2328,2098024,2408,1573768,
};

__device__ const int __align__(16) kRecords[] = {
    0,4096,32,5248,64,6528,96,7680,2048,8960,2080,10112,2112,11264,2144,12160,
    16,4608,48,5760,80,7168,96,7808,2048,9088,2080,10240,2112,11392,0,0,
    48,5888,96,7936,2048,9216,0,0,48,6016,64,6656,96,8064,2096,10624,
    2128,11648,2144,12288,64,6784,2064,9728,2080,10368,0,0,16,4736,32,5376,
    112,8576,2048,9344,2128,11776,2144,12416,32,5504,80,7296,96,8192,0,0,
    0,4224,48,6144,64,6912,112,8704,2048,9472,2096,10752,2112,11520,2160,13056,
    96,8320,2064,9856,2080,10496,0,0,16,4864,112,8832,2048,9600,2128,11904,
    2144,12544,0,0,0,4352,80,7424,96,8448,2144,12672,16,4992,48,6272,
    64,7040,2096,10880,2144,12800,0,0,0,4480,32,5632,2096,11008,2144,12928,
    2064,9984,2096,11136,2128,12032,2160,13184,16,5120,48,6400,80,7552,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,74976,75040,75096,75128,75184,75208,75264,75288,75360,75384,75432,75472,
    75512,75552,75584,75584,75608,0,0,0,0,4096,48,5888,2112,12416,2144,13696,
    0,4224,48,6016,2080,10880,2096,11648,2128,13056,0,0,0,4352,2048,9344,
    2064,10496,2144,13824,0,4480,16,4992,96,7808,112,8960,2128,13184,0,0,
    64,6784,80,7424,2048,9472,0,0,32,5504,48,6144,96,7936,112,9088,
    2080,11008,2096,11776,2144,13952,2160,14336,2048,9600,2064,10624,2112,12544,0,0,
    0,4608,16,5120,96,8064,112,9216,2112,12672,2128,13312,64,6912,80,7552,
    2080,11136,0,0,0,4736,16,5248,48,6272,2048,9728,2080,11264,2096,11904,
    96,8192,2048,9856,2096,12032,0,0,32,5632,64,7040,96,8320,2048,9984,
    2064,10752,2096,12160,2128,13440,2160,14464,0,4864,32,5760,64,7168,96,8448,
    2048,10112,2080,11392,2112,12800,2144,14080,16,5376,48,6400,80,7680,96,8576,
    2048,10240,2080,11520,2112,12928,0,0,48,6528,96,8704,2048,10368,0,0,
    48,6656,64,7296,96,8832,2096,12288,2128,13568,2144,14208,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    74896,74928,74968,75008,75048,75080,75152,75176,75232,75256,75312,75336,75408,75472,75528,75560,
    75616,0,0,0,64,6656,2064,8960,2080,9472,0,0,16,4992,32,5632,
    112,7936,2048,8448,2128,10752,2144,11392,32,5760,80,7040,96,7424,0,0,
    0,4096,48,6016,64,6784,112,8064,2048,8576,2096,9856,2112,10496,2160,12288,
    96,7552,2064,9088,2080,9600,0,0,16,5120,112,8192,2048,8704,2128,10880,
    2144,11520,0,0,0,4224,80,7168,96,7680,2144,11648,16,5248,48,6144,
    64,6912,2096,9984,2144,11776,0,0,0,4352,32,5888,2096,10112,2144,11904,
    2064,9216,2096,10240,2128,11008,2160,12416,16,5376,48,6272,80,7296,0,0,
    0,4480,48,6400,2112,10624,2144,12032,0,4608,48,6528,2080,9728,2096,10368,
    2128,11136,0,0,0,4736,2048,8832,2064,9344,2144,12160,0,4864,16,5504,
    96,7808,112,8320,2128,11264,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,75024,75048,75104,75128,
    75200,75224,75272,75312,75352,75392,75424,75424,75448,75488,75528,75568,75608,0,0,0,
    64,6528,80,7424,2048,9600,0,0,32,5120,48,5760,96,7936,112,9088,
    2080,11264,2096,12032,2144,13952,2160,14464,2048,9728,2064,10880,2112,12800,0,0,
    0,4096,16,4608,96,8064,112,9216,2112,12928,2128,13440,64,6656,80,7552,
    2080,11392,0,0,0,4224,16,4736,48,5888,2048,9856,2080,11520,2096,12160,
    96,8192,2048,9984,2096,12288,0,0,32,5248,64,6784,96,8320,2048,10112,
    2064,11008,2096,12416,2128,13568,2160,14592,0,4352,32,5376,64,6912,96,8448,
    2048,10240,2080,11648,2112,13056,2144,14080,16,4864,48,6016,80,7680,96,8576,
    2048,10368,2080,11776,2112,13184,0,0,48,6144,96,8704,2048,10496,0,0,
    48,6272,64,7040,96,8832,2096,12544,2128,13696,2144,14208,64,7168,2064,11136,
    2080,11904,0,0,16,4992,32,5504,112,9344,2048,10624,2128,13824,2144,14336,
    32,5632,80,7808,96,8960,0,0,0,4480,48,6400,64,7296,112,9472,
    2048,10752,2096,12672,2112,13312,2160,14720,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,74880,74904,74976,75000,
    75056,75080,75136,75160,75232,75296,75352,75384,75440,75464,75520,75544,75616,0,0,0,
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
    const unsigned long long evicted = evict_first();
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
            if (load.x / 8 % kParts < kKept)  // by the first block of a run
                bulk_load(stage + low * 16, from, high * 16, barrier);
            else
                bulk_load_evicted(stage + low * 16, from, high * 16, barrier, evicted);
        } else if (load.x >= 0) {
            tma_load(stage + (mine - 1) * kPanelBytes, activations, load.x, row0, barrier);
        }
        if (++slot == kStages) slot = 0, parity ^= 1;
    }
}

// d += a * b on tensor cores, 16 x 8 x 16, bfloat16 in, float32 sums (PTX: mma.sync.m16n8k16).
__device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same, 16 x 8 x 8 (PTX: mma.sync.m16n8k8).
__device__ __forceinline__ void mma_half(float (&d)[4], const u32 (&a)[2], u32 b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(b));
}

// 8 x 8 matrices of 16-bit elements (or 8 rows of 16 bytes) from shared memory (PTX: ldmatrix).
__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

__device__ __forceinline__ void ldmatrix_x2(u32 (&r)[2], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(address) : "memory");
}

__device__ __forceinline__ void ldmatrix_x2_trans(u32 (&r)[2], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(address) : "memory");
}

__device__ __forceinline__ u32 ldmatrix_x1_trans(u32 address) {
    u32 r;
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r) : "r"(address) : "memory");
    return r;
}

using Sums = float[kSlots][kMTiles][kNTiles][4];

// Where the 16 bytes lie that a lane points at (PTX: ldmatrix): lanes 0-15 at 16 rows of the activations, lanes 16-31 at the same rows of another block.
struct Lane {
    u32 row, swizzle;  // from a panel's start; swizzled as TMA wrote it
    u32 weights;       // from a stored block's start
    bool second_inputs, second_weights;  // of the two blocks of a multiply step
    __device__ __forceinline__ explicit Lane(int lane) {
        const u32 r = lane % 16;
        row = r * kRowBytes;
        swizzle = r % 8 * 16;
        weights = lane % 8 * 16;
        second_inputs = lane >= 16, second_weights = lane / 8 % 2;
    }
};

// The operations of this warp's slots. An operation is two words, bytes from the start of the stage: its inputs in row 0 of their panel,
// and its stored block. At `bounds` lie the first operation of the first slot, and where those of each slot end, likewise. A slot's
// first is the next multiple of 16.
__device__ __forceinline__ void multiply_stage(Sums& sums, const Lane& lane, u32 stage, u32 bounds) {
    const u32 rows = stage + lane.row, weights = stage + lane.weights;
    u32 at = stage + (load_shared(bounds) + 15 & ~15u);
    uint4 ahead = load_shared_chunk(at);  // read one round ahead, to keep its latency out of the chain
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
        const u32 end = stage + load_shared(bounds + (s + 1) * 4);
        // Two operations, any two blocks of one block column: their 8 inputs each make one multiply step.
#pragma unroll 1
        while (at + 8 < end) {
            const u32 a = rows + (lane.second_inputs ? ahead.z : ahead.x) ^ lane.swizzle;
            const u32 b = weights + (lane.second_weights ? ahead.w : ahead.y);
            ahead = load_shared_chunk(at += 16);
            u32 inputs[kMTiles][4], block[2];
            ldmatrix_x2_trans(block, b);
#pragma unroll
            for (int m = 0; m < kMTiles; ++m) ldmatrix_x4(inputs[m], a + m * (16 * kRowBytes));
#pragma unroll
            for (int m = 0; m < kMTiles; ++m) mma(sums[s][m][0], inputs[m], block[0], block[1]);
        }
        if (at < end) {  // one is left over
            const u32 a = rows + ahead.x ^ lane.swizzle, b = weights + ahead.y;
            ahead = load_shared_chunk(at += 16);
            const u32 block = ldmatrix_x1_trans(b);
            u32 inputs[kMTiles][2];
#pragma unroll
            for (int m = 0; m < kMTiles; ++m) ldmatrix_x2(inputs[m], a + m * (16 * kRowBytes));
#pragma unroll
            for (int m = 0; m < kMTiles; ++m) mma_half(sums[s][m][0], inputs[m], block);
        }
    }
}

// Accumulators -> global: the epilogue for finished outputs, float32 for partial sums. 16 rows of 16 outputs at a time: two 8-column steps,
// of one output block or of two.
__device__ __forceinline__ void store(const Sums& sums, const int (&targets)[kSlots], int row0, int n, Element* __restrict__ y, u32 scratch) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int u = 0; u < kSlots * kNTiles; u += 2) {
        const int target[2] = {targets[u / kNTiles], targets[(u + 1) / kNTiles]};
#pragma unroll
        for (int m = 0; m < kMTiles; ++m) {
            u32 words[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int step = u + i / 2, s = step / kNTiles, j = step % kNTiles, half = i % 2;
                const float2 sum = make_float2(sums[s][m][j][half * 2], sums[s][m][j][half * 2 + 1]);
                const float2 v = finish(sum);
                words[i] = pack(v.x, v.y);
            }
            // Through shared memory, so that each lane stores 16 bytes of a row.
            stmatrix_x4(scratch + swizzled<2>(lane % 16, lane / 16), words);
            __syncwarp();
            const uint4 chunk = load_shared_chunk(scratch + swizzled<2>(lane / 2, lane % 2));
            __syncwarp();
            const int row = row0 + m * 16 + lane / 2, mine = lane % 2 ? target[1] : target[0], step = u + lane % 2;
            if (row < n && mine >= 0)
                store_global_chunk(y + static_cast<long long>(row) * kFeaturesOut + mine * kBlock + step % kNTiles * 8, chunk);
        }
    }
}

extern "C" __global__ void __launch_bounds__(kThreads, 1)
bsgen_fprop_b8_bfloat16_hopper_73440e3754c806df(const __grid_constant__ TensorMap x_map, const Element* __restrict__ w, Element* __restrict__ y, int n) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const u32 stages_base = shared_address(shared), full = stages_base + kStages * kStageBytes, empty = full + kStages * 8;
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    const int first_tile = blockIdx.x, stride = gridDim.x;
    const Tiles tiles(n);

    if (threadIdx.x == 0) {
        let_kernel_behind_begin();
        tma_prefetch(x_map);
        for (int i = 0; i < kStages; ++i) barrier_init(full + i * 8, 1), barrier_init(empty + i * 8, kWarps);
        barrier_init_fence();
    }
    __syncthreads();

    if (warp >= kWarps) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
        produce(x_map, w, stages_base, full, empty, tiles, first_tile, stride);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
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
            int last = kTileStages;
            asm volatile("" : "+r"(last));  // a loop of one turn would be none, and its multiplies be ordered otherwise
            for (int s = 0; s < last; ++s) {
                const u32 stage = stages_base + slot * kStageBytes;
                barrier_wait(full + slot * 8, parity);
                multiply_stage(sums, places, stage, stage + kBounds + warp * (kSlots * 4));
                __syncwarp();  // every lane has read its last
                if (lane == 0) barrier_arrive(empty + slot * 8);
                if (++slot == kStages) slot = 0, parity ^= 1;
            }
            store(sums, targets, row0, n, y, scratch);
        }
    }
}
