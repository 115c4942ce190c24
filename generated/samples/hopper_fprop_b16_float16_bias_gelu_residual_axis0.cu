// y = W.T @ x for one block-sparse W [384, 320] and its epilogue, float16.
// Layout 9ff04eadf856b447: 133 of 480 blocks of 16 x 16 (27.71 %).
// Plan: hopper, mma_f16, tile 64 x 512, 16 warps, panels of 32, 3 stages of 72 KiB, balanced groups.
//
// Persistent thread blocks walk tiles of kTileRows rows x kWarps * kSlots output blocks, groups of output blocks fastest. Warps of their own keep a
// ring of stages full: panels of activations, stored blocks, and a record of what to multiply. Each other warp owns all rows of kSlots
// output blocks; it follows the operations of its slots and gives the stage back, as fast as it can for itself.

using u32 = unsigned int;

constexpr int kBlock = 16, kMTiles = 4, kNTiles = 2;  // a block's side; 16-row and 8-column steps
constexpr int kWarps = 16, kSlots = 2, kLoaders = 128, kThreads = 32 * kWarps + kLoaders;  // warps that multiply, output blocks of each; threads that load
constexpr int kTileRows = 64;
constexpr int kTiles = 1;
constexpr int kStages = 3, kStageBytes = 73728, kBounds = kStageBytes - 144;  // a stage ends with its record, and that with bounds
constexpr int kLineBytes = 128, kPanelBytes = 4096;  // of a feature in a box, of a panel
constexpr int kPanelBoxes = 1, kBoxRows = 64, kBoxBytes = 4096;  // a panel is loaded in boxes of kBoxRows rows
constexpr int kStoreTiles = 2, kStoreSteps = 2 / kStoreTiles;  // 16-row tiles and 8-column steps that a warp stores at once
constexpr int kScratchBytes = 512;  // of a warp, for those
constexpr int kResidualsAhead = 2;  // chunks of the residual that a lane has on their way together
constexpr int kLoads = 9;  // entries of a stage in kLoadTable

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
    // 0.0006 % of it for |v| up to 6, and falls without end beyond.
    const float z = fminf(fabsf(v), 64.0f);
    float p = -1.8348464e-6f;
    p = fmaf(p, z, 6.1598977e-5f);
    p = fmaf(p, z, -9.3053002e-4f);
    p = fmaf(p, z, 8.5079102e-3f);
    p = fmaf(p, z, -5.3960104e-2f);
    p = fmaf(p, z, -0.45846435f);
    p = fmaf(p, z, -1.1512511f);
    p = fmaf(p, z, -0.99999529f);
    return fmaf(-z, ex2(p), positive(v));
}

// Two neighbouring sums of a row -> two outputs.
__device__ __forceinline__ float2 finish(float2 v, float2 bias, float2 residual) {
    v.x += bias.x, v.y += bias.y;
    v.x = activate(v.x), v.y = activate(v.y);
    v.x += residual.x, v.y += residual.y;
    return v;
}

constexpr int kTileStages = 2;  // of each tile
__device__ const int __align__(16) kTargets[] = {
    0,-2147483647,7,-2147483647,5,-2147483647,13,-2147483647,17,-2147483647,19,-2147483647,1,-2147483647,3,-2147483647,
    9,-2147483647,11,-2147483647,2,16,6,14,10,-2147483647,18,-2147483647,4,12,8,15,
};  // [kTiles, kWarps, kSlots]: output block, ~p for partial sum p, or -2147483647 for none
// [stages, kLoads, 2], in chunks of 16 bytes but for features: place of the record, its size | the stage's size << 16; of each panel its
// first feature, 0; of each run of W its place, where it goes in the stage | its size << 16; of no load -1, 0
__device__ const int __align__(16) kLoadTable[] = {
    0,286392370,0,0,32,0,64,0,96,0,128,0,160,0,192,0,
    0,165676800,50,199557157,224,0,256,0,288,0,320,0,352,0,2528,113247488,
    -1,0,-1,0,
};

