// dx = dy @ W.T for one block-sparse W [512, 128], bfloat16.
// Layout 11684e85c86bd3e1: 278 of 1024 blocks of 8 x 8 (27.15 %).
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
    0,213385312,0,0,64,0,0,72878080,96,213385312,0,0,64,0,1112,72878080,
};

__device__ const int __align__(16) kRecords[] = {
    0,32768,112,32896,16416,33024,16448,33152,16,33280,80,33408,16400,33536,16432,33664,
    16496,33792,0,0,0,33920,80,34048,96,34176,16448,34304,16,34432,32,34560,
    48,34688,112,34816,16432,34944,16496,35072,0,35200,48,35328,64,35456,112,35584,
    16432,35712,0,0,16,35840,96,35968,16416,36096,16496,36224,0,36352,16,36480,
    32,36608,48,36736,96,36864,16384,36992,16416,37120,0,0,80,37248,112,37376,
    16400,37504,0,0,0,37632,16,37760,32,37888,80,38016,112,38144,16400,38272,
    64,38400,16384,38528,16464,38656,0,0,0,38784,16,38912,64,39040,16384,39168,
    48,39296,112,39424,16432,39552,16448,39680,16464,39808,0,0,0,39936,16,40064,
    112,40192,0,0,48,40320,80,40448,16400,40576,16464,40704,0,40832,48,40960,
    80,41088,16400,41216,16416,41344,16432,41472,16448,41600,0,0,112,41728,16464,41856,
    0,41984,96,42112,112,42240,16448,42368,16464,42496,0,0,32,42624,0,0,
    0,42752,64,42880,16464,43008,0,0,96,43136,112,43264,16400,43392,16416,43520,
    0,43648,32,43776,80,43904,96,44032,112,44160,16384,44288,16400,44416,16416,44544,
    16464,44672,16496,44800,48,44928,16432,45056,0,45184,32,45312,16432,45440,16464,45568,
    16496,45696,0,0,64,45824,80,45952,112,46080,16384,46208,0,46336,48,46464,
    64,46592,112,46720,16384,46848,16432,46976,16496,47104,0,0,16448,47232,0,0,
    0,47360,16400,47488,16496,47616,0,0,16,47744,112,47872,16496,48000,0,0,
    0,48128,112,48256,16416,48384,16448,48512,16,48640,80,48768,16400,48896,16432,49024,
    16496,49152,0,0,0,49280,80,49408,96,49536,16448,49664,16,49792,32,49920,
    48,50048,112,50176,16432,50304,16496,50432,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,72192,72224,72264,72304,
    72352,72392,72432,72488,72520,72576,72600,72640,72680,72712,72752,72808,72832,72872,72888,72920,
    72960,73040,73056,73096,73136,73192,73208,73240,73272,73312,73352,73392,73440,0,0,0,
    0,32768,48,32896,64,33024,112,33152,16432,33280,0,0,16,33408,96,33536,
    16416,33664,16496,33792,0,33920,16,34048,32,34176,48,34304,96,34432,16384,34560,
    16416,34688,0,0,80,34816,112,34944,16400,35072,0,0,0,35200,16,35328,
    32,35456,80,35584,112,35712,16400,35840,64,35968,16384,36096,16464,36224,0,0,
    0,36352,16,36480,64,36608,16384,36736,48,36864,112,36992,16432,37120,16448,37248,
    16464,37376,0,0,0,37504,16,37632,112,37760,0,0,48,37888,80,38016,
    16400,38144,16464,38272,0,38400,48,38528,80,38656,16400,38784,16416,38912,16432,39040,
    16448,39168,0,0,112,39296,16464,39424,0,39552,96,39680,112,39808,16448,39936,
    16464,40064,0,0,32,40192,0,0,0,40320,64,40448,16464,40576,0,0,
    96,40704,112,40832,16400,40960,16416,41088,0,41216,32,41344,80,41472,96,41600,
    112,41728,16384,41856,16400,41984,16416,42112,16464,42240,16496,42368,48,42496,16432,42624,
    0,42752,32,42880,16432,43008,16464,43136,16496,43264,0,0,64,43392,80,43520,
    112,43648,16384,43776,0,43904,48,44032,64,44160,112,44288,16384,44416,16432,44544,
    16496,44672,0,0,16448,44800,0,0,0,44928,16400,45056,16496,45184,0,0,
    16,45312,112,45440,16496,45568,0,0,0,45696,112,45824,16416,45952,16448,46080,
    16,46208,80,46336,16400,46464,16432,46592,16496,46720,0,0,0,46848,80,46976,
    96,47104,16448,47232,16,47360,32,47488,48,47616,112,47744,16432,47872,16496,48000,
    0,48128,48,48256,64,48384,112,48512,16432,48640,0,0,16,48768,96,48896,
    16416,49024,16496,49152,0,49280,16,49408,32,49536,48,49664,96,49792,16384,49920,
    16416,50048,0,0,80,50176,112,50304,16400,50432,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,72192,72232,72272,72328,
    72360,72416,72440,72480,72520,72552,72592,72648,72672,72712,72728,72760,72800,72880,72896,72936,
    72976,73032,73048,73080,73112,73152,73192,73232,73280,73320,73360,73416,73448,0,0,0,
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
bsgen_dgrad_b8_bfloat16_hopper_11684e85c86bd3e1(const __grid_constant__ TensorMap dy_map, const Element* __restrict__ w, Element* __restrict__ dx, int n) {
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
