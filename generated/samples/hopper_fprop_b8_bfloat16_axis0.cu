// y = W.T @ x for one block-sparse W [128, 512], bfloat16.
// Layout 35c0a61d52f85996: 384 of 1024 blocks of 8 x 8 (37.50 %).
// Plan: hopper, mma_bf16, tile 128 x 256, 16 warps, panels of 32, 3 stages of 72 KiB, contiguous groups.
//
// Persistent thread blocks walk tiles of kTileRows rows x kWarps * kSlots output blocks, groups of output blocks fastest. Warps of their own keep a
// ring of stages full: panels of activations, stored blocks, and a record of what to multiply. Each other warp owns all rows of kSlots
// output blocks; it follows the operations of its slots and gives the stage back, as fast as it can for itself.

using u32 = unsigned int;

constexpr int kBlock = 8, kMTiles = 8, kNTiles = 1;  // a block's side; 16-row and 8-column steps
constexpr int kWarps = 16, kSlots = 2, kLoaders = 128, kThreads = 32 * kWarps + kLoaders;  // warps that multiply, output blocks of each; threads that load
constexpr int kTileRows = 128;
constexpr int kTiles = 2;
constexpr int kStages = 3, kStageBytes = 73728, kBounds = kStageBytes - 144;  // a stage ends with its record, and that with bounds
constexpr int kLineBytes = 128, kPanelBytes = 8192;  // of a feature in a box, of a panel
constexpr int kPanelBoxes = 2, kBoxRows = 64, kBoxBytes = 4096;  // a panel is loaded in boxes of kBoxRows rows
constexpr int kStoreTiles = 2, kStoreSteps = 2 / kStoreTiles;  // 16-row tiles and 8-column steps that a warp stores at once
constexpr int kScratchBytes = 512;  // of a warp, for those
constexpr int kLoads = 21;  // entries of a stage in kLoadTable

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
    0,242876538,0,0,32,0,64,0,96,0,0,4196352,128,4196416,256,16779392,
    768,4196736,896,4196800,1024,4196864,1152,8391232,1408,4197056,1536,4197120,1664,4197184,1792,16780160,
    2304,4197504,2432,4197568,2560,4197632,2688,8392000,2944,4197824,122,242876538,0,0,32,0,
    64,0,96,0,64,4196352,192,4196416,512,16779392,832,4196736,960,4196800,1088,4196864,
    1280,8391232,1472,4197056,1600,4197120,1728,4197184,2048,16780160,2368,4197504,2496,4197568,2624,4197632,
    2816,8392000,3008,4197824,
};

