// dx = dy @ W.T for one block-sparse W [512, 128], bfloat16.
// Layout de24d623f93223f9: 384 of 1024 blocks of 8 x 8 (37.50 %).
// Plan: hopper, mma_bf16, tile 128 x 256, 16 warps, panels of 64, 3 stages of 72 KiB, contiguous groups.
//
// Persistent thread blocks walk tiles of kTileRows rows x kWarps * kSlots output blocks, groups of output blocks fastest. Warps of their own keep a
// ring of stages full: panels of activations, stored blocks, and a record of what to multiply. Each other warp owns all rows of kSlots
// output blocks; it follows the operations of its slots and gives the stage back, as fast as it can for itself.

using u32 = unsigned int;

constexpr int kFeaturesOut = 512;  // of a row of dx
constexpr int kBlock = 8, kMTiles = 8, kNTiles = 1;  // a block's side; 16-row and 8-column steps
constexpr int kWarps = 16, kSlots = 2, kLoaders = 128, kThreads = 32 * kWarps + kLoaders;  // warps that multiply, output blocks of each; threads that load
constexpr int kTileRows = 128;
constexpr int kTiles = 2;
constexpr int kStages = 3, kStageBytes = 73728, kBounds = kStageBytes - 144;  // a stage ends with its record, and that with bounds
constexpr int kRowBytes = 128, kPanelBytes = 16384;  // of a panel
constexpr int kScratchBytes = 512;  // of a warp, for 16 rows of 16 outputs
constexpr int kLoads = 4;  // entries of a stage in kLoadTable

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
    0,242876538,0,0,64,0,0,100665344,122,242876538,0,0,64,0,1536,100665344,
};

__device__ const int __align__(16) kRecords[] = {
    0,32768,64,32896,16384,33024,16448,33152,16,33280,32,33408,16400,33536,16416,33664,
    0,33792,16,33920,32,34048,48,34176,64,34304,80,34432,96,34560,112,34688,
    16384,34816,16400,34944,16416,35072,16432,35200,16448,35328,16464,35456,16480,35584,16496,35712,
    96,35840,112,35968,16480,36096,16496,36224,0,36352,64,36480,16384,36608,16448,36736,
    32,36864,80,36992,16416,37120,16464,37248,0,37376,32,37504,64,37632,96,37760,
    16384,37888,16416,38016,16448,38144,16480,38272,48,38400,96,38528,16432,38656,16480,38784,
    0,38912,64,39040,16384,39168,16448,39296,16,39424,32,39552,16400,39680,16416,39808,
    0,39936,16,40064,32,40192,48,40320,64,40448,80,40576,96,40704,112,40832,
    16384,40960,16400,41088,16416,41216,16432,41344,16448,41472,16464,41600,16480,41728,16496,41856,
    96,41984,112,42112,16480,42240,16496,42368,0,42496,64,42624,16384,42752,16448,42880,
    32,43008,80,43136,16416,43264,16464,43392,0,43520,32,43648,64,43776,96,43904,
    16384,44032,16416,44160,16448,44288,16480,44416,48,44544,96,44672,16432,44800,16480,44928,
    0,45056,64,45184,16384,45312,16448,45440,16,45568,32,45696,16400,45824,16416,45952,
    0,46080,16,46208,32,46336,48,46464,64,46592,80,46720,96,46848,112,46976,
    16384,47104,16400,47232,16416,47360,16432,47488,16448,47616,16464,47744,16480,47872,16496,48000,
    96,48128,112,48256,16480,48384,16496,48512,0,48640,64,48768,16384,48896,16448,49024,
    32,49152,80,49280,16416,49408,16464,49536,0,49664,32,49792,64,49920,96,50048,
    16384,50176,16416,50304,16448,50432,16480,50560,48,50688,96,50816,16432,50944,16480,51072,
    0,51200,64,51328,16384,51456,16448,51584,16,51712,32,51840,16400,51968,16416,52096,
    0,52224,16,52352,32,52480,48,52608,64,52736,80,52864,96,52992,112,53120,
    16384,53248,16400,53376,16416,53504,16432,53632,16448,53760,16464,53888,16480,54016,16496,54144,
    96,54272,112,54400,16480,54528,16496,54656,0,54784,64,54912,16384,55040,16448,55168,
    32,55296,80,55424,16416,55552,16464,55680,0,55808,32,55936,64,56064,96,56192,
    16384,56320,16416,56448,16448,56576,16480,56704,48,56832,96,56960,16432,57088,16480,57216,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,71776,71808,71840,71968,72000,72032,72064,72128,72160,72192,72224,72352,
    72384,72416,72448,72512,72544,72576,72608,72736,72768,72800,72832,72896,72928,72960,72992,73120,
    73152,73184,73216,73280,73312,0,0,0,0,32768,64,32896,16384,33024,16448,33152,
    16,33280,32,33408,16400,33536,16416,33664,0,33792,16,33920,32,34048,48,34176,
    64,34304,80,34432,96,34560,112,34688,16384,34816,16400,34944,16416,35072,16432,35200,
    16448,35328,16464,35456,16480,35584,16496,35712,96,35840,112,35968,16480,36096,16496,36224,
    0,36352,64,36480,16384,36608,16448,36736,32,36864,80,36992,16416,37120,16464,37248,
    0,37376,32,37504,64,37632,96,37760,16384,37888,16416,38016,16448,38144,16480,38272,
    48,38400,96,38528,16432,38656,16480,38784,0,38912,64,39040,16384,39168,16448,39296,
    16,39424,32,39552,16400,39680,16416,39808,0,39936,16,40064,32,40192,48,40320,
    64,40448,80,40576,96,40704,112,40832,16384,40960,16400,41088,16416,41216,16432,41344,
    16448,41472,16464,41600,16480,41728,16496,41856,96,41984,112,42112,16480,42240,16496,42368,
    0,42496,64,42624,16384,42752,16448,42880,32,43008,80,43136,16416,43264,16464,43392,
    0,43520,32,43648,64,43776,96,43904,16384,44032,16416,44160,16448,44288,16480,44416,
    48,44544,96,44672,16432,44800,16480,44928,0,45056,64,45184,16384,45312,16448,45440,
    16,45568,32,45696,16400,45824,16416,45952,0,46080,16,46208,32,46336,48,46464,
    64,46592,80,46720,96,46848,112,46976,16384,47104,16400,47232,16416,47360,16432,47488,
    16448,47616,16464,47744,16480,47872,16496,48000,96,48128,112,48256,16480,48384,16496,48512,
    0,48640,64,48768,16384,48896,16448,49024,32,49152,80,49280,16416,49408,16464,49536,
    0,49664,32,49792,64,49920,96,50048,16384,50176,16416,50304,16448,50432,16480,50560,
    48,50688,96,50816,16432,50944,16480,51072,0,51200,64,51328,16384,51456,16448,51584,
    16,51712,32,51840,16400,51968,16416,52096,0,52224,16,52352,32,52480,48,52608,
    64,52736,80,52864,96,52992,112,53120,16384,53248,16400,53376,16416,53504,16432,53632,
    16448,53760,16464,53888,16480,54016,16496,54144,96,54272,112,54400,16480,54528,16496,54656,
    0,54784,64,54912,16384,55040,16448,55168,32,55296,80,55424,16416,55552,16464,55680,
    0,55808,32,55936,64,56064,96,56192,16384,56320,16416,56448,16448,56576,16480,56704,
    48,56832,96,56960,16432,57088,16480,57216,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,71776,71808,71840,71968,
    72000,72032,72064,72128,72160,72192,72224,72352,72384,72416,72448,72512,72544,72576,72608,72736,
    72768,72800,72832,72896,72928,72960,72992,73120,73152,73184,73216,73280,73312,0,0,0,
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

__device__ __forceinline__ u32 ldmatrix_x1(u32 address) {
    u32 r;
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r) : "r"(address) : "memory");
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
            ldmatrix_x2(block, b);
