// dx = dy @ W.T for one block-sparse W [512, 512], float32.
// Layout d11c92dfca3bf62c: 96 of 256 blocks of 32 x 32 (37.50 %).
// Plan: hopper, wgmma_tf32, tile 128 x 256, 2 x 2 warpgroups of 64 x 128, 3 stages of 72 KiB, balanced groups.
//
// Persistent thread blocks walk tiles of kRows rows x kSlots * kColumns output blocks, column groups fastest. One warpgroup keeps a ring
// of stages full: panels of activations, and the pieces of W that multiply them. A warpgroup owns kGroupRows rows of kSlots output
// blocks; for each panel that it visits, it multiplies its rows by the pieces of its slots.

using u32 = unsigned int;

constexpr int kFeaturesOut = 512;  // of a row of dx
constexpr int kBlock = 32, kSteps = 4;  // a block's side; multiply steps along the inputs of a panel
constexpr int kRowGroups = 2, kColumns = 2;  // warpgroups down and across
constexpr int kMTiles = 1, kSlots = 4;  // 64-row tiles and output blocks of each
constexpr int kGroups = kRowGroups * kColumns, kThreads = 128 * (kGroups + 1), kGroupRows = 64 * kMTiles, kRows = kGroupRows * kRowGroups;
constexpr int kTileRows = kRows;  // of a tile, of all thread blocks that work on it
constexpr int kTiles = 2, kNoOutput = -2147483647;
constexpr int kStages = 3, kStageBytes = 73728, kRecordBytes = 80;  // a stage ends with its record
constexpr int kRecord = kStageBytes - kRecordBytes;
constexpr int kRowBytes = 128, kPanelBytes = 16384, kBoxBytes = 4096, kPieceBytes = 4096;
constexpr u32 kWeightsHigh = 1073741888u, kWeightsLow = 16777216u;  // words of the matrix descriptor of a piece (PTX: wgmma)
constexpr int kWeightsStep = 2;  // from a multiply step to the next, in 16 bytes
constexpr int kStoredSlots = 1;  // output blocks that are stored together
constexpr int kLoads = 10;  // words of a stage in kLoadTable
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

// The warps that load meet (PTX: bar.sync): none is a stage behind another, where it would mistake one phase of a barrier for the next.
template <int Threads = 128>
__device__ __forceinline__ void producers_sync() {
    asm volatile("bar.sync 1, %0;" ::"n"(Threads) : "memory");
}

// Programmatic dependent launch (PTX: griddepcontrol). The kernel ahead in the stream may still run, until which has ended nothing may be
// read or written that is not this kernel's own; and the one behind may be set up from here on.
__device__ __forceinline__ void wait_for_kernel_ahead() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ __forceinline__ void let_kernel_behind_begin() { asm volatile("griddepcontrol.launch_dependents;"); }
// 8 x 8 matrices of 16-bit elements (or 8 rows of 16 bytes) from shared memory (PTX: ldmatrix).
__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

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

// sums += a * B; a in registers, B [8, 32] where the low word of its descriptor, b, says.
__device__ __forceinline__ void wgmma(float (&sums)[16], const u32 (&a)[4], u32 b) {
    asm volatile(
        "{ .reg .b64 b; mov.b64 b, {%20, %21};\n"
        "wgmma.mma_async.sync.aligned.m64n32k8.f32.tf32.tf32 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
        "}, {%16, %17, %18, %19}, b, 1, 1, 1; }"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]), "+f"(sums[5]), "+f"(sums[6]), "+f"(sums[7]),
          "+f"(sums[8]), "+f"(sums[9]), "+f"(sums[10]), "+f"(sums[11]), "+f"(sums[12]), "+f"(sums[13]), "+f"(sums[14]), "+f"(sums[15])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "n"(kWeightsHigh));
}

using Element = float;

__device__ __forceinline__ float2 load_pair(const Element* p) { return *reinterpret_cast<const float2*>(p); }
__device__ __forceinline__ void store_pair(Element* p, float2 v) { *reinterpret_cast<float2*>(p) = v; }
// Two neighbouring sums of a row -> two outputs.
__device__ __forceinline__ float2 finish(float2 v) {
    return v;
}

