// dx = dy @ W.T for one block-sparse W [512, 512], float32.
// Layout cb3f72e59c903015: 72 of 256 blocks of 32 x 32 (28.12 %).
// Plan: hopper, wgmma_tf32, tile 128 x 128, 1 x 2 warpgroups of 128 x 64, 2 rings of 2 stages of 54 KiB, balanced groups.
//
// Persistent thread blocks, and in them kRings rings each, walk tiles of kRows rows x kSlots * kColumns output blocks, column groups fastest. One warpgroup keeps the rings
// of stages full: panels of activations, and the pieces of W that multiply them. A warpgroup owns kGroupRows rows of kSlots output
// blocks; slot after slot, it multiplies its rows of a panel by a piece.

using u32 = unsigned int;

constexpr int kFeaturesOut = 512;  // of a row of dx
constexpr int kBlock = 32, kSteps = 4;  // a block's side; multiply steps along the inputs of a panel
constexpr int kRowGroups = 1, kColumns = 2;  // warpgroups down and across
constexpr int kMTiles = 2, kSlots = 2;  // 64-row tiles and output blocks of each
constexpr int kRings = 2;  // of stages, each with warpgroups and tiles of its own: while those of one store results, those of the other multiply
constexpr int kGroups = kRowGroups * kColumns, kThreads = 128 * (kRings * kGroups + 1), kGroupRows = 64 * kMTiles, kRows = kGroupRows * kRowGroups;
constexpr int kTileRows = kRows;  // of a tile, of all thread blocks that work on it
constexpr int kTiles = 4, kNoOutput = -2147483647;
constexpr int kStages = 2, kStageBytes = 55296, kRecordBytes = 160;  // a stage ends with its record
constexpr int kRecord = kStageBytes - kRecordBytes, kRingBytes = kStages * kStageBytes;
constexpr int kPanelBytes = 16384, kBoxBytes = 4096;
constexpr u32 kWeightsHigh = 1073741888u, kWeightsLow = 16777216u;  // words of the matrix descriptor of a piece (PTX: wgmma)
constexpr u32 kPanelHigh = 1073741888u;
constexpr u32 kPlace = 32767;  // bits of a product that say where its panel is
constexpr int kCountBits = 8, kTileStep = 512;  // of the number of a slot's products; from a 64-row tile to the next in a panel, in 16 bytes
constexpr int kStepBytes = 32;
constexpr int kWeightsStep = 2;  // from a multiply step to the next, in 16 bytes
constexpr int kStoredSlots = 1;  // output blocks that are stored together
constexpr int kLoads = 8;  // words of a stage in kLoadTable
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
// The multiply step of a warpgroup, 64 rows x 32 columns x 8 (PTX: wgmma, sm_90a). Asynchronous: fence before
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

// sums += A * B; A [64, 8] and B [8, 32] where the low words of their descriptors say.
__device__ __forceinline__ void wgmma(float (&sums)[16], u32 a, u32 b) {
    asm volatile(
        "{ .reg .b64 b; mov.b64 b, {%17, %18};\n"
        ".reg .b64 a; mov.b64 a, {%16, %19};\n"
        "wgmma.mma_async.sync.aligned.m64n32k8.f32.tf32.tf32 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
        "}, a, b, 1, 1, 1; }"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]), "+f"(sums[5]), "+f"(sums[6]), "+f"(sums[7]),
          "+f"(sums[8]), "+f"(sums[9]), "+f"(sums[10]), "+f"(sums[11]), "+f"(sums[12]), "+f"(sums[13]), "+f"(sums[14]), "+f"(sums[15])
        : "r"(a), "r"(b), "n"(kWeightsHigh), "n"(kPanelHigh));
}

using Element = float;

__device__ __forceinline__ float2 load_pair(const Element* p) { return *reinterpret_cast<const float2*>(p); }
__device__ __forceinline__ void store_pair(Element* p, float2 v) { *reinterpret_cast<float2*>(p) = v; }
// Two neighbouring sums of a row -> two outputs.
__device__ __forceinline__ float2 finish(float2 v) {
    return v;
}

__device__ const int __align__(16) kTileStages[] = {
    0,7,12,19,24,
};