__device__ const int __align__(16) kRecords[] = {
    0,32768,2048,34816,8192,39936,10240,41984,16384,45056,18432,47104,24576,52224,26624,54272,
    1024,33792,2048,34944,17408,46080,18432,47232,1024,33920,2048,35072,9216,40960,10240,42112,
    17408,46208,18432,47360,25600,53248,26624,54400,2048,35200,11264,44032,18432,47488,27648,56320,
    0,32896,2048,35328,8192,40064,10240,42240,16384,45184,18432,47616,24576,52352,26624,54528,
    2048,35456,9216,41088,18432,47744,25600,53376,2048,35584,3072,38912,10240,42368,11264,44160,
    18432,47872,19456,51200,26624,54656,27648,56448,2048,35712,3072,39040,18432,48000,19456,51328,
    0,33024,2048,35840,8192,40192,10240,42496,16384,45312,18432,48128,24576,52480,26624,54784,
    1024,34048,2048,35968,17408,46336,18432,48256,1024,34176,2048,36096,9216,41216,10240,42624,
    17408,46464,18432,48384,25600,53504,26624,54912,2048,36224,11264,44288,18432,48512,27648,56576,
    0,33152,2048,36352,8192,40320,10240,42752,16384,45440,18432,48640,24576,52608,26624,55040,
    2048,36480,9216,41344,18432,48768,25600,53632,2048,36608,3072,39168,10240,42880,11264,44416,
    18432,48896,19456,51456,26624,55168,27648,56704,2048,36736,3072,39296,18432,49024,19456,51584,
    0,33280,2048,36864,8192,40448,10240,43008,16384,45568,18432,49152,24576,52736,26624,55296,
    1024,34304,2048,36992,17408,46592,18432,49280,1024,34432,2048,37120,9216,41472,10240,43136,
    17408,46720,18432,49408,25600,53760,26624,55424,2048,37248,11264,44544,18432,49536,27648,56832,
    0,33408,2048,37376,8192,40576,10240,43264,16384,45696,18432,49664,24576,52864,26624,55552,
    2048,37504,9216,41600,18432,49792,25600,53888,2048,37632,3072,39424,10240,43392,11264,44672,
    18432,49920,19456,51712,26624,55680,27648,56960,2048,37760,3072,39552,18432,50048,19456,51840,
    0,33536,2048,37888,8192,40704,10240,43520,16384,45824,18432,50176,24576,52992,26624,55808,
    1024,34560,2048,38016,17408,46848,18432,50304,1024,34688,2048,38144,9216,41728,10240,43648,
    17408,46976,18432,50432,25600,54016,26624,55936,2048,38272,11264,44800,18432,50560,27648,57088,
    0,33664,2048,38400,8192,40832,10240,43776,16384,45952,18432,50688,24576,53120,26624,56064,
    2048,38528,9216,41856,18432,50816,25600,54144,2048,38656,3072,39680,10240,43904,11264,44928,
    18432,50944,19456,51968,26624,56192,27648,57216,2048,38784,3072,39808,18432,51072,19456,52096,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,71776,71840,71872,71936,71968,72032,72064,72128,72160,72224,72256,72320,
    72352,72416,72448,72512,72544,72608,72640,72704,72736,72800,72832,72896,72928,72992,73024,73088,
    73120,73184,73216,73280,73312,0,0,0,0,32768,2048,34816,8192,39936,10240,41984,
    16384,45056,18432,47104,24576,52224,26624,54272,1024,33792,2048,34944,17408,46080,18432,47232,
    1024,33920,2048,35072,9216,40960,10240,42112,17408,46208,18432,47360,25600,53248,26624,54400,
    2048,35200,11264,44032,18432,47488,27648,56320,0,32896,2048,35328,8192,40064,10240,42240,
    16384,45184,18432,47616,24576,52352,26624,54528,2048,35456,9216,41088,18432,47744,25600,53376,
    2048,35584,3072,38912,10240,42368,11264,44160,18432,47872,19456,51200,26624,54656,27648,56448,
    2048,35712,3072,39040,18432,48000,19456,51328,0,33024,2048,35840,8192,40192,10240,42496,
    16384,45312,18432,48128,24576,52480,26624,54784,1024,34048,2048,35968,17408,46336,18432,48256,
    1024,34176,2048,36096,9216,41216,10240,42624,17408,46464,18432,48384,25600,53504,26624,54912,
    2048,36224,11264,44288,18432,48512,27648,56576,0,33152,2048,36352,8192,40320,10240,42752,
    16384,45440,18432,48640,24576,52608,26624,55040,2048,36480,9216,41344,18432,48768,25600,53632,
    2048,36608,3072,39168,10240,42880,11264,44416,18432,48896,19456,51456,26624,55168,27648,56704,
    2048,36736,3072,39296,18432,49024,19456,51584,0,33280,2048,36864,8192,40448,10240,43008,
    16384,45568,18432,49152,24576,52736,26624,55296,1024,34304,2048,36992,17408,46592,18432,49280,
    1024,34432,2048,37120,9216,41472,10240,43136,17408,46720,18432,49408,25600,53760,26624,55424,
    2048,37248,11264,44544,18432,49536,27648,56832,0,33408,2048,37376,8192,40576,10240,43264,
    16384,45696,18432,49664,24576,52864,26624,55552,2048,37504,9216,41600,18432,49792,25600,53888,
    2048,37632,3072,39424,10240,43392,11264,44672,18432,49920,19456,51712,26624,55680,27648,56960,
    2048,37760,3072,39552,18432,50048,19456,51840,0,33536,2048,37888,8192,40704,10240,43520,
    16384,45824,18432,50176,24576,52992,26624,55808,1024,34560,2048,38016,17408,46848,18432,50304,
    1024,34688,2048,38144,9216,41728,10240,43648,17408,46976,18432,50432,25600,54016,26624,55936,
    2048,38272,11264,44800,18432,50560,27648,57088,0,33664,2048,38400,8192,40832,10240,43776,
    16384,45952,18432,50688,24576,53120,26624,56064,2048,38528,9216,41856,18432,50816,25600,54144,
    2048,38656,3072,39680,10240,43904,11264,44928,18432,50944,19456,51968,26624,56192,27648,57216,
    2048,38784,3072,39808,18432,51072,19456,52096,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,71776,71840,71872,71936,
    71968,72032,72064,72128,72160,72224,72256,72320,72352,72416,72448,72512,72544,72608,72640,72704,
    72736,72800,72832,72896,72928,72992,73024,73088,73120,73184,73216,73280,73312,0,0,0,
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
            for (int box = 0; box < kPanelBoxes; ++box)
                tma_load(stage + (mine - 1) * kPanelBytes + box * kBoxBytes, activations, row0 + box * kBoxRows, load.x, barrier);
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

__device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
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

constexpr int kBoxTiles = kBoxRows / 16;

// Where the 16 bytes lie that a lane points at (PTX: ldmatrix): lanes 0-7 at 8 inputs of 8 rows, 8-15 at the same inputs of the next 8 rows, 16-31 at those of another block.
struct Lane {
    u32 row;      // from row 0 of a block's inputs; swizzled as TMA wrote it
    u32 weights;  // from a stored block's start
    bool second_inputs, second_weights;  // of the two blocks of a multiply step
    __device__ __forceinline__ explicit Lane(int lane) {
        row = swizzled<kLineBytes / 16>(lane % 8, lane / 8 % 2);
        weights = lane % 8 * 16;
        second_inputs = lane >= 16, second_weights = lane / 8 % 2;
    }
};

// The same of 16-row tile m: two chunks further along a swizzled line, or in another box.
__device__ __forceinline__ u32 tile_at(u32 a, int m) { return (a ^ m % kBoxTiles * 32) + m / kBoxTiles * kBoxBytes; }
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
            const u32 a = rows + (lane.second_inputs ? ahead.z : ahead.x);
            const u32 b = weights + (lane.second_weights ? ahead.w : ahead.y);
            ahead = load_shared_chunk(at += 16);
            u32 inputs[kMTiles][4], block[2];
            ldmatrix_x2_trans(block, b);
#pragma unroll
            for (int m = 0; m < kMTiles; ++m) ldmatrix_x4_trans(inputs[m], tile_at(a, m));
#pragma unroll
            for (int m = 0; m < kMTiles; ++m) mma(sums[s][m][0], inputs[m], block[0], block[1]);
        }
        if (at < end) {  // one is left over
            const u32 a = rows + ahead.x, b = weights + ahead.y;
            ahead = load_shared_chunk(at += 16);
            const u32 block = ldmatrix_x1_trans(b);
            u32 inputs[kMTiles][2];
#pragma unroll
            for (int m = 0; m < kMTiles; ++m) ldmatrix_x2_trans(inputs[m], tile_at(a, m));
#pragma unroll
            for (int m = 0; m < kMTiles; ++m) mma_half(sums[s][m][0], inputs[m], block);
        }
    }
}

