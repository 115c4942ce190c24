// dx = dy @ W.T for one block-sparse W [320, 256], float16.
// Layout 4b1efc41292550d2: 367 of 1280 blocks of 8 x 8 (28.67 %).
// Plan: hopper, wgmma_f16 turned, tile 256 x 128, 8 warps, panels of 32, 3 stages of 74 KiB, contiguous groups.
//
// Persistent thread blocks walk tiles of kTileRows rows x kWarps * kSlots output blocks, groups of output blocks fastest. Warps of their own keep a
// ring of stages full: panels of activations, stored blocks, and a record of what to multiply. Each other warp owns all rows of kSlots
// output blocks; four multiply together, their 64 outputs the rows of a product and the rows of dy its columns.

using u32 = unsigned int;

constexpr int kFeaturesOut = 320;  // of a row of dx
constexpr int kBlock = 8;  // a block's side
constexpr int kWarps = 8, kSlots = 2, kLoaders = 128, kThreads = 32 * kWarps + kLoaders;  // warps that multiply, output blocks of each; threads that load
constexpr int kTileRows = 256;
constexpr int kTiles = 3;
constexpr int kStages = 3, kStageBytes = 75776, kBounds = kStageBytes - 48;  // a stage ends with its record, and that with bounds
constexpr int kPanelBytes = 16384;  // of a panel
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
// Two neighbouring sums of a row -> two outputs.
__device__ __forceinline__ float2 finish(float2 v) {
    return v;
}

__device__ const int __align__(16) kTileStages[] = {
    0,3,5,7,
};

__device__ const int __align__(16) kTargets[] = {
    0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,
    16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,
    32,33,34,35,36,37,38,39,-2147483647,-2147483647,-2147483647,-2147483647,-2147483647,-2147483647,-2147483647,-2147483647,
};  // [kTiles, kWarps, kSlots]: output block, ~p for partial sum p, or -2147483647 for none
// [stages, kLoads, 2], in chunks of 16 bytes but for features: place of the record, its size | the stage's size << 16; of each panel its
// first feature, 0; of each run of W its place, where it goes in the stage | its size << 16; of no load -1, 0
__device__ const int __align__(16) kLoadTable[] = {
    0,236781621,0,0,32,0,64,0,0,1575936,88,2100248,160,1575992,216,2624592,
    320,2624632,400,1576096,456,3673272,584,1576176,632,3149064,752,1051960,800,2100552,880,1576296,
    968,1576320,1032,1576344,1104,3149232,1200,527840,-1,0,53,309133381,96,0,128,0,
    160,0,192,0,24,3674112,120,2101304,184,1577048,256,2625648,360,1577112,424,1577136,
    512,2625736,608,1577200,680,3150088,768,2101560,832,2101592,904,3674488,992,1577392,1056,2625992,
    1152,2101744,1208,1577488,122,81068053,224,0,80,525312,152,525320,208,525328,296,1573912,
    384,1049648,448,525376,552,2098248,728,1573992,864,1049728,960,525456,1016,1049752,1096,525480,
    1184,1049776,-1,0,-1,0,-1,0,-1,0,-1,0,-1,0,143,308084805,
    0,0,32,0,64,0,96,0,1232,2625536,1288,528424,1312,1577008,1384,2101320,
    1448,5247080,1560,1052856,1600,2625736,1712,2101488,1776,3674384,1856,528712,1872,1577296,1928,1577320,
    1968,2101632,2056,2625952,2128,2101704,2184,3150312,212,307036229,128,0,160,0,192,0,
    224,0,1272,1052672,1296,1052688,1336,3149856,1416,2101328,1528,2101360,1576,1577104,1640,4722856,
    1744,2101488,1832,1577232,1864,528680,1896,2101552,1952,1053008,2000,3674464,2096,2101656,2160,1577400,
    2232,3674576,281,292356165,0,0,32,0,64,0,96,0,2288,2625536,2368,2101288,
    2424,3674184,2552,1577088,2600,3149976,2720,1577160,2768,2101472,2848,2625792,-1,0,-1,0,
    -1,0,-1,0,-1,0,-1,0,-1,0,-1,0,350,296026181,128,0,
    160,0,192,0,224,0,2328,2625536,2400,1577000,2480,4722752,2576,1577096,2648,4722848,
    2744,1577192,2800,3150080,2888,3150128,-1,0,-1,0,-1,0,-1,0,-1,0,
    -1,0,-1,0,-1,0,
};

