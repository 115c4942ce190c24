// y = x @ W for one block-sparse W [512, 512], float32.
// Layout cb3f72e59c903015: 72 of 256 blocks of 32 x 32 (28.12 %).
// Plan: hopper, wgmma_tf32 turned, tile 128 x 128, 1 x 2 warpgroups of 128 x 64, 2 rings of 2 stages of 52 KiB, balanced groups.
//
// Persistent thread blocks, and in them kRings rings each, walk tiles of kRows rows x kSlots * kColumns output blocks, column groups fastest. One warpgroup keeps the rings
// of stages full: panels of activations, and the pieces of W that multiply them. A warpgroup owns kGroupRows rows of kSlots output
// blocks; for each panel that it visits, it loads the pieces of its slots into registers and multiplies them by its rows.

using u32 = unsigned int;

constexpr int kFeaturesOut = 512;  // of a row of y
constexpr int kBlock = 32, kSteps = 4;  // a block's side; multiply steps along the inputs of a panel
constexpr int kRowGroups = 1, kColumns = 2;  // warpgroups down and across
constexpr int kSlots = 2;  // output blocks of each
constexpr int kRings = 2;  // of stages, each with warpgroups and tiles of its own: while those of one store results, those of the other multiply
constexpr int kGroups = kRowGroups * kColumns, kThreads = 128 * (kRings * kGroups + 1), kGroupRows = 128, kRows = kGroupRows * kRowGroups;
constexpr int kTileRows = kRows;  // of a tile, of all thread blocks that work on it
constexpr int kTiles = 4, kNoOutput = -2147483647;
constexpr int kStages = 2, kStageBytes = 53248, kRecordBytes = 64;  // a stage ends with its record
constexpr int kRecord = kStageBytes - kRecordBytes, kRingBytes = kStages * kStageBytes;
constexpr int kRowBytes = 128, kPanelBytes = 16384, kBoxBytes = 4096, kPieceBytes = 4096;
constexpr u32 kPanelHigh = 1073741888u;  // high word of the matrix descriptor of a panel (PTX: wgmma)
constexpr int kStepBytes = 32;
constexpr int kWeightsStep = 64;  // from a multiply step to the next, in 16 bytes
constexpr int kScratchBytes = 4096;  // of a warpgroup, for twice 8 rows of its outputs
constexpr int kLoads = 7;  // words of a stage in kLoadTable
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
// A word of shared memory where `used` is 1, and none is loaded but zero given where it is 0. The `and` writes the register either
// way: a word that is loaded or not, as an operand of wgmma, ptxas would wait for there (C7513).
__device__ __forceinline__ u32 load_shared_if(u32 address, u32 used) {
    u32 word = 0;
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %2, 0;\n@p ld.shared.u32 %0, [%1]; }" : "+r"(word) : "r"(address), "r"(used) : "memory");
    return word & 0 - used;
}

// A word into shared memory.
__device__ __forceinline__ void store_shared(u32 address, float value) {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
}

__device__ __forceinline__ float4 load_shared_4(u32 address) {
    float4 v;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(address) : "memory");
    return v;
}

// The four warps of a warpgroup that multiplies meet (PTX: bar.sync); the warps that load have barriers 1 and 2.
__device__ __forceinline__ void warpgroup_sync() {
    __syncwarp();
    asm volatile("bar.sync %0, 128;" ::"r"(threadIdx.x / 128 + 3) : "memory");
}

// The multiply step of a warpgroup, 64 rows x 128 columns x 8 (PTX: wgmma, sm_90a). Asynchronous: fence before
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

