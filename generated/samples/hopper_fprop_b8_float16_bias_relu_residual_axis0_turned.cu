// y = W.T @ x for one block-sparse W [320, 256] and its epilogue, float16.
// Layout 4b1efc41292550d2: 367 of 1280 blocks of 8 x 8 (28.67 %).
// Plan: hopper, wgmma_f16 turned, tile 256 x 128, 8 warps, panels of 32, 3 stages of 74 KiB, contiguous groups.
//
// Persistent thread blocks walk tiles of kTileRows rows x kWarps * kSlots output blocks, groups of output blocks fastest. Warps of their own keep a
// ring of stages full: panels of activations, stored blocks, and a record of what to multiply. Each other warp owns all rows of kSlots
// output blocks; four multiply together, their 64 outputs the rows of a product and the rows of x its columns.

using u32 = unsigned int;

constexpr int kBlock = 8;  // a block's side
constexpr int kWarps = 8, kSlots = 2, kLoaders = 128, kThreads = 32 * kWarps + kLoaders;  // warps that multiply, output blocks of each; threads that load
constexpr int kTileRows = 256;
constexpr int kTiles = 2;
constexpr int kStages = 3, kStageBytes = 75776, kBounds = kStageBytes - 48;  // a stage ends with its record, and that with bounds
constexpr int kPanelBytes = 16384;  // of a panel
constexpr int kPanelBoxes = 4, kBoxRows = 64, kBoxBytes = 4096;  // a panel is loaded in boxes of kBoxRows rows
constexpr int kScratchBytes = 512;  // of a warp, for 16 rows of 16 outputs
constexpr int kLoads = 21;  // entries of a stage in kLoadTable

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

__device__ __forceinline__ float activate(float v) {
    return positive(v);
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
    0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,
    16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,
};  // [kTiles, kWarps, kSlots]: output block, ~p for partial sum p, or -2147483647 for none
// [stages, kLoads, 2], in chunks of 16 bytes but for features: place of the record, its size | the stage's size << 16; of each panel its
// first feature, 0; of each run of W its place, where it goes in the stage | its size << 16; of no load -1, 0
__device__ const int __align__(16) kLoadTable[] = {
    0,309133381,0,0,32,0,64,0,128,0,0,2101248,88,2625568,160,2101320,
    216,3149928,320,2625688,400,2101440,456,3674336,584,1577240,632,3150128,752,1577312,800,2101624,
    880,2625944,1232,2625984,1288,528872,1312,1577456,1384,2101768,69,309657669,96,0,160,0,
    192,0,224,0,968,1576960,1032,2101272,1104,3674168,1200,1052784,1448,5247104,1560,1052880,
    1600,2625760,1712,2101512,1776,3674408,1856,528736,1872,1577320,1928,1577344,1968,2101656,2056,2625976,
    2128,2101728,2184,3150336,138,156041253,256,0,288,0,2288,2623488,2368,2099240,2424,3672136,
    2552,1575040,2600,3147928,2720,1575112,2768,2099424,2848,2623744,-1,0,-1,0,-1,0,
    -1,0,-1,0,-1,0,-1,0,-1,0,-1,0,-1,0,175,238878773,
    0,0,32,0,64,0,32,3673088,128,2100280,192,1576024,264,3673200,360,2624680,
    432,1576144,512,4721896,608,1576240,680,4721992,776,1576336,832,3149224,920,3149272,-1,0,
    -1,0,-1,0,-1,0,-1,0,228,304939077,96,0,128,0,160,0,
    192,0,992,2625536,1064,2625576,1160,2625616,1216,1052792,1272,1052808,1296,1052824,1336,3149992,
    1416,2101464,1528,2101496,1576,1577240,1640,4722992,1744,2101624,1832,1577368,1864,528816,1896,2101688,
    1952,1053144,297,238878773,224,0,256,0,288,0,2000,3673088,2096,2100280,2160,1576024,
    2232,3673200,2328,2624680,2400,1576144,2480,4721896,2576,1576240,2648,4721992,2744,1576336,2800,3149224,
    2888,3149272,-1,0,-1,0,-1,0,-1,0,-1,0,
};

