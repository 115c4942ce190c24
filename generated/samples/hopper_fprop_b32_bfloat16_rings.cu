// y = x @ W for one block-sparse W [512, 512], bfloat16.
// Layout cb3f72e59c903015: 72 of 256 blocks of 32 x 32 (28.12 %).
// Plan: hopper, wgmma_bf16, tile 128 x 128, 1 x 2 warpgroups of 128 x 64, clusters of 2, coupled, 2 rings of 2 stages of 52 KiB, balanced groups.
//
// Persistent thread blocks, and in them kRings rings each, walk tiles of kRows rows x kSlots * kColumns output blocks, column groups fastest. One warpgroup keeps the rings
// of stages full: panels of activations, and the pieces of W that multiply them. A warpgroup owns kGroupRows rows of kSlots output
// blocks; for each panel that it visits, it multiplies its rows by the pieces of its slots.

using u32 = unsigned int;

constexpr int kFeaturesOut = 512;  // of a row of y
constexpr int kBlock = 32, kSteps = 2;  // a block's side; multiply steps along the inputs of a panel
constexpr int kRowGroups = 1, kColumns = 2;  // warpgroups down and across
constexpr int kMTiles = 2, kSlots = 2;  // 64-row tiles and output blocks of each
constexpr int kRings = 2;  // of stages, each with warpgroups and tiles of its own: while those of one store results, those of the other multiply
constexpr int kGroups = kRowGroups * kColumns, kThreads = 128 * (kRings * kGroups + 1), kGroupRows = 64 * kMTiles, kRows = kGroupRows * kRowGroups;
constexpr int kCluster = 2;  // thread blocks with the same output blocks and neighbouring rows, which share the pieces of W
constexpr int kTileRows = kRows * kCluster;  // of a tile, of all thread blocks that work on it
constexpr int kTiles = 4, kNoOutput = -2147483647;
constexpr int kStages = 2, kStageBytes = 53248, kRecordBytes = 112;  // a stage ends with its record
constexpr int kRecord = kStageBytes - kRecordBytes, kRingBytes = kStages * kStageBytes;
constexpr int kRowBytes = 64, kPanelBytes = 8192, kBoxBytes = 2048, kPieceBytes = 2048;
constexpr u32 kWeightsHigh = 2147483680u, kWeightsLow = 8388608u;  // words of the matrix descriptor of a piece (PTX: wgmma)
constexpr int kWeightsStep = 64;  // from a multiply step to the next, in 16 bytes
constexpr int kStoredSlots = 2;  // output blocks that are stored together
constexpr int kStored = 8;  // chunks of 16 bytes of a row that are stored together
constexpr int kScratchBytes = 1024;  // of a warp, for 8 rows of 64 outputs
constexpr int kLoads = 13;  // words of a stage in kLoadTable
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

// The two warps that load a ring meet (PTX: bar.sync): neither is a stage behind the other, where it would mistake one phase of a barrier
// for the next.
__device__ __forceinline__ void producers_sync(int ring) { asm volatile("bar.sync %0, 64;" ::"r"(ring + 1) : "memory"); }
// Programmatic dependent launch (PTX: griddepcontrol). The kernel ahead in the stream may still run, until which has ended nothing may be
// read or written that is not this kernel's own; and the one behind may be set up from here on.
__device__ __forceinline__ void wait_for_kernel_ahead() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ __forceinline__ void let_kernel_behind_begin() { asm volatile("griddepcontrol.launch_dependents;"); }
// Thread block clusters (PTX: barrier.cluster, mapa, multicast copies, sm_90).