// sums += a * B; a in registers, B [8, 128] where the low word of its descriptor, b, says.
__device__ __forceinline__ void wgmma(float (&sums)[64], const u32 (&a)[4], u32 b) {
    asm volatile(
        "{ .reg .b64 b; mov.b64 b, {%68, %69};\n"
        "wgmma.mma_async.sync.aligned.m64n128k8.f32.tf32.tf32 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, {%64, %65, %66, %67}, b, 1, 1, 1; }"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]), "+f"(sums[5]), "+f"(sums[6]), "+f"(sums[7]),
          "+f"(sums[8]), "+f"(sums[9]), "+f"(sums[10]), "+f"(sums[11]), "+f"(sums[12]), "+f"(sums[13]), "+f"(sums[14]), "+f"(sums[15]),
          "+f"(sums[16]), "+f"(sums[17]), "+f"(sums[18]), "+f"(sums[19]), "+f"(sums[20]), "+f"(sums[21]), "+f"(sums[22]), "+f"(sums[23]),
          "+f"(sums[24]), "+f"(sums[25]), "+f"(sums[26]), "+f"(sums[27]), "+f"(sums[28]), "+f"(sums[29]), "+f"(sums[30]), "+f"(sums[31]),
          "+f"(sums[32]), "+f"(sums[33]), "+f"(sums[34]), "+f"(sums[35]), "+f"(sums[36]), "+f"(sums[37]), "+f"(sums[38]), "+f"(sums[39]),
          "+f"(sums[40]), "+f"(sums[41]), "+f"(sums[42]), "+f"(sums[43]), "+f"(sums[44]), "+f"(sums[45]), "+f"(sums[46]), "+f"(sums[47]),
          "+f"(sums[48]), "+f"(sums[49]), "+f"(sums[50]), "+f"(sums[51]), "+f"(sums[52]), "+f"(sums[53]), "+f"(sums[54]), "+f"(sums[55]),
          "+f"(sums[56]), "+f"(sums[57]), "+f"(sums[58]), "+f"(sums[59]), "+f"(sums[60]), "+f"(sums[61]), "+f"(sums[62]), "+f"(sums[63])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "n"(kPanelHigh));
}

using Element = float;

__device__ __forceinline__ float2 load_pair(const Element* p) { return *reinterpret_cast<const float2*>(p); }
__device__ __forceinline__ void store_pair(Element* p, float2 v) { *reinterpret_cast<float2*>(p) = v; }
// Two neighbouring sums of a row -> two outputs.
__device__ __forceinline__ float2 finish(float2 v) {
    return v;
}

__device__ const int __align__(16) kTileStages[] = {
    0,6,13,19,26,
};

