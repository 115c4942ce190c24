// dW = x @ dy.T at the stored blocks of one block-sparse W [1024, 1024], bfloat16.
// Layout 8bd202088863656e: 384 of 1024 blocks of 32 x 32 (37.50 %).
// Plan: hopper, wgmma_bf16, 24 tiles in bands of 8, 2 warpgroups of up to 12 units of 64 x 32, 8 stages of 32 rows, 11 panels, 5 splits of N.
//
// A tile is a group of blocks that share panels of x and dy; a thread block sums one over a part of the N rows. One warpgroup keeps a ring of
// stages full, kStageRows rows of every panel of the tile; each warpgroup multiplies the panels of its units, 64 features of x by a block of dy.

using u32 = unsigned int;

constexpr int kBlock = 32, kSteps = 2;  // a block's side; multiply steps along the rows of a stage
constexpr int kGroups = 2, kUnits = 12;  // warpgroups that multiply, units of each
constexpr int kThreads = 128 * (kGroups + 1);
constexpr int kStages = 8, kStageRows = 32, kPanels = 11;
constexpr int kFeatures = 32, kLineBytes = 64, kPanelBytes = kFeatures * kLineBytes, kStageBytes = kPanels * kPanelBytes;  // a line of a panel: kStageRows rows of a feature
constexpr int kUnitRows = 32;  // of dW, that lie together
constexpr int kTiles = 24, kSplits = 5;
constexpr u32 kPanelHigh = 2147483680u, kWeightsHigh = kPanelHigh;  // high word of the matrix descriptors (PTX: wgmma)
constexpr int kStep = 2;  // from a multiply step to the next, in 16 bytes

