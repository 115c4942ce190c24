// y = x @ W for one block-sparse W [4096, 192], bfloat16.
// Layout 5734be5d2ec1f220: 267 of 3072 blocks of 16 x 16 (8.69 %).
// Plan: hopper, mma_bf16, tile 16 x 256, 16 warps, 8 that load, panels of 64, 3 stages of 72 KiB, balanced groups, 1 split outputs.
//
// Persistent thread blocks walk tiles of kTileRows rows x kWarps * kSlots output blocks, groups of output blocks fastest. Warps of their own keep a
// ring of stages full: panels of activations, stored blocks, and a record of what to multiply. Each other warp owns all rows of kSlots
// output blocks; it follows the operations of its slots and gives the stage back, as fast as it can for itself.

using u32 = unsigned int;

constexpr int kFeaturesOut = 192;  // of a row of y
constexpr int kBlock = 16, kMTiles = 1, kNTiles = 2;  // a block's side; 16-row and 8-column steps
constexpr int kWarps = 16, kSlots = 1, kLoaders = 256, kThreads = 32 * kWarps + kLoaders;  // warps that multiply, output blocks of each; threads that load
constexpr int kTileRows = 16;
constexpr int kTiles = 3, kNoOutput = -2147483647;
constexpr int kStages = 3, kStageBytes = 73728, kBounds = kStageBytes - 80;  // a stage ends with its record, and that with bounds
constexpr int kRowBytes = 128, kPanelBytes = 2048;  // of a panel
constexpr int kScratchBytes = 512;  // of a warp, for 16 rows of 16 outputs
constexpr int kLoads = 34;  // entries of a stage in kLoadTable

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

constexpr int kTileStages = 2;  // of each tile
__device__ const int __align__(16) kTargets[] = {
    -1,-4,-7,-10,-13,-16,-19,-22,-25,-28,-31,7,9,11,-2147483647,-2147483647,
    -2,-5,-8,-11,-14,-17,-20,-23,-26,-29,-32,8,10,-2147483647,-2147483647,-2147483647,
    -3,-6,-9,-12,-15,-18,-21,-24,-27,-30,1,2,3,4,5,6,
};  // [kTiles, kWarps, kSlots]: output block, ~p for partial sum p, or -2147483647 for none
// [stages, kLoads, 2], in chunks of 16 bytes but for features: place of the record, its size | the stage's size << 16; of each panel its
// first feature, 0; of each run of W its place, where it goes in the stage | its size << 16; of no load -1, 0
__device__ const int __align__(16) kLoadTable[] = {
    0,285737000,0,0,64,0,128,0,384,0,448,0,768,0,832,0,
    1152,0,1216,0,1536,0,1600,0,1920,0,1984,0,2304,0,2368,0,
    2688,0,2752,0,0,4196480,96,2099392,160,2099424,224,2099456,288,2099488,352,2099520,
    416,4196704,576,2099616,704,2099648,1120,16779744,1888,16780000,2656,16780256,3424,16780512,4192,16780768,
    4960,16781024,5728,16781280,40,101842962,3072,0,3136,0,3456,0,3520,0,3840,0,
    3904,0,6496,16777984,7264,16778240,8032,16778496,-1,0,-1,0,-1,0,-1,0,
    -1,0,-1,0,-1,0,-1,0,-1,0,-1,0,-1,0,-1,0,
    -1,0,-1,0,-1,0,-1,0,-1,0,-1,0,-1,0,-1,0,
    -1,0,-1,0,-1,0,-1,0,58,292093993,128,0,192,0,512,0,
    576,0,896,0,960,0,1280,0,1344,0,1664,0,1728,0,2048,0,
    2112,0,2432,0,2496,0,2816,0,2880,0,3200,0,480,6293632,608,6293728,
    736,8390976,1376,16779712,2144,16779968,2912,16780224,3680,16780480,4448,16780736,5216,16780992,5984,16781248,
    6752,8392896,-1,0,-1,0,-1,0,-1,0,-1,0,99,84934672,3264,0,
    3584,0,3648,0,3968,0,4032,0,6880,8389248,7520,16777984,8288,16778240,-1,0,
    -1,0,-1,0,-1,0,-1,0,-1,0,-1,0,-1,0,-1,0,
    -1,0,-1,0,-1,0,-1,0,-1,0,-1,0,-1,0,-1,0,
    -1,0,-1,0,-1,0,-1,0,-1,0,-1,0,-1,0,-1,0,
    115,300482601,0,0,64,0,256,0,320,0,640,0,704,0,1024,0,
    1088,0,1408,0,1472,0,1792,0,1856,0,2176,0,2240,0,2560,0,
    2624,0,2944,0,3008,0,64,2099456,128,2099488,192,2099520,256,2099552,320,2099584,
    384,2099616,864,16779712,1632,16779968,2400,16780224,3168,16780480,3936,16780736,4704,16780992,5472,16781248,
    6240,16781504,-1,0,156,68026382,3328,0,3392,0,3712,0,3776,0,7008,16777728,
    7776,16777984,-1,0,-1,0,-1,0,-1,0,-1,0,-1,0,-1,0,
    -1,0,-1,0,-1,0,-1,0,-1,0,-1,0,-1,0,-1,0,
    -1,0,-1,0,-1,0,-1,0,-1,0,-1,0,-1,0,-1,0,
    -1,0,-1,0,-1,0,-1,0,
};