__device__ const int __align__(16) kTargets[] = {
    6,15,11,13,14,7,0,2,3,9,1,5,8,12,4,10,
};  // [kTiles, kColumns, kSlots]: output block, ~p for partial sum p, or kNoOutput
__device__ const int __align__(16) kLoadTable[] = {
    514,0,32,896,928,0,0,0,1026,64,96,960,992,1632,1888,0,
    514,160,192,1920,1024,0,0,0,770,224,256,2240,1664,1056,0,0,
    514,288,320,1952,1088,0,0,0,514,352,384,1696,1728,0,0,0,
    769,416,2272,1760,1984,0,0,0,1026,0,96,2016,0,288,2048,0,
    1026,160,192,2080,1120,320,352,0,1026,224,288,1152,32,2112,1184,0,
    770,320,352,2144,64,2176,0,0,769,384,2208,96,384,0,0,0,
    1026,32,64,416,128,768,448,0,514,96,128,480,1408,0,0,0,
    514,160,192,160,800,0,0,0,514,224,256,512,1440,0,0,0,
    514,288,320,192,832,0,0,0,770,352,416,544,224,1472,0,0,
    769,480,576,256,864,0,0,0,1282,0,64,1216,1792,608,1504,1280,
    1026,32,96,1248,1824,1536,640,0,770,128,160,672,1568,1312,0,0,
    1026,224,256,1344,1856,704,1600,0,514,288,352,1376,736,0,0,0,
};  // [stages, kLoads]: panels | boxes << 8, first feature of each, each box's place in W
__device__ const int __align__(16) kRecords[] = {
    16,2,24,0,134217728,150995968,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,16,2,24,257,134217728,150995968,167773184,184550400,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    16,1,20,256,150995968,134217728,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,16,257,24,1,167773184,134217728,150994944,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    16,1,20,256,150995968,134217728,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,16,0,16,2,134217728,150995968,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    16,256,20,257,67108864,83886080,100663296,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,16,2,24,257,134217728,184550400,150994944,167772160,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    16,257,24,512,134217728,150994944,167772160,184550400,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,16,513,28,1,167773184,134217728,184550400,150994944,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    16,2,24,1,134217728,167773184,150994944,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,16,1,20,257,67108864,83886080,100663296,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    16,2,24,257,134217728,184550400,150994944,167772160,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,16,257,24,0,134217728,150995968,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    16,0,16,257,134217728,150995968,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,16,257,24,0,134217728,150995968,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    16,0,16,257,134217728,150995968,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,16,257,24,1,134217728,167773184,150994944,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    16,1,20,257,67108864,83886080,100663296,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,16,258,28,257,134217728,201327616,150994944,167772160,
    184549376,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    16,257,24,257,134217728,150994944,184550400,167772160,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,16,1,20,257,167773184,134217728,150994944,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    16,257,24,257,134217728,150994944,167772160,184550400,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,16,1,20,1,134217728,150995968,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
};  // [stages, kRecordBytes / 4]: byte of the first product, counts of each slot << 8 * slot, for each column of warpgroups; products

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
__device__ __forceinline__ void produce(const TensorMap& activations, const TensorMap& weights, u32 stages_base, u32 full, u32 empty, const Tiles& tiles, int first_tile, int stride, int ring) {
    const int lane = threadIdx.x % 32;
    const bool mine = lane % (4 / kRings) == threadIdx.x / 32 % 4 / kRings;
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
        producers_sync(ring);
        if (lane == 0 && mine) {
            barrier_expect(barrier, panels * kPanelBytes + boxes * kBoxBytes + kRecordBytes);
            bulk_load(stage + kRecord, kRecords + s * (kRecordBytes / 4), kRecordBytes, barrier);
        }
        if (mine && lane > 0 && lane <= panels)
            tma_load(stage + (lane - 1) * kPanelBytes, activations, load, row0, barrier);
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

// Multiply the warpgroup's rows of a panel by a piece, for a slot; the low words of their matrix descriptors. One group of steps.
__device__ __forceinline__ void multiply(Sums& sums, int slot, u32 panel, u32 piece) {
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kSteps; ++k)
#pragma unroll
        for (int m = 0; m < kMTiles; ++m) wgmma(sums[m][slot], panel + k * (kStepBytes / 16) + m * kTileStep, piece + k * kWeightsStep);
    wgmma_commit();
}