// The address of shared memory as PTX instructions take it.
__device__ __forceinline__ u32 shared_address(const void* pointer) {
    return static_cast<u32>(__cvta_generic_to_shared(pointer));
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
        "}, {%16, %17, %18, %19}, b, 1, 1, 1, 0; }"
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
__device__ const int __align__(16) kPanelCounts[] = {
    8,11,11,9,9,8,8,11,11,9,9,8,8,11,11,9,
    9,8,8,11,11,9,9,8,
};

__device__ const int __align__(16) kPanelTable[] = {
    0,64,128,192,-1,-129,-257,-385,0,0,0,32,64,160,192,-33,
    -65,-161,-289,-417,-545,-801,64,96,192,224,-97,-193,-225,-353,-481,-609,
    -865,32,64,160,192,-321,-577,-673,-833,-929,0,0,64,96,192,224,
    -449,-705,-737,-961,-993,0,0,0,64,128,192,-513,-641,-769,-897,0,
    0,0,256,320,384,448,-1,-129,-257,-385,0,0,0,288,320,416,
    448,-33,-65,-161,-289,-417,-545,-801,320,352,448,480,-97,-193,-225,-353,
    -481,-609,-865,288,320,416,448,-321,-577,-673,-833,-929,0,0,320,352,
    448,480,-449,-705,-737,-961,-993,0,0,256,320,384,448,-513,-641,-769,
    -897,0,0,0,512,576,640,704,-1,-129,-257,-385,0,0,0,544,
    576,672,704,-33,-65,-161,-289,-417,-545,-801,576,608,704,736,-97,-193,
    -225,-353,-481,-609,-865,544,576,672,704,-321,-577,-673,-833,-929,0,0,
    576,608,704,736,-449,-705,-737,-961,-993,0,0,512,576,640,704,-513,
    -641,-769,-897,0,0,0,768,832,896,960,-1,-129,-257,-385,0,0,
    0,800,832,928,960,-33,-65,-161,-289,-417,-545,-801,832,864,960,992,
    -97,-193,-225,-353,-481,-609,-865,800,832,928,960,-321,-577,-673,-833,-929,
    0,0,832,864,960,992,-449,-705,-737,-961,-993,0,0,768,832,896,
    960,-513,-641,-769,-897,0,0,0,
};  // [tiles, kPanels]: first feature of a panel of x, ~feature for one of dy
__device__ const int __align__(16) kUnitCounts[] = {
    4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,
    4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,
    4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,
};  // [tiles, kGroups]
__device__ const int __align__(16) kUnitTable[] = {
    8388608,512,0,2048,8388608,640,128,2560,8388608,768,256,3072,8388608,896,384,3584,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388864,512,7168,9216,8388864,640,7296,9472,8388864,768,7424,9728,8388864,896,7552,9984,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388608,512,1024,2176,8388608,1152,1536,4224,8388608,640,1152,2304,8388736,768,2688,8320,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388608,896,1280,3200,8388608,1280,1792,5248,8388864,640,8192,9344,8388736,1024,3712,8576,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    25165824,512,2432,11264,25165824,1152,4480,11776,8388608,640,2816,6144,8388608,768,2944,6272,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    25165824,896,3456,11520,25165824,1280,5504,12032,8388864,640,9600,11392,8388608,1024,3968,6528,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388608,512,1408,3328,8388608,640,1664,4352,8388736,768,4736,8832,8388864,896,8960,10880,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388864,512,8448,9856,8388864,640,8704,10368,8388608,896,1920,5376,8388736,1024,5760,9088,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388608,512,3840,6400,8388608,640,4864,6656,8388608,768,4992,6784,8388864,896,11136,12160,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388864,512,10112,11648,8388864,640,10624,11904,8388608,896,5888,6912,8388608,1024,6016,7040,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388608,512,512,4096,8388608,640,640,4608,8388608,768,768,5120,8388608,896,896,5632,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388864,512,7680,10240,8388864,640,7808,10496,8388864,768,7936,10752,8388864,896,8064,11008,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388608,512,12288,14336,8388608,640,12416,14848,8388608,768,12544,15360,8388608,896,12672,15872,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388864,512,19456,21504,8388864,640,19584,21760,8388864,768,19712,22016,8388864,896,19840,22272,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388608,512,13312,14464,8388608,1152,13824,16512,8388608,640,13440,14592,8388736,768,14976,20608,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388608,896,13568,15488,8388608,1280,14080,17536,8388864,640,20480,21632,8388736,1024,16000,20864,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    25165824,512,14720,23552,25165824,1152,16768,24064,8388608,640,15104,18432,8388608,768,15232,18560,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    25165824,896,15744,23808,25165824,1280,17792,24320,8388864,640,21888,23680,8388608,1024,16256,18816,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388608,512,13696,15616,8388608,640,13952,16640,8388736,768,17024,21120,8388864,896,21248,23168,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388864,512,20736,22144,8388864,640,20992,22656,8388608,896,14208,17664,8388736,1024,18048,21376,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388608,512,16128,18688,8388608,640,17152,18944,8388608,768,17280,19072,8388864,896,23424,24448,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388864,512,22400,23936,8388864,640,22912,24192,8388608,896,18176,19200,8388608,1024,18304,19328,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388608,512,12800,16384,8388608,640,12928,16896,8388608,768,13056,17408,8388608,896,13184,17920,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388864,512,19968,22528,8388864,640,20096,22784,8388864,768,20224,23040,8388864,896,20352,23296,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388608,512,24576,26624,8388608,640,24704,27136,8388608,768,24832,27648,8388608,896,24960,28160,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388864,512,31744,33792,8388864,640,31872,34048,8388864,768,32000,34304,8388864,896,32128,34560,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388608,512,25600,26752,8388608,1152,26112,28800,8388608,640,25728,26880,8388736,768,27264,32896,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388608,896,25856,27776,8388608,1280,26368,29824,8388864,640,32768,33920,8388736,1024,28288,33152,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    25165824,512,27008,35840,25165824,1152,29056,36352,8388608,640,27392,30720,8388608,768,27520,30848,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    25165824,896,28032,36096,25165824,1280,30080,36608,8388864,640,34176,35968,8388608,1024,28544,31104,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388608,512,25984,27904,8388608,640,26240,28928,8388736,768,29312,33408,8388864,896,33536,35456,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388864,512,33024,34432,8388864,640,33280,34944,8388608,896,26496,29952,8388736,1024,30336,33664,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388608,512,28416,30976,8388608,640,29440,31232,8388608,768,29568,31360,8388864,896,35712,36736,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388864,512,34688,36224,8388864,640,35200,36480,8388608,896,30464,31488,8388608,1024,30592,31616,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388608,512,25088,28672,8388608,640,25216,29184,8388608,768,25344,29696,8388608,896,25472,30208,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388864,512,32256,34816,8388864,640,32384,35072,8388864,768,32512,35328,8388864,896,32640,35584,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388608,512,36864,38912,8388608,640,36992,39424,8388608,768,37120,39936,8388608,896,37248,40448,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388864,512,44032,46080,8388864,640,44160,46336,8388864,768,44288,46592,8388864,896,44416,46848,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388608,512,37888,39040,8388608,1152,38400,41088,8388608,640,38016,39168,8388736,768,39552,45184,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388608,896,38144,40064,8388608,1280,38656,42112,8388864,640,45056,46208,8388736,1024,40576,45440,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    25165824,512,39296,48128,25165824,1152,41344,48640,8388608,640,39680,43008,8388608,768,39808,43136,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    25165824,896,40320,48384,25165824,1280,42368,48896,8388864,640,46464,48256,8388608,1024,40832,43392,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388608,512,38272,40192,8388608,640,38528,41216,8388736,768,41600,45696,8388864,896,45824,47744,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388864,512,45312,46720,8388864,640,45568,47232,8388608,896,38784,42240,8388736,1024,42624,45952,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388608,512,40704,43264,8388608,640,41728,43520,8388608,768,41856,43648,8388864,896,48000,49024,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388864,512,46976,48512,8388864,640,47488,48768,8388608,896,42752,43776,8388608,1024,42880,43904,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388608,512,37376,40960,8388608,640,37504,41472,8388608,768,37632,41984,8388608,896,37760,42496,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    8388864,512,44544,47104,8388864,640,44672,47360,8388864,768,44800,47616,8388864,896,44928,47872,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
    -1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,
};  // [tiles, kGroups, kUnits, 4]: descriptors of x.T and dy, chunks of dW where its first and second block begin

// Fills the ring with stages first ... last - 1 of a tile's rows; four warps, whose lanes load a panel each.
__device__ __forceinline__ void produce(const TensorMap& x, const TensorMap& dy, u32 stages_base, u32 full, u32 empty, int tile, int first, int last) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, panel = lane * 4 + warp, panels = kPanelCounts[tile];
    const int load = panel < panels ? kPanelTable[tile * kPanels + panel] : 0;
    int slot = 0;
    u32 parity = 1;
    wait_for_kernel_ahead();
    for (int stage = first; stage < last; ++stage) {
        const u32 barrier = full + slot * 8;
        barrier_wait(empty + slot * 8, parity);
        producers_sync();
        if (panel == 0) barrier_expect(barrier, panels * kPanelBytes);
        if (panel < panels) tma_load(stages_base + slot * kStageBytes + panel * kPanelBytes, load < 0 ? dy : x, stage * kStageRows, load < 0 ? ~load : load, barrier);
        if (++slot == kStages) slot = 0, parity ^= 1;
    }
}