constexpr int kTileStages = 8;  // of each tile
__device__ const int __align__(16) kTargets[] = {
    2,5,11,13,6,0,3,8,10,7,12,15,14,1,4,9,
};  // [kTiles, kColumns, kSlots]: output block, ~p for partial sum p, or kNoOutput
__device__ const int __align__(16) kLoadTable[] = {
    1282,0,32,256,1152,0,1536,288,0,0,1282,64,96,320,1024,2560,
    1184,352,0,0,1794,128,160,384,1216,32,1568,416,1056,2592,1794,192,
    224,448,2304,1248,768,480,2336,800,1282,256,288,512,1280,64,1600,544,
    0,0,1282,320,352,576,1088,2624,1312,608,0,0,1794,384,416,640,
    1344,96,1632,672,1120,2656,1794,448,480,704,2368,1376,832,736,2400,864,
    1794,0,32,1792,2432,2688,896,1824,128,1664,1794,64,96,1856,2720,160,
    1696,1888,1408,2944,1282,128,160,1920,2464,2752,928,1952,0,0,1282,192,
    224,1984,1440,2976,2784,2016,0,0,1794,256,288,2048,2496,2816,960,2080,
    192,1728,1794,320,352,2112,2848,224,1760,2144,1472,3008,1282,384,416,2176,
    2528,2880,992,2208,0,0,1282,448,480,2240,1504,3040,2912,2272,0,0,
};  // [stages, kLoads]: panels | boxes << 8, first feature of each, each box's place in W
__device__ const int __align__(16) kRecords[] = {
    131080,65560,0,134217729,16384,201326593,0,150994955,0,0,0,0,0,0,0,0,
    0,0,0,0,131080,65560,0,134217739,16384,201326593,0,184549377,0,0,0,0,
    0,0,0,0,0,0,0,0,131080,65560,0,134217729,16384,201326603,0,150994955,
    0,0,0,0,0,0,0,0,0,0,0,0,131080,131096,0,134217733,
    16384,201326597,0,167772165,16384,234881028,0,0,0,0,0,0,0,0,0,0,
    131080,65560,0,134217729,16384,201326593,0,150994955,0,0,0,0,0,0,0,0,
    0,0,0,0,131080,65560,0,134217739,16384,201326593,0,184549377,0,0,0,0,
    0,0,0,0,0,0,0,0,131080,65560,0,134217729,16384,201326603,0,150994955,
    0,0,0,0,0,0,0,0,0,0,0,0,131080,131096,0,134217733,
    16384,201326597,0,167772165,16384,234881028,0,0,0,0,0,0,0,0,0,0,
    131080,131096,0,134217733,16384,201326593,0,167772165,16384,218103818,0,0,0,0,0,0,
    0,0,0,0,131080,65560,0,134217729,16384,201326603,0,150994955,0,0,0,0,
    0,0,0,0,0,0,0,0,131080,65560,0,134217733,16384,201326593,0,167772165,
    0,0,0,0,0,0,0,0,0,0,0,0,131080,65560,0,134217739,
    16384,201326593,0,184549377,0,0,0,0,0,0,0,0,0,0,0,0,
    131080,131096,0,134217733,16384,201326593,0,167772165,16384,218103818,0,0,0,0,0,0,
    0,0,0,0,131080,65560,0,134217729,16384,201326603,0,150994955,0,0,0,0,
    0,0,0,0,0,0,0,0,131080,65560,0,134217733,16384,201326593,0,167772165,
    0,0,0,0,0,0,0,0,0,0,0,0,131080,65560,0,134217739,
    16384,201326593,0,184549377,0,0,0,0,0,0,0,0,0,0,0,0,
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
bsgen_dgrad_b32_float32_hopper_d11c92dfca3bf62c(const __grid_constant__ TensorMap dy_map, const __grid_constant__ TensorMap w_map, Element* __restrict__ dx, int n) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const u32 stages_base = shared_address(shared), full = stages_base + kStages * kStageBytes, empty = full + kStages * 8;
    const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);
    const int first_tile = blockIdx.x, stride = gridDim.x;
    const Tiles tiles(n);

    if (threadIdx.x == 0) {
        let_kernel_behind_begin();
        tma_prefetch(dy_map), tma_prefetch(w_map);
        for (int i = 0; i < kStages; ++i) barrier_init(full + i * 8, 1), barrier_init(empty + i * 8, kGroups * 4);
        barrier_init_fence();
    }
    __syncthreads();

    if (group == kGroups) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
        produce(dy_map, w_map, stages_base, full, empty, tiles, first_tile, stride);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 112;");
        wait_for_kernel_ahead();
        const int column = group % kColumns, lane = threadIdx.x % 32;
        const int row = group / kColumns * kGroupRows + threadIdx.x / 32 % 4 * 16;
        // Where this lane's chunk of a fragment lies in a panel (PTX: ldmatrix), swizzled.
        const u32 r = row + lane % 16;
        const u32 place = r * kRowBytes + ((lane / 16 ^ r % 8) * 16);
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
                store(sums[m], targets, row0 + row + m * 64, n, dx);
        }
    }
}