__device__ const int __align__(16) kTargets[] = {
    0,8,11,4,7,15,10,12,3,2,5,6,1,14,9,13,
};  // [kTiles, kColumns, kSlots]: output block, ~p for partial sum p, or kNoOutput
__device__ const int __align__(16) kLoadTable[] = {
    514,0,32,0,224,0,0,514,64,96,288,544,0,0,1026,128,
    256,608,736,672,1216,1026,192,288,896,1056,1440,1408,1026,320,352,1504,
    1600,1568,1696,770,384,448,1792,2016,2176,0,1026,0,32,32,64,96,
    256,770,64,96,384,512,576,0,770,128,160,704,864,832,0,514,
    192,224,1088,1152,0,0,770,256,352,1344,1664,1728,0,770,384,448,
    1856,2144,2208,0,257,480,2240,0,0,0,0,770,32,64,160,320,
    352,0,770,96,128,480,448,640,0,1026,160,192,800,992,960,1024,
    770,224,256,1120,1280,1312,0,770,352,416,1632,1888,1920,0,513,448,
    2048,2080,0,0,0,770,32,96,128,192,416,0,514,160,192,768,
    928,0,0,770,224,256,1184,1248,1376,0,514,288,320,1472,1536,0,
    0,514,352,384,1760,1824,0,0,770,416,448,1952,1984,2112,0,257,
    480,2272,0,0,0,0,
};  // [stages, kLoads]: panels | boxes << 8, first feature of each, each box's place in W
__device__ const int __align__(16) kRecords[] = {
    65544,65552,0,134217729,16384,150994945,0,0,0,0,0,0,0,0,0,0,
    65544,65552,0,134217729,16384,150994945,0,0,0,0,0,0,0,0,0,0,
    131080,65560,0,134217729,16384,184549377,0,150994947,0,0,0,0,0,0,0,0,
    131080,65560,0,134217731,16384,167772162,16384,184549378,0,0,0,0,0,0,0,0,
    65544,131088,0,134217731,0,167772162,16384,184549377,0,0,0,0,0,0,0,0,
    131080,65560,0,134217729,16384,150994945,16384,167772161,0,0,0,0,0,0,0,0,
    131080,65560,0,134217729,16384,184549378,0,150994947,0,0,0,0,0,0,0,0,
    65544,65552,16384,150994947,0,134217730,0,0,0,0,0,0,0,0,0,0,
    131080,65560,0,134217729,16384,150994946,16384,167772161,0,0,0,0,0,0,0,0,
    65544,65552,16384,150994945,0,134217729,0,0,0,0,0,0,0,0,0,0,
    131080,65560,0,134217729,16384,150994945,16384,167772162,0,0,0,0,0,0,0,0,
    65544,65552,0,134217729,16384,150994947,0,0,0,0,0,0,0,0,0,0,
    65544,16,0,67108865,0,0,0,0,0,0,0,0,0,0,0,0,
    8,131080,0,134217729,16384,150994947,0,0,0,0,0,0,0,0,0,0,
    131080,24,0,134217731,16384,167772161,0,0,0,0,0,0,0,0,0,0,
    65544,131088,16384,150994947,0,134217730,16384,184549378,0,0,0,0,0,0,0,0,
    65544,131088,16384,150994946,0,134217729,16384,167772161,0,0,0,0,0,0,0,0,
    131080,65560,0,134217729,16384,150994945,16384,167772161,0,0,0,0,0,0,0,0,
    65544,65552,0,67108865,0,83886081,0,0,0,0,0,0,0,0,0,0,
    131080,65560,0,134217729,16384,167772161,0,150994945,0,0,0,0,0,0,0,0,
    131080,24,0,134217729,16384,150994945,0,0,0,0,0,0,0,0,0,0,
    65544,131088,16384,150994945,0,134217729,16384,167772161,0,0,0,0,0,0,0,0,
    65544,65552,16384,150994945,0,134217730,0,0,0,0,0,0,0,0,0,0,
    65544,65552,16384,150994945,0,134217730,0,0,0,0,0,0,0,0,0,0,
    8,131080,0,134217731,16384,167772161,0,0,0,0,0,0,0,0,0,0,
    8,65544,0,67108866,0,0,0,0,0,0,0,0,0,0,0,0,
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

using Sums = float[kGroupRows / 2];
using Fragments = u32[kSteps][4];

// The kOutputs of a warpgroup, of which a warp has 16: lane l's rows of fragments and sums are output(l) and the one kSecond behind it. So
// spread, a warp's words of a piece lie in different banks.
constexpr int kOutputs = 64, kSecond = 4;
__device__ __forceinline__ int output(int warp, int lane) { return warp / 2 * 32 + warp % 2 * 8 + lane / 16 * 16 + lane / 4 % 4; }

// Where this lane's first word of a fragment of W^T lies in the pieces of a visit, swizzled as TMA wrote them.
__device__ __forceinline__ u32 word_of_piece(int warp, int lane) {
    const int column = output(warp, lane) % 32;
    return lane % 4 * kRowBytes + ((column / 4 ^ lane % 4) * 16) + column % 4 * 4;
}

// The pieces of a visit as fragments of W^T, 16 outputs a warp; zeros where the visit has none of the warp's slot.
__device__ __forceinline__ void load_fragments(Fragments& w, u32 pieces, u32 word, u32 slot) {
    const u32 from = pieces + (word >> 16) * 16 + (word & slot) * kPieceBytes, used = word >> slot & 1;  // that of slot 1 comes behind that of slot 0
#pragma unroll
    for (int k = 0; k < kSteps; ++k)
#pragma unroll
        for (int i = 0; i < 4; ++i)  // an output and the one kSecond behind it, then both of inputs 4 further
            w[k][i] = load_shared_if((from ^ (i % 2 * 16 + i / 2 * 64)) + (k * kWeightsStep * 16 + i / 2 * (4 * kRowBytes)), used);
}

// Multiply by a panel: rows of x are the columns of the product. One group of steps.
__device__ __forceinline__ void multiply_panel(Sums& sums, const Fragments& w, u32 panel) {
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kSteps; ++k) wgmma(sums, w[k], panel + k * (kStepBytes / 16));
    wgmma_commit();
}

// All visits of a stage. A visit is two words: where its panel is, in bytes; and the mask of the slots that use it, with the place of
// their first piece in 16 bytes << 16. Past the last visit lies one that is safe to follow.
__device__ __forceinline__ void multiply_stage(Sums& sums, u32 record, u32 rows, u32 pieces, int column, u32 slot) {
    const u32 bounds = uniform(load_shared(record + column * 4));
    u32 count = bounds >> 16, at = record + (bounds & 0xffff);
    if (count == 0) return;
    uint2 visit = load_shared_pair(at);
    Fragments w;
    do {
        load_fragments(w, pieces, visit.y, slot);
        const u32 panel = uniform(visit.x);
        visit = load_shared_pair(at += 8);
        multiply_panel(sums, w, rows + panel / 16);
        wgmma_wait<0>();
    } while (--count);
}