__device__ const int __align__(16) kRecords[] = {
    0,34816,32,35328,64,35840,96,36352,2048,36864,2080,37376,2112,37888,2144,38400,
    6144,40448,6176,40960,6208,41472,6240,41984,8192,42496,8224,43008,8256,43520,8288,44032,
    10240,44544,10272,45056,10304,45568,10336,46080,12288,46592,12320,47104,12352,47616,12384,48128,
    14336,48640,14368,49152,14400,49664,14432,50176,16384,50688,16416,51200,16448,51712,16480,52224,
    18432,52736,18464,53248,18496,53760,18528,54272,20480,54784,20512,55296,20544,55808,20576,56320,
    22528,56832,22560,57344,22592,57856,22624,58368,24576,58880,24608,59392,24640,59904,24672,60416,
    26624,60928,26656,61440,26688,61952,26720,62464,28672,62976,28704,63488,28736,64000,28768,64512,
    30720,65024,30752,65536,30784,66048,30816,66560,32768,67072,32800,67584,32832,68096,32864,68608,
    2144,38912,4128,39424,4192,39936,0,0,0,0,0,0,73088,73152,73216,73280,
    73344,73408,73472,73536,73600,73600,73600,73600,73608,73616,73624,73624,73624,0,0,0,
    0,12288,32,12800,64,13312,96,13824,2048,14336,2080,14848,2112,15360,2144,15872,
    4096,16384,4128,16896,4160,17408,4192,17920,6144,18432,6176,18944,6208,19456,6240,19968,
    8192,20480,8224,20992,8256,21504,8288,22016,10240,22528,10272,23040,10304,23552,10336,24064,
    0,0,0,0,73440,73440,73440,73440,73440,73440,73440,73440,73440,73504,73568,73632,
    73632,73632,73632,73632,73632,0,0,0,0,34816,32,35840,64,36352,96,37376,
    2048,37888,2080,38400,2112,38912,2144,39424,4096,39936,4128,40448,4160,40960,4192,41472,
    6144,41984,6176,42496,6208,43008,6240,43520,8192,44032,8224,44544,8256,45056,8288,45568,
    10240,46080,10272,46592,10304,47104,10336,47616,12288,48128,12320,48640,12352,49152,12384,49664,
    14336,50176,14368,50688,14400,51200,14432,51712,16384,52224,16416,52736,16448,53248,16480,53760,
    18432,54272,18464,54784,18496,55296,18528,55808,20480,56320,20512,56832,20544,57344,20576,57856,
    22528,58368,22560,58880,22592,59392,22624,59904,24576,60416,24608,60928,24640,61440,24672,61952,
    26624,62464,26656,62976,26688,63488,26720,64000,28672,64512,28704,65024,28736,65536,28768,66048,
    30720,66560,30752,67072,30784,67584,30816,68096,32768,68608,32800,69120,32832,69632,32864,70144,
    0,35328,64,36864,0,0,0,0,73072,73136,73200,73264,73328,73392,73456,73520,
    73584,73616,73616,73616,73624,73632,73632,73632,73632,0,0,0,0,10240,32,10752,
    64,11264,96,11776,2048,12288,2080,12800,2112,13312,2144,13824,4096,14336,4128,14848,
    4160,15360,4192,15872,6144,16384,6176,16896,6208,17408,6240,17920,8192,18432,8224,18944,
    8256,19456,8288,19968,0,0,0,0,73472,73472,73472,73472,73472,73472,73472,73472,
    73472,73504,73568,73632,73632,73632,73632,73632,73632,0,0,0,4096,39936,4128,40448,
    4160,40960,4192,41472,6144,41984,6176,42496,6208,43008,6240,43520,8192,44032,8224,44544,
    8256,45056,8288,45568,10240,46080,10272,46592,10304,47104,10336,47616,12288,48128,12320,48640,
    12352,49152,12384,49664,14336,50176,14368,50688,14400,51200,14432,51712,16384,52224,16416,52736,
    16448,53248,16480,53760,18432,54272,18464,54784,18496,55296,18528,55808,20480,56320,20512,56832,
    20544,57344,20576,57856,22528,58368,22560,58880,22592,59392,22624,59904,24576,60416,24608,60928,
    24640,61440,24672,61952,26624,62464,26656,62976,26688,63488,26720,64000,28672,64512,28704,65024,
    28736,65536,28768,66048,30720,66560,30752,67072,30784,67584,30816,68096,32768,68608,32800,69120,
    32832,69632,32864,70144,34816,70656,34848,71168,34880,71680,34912,72192,32,36864,64,37376,
    96,37888,2048,38400,2080,38912,2112,39424,0,0,0,0,73072,73136,73200,73264,
    73328,73392,73456,73520,73584,73584,73584,73592,73600,73608,73616,73624,73632,0,0,0,
    0,8192,32,8704,64,9216,96,9728,2048,10240,2080,10752,2112,11264,2144,11776,
    4096,12288,4128,12800,4160,13312,4192,13824,6144,14336,6176,14848,6208,15360,6240,15872,
    0,0,0,0,73504,73504,73504,73504,73504,73504,73504,73504,73504,73568,73632,73632,
    73632,73632,73632,73632,73632,0,0,0,
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

// d += a * b on tensor cores, 16 x 8 x 16, bfloat16 in, float32 sums (PTX: mma.sync.m16n8k16).
__device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 8 x 8 matrices of 16-bit elements (or 8 rows of 16 bytes) from shared memory (PTX: ldmatrix).
__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

using Sums = float[kSlots][kMTiles][kNTiles][4];

// Where the 16 bytes lie that a lane points at (PTX: ldmatrix): lanes 0-15 at 16 rows of the activations, lanes 16-31 at the same rows of the next 8 inputs.
struct Lane {
    u32 row, swizzle;  // from a panel's start; swizzled as TMA wrote it
    u32 weights;       // from a stored block's start
    __device__ __forceinline__ explicit Lane(int lane) {
        const u32 r = lane % 16;
        row = r * kRowBytes;
        swizzle = (r % 8 ^ lane / 16) * 16;
        weights = lane % 16 * 32 + lane / 16 * 16;
    }
};

// The operations of this warp's slots. An operation is two words, bytes from the start of the stage: its inputs in row 0 of their panel,
// and its stored block. At `bounds` lie the first operation of the first slot, and where those of each slot end, likewise.
__device__ __forceinline__ void multiply_stage(Sums& sums, const Lane& lane, u32 stage, u32 bounds) {
    const u32 rows = stage + lane.row, weights = stage + lane.weights;
    u32 at = stage + load_shared(bounds);
    uint2 ahead = load_shared_pair(at);  // read one round ahead, to keep its latency out of the chain
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
        const u32 end = stage + load_shared(bounds + (s + 1) * 4);
#pragma unroll 1
        while (at != end) {
            const u32 a = rows + ahead.x ^ lane.swizzle, b = weights + ahead.y;
            ahead = load_shared_pair(at += 8);
            u32 inputs[kMTiles][4], block[4];
            ldmatrix_x4_trans(block, b);
#pragma unroll
            for (int m = 0; m < kMTiles; ++m) ldmatrix_x4(inputs[m], a + m * (16 * kRowBytes));
#pragma unroll
            for (int m = 0; m < kMTiles; ++m) {
                mma(sums[s][m][0], inputs[m], block[0], block[1]);
                mma(sums[s][m][1], inputs[m], block[2], block[3]);
            }
        }
    }
}

