// y = W.T @ x for one block-sparse W [512, 512] and its epilogue, bfloat16.
// Layout cb3f72e59c903015: 72 of 256 blocks of 32 x 32 (28.12 %).
// Plan: hopper, wgmma_bf16, tile 128 x 256, 1 x 4 warpgroups of 128 x 64, 3 stages of 72 KiB, balanced groups.
//
// Persistent thread blocks walk tiles of kRows rows x kSlots * kColumns output blocks, column groups fastest. One warpgroup keeps a ring
// of stages full: panels of activations, and the pieces of W that multiply them. A warpgroup owns kGroupRows rows of kSlots output
// blocks; for each panel that it visits, it multiplies its rows by the pieces of its slots.

using u32 = unsigned int;

constexpr int kBlock = 32, kSteps = 2;  // a block's side; multiply steps along the inputs of a panel
constexpr int kRowGroups = 1, kColumns = 4;  // warpgroups down and across
constexpr int kMTiles = 2, kSlots = 2;  // 64-row tiles and output blocks of each
constexpr int kGroups = kRowGroups * kColumns, kThreads = 128 * (kGroups + 1), kGroupRows = 64 * kMTiles, kRows = kGroupRows * kRowGroups;
constexpr int kTileRows = kRows;  // of a tile, of all thread blocks that work on it
constexpr int kTiles = 2, kNoOutput = -2147483647;
constexpr int kStages = 3, kStageBytes = 73728, kRecordBytes = 256;  // a stage ends with its record
constexpr int kRecord = kStageBytes - kRecordBytes;
constexpr int kPanelBytes = 8192, kBoxBytes = 2048, kPieceBytes = 2048;
constexpr int kPanelBoxes = 2, kBoxRows = 64, kPanelBoxBytes = 4096;  // a panel is loaded in boxes of kBoxRows rows
constexpr u32 kWeightsHigh = 2147483680u, kWeightsLow = 8388608u;  // words of the matrix descriptor of a piece (PTX: wgmma)
constexpr int kLineBytes = 128;  // of a feature in a box
constexpr int kStepBytes = 2048;
constexpr int kWeightsStep = 64;  // from a multiply step to the next, in 16 bytes
constexpr int kScratchBytes = 512;  // of a warp, for 8 rows of 32 outputs
constexpr int kLoads = 21;  // words of a stage in kLoadTable
// The address of shared memory as PTX instructions take it.
__device__ __forceinline__ u32 shared_address(const void* pointer) {
    return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

// Has a value read from memory here, not where it is needed.
template <class T>
__device__ __forceinline__ void read_here(T& value) {
    asm volatile("" : "+r"(value));
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
__device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
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
        "}, {%16, %17, %18, %19}, b, 1, 1, 1, 1; }"
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
    7,15,3,2,5,6,10,12,0,14,1,8,9,13,11,4,
};  // [kTiles, kColumns, kSlots]: output block, ~p for partial sum p, or kNoOutput
__device__ const int __align__(16) kLoadTable[] = {
    3589,0,32,64,96,128,32,64,96,256,160,320,352,384,512,576,
    480,448,704,640,0,3845,160,192,224,256,352,864,800,832,992,960,
    1024,1088,1152,1120,1344,1280,1312,1664,1632,1728,2052,384,416,448,480,1856,
    1888,1920,2048,2080,2144,2208,2240,0,0,0,0,0,0,0,0,2822,
    0,32,64,96,128,160,0,128,192,224,288,416,544,608,736,672,
    768,0,0,0,3589,192,224,256,288,320,896,928,1056,1184,1216,1248,
    1376,1440,1472,1408,1504,1536,1600,1568,0,2565,352,384,416,448,480,1760,
    1696,1792,1824,1952,1984,2016,2112,2176,2272,0,0,0,0,0,
};  // [stages, kLoads]: panels | boxes << 8, first feature of each, each box's place in W
__device__ const int __align__(16) kRecords[] = {
    262160,131120,131136,131152,0,167772161,8192,192937986,24576,234881027,32768,268435457,24576,251658243,32768,276824065,
    8192,201326593,16384,209715203,0,176160771,16384,226492418,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    262160,196656,262216,196712,0,167772162,16384,226492417,24576,243269633,32768,268435457,8192,192937987,24576,251658242,
    32768,276824065,0,176160770,8192,209715202,16384,234881025,24576,260046849,0,184549377,8192,218103809,32768,285212674,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    131088,131104,131120,65600,0,134217729,24576,192937985,8192,142606337,16384,159383553,8192,150994945,16384,167772161,
    16384,176160771,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    196624,196648,65600,196680,0,201326593,16384,234881025,32768,260046849,8192,209715201,24576,243269633,40960,285212673,
    8192,218103809,8192,226492417,24576,251658241,32768,268435459,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    196624,262184,196680,131168,0,167772161,16384,201326593,32768,251658241,0,176160771,16384,209715201,24576,226492418,
    32768,260046851,8192,192937985,16384,218103809,24576,234881026,24576,243269634,32768,276824066,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    131088,65568,262184,131144,8192,184549377,24576,218103809,8192,192937985,0,167772162,16384,201326595,24576,226492417,
    32768,243269634,0,176160769,24576,234881025,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
};  // [stages, kRecordBytes / 4]: byte of the first visit | visits << 16 for each column of warpgroups; visits

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

// Fills the ring of stages, tile after tile; four warps, for a warp alone is too slow. Lane l of one of them issues the l-th load.
__device__ __forceinline__ void produce(const TensorMap& activations, const TensorMap& weights, u32 stages_base, u32 full, u32 empty, const Tiles& tiles, int first_tile, int stride) {
    const int lane = threadIdx.x % 32;
    const bool mine = lane % 4 == threadIdx.x / 32 % 4;
    const auto fetch = [&](const Walk& walk) { return lane < kLoads && walk.more() ? kLoadTable[walk.stage * kLoads + lane] : 0; };
    Walk walk(tiles, first_tile, stride);
    int slot = 0, ahead = fetch(walk);
    u32 parity = 1;
    wait_for_kernel_ahead();
    while (walk.more()) {
        const int load = ahead, s = walk.stage, row0 = tiles.row(walk.tile) * kTileRows;
        walk.advance();
        ahead = fetch(walk);  // arrives while the copies of this stage are issued
        const int head = __shfl_sync(~0u, load, 0), panels = head & 255, boxes = head >> 8;
        const u32 stage = stages_base + slot * kStageBytes, barrier = full + slot * 8;
        barrier_wait(empty + slot * 8, parity);
        producers_sync();
        if (lane == 0 && mine) {
            barrier_expect(barrier, panels * kPanelBytes + boxes * kBoxBytes + kRecordBytes);
            bulk_load(stage + kRecord, kRecords + s * (kRecordBytes / 4), kRecordBytes, barrier);
        }
        if (mine && lane > 0 && lane <= panels)
            for (int box = 0; box < kPanelBoxes; ++box)
                tma_load(stage + (lane - 1) * kPanelBytes + box * kPanelBoxBytes, activations, row0 + box * kBoxRows, load, barrier);
        else if (mine && lane > panels && lane <= panels + boxes)
            tma_load(stage + panels * kPanelBytes + (lane - panels - 1) * kBoxBytes, weights, 0, load, barrier);
        if (++slot == kStages) slot = 0, parity ^= 1;
    }
}

// A value that all threads of a warp read alike: keeps what depends on it in uniform registers.
__device__ __forceinline__ u32 uniform(u32 value) {
    return __shfl_sync(~0u, value, 0);
}

using Sums = float[kMTiles][kSlots][kBlock / 2];
using Fragments = u32[kMTiles][kSteps][4];

// The rows of a panel that a warp multiplies, as fragments; features are swizzled as TMA wrote them.
__device__ __forceinline__ void load_fragments(Fragments& a, u32 rows, u32 panel) {
    const u32 from = rows + panel;
#pragma unroll
    for (int m = 0; m < kMTiles; ++m)
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
            ldmatrix_x4_trans(a[m][k], from + k * kStepBytes + m * kPanelBoxBytes);
        }
}

