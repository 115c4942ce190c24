// y = x @ W for one block-sparse W [512, 512] and its epilogue, bfloat16.
// Layout cb3f72e59c903015: 72 of 256 blocks of 32 x 32 (28.12 %).
// Plan: hopper, wgmma_bf16, tile 128 x 384, 1 x 3 warpgroups of 128 x 128, paired, 3 stages of 73 KiB, contiguous groups.
//
// Persistent thread blocks walk tiles of kRows rows x kSlots * kColumns output blocks, column groups fastest. One warpgroup keeps a ring
// of stages full: panels of activations, and the pieces of W that multiply them. A warpgroup owns kGroupRows rows of kSlots output
// blocks; slot after slot, it multiplies its rows of a panel by a piece.

using u32 = unsigned int;

constexpr int kFeaturesOut = 512;  // of a row of y
constexpr int kBlock = 32, kSteps = 2;  // a block's side; multiply steps along the inputs of a panel
constexpr int kRowGroups = 1, kColumns = 3;  // warpgroups down and across
constexpr int kMTiles = 2, kSlots = 4;  // 64-row tiles and output blocks of each
constexpr int kGroups = kRowGroups * kColumns, kThreads = 128 * (kGroups + 1), kGroupRows = 64 * kMTiles, kRows = kGroupRows * kRowGroups;
constexpr int kTileRows = kRows;  // of a tile, of all thread blocks that work on it
constexpr int kTiles = 2, kNoOutput = -2147483647;
constexpr int kStages = 3, kStageBytes = 74752, kRecordBytes = 160;  // a stage ends with its record
constexpr int kRecord = kStageBytes - kRecordBytes;
constexpr int kPanelBytes = 8192, kBoxBytes = 2048;
constexpr u32 kWeightsHigh = 2147483680u, kWeightsLow = 8388608u;  // words of the matrix descriptor of a piece (PTX: wgmma)
constexpr u32 kPanelHigh = 2147483680u;
constexpr u32 kPairHigh = 1073741888u, kPaired = 32768;  // of a panel that shares lines of 128 bytes with another, and the bit of a product that says so
constexpr u32 kPlace = 32767;  // bits of a product that say where its panel is
constexpr int kCountBits = 8, kTileStep = 256;  // of the number of a slot's products; from a 64-row tile to the next in a panel, in 16 bytes
constexpr int kStepBytes = 32;
constexpr int kWeightsStep = 64;  // from a multiply step to the next, in 16 bytes
constexpr int kStoredSlots = 1;  // output blocks that are stored together
constexpr int kStored = 4;  // chunks of 16 bytes of a row that are stored together
constexpr int kScratchBytes = 512;  // of a warp, for 8 rows of 32 outputs
constexpr int kLoads = 21;  // words of a stage in kLoadTable
constexpr int kStoredColumns = 32, kStoredBytes = 64;  // of such a row
constexpr int kResidualPanels = 12, kResidualBytes = 4096;  // of a tile's row; of each, kStoredColumns wide
constexpr int kResidualParts = 2, kResidualRows = 64;  // of a tile, a stage for each
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

// sums += A * B; A [64, 16] and B [16, 32] where the low words of their descriptors say.
__device__ __forceinline__ void wgmma(float (&sums)[16], u32 a, u32 a_high, u32 b) {
    asm volatile(
        "{ .reg .b64 b; mov.b64 b, {%17, %18};\n"
        ".reg .b64 a; mov.b64 a, {%16, %19};\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
        "}, a, b, 1, 1, 1, 0, 1; }"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]), "+f"(sums[5]), "+f"(sums[6]), "+f"(sums[7]),
          "+f"(sums[8]), "+f"(sums[9]), "+f"(sums[10]), "+f"(sums[11]), "+f"(sums[12]), "+f"(sums[13]), "+f"(sums[14]), "+f"(sums[15])
        : "r"(a), "r"(b), "n"(kWeightsHigh), "r"(a_high));
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
__device__ __forceinline__ float2 finish(float2 v, float2 bias, float2 residual) {
    v.x += bias.x, v.y += bias.y;
    v.x += residual.x, v.y += residual.y;
    return v;
}

__device__ const int __align__(16) kTileStages[] = {
    0,4,6,
};