using Sums = float[kUnits][kBlock / 2];

// One stage of one unit. A warp's 16 features of x pass through registers, half of which the step before still reads.
__device__ __forceinline__ void multiply(float (&sums)[kBlock / 2], u32 (&a)[2][4], u32 stage, u32 place) {
    const u32 from = stage + (place & 0xffff) * 16, right = matrix_address(stage) + (place >> 16);
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
        wgmma_wait<1>();
        ldmatrix_x4(a[k % 2], from ^ k * (kStep * 16));
        wgmma_fence();
        wgmma(sums, a[k % 2], right + k * kStep);
        wgmma_commit();
    }
}

// Accumulators -> partial sums [units, 64, kBlock], float32.
__device__ __forceinline__ void store(const Sums& sums, int count, float* __restrict__ partials) {
    const int lane = threadIdx.x % 32, top = threadIdx.x / 32 % 4 * 16 + lane / 4, left = lane % 4 * 2;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
        if (u >= count) break;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float* to = partials + (u * 64 + top + half * 8) * kBlock + left;
#pragma unroll
            for (int j = 0; j < kBlock / 8; ++j) *reinterpret_cast<float2*>(to + j * 8) = make_float2(sums[u][j * 4 + half * 2], sums[u][j * 4 + half * 2 + 1]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(kThreads, 1)
bsgen_wgrad_b32_bfloat16_hopper_8bd202088863656e(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap dy_map, float* __restrict__ partials, int n) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const u32 stages_base = shared_address(shared), full = stages_base + kStages * kStageBytes, empty = full + kStages * 8;
    const int group = __shfl_sync(~0u, threadIdx.x / 128, 0), stages = (n + kStageRows - 1) / kStageRows;
    const int tile = blockIdx.x % kTiles, split = blockIdx.x / kTiles;
    const int first = static_cast<long long>(stages) * split / kSplits, last = static_cast<long long>(stages) * (split + 1) / kSplits;
    if (threadIdx.x == 0) {
        let_kernel_behind_begin();
        tma_prefetch(x_map), tma_prefetch(dy_map);
        for (int i = 0; i < kStages; ++i) barrier_init(full + i * 8, 1), barrier_init(empty + i * 8, kGroups * 4);
        barrier_init_fence();
    }
    __syncthreads();

    if (group == kGroups) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
        produce(x_map, dy_map, stages_base, full, empty, tile, first, last);
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int lane = threadIdx.x % 32, mine = tile * kGroups + group, count = __shfl_sync(~0u, kUnitCounts[mine], 0);
    const int* units = kUnitTable + mine * (kUnits * 4);
    // Warps 0 and 1 multiply the first block of a unit, 2 and 3 the second. Where this lane's chunk of a fragment lies in a panel (PTX: ldmatrix), swizzled.
    const u32 second = threadIdx.x / 64 % 2, feature = threadIdx.x / 32 % 2 * 16 + lane % 16;
    const u32 chunk = feature * (kLineBytes / 16) + (lane / 16 ^ feature / 2 % 4);
    u32 places[kUnits];  // chunks from a stage's start to this lane's of x in the low half of the word, to dy in the high half
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
        const int2 unit = *reinterpret_cast<const int2*>(units + u * 4);
        places[u] = (unit.x & 0xffff) + second * (unit.x >> 16) + chunk | unit.y << 16;
    }
    Sums sums = {};
    wait_for_kernel_ahead();
    int slot = 0;
    u32 parity = 0;
    for (int stage = first; stage < last; ++stage) {
        barrier_wait(full + slot * 8, parity);
        u32 a[2][4];
#pragma unroll
        for (int u = 0; u < kUnits; ++u) {
            if (u >= count) break;
            u32 place = places[u];
            asm volatile("" : "+r"(place));  // else its halves have a register each
            multiply(sums[u], a, stages_base + slot * kStageBytes, place);
        }
        wgmma_wait<0>();
        __syncwarp();  // every lane has read its last
        if (lane == 0) barrier_arrive(empty + slot * 8);
        if (++slot == kStages) slot = 0, parity ^= 1;
    }
    store(sums, count, partials + (static_cast<long long>(blockIdx.x) * kGroups + group) * (kUnits * 64 * kBlock));
}