// All threads of the cluster meet. Orders nothing else: barriers have a fence of their own, and no thread reads what another wrote.
__device__ __forceinline__ void cluster_sync() {
    __syncwarp();
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

// Arrive on the barrier that lies where `barrier` does, in the thread block of that rank. Only reads of shared memory come before it,
// so the scope of the thread block will do; that of the cluster would wait for the memory system at each arrival.
__device__ __forceinline__ void barrier_arrive_at(u32 barrier, u32 rank) {
    asm volatile(
        "{ .reg .b32 there;\n"
        "mapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there]; }" ::"r"(barrier), "r"(rank) : "memory");
}

// tma_load into every thread block whose bit is set in `ranks`, and their barriers.
__device__ __forceinline__ void tma_multicast(u32 shared, const TensorMap& map, int column, int row, u32 barrier, unsigned short ranks) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared),
        "l"(&map), "r"(column), "r"(row), "r"(barrier), "h"(ranks) : "memory");
}

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
// Two neighbouring sums of a row -> two outputs.
__device__ __forceinline__ float2 finish(float2 v) {
    return v;
}

__device__ const int __align__(16) kTileStages[] = {
    0,4,7,10,13,
};

__device__ const int __align__(16) kTargets[] = {
    6,7,12,13,0,1,14,15,2,3,10,11,4,5,8,9,
};  // [kTiles, kColumns, kSlots]: output block, ~p for partial sum p, or kNoOutput
__device__ const int __align__(16) kLoadTable[] = {
    1540,0,64,96,128,32,96,352,384,512,704,0,0,1285,160,192,
    224,256,288,800,1024,1152,1344,1472,0,0,1540,352,384,416,448,1664,
    1728,1760,1856,1984,2208,0,0,513,480,2240,2272,0,0,0,0,0,
    0,0,0,0,1540,0,32,64,96,0,128,256,288,416,576,0,
    0,1796,128,160,192,256,608,768,864,896,928,1216,1248,0,1283,320,
    384,448,1504,1536,1792,1824,2016,0,0,0,0,1796,0,32,96,128,
    64,224,448,480,544,640,736,0,1796,160,192,256,352,832,960,992,
    1088,1280,1632,1696,0,1026,416,448,1888,2048,2144,2176,0,0,0,0,
    0,0,1284,32,64,128,192,160,192,320,672,1056,0,0,0,2052,
    224,256,288,320,1120,1184,1312,1376,1408,1440,1568,1600,1026,416,448,1920,
    1952,2080,2112,0,0,0,0,0,0,
};  // [stages, kLoads]: panels | boxes << 8, first feature of each, each box's place in W
__device__ const int __align__(16) kRecords[] = {
    262152,131112,0,134217730,8192,150994945,16384,167772162,24576,176160770,0,142606337,8192,159383553,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,262152,65576,0,167772161,
    8192,176160769,16384,184549378,24576,192937986,32768,201326594,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,131080,196632,0,134217730,8192,159383554,0,142606339,
    16384,167772162,24576,176160769,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,65544,65552,0,33554434,0,41943042,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    262152,131112,0,134217729,8192,142606338,16384,159383553,24576,167772162,8192,150994946,24576,176160770,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,262152,65576,0,134217729,
    8192,142606338,16384,159383555,24576,176160771,8192,150994946,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,196616,32,0,100663299,8192,117440515,16384,134217729,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,131080,262168,16384,150994947,24576,176160770,0,134217729,8192,142606338,16384,167772162,
    24576,184549378,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    196616,196640,8192,142606339,16384,167772161,24576,176160770,0,134217729,8192,159383553,24576,184549378,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,131080,65560,0,67108866,
    8192,75497474,8192,83886083,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,196616,131104,0,134217730,8192,150994946,16384,159383553,
    0,142606338,24576,167772161,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,262152,262184,0,134217730,8192,150994946,16384,167772161,24576,184549377,0,142606338,
    8192,159383554,16384,176160769,24576,192937985,0,0,0,0,0,0,0,0,0,0,
    131080,131096,0,67108866,8192,83886082,0,75497474,8192,92274690,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,
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
        next_stage = kTileStages[group], next_last = kTileStages[group + 1];
    }
    __device__ __forceinline__ void skip() {
        while (stage == last && more()) {
            tile += stride, stage = next_stage, last = next_last;
            look_ahead();
        }
    }
    __device__ __forceinline__ void advance() { ++stage, skip(); }
};