__device__ const int __align__(16) kRecords[] = {
    0,3072,0,202899456,2,0,2,0,1024,0,1024,203423744,1026,0,1026,3080,
    2048,0,2048,203948032,2050,3088,2050,204472320,0,3128,0,206569472,2,207093760,2,207618048,
    1024,0,1024,3136,1026,3144,1026,208142336,2048,0,2048,0,2050,0,2050,208666624,
    0,3192,0,211812352,2,0,2,3200,1024,3208,1024,0,1026,212336640,1026,3216,
    2048,0,2048,0,2050,212860928,2050,3224,0,3256,0,3264,2,3272,2,3280,
    1024,0,1024,217055232,1026,3288,1026,217579520,2048,3296,2048,218103808,2050,3304,2050,0,
    0,3336,0,3344,2,3352,2,0,1024,221773824,1024,3360,1026,0,1026,3368,
    2048,222298112,2048,3376,2050,0,2050,0,0,3400,0,3408,2,0,2,224919552,
    1024,3416,1024,0,1026,0,1026,225443840,2048,3424,2048,0,2050,0,2050,225968128,
    0,3456,0,3464,2,0,2,228065280,1024,0,1024,228589568,1026,0,1026,3472,
    2048,0,2048,229113856,2050,0,2050,0,0,3504,0,0,2,0,2,3512,
    1024,0,1024,3520,1026,0,1026,232783872,2048,0,2048,3528,2050,3536,2050,3544,
    0,0,0,0,0,0,0,0,74928,75024,75120,75216,75312,75408,75504,75600,
    75696,0,0,0,0,4096,0,0,2,0,2,272105472,1024,4104,1024,4112,
    1026,4120,1026,272633888,2048,0,2048,0,2050,0,2050,273158184,3072,0,3072,273682480,
    3074,0,3074,0,0,4184,0,0,2,0,2,275775488,1024,276299776,1024,276824064,
    1026,0,1026,0,2048,0,2048,277352544,2050,0,2050,0,3072,0,3072,277872640,
    3074,0,3074,4200,0,0,0,0,2,0,2,279969792,1024,0,1024,0,
    1026,0,1026,0,2048,280498328,2048,0,2050,0,2050,0,3072,281022624,3072,0,
    3074,0,3074,4264,0,0,0,0,2,0,2,0,1024,0,1024,0,
    1026,0,1026,284168392,2048,0,2048,284692688,2050,0,2050,285216984,3072,0,3072,0,
    3074,4320,3074,4328,0,0,0,288882688,1024,0,1024,0,1026,289411336,1026,0,
    2048,4368,2048,0,2050,289935640,2050,0,3072,0,3072,4384,3074,4392,3074,290459952,
    0,293076992,0,293601280,1024,0,1024,294130008,1026,0,1026,0,2048,0,2048,294654304,
    2050,0,2050,0,3072,4456,3072,295178608,3074,295698432,3074,296222720,0,0,0,298319872,
    1024,4528,1024,298844160,1026,0,1026,299368448,2048,0,2048,0,2050,4536,2050,299897280,
    3072,0,3072,0,3074,0,3074,300417024,0,4592,0,303038464,1024,4600,1024,0,
    1026,4608,1026,0,2048,0,2048,303567368,2050,0,2050,0,3072,0,3072,0,
    3074,0,3074,304087040,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,74672,74800,74928,75056,
    75184,75296,75408,75520,75632,0,0,0,0,1024,0,67633152,2,0,2,0,
    0,1040,0,68681728,2,69206016,2,69730304,0,1072,0,71303168,2,0,2,1080,
    0,1096,0,1104,2,1112,2,1120,0,1128,0,1136,2,1144,2,0,
    0,1152,0,1160,2,0,2,76546048,0,1176,0,1184,2,0,2,78118912,
    0,1200,0,0,2,0,2,1208,0,0,0,0,0,0,0,0,
    75440,75472,75504,75536,75568,75600,75632,75664,75696,0,0,0,0,4096,0,0,
    2,271056896,2,0,1024,0,1024,0,1026,4104,1026,4112,2048,0,2048,0,
    2050,0,2050,0,3072,4120,3072,4128,3074,0,3074,0,0,4144,0,0,
    2,0,2,0,1024,4152,1024,0,1026,273154048,1026,273678336,2048,0,2048,274202624,
    2050,274726912,2050,0,3072,0,3072,4160,3074,0,3074,0,0,4200,0,0,
    2,4208,2,280494080,1024,0,1024,4216,1026,4224,1026,4232,2048,4240,2048,4248,
    2050,4256,2050,281018368,3072,0,3072,4264,3074,0,3074,4272,0,4296,0,0,
    2,4304,2,0,1024,284164096,1024,284688384,1026,0,1026,285212672,2048,285736960,2048,0,
    2050,0,2050,4312,3072,0,3072,4320,3074,0,3074,4328,0,4368,0,0,
    2,0,2,4376,1024,4384,1024,0,1026,0,1026,4392,2048,4400,2048,0,
    2050,0,2050,4408,3072,289931264,3072,0,3074,0,3074,4416,0,4432,0,292028416,
    2,0,2,0,1024,0,1024,0,1026,0,1026,292552704,2048,0,2048,4440,
    2050,0,2050,0,3072,0,3072,0,3074,0,3074,293081440,0,4480,0,295698432,
    2,0,2,0,1024,0,1024,296222720,1026,0,1026,4488,2048,0,2048,296747008,
    2050,4496,2050,297271296,3072,4504,3072,0,3074,0,3074,297795584,0,4552,0,300417024,
    2,300941312,2,301465600,1024,0,1024,4560,1026,4568,1026,301989888,2048,0,2048,0,
    2050,0,2050,302514176,3072,4576,3072,0,3074,0,3074,303038464,0,0,0,0,
    0,0,0,0,74672,74800,74928,75056,75184,75312,75440,75568,75696,0,0,0,
    0,269484032,0,0,2,0,2,4096,1024,0,1024,0,1026,0,1026,0,
    2048,0,2048,0,2050,0,2050,0,3072,4104,3072,0,3074,270008320,3074,0,
    0,0,0,4128,2,0,2,0,1024,273682472,1024,274206768,1026,0,1026,274726912,
    2048,275255352,2048,4160,2050,0,2050,0,3072,4168,3072,0,3074,0,3074,0,
    0,0,0,277876848,2,0,2,0,1024,0,1024,0,1026,0,1026,0,
    2048,0,2048,278396928,2050,4216,2050,0,3072,4224,3072,0,3074,4232,3074,278921216,
    0,0,0,0,2,284168360,2,284692656,1024,4280,1024,285216960,1026,285741256,1026,4304,
    2048,0,2048,0,2050,4312,2050,0,3072,4320,3072,0,3074,4328,3074,0,
    0,0,0,0,2,0,2,0,1024,0,1024,0,1026,0,1026,0,
    2048,4368,2048,0,2050,287834112,2050,0,3072,4376,3072,0,3074,0,3074,4384,
    0,4400,0,0,2,0,2,0,1024,0,1024,290459960,1026,4416,1026,0,
    2048,0,2048,0,2050,0,2050,0,3072,4424,3072,290979840,3074,0,3074,0,
    0,4448,0,4456,2,4464,2,295178616,1024,0,1024,0,1026,0,1026,295702912,
    2048,0,2048,296227208,2050,0,2050,0,3072,4496,3072,296747008,3074,0,3074,0,
    0,298844160,0,299368448,2,0,2,0,1024,0,1024,299897272,1026,0,1026,0,
    2048,0,2048,300417024,2050,0,2050,4544,3072,4552,3072,300941312,3074,301465600,3074,301989888,
    0,0,0,0,0,0,0,0,74672,74800,74928,75056,75184,75312,75440,75568,
    75696,0,0,0,0,4096,0,271056896,2,0,2,4104,1024,4112,1024,0,
    1026,271581184,1026,4120,2048,0,2048,0,2050,272105472,2050,4128,3072,0,3072,0,
    3074,0,3074,272629760,0,4168,0,4176,2,4184,2,4192,1024,0,1024,276824064,
    1026,4200,1026,277348352,2048,4208,2048,277872640,2050,4216,2050,0,3072,0,3072,0,
    3074,0,3074,0,0,4248,0,4256,2,4264,2,0,1024,281542656,1024,4272,
    1026,0,1026,4280,2048,282066944,2048,4288,2050,0,2050,0,3072,0,3072,282591232,
    3074,0,3074,0,0,4320,0,4328,2,0,2,285212672,1024,4336,1024,0,
    1026,0,1026,285736960,2048,4344,2048,0,2050,0,2050,286261248,3072,286785536,3072,287309824,
    3074,0,3074,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,74672,74800,74928,75056,
    75184,75184,75184,75184,75184,0,0,0,0,0,0,0,2,0,2,0,
    1024,271060992,1024,0,1026,0,1026,0,2048,271585288,2048,0,2050,0,2050,4112,
    3072,4120,3072,272105472,3074,0,3074,4128,0,0,0,0,2,0,2,277352512,
    1024,0,1024,277876808,1026,0,1026,278401104,2048,0,2048,0,2050,4184,2050,4192,
    3072,4200,3072,4208,3074,4216,3074,4224,0,0,0,0,2,283644064,2,0,
    1024,4264,1024,0,1026,284168368,1026,0,2048,0,2048,4280,2050,4288,2050,284692680,
    3072,4304,3072,4312,3074,4320,3074,0,0,0,0,288362752,2,0,2,0,
    1024,0,1024,288887048,1026,0,1026,0,2048,4368,2048,289411352,2050,289931264,2050,290455552,
    3072,4384,3072,4392,3074,0,3074,290979840,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    74672,74800,74928,75056,75184,75184,75184,75184,75184,0,0,0,
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
            tma_load(stage + (mine - 1) * kPanelBytes, activations, load.x, row0, barrier);
        }
        if (++slot == kStages) slot = 0, parity ^= 1;
    }
}