// Multiply a panel by the pieces of slots First (if Mask & 1) and First + 1 (if Mask & 2), which lie at b. One group of steps.
template <int First, int Mask>
__device__ __forceinline__ void multiply_slots(Sums& sums, const Fragments& a, u32 b) {
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kSteps; ++k)
#pragma unroll
        for (int m = 0; m < kMTiles; ++m) {
            if (Mask & 1) wgmma(sums[m][First], a[m][k], b + k * kWeightsStep);
            if (Mask & 2) wgmma(sums[m][First + 1], a[m][k], b + k * kWeightsStep + (Mask & 1) * (kPieceBytes / 16));
        }
    wgmma_commit();
}

// Multiply a panel by the pieces of the slots in `mask` from First on, which lie one after the other from b on. Accumulators need fixed
// registers, so each set of two slots has code of its own. A visit has at least one slot.
template <int First = 0>
__device__ __forceinline__ void multiply_panel(Sums& sums, const Fragments& a, u32 mask, u32 b) {
    if constexpr (kSlots == 1) {
        multiply_slots<0, 1>(sums, a, b);
    } else {
        const u32 pair = mask >> First & 3;
        if (pair == 3)
            multiply_slots<First, 3>(sums, a, b);
        else if (pair == 1)
            multiply_slots<First, 1>(sums, a, b);
        else if (kSlots == 2 || pair == 2)
            multiply_slots<First, 2>(sums, a, b);
        if constexpr (First + 2 < kSlots) multiply_panel<First + 2>(sums, a, mask, b + (pair - (pair >> 1)) * (kPieceBytes / 16));
    }
}