#pragma unroll
            for (int m = 0; m < kMTiles; ++m) ldmatrix_x4(inputs[m], a + m * (16 * kRowBytes));
#pragma unroll
            for (int m = 0; m < kMTiles; ++m) mma(sums[s][m][0], inputs[m], block[0], block[1]);
        }
        if (at < end) {  // one is left over
            const u32 a = rows + ahead.x ^ lane.swizzle, b = weights + ahead.y;
            ahead = load_shared_chunk(at += 16);
            const u32 block = ldmatrix_x1(b);
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
__device__ __forceinline__ void store(const Sums& sums, const int (&targets)[kSlots], int row0, int n, Element* __restrict__ dx, u32 scratch) {
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
                store_global_chunk(dx + static_cast<long long>(row) * kFeaturesOut + mine * kBlock + step % kNTiles * 8, chunk);
        }
    }
}

extern "C" __global__ void __launch_bounds__(kThreads, 1)
bsgen_dgrad_b8_bfloat16_hopper_de24d623f93223f9(const __grid_constant__ TensorMap dy_map, const Element* __restrict__ w, Element* __restrict__ dx, int n) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const u32 stages_base = shared_address(shared), full = stages_base + kStages * kStageBytes, empty = full + kStages * 8;
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    const int first_tile = blockIdx.x, stride = gridDim.x;
    const Tiles tiles(n);

    if (threadIdx.x == 0) {
        let_kernel_behind_begin();
        tma_prefetch(dy_map);
        for (int i = 0; i < kStages; ++i) barrier_init(full + i * 8, 1), barrier_init(empty + i * 8, kWarps);
        barrier_init_fence();
    }
    __syncthreads();

    if (warp >= kWarps) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
        produce(dy_map, w, stages_base, full, empty, tiles, first_tile, stride);
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
            store(sums, targets, row0, n, dx, scratch);
        }
    }
}