// Accumulators -> global: the epilogue for finished outputs, float32 for partial sums. A line of either is a feature; N is a multiple of 8.
// 32 rows of 8 outputs at a time.
__device__ __forceinline__ void store(const Sums& sums, const int (&targets)[kSlots], int row0, int n, Element* __restrict__ y, u32 scratch) {
    constexpr int kChunks = 2 * kStoreTiles;  // of a feature
    // Where the line lies that this lane points at of matrix l / 8, and which chunk it stores of which feature.
    const int lane = threadIdx.x % 32, feature = lane / kChunks, chunk = lane % kChunks;
    const u32 matrices = scratch + swizzled<kChunks>(lane / 8 / kChunks * 8 + lane % 8, lane / 8 % kChunks);
    const u32 chunks = scratch + swizzled<kChunks>(feature, chunk);
#pragma unroll
    for (int u = 0; u < kSlots * kNTiles; u += kStoreSteps) {
        int target[kStoreSteps];
#pragma unroll
        for (int i = 0; i < kStoreSteps; ++i) {
            target[i] = targets[(u + i) / kNTiles];
        }
        if (target[0] < 0 && target[kStoreSteps - 1] < 0) continue;
        const int mine = feature / 8 ? target[kStoreSteps - 1] : target[0];
        const long long line = static_cast<long long>(max(mine, 0) * kBlock + (u + feature / 8) % kNTiles * 8 + feature % 8) * n;
#pragma unroll
        for (int m = 0; m < kMTiles; m += kStoreTiles) {
            const int row = row0 + m * 16 + chunk * 8;
            u32 words[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {  // 8 rows, then 8 more, of each 16-row tile
                const int step = u + i / 2 / kStoreTiles, tile = m + i / 2 % kStoreTiles, half = i % 2;
                const float* two = sums[step / kNTiles][tile][step % kNTiles] + half * 2;
                const float2 v = finish(make_float2(two[0], two[1]));
                words[i] = pack(v.x, v.y);
            }
            // Through shared memory, so that each lane stores 16 bytes of a feature.
            stmatrix_x4_trans(matrices, words);
            __syncwarp();
            const uint4 v = load_shared_chunk(chunks);
            __syncwarp();
            if (row < n && mine >= 0) store_global_chunk(y + line + row, v);
        }
    }
}

extern "C" __global__ void __launch_bounds__(kThreads, 1)
bsgen_fprop_b8_bfloat16_hopper_35c0a61d52f85996(const __grid_constant__ TensorMap x_map, const Element* __restrict__ w, Element* __restrict__ y, int n) {
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
        asm volatile("setmaxnreg.inc.sync.aligned.u32 112;");
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