__device__ const int __align__(16) kRecords[] = {
    0,28672,4096,35840,8192,41984,12288,46592,16384,52736,20480,58368,24576,64000,0,29184,
    6144,39424,8192,43520,14336,51200,16384,54784,22528,61440,24576,65024,2048,33280,4096,36352,
    14336,50688,16384,54272,26624,66560,18432,57344,22528,62976,26624,67584,0,31232,6144,41472,
    20480,60416,22528,63488,26624,68096,0,32256,2048,35328,12288,50176,14336,52224,26624,68608,
    2048,32768,6144,37888,10240,44544,12288,47104,16384,53248,20480,58880,24576,64512,6144,38912,
    8192,42496,12288,48128,22528,60928,26624,66048,2048,33792,14336,51712,16384,55296,26624,67072,
    2048,34304,6144,39936,8192,44032,22528,61952,6144,38400,12288,47616,16384,53760,0,30720,
    6144,40960,24576,65536,4096,36864,10240,45056,12288,48640,0,29696,10240,45568,12288,49664,
    0,31744,16384,55808,18432,57856,8192,43008,18432,56320,20480,59392,0,30208,4096,37376,
    22528,62464,12288,49152,18432,56832,20480,59904,2048,34816,6144,40448,10240,46080,0,0,
    0,0,0,0,72928,72984,72984,73040,73040,73080,73080,73104,73104,73144,73144,73184,
    73184,73240,73240,73280,73280,73312,73312,73344,73344,73368,73392,73416,73416,73440,73440,73464,
    73464,73488,73512,73536,73560,0,0,0,0,20480,4096,26112,8192,30208,12288,34304,
    16384,41472,2048,25088,4096,27136,10240,32768,12288,36352,18432,46080,0,21504,12288,35328,
    18432,45568,2048,25600,4096,28160,8192,31232,12288,38400,16384,43008,8192,31744,12288,39424,
    14336,40960,4096,28672,16384,44544,18432,47616,0,20992,14336,39936,0,22016,10240,33280,
    12288,37376,0,23040,14336,40448,16384,42496,6144,29184,12288,34816,16384,41984,0,24064,
    6144,29696,4096,26624,10240,32256,12288,35840,0,22528,10240,33792,12288,37888,0,24576,
    16384,44032,18432,47104,8192,30720,18432,45056,0,23552,4096,27648,12288,36864,18432,46592,
    12288,38912,16384,43520,0,0,0,0,73136,73176,73176,73216,73216,73240,73240,73280,
    73280,73304,73304,73328,73328,73328,73328,73344,73344,73368,73368,73392,73392,73416,73432,73456,
    73456,73480,73480,73504,73504,73520,73536,73552,73568,0,0,0,
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

// d += a * b on tensor cores, 16 x 8 x 16, float16 in, float32 sums (PTX: mma.sync.m16n8k16).
__device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

using Sums = float[kSlots][kMTiles][kNTiles][4];

constexpr int kBoxTiles = kBoxRows / 16;

// Where the 16 bytes lie that a lane points at (PTX: ldmatrix): lanes 0-7 at 8 inputs of 8 rows, 8-15 at the same inputs of the next 8 rows, 16-31 at the next 8 inputs.
struct Lane {
    u32 row;      // from row 0 of a block's inputs; swizzled as TMA wrote it
    u32 weights;  // from a stored block's start
    __device__ __forceinline__ explicit Lane(int lane) {
        row = swizzled<kLineBytes / 16>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
        weights = lane % 16 * 32 + lane / 16 * 16;
    }
};

// The same of 16-row tile m: two chunks further along a swizzled line, or in another box.
__device__ __forceinline__ u32 tile_at(u32 a, int m) { return (a ^ m % kBoxTiles * 32) + m / kBoxTiles * kBoxBytes; }
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
            const u32 a = rows + ahead.x, b = weights + ahead.y;
            ahead = load_shared_pair(at += 8);
            u32 inputs[kMTiles][4], block[4];
            ldmatrix_x4_trans(block, b);
#pragma unroll
            for (int m = 0; m < kMTiles; ++m) ldmatrix_x4_trans(inputs[m], tile_at(a, m));
#pragma unroll
            for (int m = 0; m < kMTiles; ++m) {
                mma(sums[s][m][0], inputs[m], block[0], block[1]);
                mma(sums[s][m][1], inputs[m], block[2], block[3]);
            }
        }
    }
}

