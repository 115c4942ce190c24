// dx = W @ dy for one block-sparse W [512, 512], float16.
// Layout 931e837531d927b6: 24 of 64 blocks of 64 x 64 (37.50 %).
// Plan: hopper, wgmma_f16, tile 128 x 256, 1 x 4 warpgroups of 128 x 64, 4 stages of 54 KiB, balanced groups.
//
// Persistent thread blocks walk tiles of kRows rows x kSlots * kColumns output blocks, column groups fastest. One warpgroup keeps a ring
// of stages full: panels of activations, and the pieces of W that multiply them. A warpgroup owns kGroupRows rows of kSlots output
// blocks; slot after slot, it multiplies its rows of a panel by a piece.

using u32 = unsigned int;

constexpr int kBlock = 64, kSteps = 4;  // a block's side; multiply steps along the inputs of a panel
constexpr int kRowGroups = 1, kColumns = 4;  // warpgroups down and across
constexpr int kMTiles = 2, kSlots = 1;  // 64-row tiles and output blocks of each
constexpr int kGroups = kRowGroups * kColumns, kThreads = 128 * (kGroups + 1), kGroupRows = 64 * kMTiles, kRows = kGroupRows * kRowGroups;
constexpr int kTileRows = kRows;  // of a tile, of all thread blocks that work on it
constexpr int kTiles = 2, kNoOutput = -2147483647;
constexpr int kStages = 4, kStageBytes = 55296, kRecordBytes = 176;  // a stage ends with its record
constexpr int kRecord = kStageBytes - kRecordBytes;
constexpr int kPanelBytes = 16384, kBoxBytes = 8192;
constexpr int kPanelBoxes = 2, kBoxRows = 64, kPanelBoxBytes = 8192;  // a panel is loaded in boxes of kBoxRows rows
constexpr u32 kWeightsHigh = 1073741888u, kWeightsLow = 33554432u;  // words of the matrix descriptor of a piece (PTX: wgmma)
constexpr u32 kPanelHigh = 1073741888u;
constexpr u32 kPlace = 32767;  // bits of a product that say where its panel is
constexpr int kCountBits = 8, kTileStep = 512;  // of the number of a slot's products; from a 64-row tile to the next in a panel, in 16 bytes
constexpr int kStepBytes = 2048;
constexpr int kWeightsStep = 2;  // from a multiply step to the next, in 16 bytes
constexpr int kScratchBytes = 512;  // of a warp, for 8 rows of 32 outputs
constexpr int kLoads = 5;  // words of a stage in kLoadTable
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
// The same, each matrix transposed: lane l gives what becomes of column l % 8 of matrix l / 8.
__device__ __forceinline__ void stmatrix_x4_trans(u32 address, const u32 (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r[0]), "r"(r[1]), "r"(r[2]),
                 "r"(r[3]) : "memory");
}

// The multiply step of a warpgroup, 64 rows x 64 columns x 16 (PTX: wgmma, sm_90a). Asynchronous: fence before
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

// sums += A * B; A [64, 16] and B [16, 64] where the low words of their descriptors say.
__device__ __forceinline__ void wgmma(float (&sums)[32], u32 a, u32 b) {
    asm volatile(
        "{ .reg .b64 b; mov.b64 b, {%33, %34};\n"
        ".reg .b64 a; mov.b64 a, {%32, %35};\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, a, b, 1, 1, 1, 1, 0; }"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]), "+f"(sums[5]), "+f"(sums[6]), "+f"(sums[7]),
          "+f"(sums[8]), "+f"(sums[9]), "+f"(sums[10]), "+f"(sums[11]), "+f"(sums[12]), "+f"(sums[13]), "+f"(sums[14]), "+f"(sums[15]),
          "+f"(sums[16]), "+f"(sums[17]), "+f"(sums[18]), "+f"(sums[19]), "+f"(sums[20]), "+f"(sums[21]), "+f"(sums[22]), "+f"(sums[23]),
          "+f"(sums[24]), "+f"(sums[25]), "+f"(sums[26]), "+f"(sums[27]), "+f"(sums[28]), "+f"(sums[29]), "+f"(sums[30]), "+f"(sums[31])
        : "r"(a), "r"(b), "n"(kWeightsHigh), "n"(kPanelHigh));
}

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
// Two neighbouring sums of a row -> two outputs.
__device__ __forceinline__ float2 finish(float2 v) {
    return v;
}

__device__ const int __align__(16) kTileStages[] = {
    0,5,11,
};

__device__ const int __align__(16) kTargets[] = {
    6,2,0,5,3,4,1,7,
};  // [kTiles, kColumns, kSlots]: output block, ~p for partial sum p, or kNoOutput
__device__ const int __align__(16) kLoadTable[] = {
    769,0,1088,256,0,513,64,1152,960,0,514,128,192,1216,1280,514,
    320,448,320,64,769,384,1344,384,1024,514,0,128,704,512,513,64,
    448,128,0,513,192,576,768,0,257,256,832,0,0,513,320,192,
    1408,0,769,448,640,896,1472,
};  // [stages, kLoads]: panels | boxes << 8, first feature of each, each box's place in W
__device__ const int __align__(16) kRecords[] = {
    32,1,36,1,40,1,44,0,67108864,100663296,134217728,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,32,1,36,0,
    36,0,36,1,67108864,100663296,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,32,2,40,0,40,0,40,0,
    134217728,167773184,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,32,0,32,1,36,1,40,0,134217728,167773184,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    32,1,36,1,40,0,40,1,67108864,100663296,134217728,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,32,1,36,1,
    40,0,40,0,167773184,134217728,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,32,1,36,0,36,1,40,0,
    67108864,100663296,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,32,1,36,1,40,0,40,0,67108864,100663296,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    32,0,32,1,36,0,36,0,67108864,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,32,0,32,0,
    32,1,36,1,67108864,100663296,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,32,1,36,1,40,0,40,1,
    67108864,100663296,134217728,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,
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

// Accumulators -> global: the epilogue for finished outputs, float32 for partial sums. A line of either is a feature; N is a multiple of 8.
__device__ __forceinline__ void store(const float (&sums)[kSlots][kBlock / 2], const int (&targets)[kSlots], int row0, int n,
                                      Element* __restrict__ dx, u32 scratch) {
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
            u32 words[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {  // 8 rows, then 8 more, of each step
                const float* two = sums[s] + (j + i / 2) * 4 + i % 2 * 2;
                const float2 v = finish(make_float2(two[0], two[1]));
                words[i] = pack(v.x, v.y);
            }
            // Through shared memory, so that each lane stores 16 bytes of a feature.
            stmatrix_x4_trans(matrices, words);
            __syncwarp();
            const uint4 chunk = load_shared_chunk(chunks);
            __syncwarp();
            if (row < n) store_global_chunk(dx + place, chunk);
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
bsgen_dgrad_b64_float16_hopper_931e837531d927b6(const __grid_constant__ TensorMap dy_map, const __grid_constant__ TensorMap w_map, Element* __restrict__ dx, int n) {
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
        const int column = group % kColumns;
        const u32 scratch = empty + kStages * 8 + threadIdx.x / 32 * kScratchBytes;
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
                store(sums[m], targets, row0 + row + m * 64, n, dx, scratch);
        }
    }
}