// A value that all threads of a warp read alike: keeps what depends on it in uniform registers.
__device__ __forceinline__ u32 uniform(u32 value) {
    return __shfl_sync(~0u, value, 0);
}

// 8 x 8 matrices of 16-bit elements (or 8 rows of 16 bytes) from shared memory (PTX: ldmatrix).
__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

constexpr u32 kPanelHigh = 2147483680u;  // high word of the matrix descriptor of a panel (PTX: wgmma)
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
        "}, {%128, %129, %130, %131}, b, 1, 1, 1, 0; }"
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
    const u32 panels = matrix_address(stage);
    u32 at = stage + first + lane.inputs;
    const auto load_fragments = [&](u32 (&w)[4], u32 block) {
        block = block >> lane.output & 0xffff;
        ldmatrix_x4(w, block ? weights + block * 16 : zeros);
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

// Accumulators -> global: the epilogue for finished outputs, float32 for partial sums. A warp holds 16 outputs of all rows; 16 rows at a time.
__device__ __forceinline__ void store(const Sums& sums, const int (&targets)[kSlots], int row0, int n, Element* __restrict__ dx, u32 scratch) {
    const int lane = threadIdx.x % 32;
    // Which 8 outputs this lane stores, of which of 16 rows, and where the row lies in scratch that it points at of matrix l / 8.
    const int mine = lane % 2 ? targets[kSlots - 1] : targets[0], row = row0 + lane / 2;
    const u32 matrices = scratch + swizzled<2>(lane / 16 * 8 + lane % 8, lane / 8 % 2), chunks = scratch + swizzled<2>(lane / 2, lane % 2);
    const long long place = static_cast<long long>(row) * kFeaturesOut + max(mine, 0) * kBlock;
#pragma unroll
    for (int rows = 0; rows < kTileRows; rows += 16) {
        u32 words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {  // 8 outputs, then 8 more, of 8 rows; then of the next 8
            const int half = i % 2;
            const float* two = sums + (rows / 8 + i / 2) * 4 + half * 2;
            const float2 v = finish(make_float2(two[0], two[1]));
            words[i] = pack(v.x, v.y);
        }
        // Through shared memory, so that each lane stores 16 bytes of a row.
        stmatrix_x4_trans(matrices, words);
        __syncwarp();
        const uint4 chunk = load_shared_chunk(chunks);
        __syncwarp();
        if (row + rows < n && mine >= 0) store_global_chunk(dx + place + static_cast<long long>(rows) * kFeaturesOut, chunk);
    }
}

extern "C" __global__ void __launch_bounds__(kThreads, 1)
bsgen_dgrad_b8_float16_hopper_4b1efc41292550d2(const __grid_constant__ TensorMap dy_map, const Element* __restrict__ w, Element* __restrict__ dx, int n) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const u32 stages_base = shared_address(shared), full = stages_base + kStages * kStageBytes, empty = full + kStages * 8;
    const u32 zeros = empty + kStages * 8 + kWarps * kScratchBytes;  // 16 bytes, in the place of blocks that are not stored
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    const int first_tile = blockIdx.x, stride = gridDim.x;
    const Tiles tiles(n);

    if (threadIdx.x == 0) {
        let_kernel_behind_begin();
        tma_prefetch(dy_map);
        for (int i = 0; i < kStages; ++i) barrier_init(full + i * 8, 1), barrier_init(empty + i * 8, kWarps);
        barrier_init_fence();
        store_chunk(zeros, uint4{});
    }
    __syncthreads();

    if (warp >= kWarps) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
        produce(dy_map, w, stages_base, full, empty, tiles, first_tile, stride);
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
            for (int s = kTileStages[group], last = kTileStages[group + 1]; s < last; ++s) {
                const u32 stage = stages_base + slot * kStageBytes;
                barrier_wait(full + slot * 8, parity);
                multiply_stage(sums, places, stage, stage + kBounds + warp * 4, zeros, before);
                before = empty + slot * 8;
                if (++slot == kStages) slot = 0, parity ^= 1;
            }
            wgmma_wait<0>();
            give_back(before);
            store(sums, targets, row0, n, dx, scratch);
        }
    }
}
