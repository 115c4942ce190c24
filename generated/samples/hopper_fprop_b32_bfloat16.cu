// y = x @ W for one block-sparse W [1024, 1024], bfloat16.
// Layout 8714e3b41f42a1a1: 286 of 1024 blocks of 32 x 32 (27.93 %).
// Plan: hopper, wgmma_bf16, tile 128 x 256, 1 x 4 warpgroups of 128 x 64, paired, coupled, 4 stages of 52 KiB, balanced groups.
//
// Persistent thread blocks walk tiles of kRows rows x kSlots * kColumns output blocks, column groups fastest. One warpgroup keeps a ring
// of stages full: panels of activations, and the pieces of W that multiply them. A warpgroup owns kGroupRows rows of kSlots output
// blocks; for each panel that it visits, it multiplies its rows by the pieces of its slots.

using u32 = unsigned int;

constexpr int kFeaturesOut = 1024;  // of a row of y
constexpr int kBlock = 32, kSteps = 2;  // a block's side; multiply steps along the inputs of a panel
constexpr int kRowGroups = 1, kColumns = 4;  // warpgroups down and across
constexpr int kMTiles = 2, kSlots = 2;  // 64-row tiles and output blocks of each
constexpr int kGroups = kRowGroups * kColumns, kThreads = 128 * (kGroups + 1), kGroupRows = 64 * kMTiles, kRows = kGroupRows * kRowGroups;
constexpr int kTileRows = kRows;  // of a tile, of all thread blocks that work on it
constexpr int kTiles = 4, kNoOutput = -2147483647;
constexpr int kStages = 4, kStageBytes = 53248, kRecordBytes = 192;  // a stage ends with its record
constexpr int kRecord = kStageBytes - kRecordBytes;
constexpr int kRowBytes = 64, kPanelBytes = 8192, kBoxBytes = 2048, kPieceBytes = 2048;
constexpr u32 kWeightsHigh = 2147483680u, kWeightsLow = 8388608u;  // words of the matrix descriptor of a piece (PTX: wgmma)
constexpr int kWeightsStep = 64;  // from a multiply step to the next, in 16 bytes
constexpr int kStoredSlots = 2;  // output blocks that are stored together
constexpr int kStored = 8;  // chunks of 16 bytes of a row that are stored together
constexpr int kScratchBytes = 1024;  // of a warp, for 8 rows of 64 outputs
constexpr int kLoads = 15;  // words of a stage in kLoadTable
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
    0,9,17,26,35,
};