__device__ const int __align__(16) kRecords[] = {
    0,4096,0,270532608,128,4168,128,275251200,1024,4248,1024,281018368,1152,283644128,1152,0,
    2048,288887088,2048,0,2176,293605752,2176,0,3072,4544,3072,0,3200,4592,3200,0,
    0,0,0,0,128,0,128,276303984,1024,278921216,1024,0,1152,284692720,1152,0,
    2048,4416,2048,0,2176,0,2176,295174144,3072,0,3072,4584,3200,0,3200,0,
    0,0,0,271056896,128,273678336,128,0,1024,4264,1024,0,1152,0,1152,286785536,
    2048,289931264,2048,4448,2176,4488,2176,0,3072,0,3072,0,3200,4600,3200,0,
    0,268959744,0,0,128,4184,128,276824064,1024,279969792,1024,4296,1152,4352,1152,287309824,
    2048,290455552,2048,0,2176,0,2176,295698432,3072,298848712,3072,0,3200,0,3200,303043080,
    0,0,0,271581184,128,0,128,0,1024,0,1024,0,1152,4360,1152,287834112,
    2048,290979840,2048,4456,2176,4496,2176,0,3072,0,3072,0,3200,0,3200,303562752,
    0,4112,0,272105472,128,0,128,277348352,1024,280494080,1024,4304,1152,4368,1152,0,
    2048,0,2048,0,2176,0,2176,296222720,3072,0,3072,0,3200,0,3200,4640,
    0,4120,0,0,128,4192,128,0,1024,0,1024,0,1152,0,1152,0,
    2048,0,2048,292552704,2176,0,2176,297275824,3072,299897304,3072,0,3200,301989888,3200,0,
    0,0,0,272629760,128,0,128,277872640,1024,0,1024,282591232,1152,0,1152,0,
    2048,0,2048,0,2176,0,2176,0,3072,0,3072,0,3200,0,3200,0,
    0,0,0,0,0,0,0,0,74672,74800,74928,75056,75184,75312,75440,75568,
    75696,0,0,0,0,268963840,0,0,128,4152,128,0,1024,4224,1024,0,
    1152,4320,1152,0,2048,4392,2048,0,2176,4456,2176,293601280,3072,4504,3072,297271296,
    3200,4576,3200,301989888,0,0,0,270008320,128,272629760,128,0,1024,4232,1024,282066944,
    1152,4328,1152,0,2048,288358400,2048,0,2176,0,2176,0,3072,0,3072,0,
    3200,0,3200,303043080,0,0,0,270532608,128,273154048,128,0,1024,277872640,1024,0,
    1152,0,1152,286265608,2048,4408,2048,0,2176,0,2176,0,3072,0,3072,297795584,
    3200,300417024,3200,0,0,269484032,0,0,128,0,128,275775488,1024,278925464,1024,0,
    1152,0,1152,286785536,2048,289406976,2048,0,2176,0,2176,294125568,3072,295698432,3072,0,
    3200,4592,3200,303562752,0,0,0,271056896,128,273678336,128,0,1024,279974056,1024,0,
    1152,0,1152,4384,2048,4424,2048,0,2176,292552704,2176,0,3072,0,3072,298319872,
    3200,0,3200,0,0,0,0,0,128,274731096,128,0,1024,4280,1024,282591232,
    1152,284164096,1152,0,2048,290455552,2048,0,2176,0,2176,0,3072,4520,3072,298844160,
    3200,0,3200,304087040,0,0,0,271581184,128,4200,128,276299776,1024,281018368,1024,0,
    1152,284688384,1152,0,2048,0,2048,4448,2176,0,2176,0,3072,4528,3072,0,
    3200,4600,3200,0,0,0,0,0,128,0,128,0,1024,281542656,1024,0,
    1152,285212672,1152,0,2048,290979840,2048,0,2176,293076992,2176,294649856,3072,0,3072,299368448,
    3200,0,3200,304611328,0,0,0,0,0,0,0,0,74672,74800,74928,75056,
    75184,75312,75440,75568,75696,0,0,0,0,2048,0,136839168,128,139462728,128,0,
    1024,144705688,1024,0,1152,149424352,1152,0,0,134742016,0,0,128,140511320,128,0,
    1024,2216,1024,0,1152,0,1152,150994944,0,2064,0,0,128,0,128,142606336,
    1024,145752064,1024,2248,1152,2288,1152,0,0,135790592,0,2096,128,2152,128,143130624,
    1024,146276352,1024,0,1152,0,1152,151519232,0,0,0,0,128,2160,128,143654912,
    1024,146800640,1024,2256,1152,2296,1152,0,0,136314880,0,2104,128,2168,128,0,
    1024,0,1024,0,1152,0,1152,152043520,0,0,0,0,128,0,128,0,
    1024,0,1024,148373504,1152,0,1152,153094424,0,0,0,138412032,128,0,128,0,
    1024,0,1024,0,1152,0,1152,0,0,0,0,0,0,0,0,0,
    75184,75248,75312,75376,75440,75504,75568,75632,75696,0,0,0,0,201853952,0,0,
    128,0,128,209194096,1024,0,1024,0,1152,0,1152,0,2048,0,2048,0,
    2176,229113856,2176,232259584,0,202902544,0,204996608,128,0,128,0,1024,0,1024,0,
    1152,216530944,1152,221249536,2048,3400,2048,3472,2176,0,2176,0,0,0,0,0,
    128,207093760,128,209715200,1024,3240,1024,3280,1152,217055232,1152,221773824,2048,3408,2048,0,
    2176,229638144,2176,232783872,0,203423744,0,205520896,128,0,128,0,1024,0,1024,0,
    1152,217579520,1152,222298112,2048,3416,2048,3480,2176,0,2176,0,0,203948032,0,206045184,
    128,0,128,210239488,1024,3248,1024,3288,1152,0,1152,0,2048,224395264,2048,0,
    2176,230690232,2176,233308160,0,0,0,0,128,207618048,128,0,1024,213385216,1024,0,
    1152,218631424,1152,0,2048,225447272,2048,228589568,2176,0,2176,234360304,0,3120,0,206569472,
    128,3176,128,210763776,1024,3264,1024,216006656,1152,219680016,1152,0,2048,226495864,2048,0,
    2176,231738824,2176,0,0,0,0,0,128,0,128,211815576,1024,214433792,1024,0,
    1152,220728608,1152,0,2048,3464,2048,0,2176,0,2176,234881024,0,0,0,0,
    0,0,0,0,74928,75024,75120,75216,75312,75408,75504,75600,75696,0,0,0,
    0,4096,0,271056896,128,4176,128,0,1024,0,1024,4248,1152,279445504,1152,0,
    2048,284688384,2048,286785536,2176,0,2176,0,3200,4536,3200,0,0,0,0,271581184,
    128,4184,128,0,1024,277348352,1024,0,1152,0,1152,0,2048,0,2048,0,
    2176,288887088,2176,293605752,3200,0,3200,0,0,0,0,0,128,274726912,128,276299776,
    1024,0,1024,0,1152,280498352,1152,283119832,2048,0,2048,0,2176,289935680,2176,294125568,
    3200,297795584,3200,299368448,0,269488136,0,272105472,128,0,128,0,1024,0,1024,0,
    1152,0,1152,283639808,2048,0,2048,0,2176,290984272,2176,4496,3200,4552,3200,0,
    0,0,0,0,128,0,128,0,1024,0,1024,0,1152,281546944,1152,4336,
    2048,0,2048,287309824,2176,0,2176,0,3072,4504,3072,0,3200,0,3200,0,
    0,0,0,272629760,128,0,128,276824064,1024,0,1024,0,1152,0,1152,0,
    2048,4352,2048,0,2176,4448,2176,0,3072,0,3072,4528,3200,0,3200,0,
    0,270536728,0,0,128,4200,128,0,1024,4240,1024,0,1152,4304,1152,0,
    2048,4360,2048,0,2176,4456,2176,0,3072,4512,3072,0,3200,4560,3200,299892736,
    0,0,0,273154048,128,275775488,128,0,1024,0,1024,4256,1152,0,1152,0,
    2048,4368,2048,287834112,2176,4464,2176,0,3072,296222720,3072,0,3200,0,3200,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,74672,74784,74896,75008,75120,75248,75376,75504,
    75632,0,0,0,0,201853952,0,0,128,0,128,209194096,1024,0,1024,0,
    1152,0,1152,0,2048,0,2048,0,2176,229113856,2176,232259584,0,202902544,0,204996608,
    128,0,128,0,1024,0,1024,0,1152,216530944,1152,221249536,2048,3400,2048,3472,
    2176,0,2176,0,0,0,0,0,128,207093760,128,209715200,1024,3240,1024,3280,
    1152,217055232,1152,221773824,2048,3408,2048,0,2176,229638144,2176,232783872,0,203423744,0,205520896,
    128,0,128,0,1024,0,1024,0,1152,217579520,1152,222298112,2048,3416,2048,3480,
    2176,0,2176,0,0,203948032,0,206045184,128,0,128,210239488,1024,3248,1024,3288,
    1152,0,1152,0,2048,224395264,2048,0,2176,230690232,2176,233308160,0,0,0,0,
    128,207618048,128,0,1024,213385216,1024,0,1152,218631424,1152,0,2048,225447272,2048,228589568,
    2176,0,2176,234360304,0,3120,0,206569472,128,3176,128,210763776,1024,3264,1024,216006656,
    1152,219680016,1152,0,2048,226495864,2048,0,2176,231738824,2176,0,0,0,0,0,
    128,0,128,211815576,1024,214433792,1024,0,1152,220728608,1152,0,2048,3464,2048,0,
    2176,0,2176,234881024,0,0,0,0,0,0,0,0,74928,75024,75120,75216,
    75312,75408,75504,75600,75696,0,0,0,
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

// A value that all threads of a warp read alike: keeps what depends on it in uniform registers.
__device__ __forceinline__ u32 uniform(u32 value) {
    return __shfl_sync(~0u, value, 0);
}

__device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

// 8 x 8 matrices of 16-bit elements (or 8 rows of 16 bytes) from shared memory (PTX: ldmatrix).
__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

constexpr u32 kPanelHigh = 1073741888u, kPanelLow = 16777216u;  // words of the matrix descriptor of a panel (PTX: wgmma)
constexpr int kOperationBytes = 16;

using Sums = float[kTileRows / 2];

// The multiply step of a warpgroup, 64 rows x 256 columns x 16 (PTX: wgmma, sm_90a). Asynchronous: fence before
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

// sums += a * B; a in registers, B [16, 256] where the low word of its descriptor, b, says.
__device__ __forceinline__ void wgmma(float (&sums)[128], const u32 (&a)[4], u32 b) {
    asm volatile(
        "{ .reg .b64 b; mov.b64 b, {%132, %133};\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
        "}, {%128, %129, %130, %131}, b, 1, 1, 1, 1; }"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]), "+f"(sums[5]), "+f"(sums[6]), "+f"(sums[7]),
          "+f"(sums[8]), "+f"(sums[9]), "+f"(sums[10]), "+f"(sums[11]), "+f"(sums[12]), "+f"(sums[13]), "+f"(sums[14]), "+f"(sums[15]),
          "+f"(sums[16]), "+f"(sums[17]), "+f"(sums[18]), "+f"(sums[19]), "+f"(sums[20]), "+f"(sums[21]), "+f"(sums[22]), "+f"(sums[23]),
          "+f"(sums[24]), "+f"(sums[25]), "+f"(sums[26]), "+f"(sums[27]), "+f"(sums[28]), "+f"(sums[29]), "+f"(sums[30]), "+f"(sums[31]),
          "+f"(sums[32]), "+f"(sums[33]), "+f"(sums[34]), "+f"(sums[35]), "+f"(sums[36]), "+f"(sums[37]), "+f"(sums[38]), "+f"(sums[39]),
          "+f"(sums[40]), "+f"(sums[41]), "+f"(sums[42]), "+f"(sums[43]), "+f"(sums[44]), "+f"(sums[45]), "+f"(sums[46]), "+f"(sums[47]),
          "+f"(sums[48]), "+f"(sums[49]), "+f"(sums[50]), "+f"(sums[51]), "+f"(sums[52]), "+f"(sums[53]), "+f"(sums[54]), "+f"(sums[55]),
          "+f"(sums[56]), "+f"(sums[57]), "+f"(sums[58]), "+f"(sums[59]), "+f"(sums[60]), "+f"(sums[61]), "+f"(sums[62]), "+f"(sums[63]),
          "+f"(sums[64]), "+f"(sums[65]), "+f"(sums[66]), "+f"(sums[67]), "+f"(sums[68]), "+f"(sums[69]), "+f"(sums[70]), "+f"(sums[71]),
          "+f"(sums[72]), "+f"(sums[73]), "+f"(sums[74]), "+f"(sums[75]), "+f"(sums[76]), "+f"(sums[77]), "+f"(sums[78]), "+f"(sums[79]),
          "+f"(sums[80]), "+f"(sums[81]), "+f"(sums[82]), "+f"(sums[83]), "+f"(sums[84]), "+f"(sums[85]), "+f"(sums[86]), "+f"(sums[87]),
          "+f"(sums[88]), "+f"(sums[89]), "+f"(sums[90]), "+f"(sums[91]), "+f"(sums[92]), "+f"(sums[93]), "+f"(sums[94]), "+f"(sums[95]),
          "+f"(sums[96]), "+f"(sums[97]), "+f"(sums[98]), "+f"(sums[99]), "+f"(sums[100]), "+f"(sums[101]), "+f"(sums[102]), "+f"(sums[103]),
          "+f"(sums[104]), "+f"(sums[105]), "+f"(sums[106]), "+f"(sums[107]), "+f"(sums[108]), "+f"(sums[109]), "+f"(sums[110]), "+f"(sums[111]),
          "+f"(sums[112]), "+f"(sums[113]), "+f"(sums[114]), "+f"(sums[115]), "+f"(sums[116]), "+f"(sums[117]), "+f"(sums[118]), "+f"(sums[119]),
          "+f"(sums[120]), "+f"(sums[121]), "+f"(sums[122]), "+f"(sums[123]), "+f"(sums[124]), "+f"(sums[125]), "+f"(sums[126]), "+f"(sums[127])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "n"(kPanelHigh));
}