// The splits' partial sums, added in order; a thread block for each unit.
extern "C" __global__ void __launch_bounds__(256)
bsgen_wgrad_b32_bfloat16_hopper_8bd202088863656e_reduce(const float* __restrict__ partials, Element* __restrict__ dw, int accumulate) {
    constexpr int kUnitElements = 64 * kBlock;
    constexpr long long kSplitElements = 1179648;
    if (static_cast<int>(blockIdx.x) % kUnits >= kUnitCounts[blockIdx.x / kUnits]) return;
    wait_for_kernel_ahead();
    const float* from = partials + static_cast<long long>(blockIdx.x) * kUnitElements;
    const int* words = kUnitTable + blockIdx.x * 4;
    for (int i = threadIdx.x * 4; i < kUnitElements; i += 256 * 4) {
        const int row = i / kBlock, place = words[2 + row / kUnitRows];
        if (place < 0) continue;
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
        for (int s = 0; s < kSplits; ++s) {
            const float4 v = *reinterpret_cast<const float4*>(from + s * kSplitElements + i);
            sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
        }
        Element* to = dw + static_cast<long long>(place) * 8 + row % kUnitRows * kBlock + i % kBlock;
        if (accumulate) {
            const float2 low = load_pair(to), high = load_pair(to + 2);
            sum.x += low.x, sum.y += low.y, sum.z += high.x, sum.w += high.y;
        }
        store_pair(to, make_float2(sum.x, sum.y));
        store_pair(to + 2, make_float2(sum.z, sum.w));
    }
}