// All products of a stage, slot after slot, for accumulators need fixed registers. The head of a column is two words: byte of its first
// product; how many each slot has, kCountBits each. A product is a word: where its panel is, in 16 bytes; and its piece << 16.
// Past the last product lie two that are safe to read.
__device__ __forceinline__ void multiply_stage(Sums& sums, u32 record, u32 panels, u32 pieces, int column) {
    const bool reads = threadIdx.x % 32 == 0;  // the lane that gives the stage back
    uint2 head = {};
    if (reads) head = load_shared_pair(record + column * 8);
    const u32 counts = uniform(head.y);
    u32 at = record + uniform(head.x), ahead = 0;
    if (reads) ahead = load_shared(at);
    u32 next = uniform(ahead);
    at += 4;
    if (reads) ahead = load_shared(at);
#pragma unroll
    for (int s = 0; s < kSlots; ++s)
#pragma unroll 1
        for (u32 count = counts >> s * kCountBits & (1 << kCountBits) - 1; count; --count) {
            const u32 product = next;
            next = uniform(ahead);
            at += 4;
            if (reads) ahead = load_shared(at);
            multiply(sums, s, panels + (product & kPlace), pieces + (product >> 16));
        }
    wgmma_wait<0>();
}

// Accumulators -> global: the epilogue for finished outputs, float32 for partial sums.
__device__ __forceinline__ void store(const float (&sums)[kSlots][kBlock / 2], const int (&targets)[kSlots], int row0, int n,
                                      Element* __restrict__ dx) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int s = 0; s < kSlots; s += kStoredSlots) {
        const int target = targets[s];
        if (target == kNoOutput) continue;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = row0 + half * 8 + lane / 4;
            const long long start = static_cast<long long>(min(row, n - 1)) * kFeaturesOut;
#pragma unroll
            for (int j = 0; j < kBlock / 8; ++j) {
                const int column = target * kBlock + j * 8 + lane % 4 * 2;
                const long long place = start + column;
                const float2 v = finish(make_float2(sums[s][j * 4 + half * 2], sums[s][j * 4 + half * 2 + 1]));
                if (row < n) store_pair(dx + place, v);
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
    if (threadIdx.x % 32 == 0) barrier_arrive(empty + slot * 8);
    if (++slot == kStages) slot = 0, parity ^= 1;
}

extern "C" __global__ void __launch_bounds__(kThreads, 1)
bsgen_dgrad_b32_float32_hopper_cb3f72e59c903015(const __grid_constant__ TensorMap dy_map, const __grid_constant__ TensorMap w_map, Element* __restrict__ dx, int n) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), ring = warp < kRings * kGroups * 4 ? warp / (kGroups * 4) : warp % kRings, group = warp / 4 - ring * kGroups;
    const u32 rings_base = shared_address(shared), stages_base = rings_base + ring * kRingBytes, barriers = rings_base + kRings * kRingBytes;
    const u32 full = barriers + ring * (kStages * 16), empty = full + kStages * 8;
    const int first_tile = blockIdx.x + ring * (gridDim.x), stride = gridDim.x * kRings;
    const Tiles tiles(n);

    if (threadIdx.x == 0) {
        let_kernel_behind_begin();
        tma_prefetch(dy_map), tma_prefetch(w_map);
        for (int r = 0; r < kRings; ++r)
            for (int i = 0; i < kStages; ++i) barrier_init(barriers + (r * 2 * kStages + i) * 8, 1), barrier_init(barriers + ((r * 2 + 1) * kStages + i) * 8, kGroups * 4);
        barrier_init_fence();
    }
    __syncthreads();

    if (warp >= kRings * kGroups * 4) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
        produce(dy_map, w_map, stages_base, full, empty, tiles, first_tile, stride, ring);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 112;");
        wait_for_kernel_ahead();
        const int column = group % kColumns;
        const int row = group / kColumns * kGroupRows + threadIdx.x / 32 % 4 * 16;
        int slot = 0;
        u32 parity = 0;
        for (int tile = first_tile; tile < tiles.count; tile += stride) {
            const int tile_group = tiles.group(tile), row0 = tiles.row(tile) * kTileRows;
            int targets[kSlots];
            load_targets(targets, tile_group * kColumns + column);
            Sums sums = {};
            for (int s = kTileStages[tile_group], last = kTileStages[tile_group + 1]; s < last; ++s) {
                barrier_wait(full + slot * 8, parity);
                const u32 stage = stages_base + slot * kStageBytes;
                multiply_stage(sums, stage + kRecord, matrix_address(stage) + group / kColumns * (kMTiles * kTileStep), matrix_address(stage) + kWeightsLow, column);
                give_back(empty, slot, parity);
            }
#pragma unroll
            for (int m = 0; m < kMTiles; ++m)
                store(sums[m], targets, row0 + row + m * 64, n, dx);
        }
    }
}