// Where a chunk of four outputs lies in scratch, rows of kChunks of them, so swizzled that a warp's sums lie in different banks.
constexpr int kChunks = kOutputs / 4;
__device__ __forceinline__ u32 scratch_place(int row, int chunk) { return (row * kChunks + (chunk ^ row / 2 % 4)) * 16; }

// Accumulators -> global: the epilogue for finished outputs, float32 for partial sums. A warp holds 16 of the warpgroup's outputs of all
// its rows; through shared memory all outputs of 8 rows come together.
__device__ __forceinline__ void store(const Sums& sums, const int (&targets)[kSlots], int row0, int n,
                                      Element* __restrict__ y, u32 scratch) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, line = threadIdx.x / kChunks % 8, chunk = threadIdx.x % kChunks;
    const int target = chunk * 4 < kBlock ? targets[0] : targets[1];  // the output block of which this thread stores 16 bytes of a row
    if (targets[0] == kNoOutput && targets[1] == kNoOutput) return;
    const int within = chunk * 4 % kBlock, column = target * kBlock + within;
    const int place = output(warp, lane);
#pragma unroll
    for (int j = 0; j < kGroupRows / 8; ++j) {
        const int row = row0 + j * 8 + line;
        const u32 buffer = scratch + j % 2 * (kScratchBytes / 2);  // the other one is still being read; a tile has an even number of them
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int mine = lane % 4 * 2 + i % 2, feature = place + i / 2 * kSecond;
            store_shared(buffer + scratch_place(mine, feature / 4) + feature % 4 * 4, sums[j * 4 + i]);
        }
        warpgroup_sync();
        const float4 four = load_shared_4(buffer + scratch_place(line, chunk));
        float2 low = make_float2(four.x, four.y), high = make_float2(four.z, four.w);
        low = finish(low), high = finish(high);
        if (target >= 0 && row < n)
            *reinterpret_cast<float4*>(y + static_cast<long long>(row) * kFeaturesOut + column) = make_float4(low.x, low.y, high.x, high.y);
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
bsgen_fprop_b32_float32_hopper_cb3f72e59c903015(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map, Element* __restrict__ y, int n) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), ring = warp < kRings * kGroups * 4 ? warp / (kGroups * 4) : warp % kRings, group = warp / 4 - ring * kGroups;
    const u32 rings_base = shared_address(shared), stages_base = rings_base + ring * kRingBytes, barriers = rings_base + kRings * kRingBytes;
    const u32 full = barriers + ring * (kStages * 16), empty = full + kStages * 8;
    const int first_tile = blockIdx.x + ring * (gridDim.x), stride = gridDim.x * kRings;
    const Tiles tiles(n);

    if (threadIdx.x == 0) {
        let_kernel_behind_begin();
        tma_prefetch(x_map), tma_prefetch(w_map);
        for (int r = 0; r < kRings; ++r)
            for (int i = 0; i < kStages; ++i) barrier_init(barriers + (r * 2 * kStages + i) * 8, 1), barrier_init(barriers + ((r * 2 + 1) * kStages + i) * 8, kGroups * 4);
        barrier_init_fence();
    }
    __syncthreads();

    if (warp >= kRings * kGroups * 4) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
        produce(x_map, w_map, stages_base, full, empty, tiles, first_tile, stride, ring);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 112;");
        wait_for_kernel_ahead();
        const int column = group % kColumns, lane = threadIdx.x % 32;
        const u32 scratch = barriers + kRings * (kStages * 16) + threadIdx.x / 128 * kScratchBytes;
        const int row = group / kColumns * kGroupRows, warp = threadIdx.x / 32 % 4;
        const u32 place = word_of_piece(warp, lane);
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
                multiply_stage(sums, stage + kRecord, matrix_address(stage) + row * (kRowBytes / 16), stage + place, column, warp / 2);
                give_back(empty, slot, parity);
            }
            store(sums, targets, row0 + row, n, y, scratch);
        }
    }
}