// Accumulators -> global: the epilogue for finished outputs, float32 for partial sums. A line of either is a feature; N is a multiple of 8.
// 32 rows of 8 outputs at a time.
__device__ __forceinline__ void store(const Sums& sums, const int (&targets)[kSlots], int row0, int n, Element* __restrict__ y, const Element* __restrict__ bias, const Element* __restrict__ residual, u32 scratch) {
    constexpr int kChunks = 2 * kStoreTiles;  // of a feature
    // Where the line lies that this lane points at of matrix l / 8, and which chunk it stores of which feature.
    const int lane = threadIdx.x % 32, feature = lane / kChunks, chunk = lane % kChunks;
    const u32 matrices = scratch + swizzled<kChunks>(lane / 8 / kChunks * 8 + lane % 8, lane / 8 % kChunks);
    const u32 chunks = scratch + swizzled<kChunks>(feature, chunk);
#pragma unroll
    for (int u = 0; u < kSlots * kNTiles; u += kStoreSteps) {
        int target[kStoreSteps];
        float2 biases[kStoreSteps];
#pragma unroll
        for (int i = 0; i < kStoreSteps; ++i) {
            target[i] = targets[(u + i) / kNTiles];
            biases[i] = load_pair(bias + max(target[i], 0) * kBlock + (u + i) % kNTiles * 8 + lane % 4 * 2);
        }
        if (target[0] < 0 && target[kStoreSteps - 1] < 0) continue;
        const int mine = feature / 8 ? target[kStoreSteps - 1] : target[0];
        const long long line = static_cast<long long>(max(mine, 0) * kBlock + (u + feature / 8) % kNTiles * 8 + feature % 8) * n;
        uint4 ahead[kResidualsAhead];
#pragma unroll
        for (int m = 0; m < kMTiles; m += kStoreTiles) {
            const int row = row0 + m * 16 + chunk * 8;
            if (m / kStoreTiles % kResidualsAhead == 0)
#pragma unroll
                for (int i = 0; i < kResidualsAhead; ++i) {
                    const int r = row + i * kStoreTiles * 16;
                    ahead[i] = uint4{};
                    if (r < n && mine >= 0) ahead[i] = *reinterpret_cast<const uint4*>(residual + line + r);
                }
            // Through shared memory, so that each lane has what belongs to its sums.
            u32 residuals[4];
            store_chunk(chunks, ahead[m / kStoreTiles % kResidualsAhead]);
            __syncwarp();
            ldmatrix_x4_trans(residuals, matrices);
            __syncwarp();
            u32 words[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {  // 8 rows, then 8 more, of each 16-row tile
                const int step = u + i / 2 / kStoreTiles, tile = m + i / 2 % kStoreTiles, half = i % 2;
                const float* two = sums[step / kNTiles][tile][step % kNTiles] + half * 2;
                const float2 v = finish(make_float2(two[0], two[1]), biases[step - u], unpack(residuals[i]));
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
bsgen_fprop_b16_float16_hopper_9ff04eadf856b447(const __grid_constant__ TensorMap x_map, const Element* __restrict__ w, Element* __restrict__ y, const Element* __restrict__ bias, const Element* __restrict__ residual, int n) {
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
            store(sums, targets, row0, n, y, bias, residual, scratch);
        }
    }
}
