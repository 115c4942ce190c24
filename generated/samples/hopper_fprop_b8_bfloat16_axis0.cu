// y = W.T @ x for one block-sparse W [128, 512], bfloat16.
// Layout 73440e3754c806df: 304 of 1024 blocks of 8 x 8 (29.69 %).
// Plan: hopper, mma_bf16, tile 128 x 256, 16 warps, panels of 32, 3 stages of 72 KiB, balanced groups.
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
constexpr int kLoads = 88;  // entries of a stage in kLoadTable

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
    0,43,21,50,28,54,49,60,56,14,1,30,57,34,23,4,
    31,8,51,20,59,24,9,13,11,18,19,40,39,44,47,2,
    7,48,27,52,35,58,55,62,63,42,29,36,3,46,5,6,
    25,15,33,22,53,26,61,32,17,16,37,38,45,41,10,12,
};  // [kTiles, kWarps, kSlots]: output block, ~p for partial sum p, or -2147483647 for none
// [stages, kLoads, 2], in chunks of 16 bytes but for features: place of the record, its size | the stage's size << 16; of each panel its
// first feature, 0; of each run of W its place, where it goes in the stage | its size << 16; of no load -1, 0
__device__ const int __align__(16) kLoadTable[] = {
    0,220594278,0,0,32,0,64,0,96,0,0,526336,48,1574920,80,526368,
    104,1050664,136,1050680,160,526408,176,526416,192,1050712,216,1050728,264,2099320,304,526488,
    320,526496,352,526504,368,526512,384,1575096,416,526544,440,1050840,472,526568,504,526576,
    528,1050872,552,1575176,584,526624,600,526632,616,526640,632,526648,648,526656,664,1575240,
    696,1050976,728,526704,760,1575288,792,526736,824,1051032,848,526760,864,526768,888,526776,
    904,1575360,944,526808,960,1575392,1000,526840,1016,1575424,1056,2099736,1096,1051192,1120,526920,
    1152,2099792,1208,1575536,1248,1575560,1288,1575584,1344,527032,1360,527040,1408,527048,1424,527056,
    1440,1051352,1480,2099944,1560,527112,1576,2624272,1624,1051448,1648,527176,1688,527184,1712,1575768,
    1752,527216,1768,527224,1784,527232,1816,527240,1832,1051536,1864,527264,1880,527272,1896,527280,
    1912,1051576,1952,1051592,1984,2624472,2048,1051648,2072,1051664,2096,527392,2136,1051688,2160,527416,
    2176,527424,2200,527432,2216,527440,2240,2100312,2296,1576056,2328,1576080,2368,1051816,2408,527544,
    102,220594278,0,0,32,0,64,0,96,0,8,2623488,72,526376,88,1050672,
    120,1050688,152,526416,168,526424,184,526432,208,526440,232,2099312,296,526480,312,526488,
    328,1575072,360,526520,376,526528,408,526536,424,1050832,456,1050848,480,1575152,512,1050888,
    544,526616,576,526624,592,526632,608,526640,624,526648,640,526656,656,526664,688,526672,
    712,1050968,736,1575272,784,526720,800,1575304,840,526752,856,526760,872,1051056,896,526784,
    928,1051080,952,526808,984,1051104,1008,526832,1040,1051128,1088,526856,1112,526864,1128,1575448,
    1184,1575472,1232,1051208,1272,1051224,1312,2099816,1352,526984,1368,2624144,1416,527032,1432,527040,
    1456,1575624,1512,3148512,1568,527120,1616,527128,1640,527136,1656,2100008,1696,1051464,1736,1051480,
    1760,527208,1776,527216,1792,1575800,1824,527248,1848,1051544,1872,527272,1888,527280,1904,527288,
    1928,1575872,1968,1051608,2024,1575912,2064,527360,2088,527368,2104,2100240,2152,527408,2168,527416,
    2184,1051712,2208,527440,2224,1051736,2272,1576040,2320,527488,2352,1051784,2384,1576088,2416,1051824,
};