// All visits of a stage. A visit is two words: where its panel is, in bytes; and the mask of the slots that use it, with the place of
// their first piece in 16 bytes << 16. Past the last visit lies one that is safe to follow.
__device__ __forceinline__ void multiply_stage(Sums& sums, u32 record, u32 rows, u32 b, int column) {
    const u32 bounds = uniform(load_shared(record + column * 4));
    u32 count = bounds >> 16, at = record + (bounds & 0xffff);
    if (count == 0) return;
    uint2 visit = load_shared_pair(at);
    Fragments a;
    do {
        load_fragments(a, rows, visit.x);
        const u32 word = uniform(visit.y);
        visit = load_shared_pair(at += 8);
        multiply_panel(sums, a, word & 255, b + (word >> 16));
        wgmma_wait<0>();
    } while (--count);
}

// Accumulators -> global: the epilogue for finished outputs, float32 for partial sums. A line of either is a feature; N is a multiple of 8.
__device__ __forceinline__ void store(const float (&sums)[kSlots][kBlock / 2], const int (&targets)[kSlots], int row0, int n,
                                      Element* __restrict__ y, const Element* __restrict__ bias, const Element* __restrict__ residual, u32 scratch) {
    const int lane = threadIdx.x % 32, row = row0 + lane % 2 * 8;  // the first of 8 that this lane stores
    // Of 16 features, two 8-column steps, and 16 rows: where matrix l / 8 and this lane's chunk of a feature lie.
    const u32 matrices = scratch + swizzled<2>(lane / 16 * 8 + lane % 8, lane / 8 % 2), chunks = scratch + swizzled<2>(lane / 2, lane % 2);
    if (row0 >= n) return;
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
        const int target = targets[s];
        if (target == kNoOutput) continue;
#pragma unroll
        for (int j = 0; j < kBlock / 8; j += 2) {
            const long long place = static_cast<long long>(target * kBlock + j * 8 + lane / 2) * n + row;
            // Through shared memory, so that each lane has what belongs to its sums.
            u32 residuals[4];
            uint4 r = {};
            if (row < n) r = *reinterpret_cast<const uint4*>(residual + place);
            store_chunk(chunks, r);
            __syncwarp();
            ldmatrix_x4_trans(residuals, matrices);
            __syncwarp();
            u32 words[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {  // 8 rows, then 8 more, of each step
                const float* two = sums[s] + (j + i / 2) * 4 + i % 2 * 2;
                const float2 v = finish(make_float2(two[0], two[1]), load_pair(bias + target * kBlock + (j + i / 2) * 8 + lane % 4 * 2), unpack(residuals[i]));
                words[i] = pack(v.x, v.y);
            }
            // Through shared memory, so that each lane stores 16 bytes of a feature.
            stmatrix_x4_trans(matrices, words);
            __syncwarp();
            const uint4 chunk = load_shared_chunk(chunks);
            __syncwarp();
            if (row < n) store_global_chunk(y + place, chunk);
        }
    }
}