__device__ const int __align__(16) kTargets[] = {
    0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,
    -2147483647,-2147483647,-2147483647,-2147483647,-2147483647,-2147483647,-2147483647,-2147483647,
};  // [kTiles, kColumns, kSlots]: output block, ~p for partial sum p, or kNoOutput
__device__ const int __align__(16) kLoadTable[] = {
    134914,0,64,0,32,64,128,160,192,224,288,320,352,416,448,480,
    512,544,0,0,0,135682,128,192,608,640,672,704,736,768,800,832,
    896,928,960,992,1024,1056,1088,1120,1152,1184,134914,256,320,1216,1248,1280,
    1312,1344,1376,1408,1440,1504,1536,1568,1600,1632,1664,1696,0,0,0,134402,
    384,448,1792,1824,1856,1888,1920,1952,2016,2048,2080,2112,2144,2176,2240,0,
    0,0,0,0,133125,0,64,160,288,352,96,256,384,576,864,1472,
    1728,1760,0,0,0,0,0,0,0,66306,448,416,2208,2272,1984,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,
};  // [stages, kLoads]: copies of panels | boxes << 8 | those of the copies that bring two panels << 16, first feature of each, each box's place in W
__device__ const int __align__(16) kRecords[] = {
    24,16843266,48,33620480,68,33620224,134250496,192971776,159416324,218137604,226526212,234914820,167804932,201360384,209748992,142639104,
    243303428,176193540,151027712,184582148,251692036,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,24,33620482,52,33685761,76,16908545,134250496,201360384,
    176193540,209748992,218137600,142639104,226526208,151027712,260080644,184582148,234914816,159416320,268469252,243303424,276857860,192970756,251692032,167804928,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    24,16843266,48,33554690,68,16777474,134250496,201360384,142639104,209748992,151027712,234914820,184582148,218137600,159416320,167804928,
    243303428,192970756,226526208,176193536,251692036,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,24,33554690,44,33554944,60,16843264,134250496,184583168,
    142639104,159416324,192971776,167804932,201360384,151027712,234914820,176193540,209748992,218137600,226526208,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    24,50332163,56,0,56,0,234913792,251692032,285215744,276826624,293604352,243302404,260080644,268437504,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,24,513,36,0,36,0,100696064,109084676,
    117441536,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
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
    __device__ __forceinline__ bool at_residual() const { return stage + kResidualParts >= last; }  // stages more, which are in no table
    __device__ __forceinline__ void look_ahead() {
        const int group = tiles.group(min(tile + stride, tiles.count - 1));
        next_stage = kTileStages[group], next_last = kTileStages[group + 1] + kResidualParts;
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
__device__ __forceinline__ void produce(const TensorMap& activations, const TensorMap& activation_pairs, const TensorMap& weights, const TensorMap& residual, u32 stages_base, u32 full, u32 empty, const Tiles& tiles, int first_tile, int stride) {
    const int lane = threadIdx.x % 32;
    const bool mine = lane % 4 == threadIdx.x / 32 % 4;
    const auto fetch = [&](const Walk& walk) {
        if (!walk.more()) return 0;
        if (!walk.at_residual()) return lane < kLoads ? kLoadTable[walk.stage * kLoads + lane] : 0;
        // Lane l brings panel l - 1 of the residual, of the tile's output blocks in their order; none for partial sums and empty slots.
        const int first = (lane - 1) * kStoredColumns, target = lane == 0 || lane > kResidualPanels ? -1 : kTargets[tiles.group(walk.tile) * (kColumns * kSlots) + first / kBlock];
        return target < 0 ? -1 : target * kBlock + first % kBlock;
    };
    Walk walk(tiles, first_tile, stride);
    int slot = 0, ahead = fetch(walk);
    u32 parity = 1;
    wait_for_kernel_ahead();
    while (walk.more()) {
        const bool at_residual = walk.at_residual();
        const int first_row = (kResidualParts - walk.last + walk.stage) * kResidualRows;
        const int load = ahead, s = walk.stage, row0 = tiles.row(walk.tile) * kTileRows;
        walk.advance();
        ahead = fetch(walk);  // arrives while the copies of this stage are issued
        const int head = __shfl_sync(~0u, load, 0), copies = head & 255, boxes = head >> 8 & 255, pairs = head >> 16, panels = copies + pairs;
        const u32 stage = stages_base + slot * kStageBytes, barrier = full + slot * 8;
        barrier_wait(empty + slot * 8, parity);
        producers_sync();
        if (at_residual) {
            const u32 wanted = __ballot_sync(~0u, load >= 0);
            if (lane == 0 && mine) barrier_expect(barrier, __popc(wanted) * kResidualBytes);
            if (mine && load >= 0) tma_load(stage + (lane - 1) * kResidualBytes, residual, load, row0 + first_row, barrier);
            if (++slot == kStages) slot = 0, parity ^= 1;
            continue;
        }
        if (lane == 0 && mine) {
            barrier_expect(barrier, panels * kPanelBytes + boxes * kBoxBytes + kRecordBytes);
            bulk_load(stage + kRecord, kRecords + s * (kRecordBytes / 4), kRecordBytes, barrier);
        }
        if (mine && lane > 0 && lane <= pairs)
            tma_load(stage + (lane - 1) * (2 * kPanelBytes), activation_pairs, load, row0, barrier);
        else if (mine && lane > pairs && lane <= copies)
            tma_load(stage + (lane - 1 + pairs) * kPanelBytes, activations, load, row0, barrier);
        else if (mine && lane > copies && lane <= copies + boxes)
            tma_load(stage + panels * kPanelBytes + (lane - copies - 1) * kBoxBytes, weights, 0, load, barrier);
        if (++slot == kStages) slot = 0, parity ^= 1;
    }
}

// A value that all threads of a warp read alike: keeps what depends on it in uniform registers.
__device__ __forceinline__ u32 uniform(u32 value) {
    return __shfl_sync(~0u, value, 0);
}

using Sums = float[kMTiles][kSlots][kBlock / 2];

// Multiply the warpgroup's rows of a panel by a piece, for a slot; the low words of their matrix descriptors. A panel that is `paired` lies in lines of 128 bytes with another. One group of steps.
__device__ __forceinline__ void multiply(Sums& sums, int slot, u32 panel, u32 piece, bool paired) {
    const u32 high = paired ? kPairHigh : kPanelHigh, tile = paired ? 2 * kTileStep : kTileStep;
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kSteps; ++k)
#pragma unroll
        for (int m = 0; m < kMTiles; ++m) wgmma(sums[m][slot], panel + k * (kStepBytes / 16) + m * tile, high, piece + k * kWeightsStep);
    wgmma_commit();
}

// All products of a stage, slot after slot, for accumulators need fixed registers. The head of a column is two words: byte of its first
// product; how many each slot has, kCountBits each. A product is a word: where its panel is, in 16 bytes, with kPaired for one of a pair; and its piece << 16.
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
            multiply(sums, s, panels + (product & kPlace), pieces + (product >> 16), product & kPaired);
        }
    wgmma_wait<0>();
}