__device__ const int __align__(16) kRecords[] = {
    0,32768,2048,35328,8192,37760,10240,39936,16384,43136,18432,45440,24576,48000,26624,50176,
    1024,34816,3072,37120,9216,39680,0,0,2048,35456,3072,36608,10240,40576,11264,42496,
    18432,45952,19456,47104,26624,50688,27648,51968,16384,44160,17408,45184,24576,48640,0,0,
    0,33280,2048,35584,8192,38400,10240,40832,16384,43904,18432,46208,24576,48384,26624,50816,
    10240,41728,16384,44288,19456,47744,0,0,2048,35968,3072,37376,10240,41472,11264,42880,
    18432,46336,19456,47616,26624,51456,27648,52096,8192,39040,17408,45312,18432,46720,0,0,
    0,33920,2048,36096,8192,38784,10240,41856,16384,44416,18432,46464,24576,48896,26624,51584,
    1024,34048,3072,36224,9216,39168,10240,40064,16384,43264,18432,45568,24576,48128,0,0,
    3072,36736,10240,40960,16384,44032,0,0,1024,35200,3072,37504,9216,39808,10240,41984,
    16384,44544,18432,46592,24576,49024,0,0,2048,35712,9216,39552,10240,41216,0,0,
    0,33152,1024,34560,10240,40704,11264,42624,24576,48256,25600,49536,8192,37888,17408,44672,
    18432,45696,0,0,3072,36864,8192,38528,10240,41088,19456,47232,25600,49664,26624,50944,
    10240,40320,17408,44800,18432,45824,0,0,0,33792,1024,35072,10240,41600,11264,43008,
    24576,48768,25600,49920,8192,38144,9216,39296,16384,43776,0,0,3072,37632,8192,38912,
    10240,42112,19456,47872,25600,50048,26624,51712,8192,38272,9216,39424,18432,46080,0,0,
    1024,34176,11264,42240,16384,43520,25600,49152,26624,50304,0,0,17408,44928,19456,46976,
    25600,49280,27648,51840,1024,34304,3072,36480,8192,38016,19456,46848,26624,50432,0,0,
    0,32896,16384,43648,17408,45056,26624,50560,0,33024,1024,34432,10240,40448,11264,42368,
    25600,49408,0,0,0,33408,2048,35840,19456,47488,26624,51200,1024,34688,3072,36992,
    8192,38656,19456,47360,26624,51072,0,0,0,33536,3072,37248,24576,48512,26624,51328,
    0,33664,1024,34944,10240,41344,11264,42752,25600,49792,0,0,3072,36352,10240,40192,
    16384,43392,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,72096,72160,72184,72256,72280,72352,72376,72448,72472,72544,72544,72600,
    72632,72696,72728,72784,72808,72864,72888,72944,72968,73024,73048,73096,73136,73176,73216,73256,
    73296,73336,73376,73416,73448,0,0,0,0,32768,3072,36480,8192,38016,11264,41600,
    16384,42496,19456,46592,24576,48128,27648,51456,8192,38528,9216,39680,16384,43776,0,0,
    2048,35712,8192,38144,10240,40576,16384,43008,17408,44672,19456,47232,25600,49280,27648,51584,
    8192,38656,9216,39808,18432,46208,0,0,0,33536,3072,37248,8192,38400,11264,41856,
    16384,43392,19456,47360,24576,48640,27648,51712,3072,37632,10240,41216,16384,44160,0,0,
    2048,35968,8192,38784,10240,41088,16384,44032,17408,45312,19456,47872,25600,49920,27648,51968,
    2048,36224,9216,39936,10240,41344,0,0,0,34176,3072,37760,8192,38912,11264,42240,
    16384,44416,19456,48000,24576,48768,27648,52096,1024,34688,3072,37120,9216,39424,10240,40704,
    16384,43136,18432,45696,24576,48512,0,0,10240,40832,17408,44928,18432,45952,0,0,
    3072,36352,8192,37888,10240,40064,19456,46464,25600,48896,26624,50176,0,33920,16384,43648,
    17408,45184,26624,51200,1024,34304,2048,35328,11264,41472,16384,42368,25600,49024,26624,50304,
    2048,35456,9216,39040,10240,40192,0,0,0,33408,1024,34560,3072,36992,16384,42752,
    18432,45568,19456,46976,1024,34432,3072,36608,9216,39296,0,0,1024,34816,2048,35840,
    11264,41728,16384,43264,25600,49408,26624,50816,16384,42624,17408,44544,24576,48384,0,0,
    0,34048,1024,35072,3072,37504,16384,43904,18432,46336,19456,47744,10240,40448,16384,42880,
    19456,47104,0,0,1024,35200,2048,36096,11264,42112,16384,44288,25600,50048,26624,51328,
    8192,38272,17408,44800,18432,45824,0,0,0,33280,3072,36864,18432,45440,19456,46848,
    25600,49152,0,0,0,33152,3072,36736,24576,48256,26624,50688,1024,34944,11264,41984,
    16384,43520,25600,49536,26624,50944,0,0,0,33664,9216,39552,10240,40960,26624,51072,
    0,33792,3072,37376,18432,46080,19456,47616,25600,49792,0,0,17408,45056,19456,47488,
    25600,49664,27648,51840,0,32896,9216,39168,10240,40320,26624,50432,0,33024,2048,35584,
    19456,46720,26624,50560,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,72096,72160,72184,72256,
    72280,72352,72376,72448,72472,72544,72544,72600,72632,72688,72720,72768,72792,72848,72872,72928,
    72952,73008,73032,73088,73112,73160,73200,73240,73280,73320,73360,73392,73424,0,0,0,
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