// The output blocks of a warpgroup, read long before they are needed.
__device__ __forceinline__ void load_targets(int (&targets)[kSlots], int warpgroup) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
        targets[s] = kTargets[warpgroup * kSlots + s];
        read_here(targets[s]);
    }
}

// Gives a stage back to the warps that load, once every lane has read its last of it, and goes on to the next.
__device__ __forceinline__ void give_back(u32 empty, int& slot, u32& parity) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(empty + slot * 8);
    if (++slot == kStages) slot = 0, parity ^= 1;
}

extern "C" __global__ void __launch_bounds__(kThreads, 1)
bsgen_fprop_b32_bfloat16_hopper_cb3f72e59c903015(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map, Element* __restrict__ y, const Element* __restrict__ bias, const Element* __restrict__ residual, int n) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const u32 stages_base = shared_address(shared), full = stages_base + kStages * kStageBytes, empty = full + kStages * 8;
    const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);
    const int first_tile = blockIdx.x, stride = gridDim.x;
    const Tiles tiles(n);

    if (threadIdx.x == 0) {
        let_kernel_behind_begin();
        tma_prefetch(x_map), tma_prefetch(w_map);
        for (int i = 0; i < kStages; ++i) barrier_init(full + i * 8, 1), barrier_init(empty + i * 8, kGroups * 4);
        barrier_init_fence();
    }
    __syncthreads();

    if (group == kGroups) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
        produce(x_map, w_map, stages_base, full, empty, tiles, first_tile, stride);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 112;");
        wait_for_kernel_ahead();
        const int column = group % kColumns, lane = threadIdx.x % 32;
        const u32 scratch = empty + kStages * 8 + threadIdx.x / 32 * kScratchBytes;
        const int row = group / kColumns * kGroupRows + threadIdx.x / 32 % 4 * 16;
        // Where this lane's chunk of a fragment lies in a panel (PTX: ldmatrix), swizzled.
        const u32 feature = lane % 8 + lane / 16 * 8, chunk = threadIdx.x / 32 % 4 * 2 + lane / 8 % 2;
        const u32 place = group / kColumns * kMTiles * kPanelBoxBytes + feature * kLineBytes + (chunk ^ feature % 8) * 16;
        int slot = 0;
        u32 parity = 0;
        for (int tile = first_tile; tile < tiles.count; tile += stride) {
            const int tile_group = tiles.group(tile), row0 = tiles.row(tile) * kTileRows;
            int targets[kSlots];
            load_targets(targets, tile_group * kColumns + column);
            Sums sums = {};
            int last = kTileStages;
            asm volatile("" : "+r"(last));  // a loop of one turn would be none, and its multiplies be ordered otherwise
            for (int s = 0; s < last; ++s) {
                barrier_wait(full + slot * 8, parity);
                const u32 stage = stages_base + slot * kStageBytes;
                multiply_stage(sums, stage + kRecord, stage + place, matrix_address(stage) + kWeightsLow, column);
                give_back(empty, slot, parity);
            }
#pragma unroll
            for (int m = 0; m < kMTiles; ++m)
                store(sums[m], targets, row0 + row + m * 64, n, y, bias, residual, scratch);
        }
    }
}