// Accumulators -> global: the epilogue for finished outputs, float32 for partial sums. 16 rows of 16 outputs at a time: two 8-column steps,
// of one output block or of two.
__device__ __forceinline__ void store(const Sums& sums, const int (&targets)[kSlots], int row0, int n, Element* __restrict__ y, float* __restrict__ workspace, u32 scratch) {
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
                const int row = row0 + m * 16 + half * 8 + lane / 4;
                const float2 sum = make_float2(sums[s][m][j][half * 2], sums[s][m][j][half * 2 + 1]);
                if (target[i / 2] < 0 && target[i / 2] != kNoOutput && row < n)
                    *reinterpret_cast<float2*>(workspace + (static_cast<long long>(~target[i / 2]) * n + row) * kBlock + j * 8 + lane % 4 * 2) = sum;
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
bsgen_fprop_b16_bfloat16_hopper_5734be5d2ec1f220(const __grid_constant__ TensorMap x_map, const Element* __restrict__ w, Element* __restrict__ y, float* __restrict__ workspace, int n) {
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
        asm volatile("setmaxnreg.inc.sync.aligned.u32 104;");
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
            store(sums, targets, row0, n, y, workspace, scratch);
        }
    }
}

// Split outputs: their partial sums, added in order, and the epilogue. [kSplits, 3]: output block, first partial sum, count.
__device__ const int __align__(16) kReductions[] = {
    0,0,32,
};

constexpr int kSplits = 1, kReduceRows = 32, kReduceThreads = 256;

extern "C" __global__ void __launch_bounds__(kReduceThreads)
bsgen_fprop_b16_bfloat16_hopper_5734be5d2ec1f220_reduce(Element* __restrict__ y, const float* __restrict__ workspace, int n) {
    const int* reduction = kReductions + blockIdx.x % kSplits * 3;
    const int row = blockIdx.x / kSplits * kReduceRows + threadIdx.x / (kBlock / 2), inside = threadIdx.x % (kBlock / 2) * 2;
    if (row >= n) return;
    wait_for_kernel_ahead();
    float2 sum = make_float2(0.0f, 0.0f);
    for (int p = 0; p < reduction[2]; ++p) {
        const float2 v = *reinterpret_cast<const float2*>(workspace + (static_cast<long long>(reduction[1] + p) * n + row) * kBlock + inside);
        sum.x += v.x, sum.y += v.y;
    }
    const int column = reduction[0] * kBlock + inside;
    const long long place = static_cast<long long>(row) * kFeaturesOut + column;
    store_pair(y + place, finish(sum));
}