// A warp's part of W^T for a multiply step, 16 outputs x 16 inputs, is four matrices of 8 x 8 (PTX: ldmatrix): of the first 8 inputs for 8
// outputs and 8 more, then of the other inputs.
struct Lane {
    u32 weights;  // from a stored block's start to the 16 bytes that this lane points at, a row of matrix lane / 8
    u32 inputs, output;  // from an operation's start to the words for that matrix's inputs; the bits that its stored block is shifted by

    __device__ __forceinline__ explicit Lane(int lane) : weights(lane % 8 * 16), inputs(lane / 16 * 8), output(lane / 8 % 2 * 16) {}
};

// A warp's part of giving a stage back, whose barrier may be none.
__device__ __forceinline__ void give_back(u32 barrier) {
    __syncwarp();  // every lane has read its last
    if (barrier != 0 && threadIdx.x % 32 == 0) barrier_arrive(barrier);
}

// The operations of this warp, of which each other of its warpgroup has as many. One is a multiply step's inputs in row 0 of their panel,
// and the warp's stored blocks, in 16 bytes from the start of the stage; 0, where the panels begin, for none. At `bounds` lie the first
// and where the last ends, in bytes of the stage. Beside the last come some that are safe to load. The last is still at work in the end:
// the stage `before` is given back when its own is done, as this one's first is at work.
__device__ __forceinline__ void multiply_stage(Sums& sums, const Lane& lane, u32 stage, u32 bounds, u32 zeros, u32 before) {
    const u32 first = load_shared(bounds), weights = stage + lane.weights;
    u32 count = uniform(load_shared(bounds + 4) - first) / kOperationBytes;
    if (count == 0) {
        wgmma_wait<0>();
        give_back(before);
        return;
    }
    const u32 panels = matrix_address(stage) + kPanelLow;
    u32 at = stage + first + lane.inputs;
    const auto load_fragments = [&](u32 (&w)[4], u32 block) {
        block = block >> lane.output & 0xffff;
        ldmatrix_x4_trans(w, block ? weights + block * 16 : zeros);
    };
    // An operation's fragments load while the one before is multiplied, into registers that the one before that has left.
    uint2 now = load_shared_pair(at), next = load_shared_pair(at + kOperationBytes);
    u32 begin[4], even[4], odd[4];
    load_fragments(begin, now.y);
    const auto turn = [&](const u32 (&w)[4], u32 (&then)[4]) {
        const u32 inputs = uniform(now.x);
        now = next, at += kOperationBytes;
        next = load_shared_pair(at + kOperationBytes);
        wgmma_fence();
        wgmma(sums, w, panels + inputs);
        wgmma_commit();
        wgmma_wait<1>();
        load_fragments(then, now.y);
    };
    turn(begin, even);
    give_back(before);
    if (--count == 0) {
        wgmma_wait<0>();  // its registers are those of the next stage's first
        return;
    }
    while (true) {
        turn(even, odd);
        if (--count == 0) break;
        turn(odd, even);
        if (--count == 0) break;
    }
}