__device__ const int __align__(16) kTargets[] = {
    0,1,18,19,12,13,26,27,6,7,10,11,2,3,30,31,
    20,21,16,17,4,5,8,9,28,29,24,25,22,23,14,15,
};  // [kTiles, kColumns, kSlots]: output block, ~p for partial sum p, or kNoOutput
__device__ const int __align__(16) kLoadTable[] = {
    133378,0,128,0,192,224,96,352,512,1280,1504,1600,0,0,0,133378,
    64,384,640,736,800,864,3872,3904,4288,4224,4352,0,0,0,68098,192,
    512,1824,1856,2048,2144,2176,2432,4928,5088,5024,5056,0,0,68098,256,576,
    2528,2560,2720,2848,2880,3104,3072,3168,5248,5312,0,0,67842,320,640,3200,
    3232,3616,3648,3776,3808,5792,6048,6144,0,0,0,133122,448,768,4416,4672,
    4608,4832,4896,7104,7424,7456,0,0,0,0,133378,704,832,6400,6560,6592,
    6496,6752,6976,7008,7488,7712,0,0,0,67073,896,7872,8064,8096,7968,8224,
    8384,0,0,0,0,0,0,0,66561,960,8512,8608,8672,8736,0,0,
    0,0,0,0,0,0,0,133378,0,128,32,64,448,1376,1408,1312,
    1568,1632,1664,0,0,0,68098,64,256,704,960,992,896,928,1216,1248,
    2656,2592,2976,0,0,68354,192,352,1952,2016,1888,1920,2272,2304,2368,3552,
    3584,3520,3840,0,133122,384,448,3936,4128,4384,4544,4576,4448,4768,4800,0,
    0,0,0,67587,512,608,864,4960,4992,5152,5216,5536,5568,5632,7744,0,
    0,0,68610,640,768,5888,5920,6016,5824,6208,6272,6240,6368,7200,7264,7136,
    7392,132866,704,896,6464,6432,6816,6912,7904,7936,8320,0,0,0,0,0,
    67329,960,8576,8832,8864,8768,8800,9088,9120,0,0,0,0,0,0,133378,
    0,64,128,160,384,416,768,672,1120,1056,1088,0,0,0,133122,128,
    192,1440,1344,1728,2080,1984,2464,2336,2400,0,0,0,0,133378,256,384,
    2752,2624,2688,3008,3040,3968,4256,4160,4192,0,0,0,67843,320,544,768,
    3360,3328,3264,3296,3712,3680,5184,7168,7232,0,0,133378,448,832,4704,4640,
    4480,4512,4864,7616,7584,7520,7808,0,0,0,67329,576,5376,5408,5344,5280,
    5664,5696,5600,0,0,0,0,0,0,133378,640,896,6112,5856,5952,5984,
    6304,8000,8032,8256,8288,0,0,0,67073,704,6624,6656,7040,6848,6880,6944,
    0,0,0,0,0,0,0,66817,960,8640,8544,8992,8928,8960,0,0,
    0,0,0,0,0,0,67843,0,448,512,320,288,256,608,576,544,
    480,4736,5120,0,0,133378,64,128,832,1184,1152,1024,1536,1472,1792,1760,
    1696,0,0,0,133378,192,256,2208,2240,2112,2496,2912,2944,2816,2784,3136,
    0,0,0,133122,320,640,3456,3488,3392,3424,3744,6176,6080,6336,0,0,
    0,0,67586,384,768,4064,4096,4000,4032,4320,7360,7328,7296,0,0,0,
    0,133378,576,960,5504,5440,5472,5760,5728,8704,9056,9024,8896,0,0,0,
    66817,704,6784,6688,6720,6528,7072,0,0,0,0,0,0,0,0,66817,
    832,7680,7648,7552,7840,7776,0,0,0,0,0,0,0,0,67329,896,
    8192,8160,8128,8480,8448,8416,8352,0,0,0,0,0,0,
};  // [stages, kLoads]: copies of panels | boxes << 8 | those of the copies that bring two panels << 16, first feature of each, each box's place in W
__device__ const int __align__(16) kRecords[] = {
    262160,131120,65600,65608,1,134217729,65,167772162,16385,184549377,16449,201326594,1,142606339,65,176160770,
    1,159383553,16385,192937986,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    196624,65576,131120,131136,1,134217729,65,159383554,16385,167772163,16449,184549378,1,142606337,16449,192937986,
    1,150994946,16449,201326594,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    131088,196640,65592,65600,1,100663299,16384,150994945,1,117440514,65,142606338,16384,159383554,16384,167772163,
    1,125829123,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    131088,131104,131120,131136,1,100663299,16384,167772161,1,117440513,65,142606337,65,150994946,16384,176160770,
    1,125829123,65,159383554,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    131088,32,131104,131120,1,100663299,16384,150994945,65,117440515,16384,159383554,65,134217731,16384,167772161,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    131088,65568,196648,131136,1,134217729,16385,176160769,1,142606337,1,150994945,65,159383554,16449,184549377,
    65,167772162,16449,192937985,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    196624,131112,65592,65600,1,134217729,16385,192937985,16449,201326594,1,142606339,65,176160771,1,159383554,
    1,167772161,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    131088,131104,65584,56,1,67108865,65,100663298,1,75497475,65,109051906,1,92274689,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    131088,32,65568,65576,1,67108865,65,92274690,1,75497473,1,83886082,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    196624,262184,65608,65616,1,134217730,16385,159383554,16449,192937985,1,142606337,65,150994946,16385,167772162,
    16449,201326593,16385,176160770,16385,184549378,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    196624,65576,131120,131136,1,100663297,65,109051906,16384,159383554,65,117440514,65,125829123,16384,167772161,
    65,142606339,16384,176160769,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    196624,131112,131128,131144,1,100663297,65,150994946,16384,159383554,1,109051905,16384,167772162,1,117440515,
    16384,176160770,1,134217731,16384,184549378,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    131088,65568,131112,131128,1,134217730,16449,192937986,16385,159383555,65,142606338,16385,176160770,65,150994946,
    16385,184549378,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    196624,65576,65584,65592,1,134217731,16384,167772163,24576,192937986,16384,184549377,65,150994945,65,159383553,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    131088,196640,196664,196688,1,100663299,16384,167772162,1,117440513,65,142606338,16384,176160770,1,125829121,
    65,150994946,16384,184549378,1,134217729,65,159383554,16384,192937986,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    131088,196640,65592,65600,65,159383554,16385,167772162,1,134217730,16385,176160769,16449,184549378,1,142606337,
    1,150994945,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    131088,65568,65576,65584,1,67108865,65,75497474,65,83886082,65,92274691,65,109051907,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    131088,131104,131120,65600,16385,167772162,16449,184549378,1,134217731,16449,192937987,65,150994946,16385,176160770,
    65,159383554,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    262160,48,131120,131136,1,134217729,65,150994945,16385,159383554,16449,176160770,1,142606337,16449,184549378,
    16385,167772161,16449,192937986,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    65552,131096,196648,196672,1,134217729,16385,176160769,16449,184549378,1,142606338,65,159383553,16449,192937986,
    1,150994946,65,167772161,16449,201326594,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    131088,196640,131128,131144,1,134217730,65,167772162,1,142606338,65,176160770,16384,184549377,1,150994945,
    24576,192937985,1,159383553,24576,201326593,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    262160,131120,65600,131144,1,134217730,65,167772162,16385,176160770,16449,201326594,1,142606337,16385,184549377,
    1,150994946,1,159383554,16385,192937986,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    131088,65568,65576,65584,1,67108867,65,100663299,1,83886082,1,92274689,65,117440514,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    16,196624,131112,131128,1,134217730,65,167772162,16385,176160771,1,142606338,16449,192937986,1,150994947,
    16449,201326594,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    131088,32,65568,65576,1,67108867,65,83886082,65,92274691,65,109051905,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    131088,65568,65576,48,1,67108866,65,83886082,65,92274691,1,75497474,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    262160,131120,131136,65616,1,134217729,65,159383554,16384,192937985,24576,201326593,1,142606338,65,167772162,
    1,150994946,65,176160770,65,184549378,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    262160,196656,72,131144,1,134217729,65,142606338,16385,167772161,16449,184549378,65,150994946,16385,176160769,
    16449,192937985,65,159383554,16449,201326594,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    131088,65568,262184,72,1,134217731,16385,167772163,16385,184549378,1,150994946,65,159383554,16385,192937985,
    16449,201326593,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    131088,196640,56,65592,1,134217731,16385,176160769,1,150994947,65,167772162,16449,192937986,16385,184549378,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    131088,65568,131112,65592,1,100663299,16384,142606337,16384,150994945,1,117440515,65,134217730,16384,159383554,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    196624,196648,65600,65608,1,134217729,16385,176160769,16449,184549378,1,142606339,65,159383553,16449,192937986,
    65,167772162,16449,201326594,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    65552,24,131096,65576,1,67108865,1,75497475,65,100663297,1,92274690,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    131088,32,65568,131112,1,67108865,65,92274690,1,75497473,1,83886082,65,100663298,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    131088,131104,131120,65600,1,67108865,65,92274690,1,75497474,65,100663298,1,83886082,65,109051906,
    65,117440514,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
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
__device__ __forceinline__ void produce(const TensorMap& activations, const TensorMap& activation_pairs, const TensorMap& weights, u32 stages_base, u32 full, u32 empty, const Tiles& tiles, int first_tile, int stride) {
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
        const int head = __shfl_sync(~0u, load, 0), copies = head & 255, boxes = head >> 8 & 255, pairs = head >> 16, panels = copies + pairs;
        const u32 stage = stages_base + slot * kStageBytes, barrier = full + slot * 8;
        barrier_wait(empty + slot * 8, parity);
        producers_sync();
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
using Fragments = u32[kMTiles][kSteps][4];

// Where a lane's chunk of its first fragment lies in a panel, and in one of a pair, whose rows lie side by side in lines of 128 bytes.
struct Rows { u32 alone, paired; };

// The rows of a panel that a warp multiplies, as fragments, swizzled as TMA wrote them. `panel` is its place in bytes, which are a
// multiple of 128, and bits: 1 for one of a pair, 64 for the second.
__device__ __forceinline__ void load_fragments(Fragments& a, const Rows& rows, u32 panel) {
    const bool paired = panel & 1;
    const u32 from = ((paired ? rows.paired : rows.alone) + (panel & ~127u)) ^ (panel & 64), tile = paired ? 64 * 2 * kRowBytes : 64 * kRowBytes;
#pragma unroll
    for (int m = 0; m < kMTiles; ++m)
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
            ldmatrix_x4(a[m][k], (from ^ (k * 32)) + m * tile);
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
__device__ __forceinline__ void multiply_stage(Sums& sums, u32 record, const Rows& rows, u32 b, int column) {
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
    if (threadIdx.x % 32 == 0) barrier_arrive(empty + slot * 8);
    if (++slot == kStages) slot = 0, parity ^= 1;
}

extern "C" __global__ void __launch_bounds__(kThreads, 1)
bsgen_fprop_b32_bfloat16_hopper_8714e3b41f42a1a1(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap x_pairs_map, const __grid_constant__ TensorMap w_map, Element* __restrict__ y, int n) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const u32 stages_base = shared_address(shared), full = stages_base + kStages * kStageBytes, empty = full + kStages * 8;
    const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);
    const int first_tile = blockIdx.x, stride = gridDim.x;
    const Tiles tiles(n);

    if (threadIdx.x == 0) {
        let_kernel_behind_begin();
        tma_prefetch(x_map), tma_prefetch(x_pairs_map), tma_prefetch(w_map);
        for (int i = 0; i < kStages; ++i) barrier_init(full + i * 8, 1), barrier_init(empty + i * 8, kGroups * 4);
        barrier_init_fence();
    }
    __syncthreads();

    if (group == kGroups) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
        produce(x_map, x_pairs_map, w_map, stages_base, full, empty, tiles, first_tile, stride);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 112;");
        wait_for_kernel_ahead();
        const int column = group % kColumns, lane = threadIdx.x % 32;
        const u32 scratch = empty + kStages * 8 + threadIdx.x / 32 * kScratchBytes;
        const int row = group / kColumns * kGroupRows + threadIdx.x / 32 % 4 * 16;
        // Where this lane's chunk of a fragment lies in a panel (PTX: ldmatrix), swizzled.
        const u32 r = row + lane % 16;
        const u32 place = r * kRowBytes + ((lane / 16 ^ r / 2 % 4) * 16);
        const u32 paired_place = r * (2 * kRowBytes) + ((lane / 16 ^ r % 8) * 16);
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
                multiply_stage(sums, stage + kRecord, {stage + place, stage + paired_place}, matrix_address(stage) + kWeightsLow, column);
                give_back(empty, slot, parity);
            }
#pragma unroll
            for (int m = 0; m < kMTiles; ++m)
                store(sums[m], targets, row0 + row + m * 64, n, y, scratch);
        }
    }
}