// Fills a ring of stages, tile after tile; two warps, for a warp alone is too slow. Lane l of one of them issues the l-th load.
__device__ __forceinline__ void produce(const TensorMap& activations, const TensorMap& weights, u32 stages_base, u32 full, u32 empty, const Tiles& tiles, int first_tile, int stride, int ring, int rank) {
    const int lane = threadIdx.x % 32;
    const bool mine = lane % (4 / kRings) == threadIdx.x / 32 % 4 / kRings;
    const auto fetch = [&](const Walk& walk) { return lane < kLoads && walk.more() ? kLoadTable[walk.stage * kLoads + lane] : 0; };
    Walk walk(tiles, first_tile, stride);
    int slot = 0, ahead = fetch(walk);
    u32 parity = 1;
    wait_for_kernel_ahead();
    while (walk.more()) {
        const int load = ahead, s = walk.stage, row0 = tiles.row(walk.tile) * kTileRows + rank * kRows;
        walk.advance();
        ahead = fetch(walk);  // arrives while the copies of this stage are issued
        const int head = __shfl_sync(~0u, load, 0), panels = head & 255, boxes = head >> 8;
        const u32 stage = stages_base + slot * kStageBytes, barrier = full + slot * 8;
        barrier_wait(empty + slot * 8, parity);
        producers_sync(ring);
        if (lane == 0 && mine) {
            barrier_expect(barrier, panels * kPanelBytes + boxes * kBoxBytes + kRecordBytes);
            bulk_load(stage + kRecord, kRecords + s * (kRecordBytes / 4), kRecordBytes, barrier);
        }
        if (mine && lane > 0 && lane <= panels)
            tma_load(stage + (lane - 1) * kPanelBytes, activations, load, row0, barrier);
        else if (mine && lane > panels && lane <= panels + boxes && lane / 4 % kCluster == rank)
            tma_multicast(stage + panels * kPanelBytes + (lane - panels - 1) * kBoxBytes, weights, 0, load, barrier, (1 << kCluster) - 1);
        if (++slot == kStages) slot = 0, parity ^= 1;
    }
    // The neighbours give back what is left here, too: their arrivals must find this thread block.
    for (int i = 0; i < kStages; ++i) {
        barrier_wait(empty + slot * 8, parity);
        if (++slot == kStages) slot = 0, parity ^= 1;
    }
}

// A value that all threads of a warp read alike: keeps what depends on it in uniform registers.
__device__ __forceinline__ u32 uniform(u32 value) {
    return __shfl_sync(~0u, value, 0);
}

using Sums = float[kMTiles][kSlots][kBlock / 2];
using Fragments = u32[kMTiles][kSteps][4];

// The rows of a panel that a warp multiplies, as fragments; rows are swizzled as TMA wrote them.
__device__ __forceinline__ void load_fragments(Fragments& a, u32 rows, u32 panel) {
    const u32 from = rows + panel;
#pragma unroll
    for (int m = 0; m < kMTiles; ++m)
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
            ldmatrix_x4(a[m][k], (from ^ (k * 32)) + m * (64 * kRowBytes));
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

// Accumulators -> global: the epilogue for finished outputs, float32 for partial sums.
__device__ __forceinline__ void store(const float (&sums)[kSlots][kBlock / 2], const int (&targets)[kSlots], int row0, int n,
                                      Element* __restrict__ y, u32 scratch) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int s = 0; s < kSlots; s += kStoredSlots) {
        const int target = targets[s];  // and the one behind it
        if (target == kNoOutput) continue;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int j = 0; j < kStoredSlots * kBlock / 8; j += kStored) {
#pragma unroll
                for (int part = 0; part < kStored; part += 4) {
                    u32 words[4];
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const int step = j + part + i;  // of 8 columns
                        const float* two = sums[s + step / (kBlock / 8)] + step % (kBlock / 8) * 4 + half * 2;
                        const float2 v = finish(make_float2(two[0], two[1]));
                        words[i] = pack(v.x, v.y);
                    }
                    stmatrix_x4(scratch + swizzled<kStored>(lane % 8, part + lane / 8), words);
                }
                // Through shared memory, so that each lane stores 16 bytes of a row, and eight of them a line.
                __syncwarp();
                uint4 chunks[kStored / 4];