// Accumulators -> global: the epilogue for finished outputs, float32 for partial sums. A warp holds 16 outputs of all rows; 16 rows at a time. A line of either is a feature; N is a multiple of 8.
__device__ __forceinline__ void store(const Sums& sums, const int (&targets)[kSlots], int row0, int n, Element* __restrict__ y, const Element* __restrict__ bias, const Element* __restrict__ residual, u32 scratch) {
    const int lane = threadIdx.x % 32;
    const int held[2] = {lane / 4, lane / 4};  // the outputs that this lane has sums of, in their blocks
    float biases[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) biases[half] = unpack(bias[max(targets[half * (kSlots - 1)], 0) * kBlock + held[half]]).x;
    // Which 8 of 16 rows this lane stores, of which output, and where the output's line lies in scratch that it points at of matrix l / 8.
    const int mine = lane / 16 ? targets[kSlots - 1] : targets[0], row = row0 + lane % 2 * 8;
    const u32 matrices = scratch + swizzled<2>(lane % 16, lane / 16), chunks = scratch + swizzled<2>(lane / 2, lane % 2);
    const long long place = static_cast<long long>(max(mine, 0) * kBlock + lane / 2 % kBlock) * n + row;
    const auto load_residual = [&](int rows) {
        uint4 chunk = {};
        if (row + rows < n && mine >= 0) chunk = *reinterpret_cast<const uint4*>(residual + place + rows);
        return chunk;
    };
    uint4 ahead = load_residual(0);
#pragma unroll
    for (int rows = 0; rows < kTileRows; rows += 16) {
        // Through shared memory, so that each lane has what belongs to its sums.
        u32 residuals[4];
        store_chunk(chunks, ahead);
        if (rows + 16 < kTileRows) ahead = load_residual(rows + 16);
        __syncwarp();
        ldmatrix_x4(residuals, matrices);
        __syncwarp();
        u32 words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {  // 8 outputs, then 8 more, of 8 rows; then of the next 8
            const int half = i % 2;
            const float* two = sums + (rows / 8 + i / 2) * 4 + half * 2;
            const float2 v = finish(make_float2(two[0], two[1]), make_float2(biases[half], biases[half]), unpack(residuals[i]));
            words[i] = pack(v.x, v.y);
        }
        // Through shared memory, so that each lane stores 16 bytes of a feature.
        stmatrix_x4(matrices, words);
        __syncwarp();
        const uint4 chunk = load_shared_chunk(chunks);
        __syncwarp();
        if (row + rows < n && mine >= 0) store_global_chunk(y + place + rows, chunk);
    }
}