// Accumulators -> global: the epilogue for finished outputs, float32 for partial sums.
__device__ __forceinline__ void store(const float (&sums)[kSlots][kBlock / 2], const int (&targets)[kSlots], int row0, int n,
                                      Element* __restrict__ y, const Element* __restrict__ bias, u32 scratch, u32 residual) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int s = 0; s < kSlots; s += kStoredSlots) {
        const int target = targets[s];
        if (target == kNoOutput) continue;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int j = 0; j < kStoredSlots * kBlock / 8; j += kStored) {
#pragma unroll
                for (int part = 0; part < kStored; part += 4) {
                    // Of 8 rows, swizzled as TMA wrote them: each lane has what belongs to its sums (PTX: ldmatrix).
                    u32 residuals[4];
                    const u32 chunk = part + lane / 8 ^ lane % 8 / 2;
                    ldmatrix_x4(residuals, residual + (s * kBlock / kStoredColumns + j / kStored) * kResidualBytes + half * (8 * kStoredBytes) + chunk * 16);
                    u32 words[4];
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const int step = j + part + i;  // of 8 columns
                        const float* two = sums[s + step / (kBlock / 8)] + step % (kBlock / 8) * 4 + half * 2;
                        const float2 r = unpack(residuals[i]);
                        const float2 v = finish(make_float2(two[0], two[1]), load_pair(bias + target * kBlock + step * 8 + lane % 4 * 2), r);
                        words[i] = pack(v.x, v.y);
                    }
                    stmatrix_x4(scratch + swizzled<kStored>(lane % 8, part + lane / 8), words);
                }
                // Through shared memory, so that each lane stores 16 bytes of a row.
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
    if (threadIdx.x % 32 == 0) barrier_arrive(empty + slot * 8);
    if (++slot == kStages) slot = 0, parity ^= 1;
}

extern "C" __global__ void __launch_bounds__(kThreads, 1)
bsgen_fprop_b32_bfloat16_hopper_cb3f72e59c903015(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap x_pairs_map, const __grid_constant__ TensorMap w_map, const __grid_constant__ TensorMap residual_map, Element* __restrict__ y, const Element* __restrict__ bias, int n) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const u32 stages_base = shared_address(shared), full = stages_base + kStages * kStageBytes, empty = full + kStages * 8;
    const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);
    const int first_tile = blockIdx.x, stride = gridDim.x;
    const Tiles tiles(n);

    if (threadIdx.x == 0) {
        let_kernel_behind_begin();
        tma_prefetch(x_map), tma_prefetch(x_pairs_map), tma_prefetch(w_map), tma_prefetch(residual_map);
        for (int i = 0; i < kStages; ++i) barrier_init(full + i * 8, 1), barrier_init(empty + i * 8, kGroups * 4);
        barrier_init_fence();
    }
    __syncthreads();

    if (group == kGroups) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
        produce(x_map, x_pairs_map, w_map, residual_map, stages_base, full, empty, tiles, first_tile, stride);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 160;");
        wait_for_kernel_ahead();
        const int column = group % kColumns, lane = threadIdx.x % 32;
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
            const u32 residuals = stages_base + column * (kSlots * kBlock / kStoredColumns * kResidualBytes) + (row + lane % 8) * kStoredBytes;
#pragma unroll
            for (int m = 0; m < kMTiles; ++m) {
                barrier_wait(full + slot * 8, parity);
                store(sums[m], targets, row0 + row + m * 64, n, y, bias, scratch, residuals + slot * kStageBytes);
                give_back(empty, slot, parity);
            }
        }
    }
}