#pragma unroll
                for (int i = 0; i < kStored / 4; ++i) chunks[i] = load_shared_chunk(scratch + swizzled<kStored>(i * 4 + lane / kStored, lane % kStored));
                __syncwarp();
#pragma unroll
                for (int i = 0; i < kStored / 4; ++i) {
                    const int mine = row0 + half * 8 + i * 4 + lane / kStored;
                    if (mine < n) store_global_chunk(y + static_cast<long long>(mine) * kFeaturesOut + target * kBlock + (j + lane % kStored) * 8, chunks[i]);
                }
            }
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
    if (threadIdx.x % 32 == 0)
        for (int other = 0; other < kCluster; ++other) barrier_arrive_at(empty + slot * 8, other);
    if (++slot == kStages) slot = 0, parity ^= 1;
}

extern "C" __global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kThreads, 1)
bsgen_fprop_b32_bfloat16_hopper_cb3f72e59c903015(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map, Element* __restrict__ y, int n) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), ring = warp < kRings * kGroups * 4 ? warp / (kGroups * 4) : warp % kRings, group = warp / 4 - ring * kGroups;
    const u32 rings_base = shared_address(shared), stages_base = rings_base + ring * kRingBytes, barriers = rings_base + kRings * kRingBytes;
    const u32 full = barriers + ring * (kStages * 16), empty = full + kStages * 8;
    const int rank = blockIdx.x % kCluster, first_tile = blockIdx.x / kCluster + ring * (gridDim.x / kCluster), stride = gridDim.x / kCluster * kRings;
    const Tiles tiles(n);

    if (threadIdx.x == 0) {
        let_kernel_behind_begin();
        tma_prefetch(x_map), tma_prefetch(w_map);
        for (int r = 0; r < kRings; ++r)
            for (int i = 0; i < kStages; ++i) barrier_init(barriers + (r * 2 * kStages + i) * 8, 1), barrier_init(barriers + ((r * 2 + 1) * kStages + i) * 8, kGroups * 4 * kCluster);
        barrier_init_fence();
    }
    cluster_sync();

    if (warp >= kRings * kGroups * 4) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
        produce(x_map, w_map, stages_base, full, empty, tiles, first_tile, stride, ring, rank);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 112;");
        wait_for_kernel_ahead();
        const int column = group % kColumns, lane = threadIdx.x % 32;
        const u32 scratch = barriers + kRings * (kStages * 16) + threadIdx.x / 32 * kScratchBytes;
        const int row = group / kColumns * kGroupRows + threadIdx.x / 32 % 4 * 16;
        // Where this lane's chunk of a fragment lies in a panel (PTX: ldmatrix), swizzled.
        const u32 r = row + lane % 16;
        const u32 place = r * kRowBytes + ((lane / 16 ^ r / 2 % 4) * 16);
        int slot = 0;
        u32 parity = 0;
        for (int tile = first_tile; tile < tiles.count; tile += stride) {
            const int tile_group = tiles.group(tile), row0 = tiles.row(tile) * kTileRows + rank * kRows;
            int targets[kSlots];
            load_targets(targets, tile_group * kColumns + column);
            Sums sums = {};
            for (int s = kTileStages[tile_group], last = kTileStages[tile_group + 1]; s < last; ++s) {
                barrier_wait(full + slot * 8, parity);
                const u32 stage = stages_base + slot * kStageBytes;
                multiply_stage(sums, stage + kRecord, stage + place, matrix_address(stage) + kWeightsLow, column);
                give_back(empty, slot, parity);
            }
#pragma unroll
            for (int m = 0; m < kMTiles; ++m)
                store(sums[m], targets, row0 + row + m * 64, n, y, scratch);
        }
    }
    cluster_sync();  // none ends before its neighbours have come so far
}