extern "C" __global__ void __launch_bounds__(kThreads, 1)
bsgen_fprop_b8_float16_hopper_4b1efc41292550d2(const __grid_constant__ TensorMap x_map, const Element* __restrict__ w, Element* __restrict__ y, const Element* __restrict__ bias, const Element* __restrict__ residual, int n) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const u32 stages_base = shared_address(shared), full = stages_base + kStages * kStageBytes, empty = full + kStages * 8;
    const u32 zeros = empty + kStages * 8 + kWarps * kScratchBytes;  // 16 bytes, in the place of blocks that are not stored
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    const int first_tile = blockIdx.x, stride = gridDim.x;
    const Tiles tiles(n);

    if (threadIdx.x == 0) {
        let_kernel_behind_begin();
        tma_prefetch(x_map);
        for (int i = 0; i < kStages; ++i) barrier_init(full + i * 8, 1), barrier_init(empty + i * 8, kWarps);
        barrier_init_fence();
        store_chunk(zeros, uint4{});
    }
    __syncthreads();

    if (warp >= kWarps) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
        produce(x_map, w, stages_base, full, empty, tiles, first_tile, stride);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 176;");
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
            u32 before = 0;  // the barrier of the stage that is to be given back next
            int last = kTileStages;
            asm volatile("" : "+r"(last));  // a loop of one turn would be none, and its multiplies be ordered otherwise
            for (int s = 0; s < last; ++s) {
                const u32 stage = stages_base + slot * kStageBytes;
                barrier_wait(full + slot * 8, parity);
                multiply_stage(sums, places, stage, stage + kBounds + warp * 4, zeros, before);
                before = empty + slot * 8;
                if (++slot == kStages) slot = 0, parity ^= 1;
            }
            wgmma_wait<0>();
            give_back(before);
            store(sums, targets, row0, n, y, bias, residual, scratch);
        }
    }
}
