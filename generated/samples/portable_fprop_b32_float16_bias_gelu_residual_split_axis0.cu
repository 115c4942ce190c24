// y = W.T @ x for one block-sparse W [8192, 384] and its epilogue, float16.
// Layout 5734be5d2ec1f220: 267 of 3072 blocks of 32 x 32 (8.69 %).
// Plan: portable, mma_f16, tile 128 x 128, 4 x 2 warps, 3 stages of 25 KiB, panels of 32, balanced groups, 1 split outputs.
//
// A thread block computes kRows rows of kSlots output blocks. It walks the stages of its tile; each stage loads the
// activation panels and the pieces of W that its record names, then every warp multiplies, slot by slot.
// Shared memory holds matrices of up to 128 bytes a row, their 16-byte chunks swizzled by row.

using u32 = unsigned int;

constexpr int kBlock = 32, kChunk = 8;  // elements of a block's side, of a chunk
constexpr int kThreads = 256, kWarpsN = 2;  // 4 x kWarpsN warps
constexpr int kMTiles = 2, kNTiles = 4, kRows = 128;  // 16-row and 8-column steps of a warp
constexpr int kSlots = 4, kWarpSlots = 2;  // output blocks of the tile, of a warp
constexpr int kNoOutput = -2147483647;
constexpr int kTiles = 10;
constexpr int kDepth = 32, kStep = 16;  // inputs of an operation, of a multiply step
constexpr int kPieceChunks = 128, kPieceBytes = 2048;  // the weights of an operation
constexpr int kPieceRows = 32, kPieceColumns = 4, kLine = 4;  // in chunks; matrices of kLine chunks a row
constexpr int kPanel = 32, kPanelChunks = 16, kPanelBytes = 8192;  // elements, chunks of a line
constexpr int kLoadLines = 16, kLoadPasses = 2;  // lines of a panel that the thread block loads at once
constexpr int kPiecesAtOnce = 2;  // pieces that the thread block loads at once
constexpr int kStages = 3, kStageBytes = 25600;
constexpr int kRecordWords = 16, kRecordRing = 5;
constexpr int kSlotStarts = 2, kPanelIds = 7, kInputs = 9, kPieceStarts = 12;

// The address of shared memory as PTX instructions take it.
__device__ __forceinline__ u32 shared_address(const void* pointer) {
    return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

// Have the compiler keep a pointer in registers instead of computing it again at each use.
template <class T>
__device__ __forceinline__ void keep(const T*& pointer) {
    asm volatile("" : "+l"(pointer));
}

// Byte offset of a 16-byte chunk in a matrix of Chunks chunks a row, swizzled so that 8 rows of one chunk lie in different banks.
template <int Chunks>
__device__ __forceinline__ u32 swizzled(u32 row, u32 chunk) {
    constexpr u32 kSpread = Chunks < 8 ? Chunks : 8;
    return (row * Chunks + (chunk ^ (row / (8 / kSpread) % kSpread))) * 16;
}

// 16 bytes, past L1 (PTX: cp.async, sm_80).
__device__ __forceinline__ void cp_async_16(u32 shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
}

// 16 bytes, or 16 zeros when `valid` is false.
__device__ __forceinline__ void cp_async_16_or_zeros(u32 shared, const void* global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(valid ? 16 : 0) : "memory");
}

__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait until at most `Pending` of this thread's newest groups are still on their way.
template <int Pending>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
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
// max(v, 0), but NaN stays NaN (PTX: max.NaN, sm_80).
__device__ __forceinline__ float positive(float v) {
    float larger;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(v), "f"(0.0f));
    return larger;
}

__device__ __forceinline__ float ex2(float v) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(v));
    return power;
}

__device__ __forceinline__ float activate(float v) {
    // v * cdf(v) of the normal distribution, as max(v, 0) - |v| * cdf(-|v|). A minimax polynomial gives log2 of that last factor, to
    // 0.0006 % of it for |v| up to 6, and falls without end beyond.
    const float z = fminf(fabsf(v), 64.0f);
    float p = -1.8348464e-6f;
    p = fmaf(p, z, 6.1598977e-5f);
    p = fmaf(p, z, -9.3053002e-4f);
    p = fmaf(p, z, 8.5079102e-3f);
    p = fmaf(p, z, -5.3960104e-2f);
    p = fmaf(p, z, -0.45846435f);
    p = fmaf(p, z, -1.1512511f);
    p = fmaf(p, z, -0.99999529f);
    return fmaf(-z, ex2(p), positive(v));
}

// Two neighbouring sums of a row -> two outputs.
__device__ __forceinline__ float2 finish(float2 v, float2 bias, float2 residual) {
    v.x += bias.x, v.y += bias.y;
    v.x = activate(v.x), v.y = activate(v.y);
    v.x += residual.x, v.y += residual.y;
    return v;
}

__device__ const int __align__(16) kTileStages[] = {
    0,14,28,42,56,69,83,97,111,125,135,
};

__device__ const int __align__(16) kTargets[] = {
    -2,-26,-14,8,-3,-27,-15,9,-4,-28,-16,10,-5,-29,-17,11,
    -7,-1,-19,3,-8,-6,-20,4,-9,-12,-21,5,-10,-18,-22,6,
    -11,-24,-23,7,-13,1,-25,2,
};  // [kTiles, kSlots]: output block, ~p for partial sum p, or kNoOutput
__device__ const int __align__(16) kRecords[] = {
    2,3,0,2,2,2,3,8,9,0,512,0,1920,2176,2048,0,
    2,2,0,1,1,2,2,114,10,512,0,0,2432,16000,0,0,
    2,2,0,1,1,2,2,11,115,0,512,0,2688,16128,0,0,
    2,2,0,1,1,2,2,12,116,0,512,0,2944,16256,0,0,
    2,2,0,1,1,2,2,13,117,0,512,0,3072,16384,0,0,
    2,2,0,1,1,2,2,14,118,0,512,0,3200,16512,0,0,
    2,2,0,1,1,2,2,15,119,0,512,0,3328,16640,0,0,
    2,2,0,1,1,2,2,16,120,0,512,0,3456,16768,0,0,
    2,2,0,0,1,2,2,121,220,512,0,0,29568,16896,0,0,
    2,2,0,0,1,2,2,122,221,512,0,0,29696,17024,0,0,
    2,2,0,0,2,2,2,222,223,0,512,0,29824,29952,0,0,
    2,2,0,0,2,2,2,224,225,0,512,0,30080,30208,0,0,
    2,2,0,0,2,2,2,226,227,0,512,0,30336,30464,0,0,
    1,1,0,0,1,1,1,228,0,0,0,0,30592,0,0,0,
    2,2,0,1,1,1,2,9,17,512,0,0,3584,2304,0,0,
    2,2,0,1,1,2,2,18,123,0,512,0,3712,17152,0,0,
    2,2,0,1,1,2,2,19,124,0,512,0,3840,17280,0,0,
    2,2,0,1,1,2,2,20,125,0,512,0,3968,17408,0,0,
    2,2,0,1,1,2,2,21,126,0,512,0,4096,17536,0,0,
    2,2,0,1,1,2,2,22,127,0,512,0,4224,17664,0,0,
    2,2,0,1,1,2,2,23,128,0,512,0,4352,17792,0,0,
    2,2,0,1,1,2,2,24,129,0,512,0,4480,17920,0,0,
    2,2,0,1,1,2,2,25,130,0,512,0,4608,18048,0,0,
    2,2,0,0,1,2,2,131,229,512,0,0,30720,18176,0,0,
    2,2,0,0,2,2,2,230,231,0,512,0,30848,30976,0,0,
    2,2,0,0,2,2,2,232,233,0,512,0,31104,31232,0,0,
    2,2,0,0,2,2,2,234,235,0,512,0,31360,31488,0,0,
    2,2,0,0,2,2,2,236,237,0,512,0,31616,31744,0,0,
    2,2,0,1,1,1,2,10,26,512,0,0,4736,2560,0,0,
    2,2,0,1,1,2,2,27,132,0,512,0,4864,18304,0,0,
    2,2,0,1,1,2,2,28,133,0,512,0,4992,18432,0,0,
    2,2,0,1,1,2,2,29,134,0,512,0,5120,18560,0,0,
    2,2,0,1,1,2,2,30,135,0,512,0,5248,18688,0,0,
    2,2,0,1,1,2,2,31,136,0,512,0,5376,18816,0,0,
    2,2,0,1,1,2,2,32,137,0,512,0,5504,18944,0,0,
    2,2,0,1,1,2,2,33,138,0,512,0,5632,19072,0,0,
    2,2,0,1,1,2,2,34,139,0,512,0,5760,19200,0,0,
    2,2,0,0,1,2,2,140,238,512,0,0,31872,19328,0,0,
    2,2,0,0,2,2,2,239,240,0,512,0,32000,32128,0,0,
    2,2,0,0,2,2,2,241,242,0,512,0,32256,32384,0,0,
    2,2,0,0,2,2,2,243,244,0,512,0,32512,32640,0,0,
    2,2,0,0,2,2,2,245,246,0,512,0,32768,32896,0,0,
    2,2,0,1,1,1,2,11,35,512,0,0,5888,2816,0,0,
    2,2,0,1,1,2,2,36,141,0,512,0,6016,19456,0,0,
    2,2,0,1,1,2,2,37,142,0,512,0,6144,19584,0,0,
    2,2,0,1,1,2,2,38,143,0,512,0,6272,19712,0,0,
    2,2,0,1,1,2,2,39,144,0,512,0,6400,19840,0,0,
    2,2,0,1,1,2,2,40,145,0,512,0,6528,19968,0,0,
    2,2,0,1,1,2,2,41,146,0,512,0,6656,20096,0,0,
    2,2,0,1,1,2,2,42,147,0,512,0,6784,20224,0,0,
    2,2,0,1,1,2,2,43,148,0,512,0,6912,20352,0,0,
    2,2,0,0,1,2,2,149,247,512,0,0,33024,20480,0,0,
    2,2,0,0,2,2,2,248,249,0,512,0,33152,33280,0,0,
    2,2,0,0,2,2,2,250,251,0,512,0,33408,33536,0,0,
    2,2,0,0,2,2,2,252,253,0,512,0,33664,33792,0,0,
    2,2,0,0,2,2,2,254,255,0,512,0,33920,34048,0,0,
    2,3,0,0,2,2,3,3,0,0,512,0,640,0,768,0,
    2,2,0,0,1,2,2,158,1,512,0,0,128,21632,0,0,
    2,2,0,0,1,2,2,2,159,0,512,0,384,21760,0,0,
    2,2,0,0,1,2,2,4,160,0,512,0,896,21888,0,0,
    2,2,0,0,1,2,2,5,161,0,512,0,1152,22016,0,0,
    2,2,0,0,1,2,2,6,162,0,512,0,1408,22144,0,0,
    2,2,0,0,1,2,2,7,163,0,512,0,1664,22272,0,0,
    2,2,0,1,1,2,2,52,164,0,512,0,8064,22400,0,0,
    2,2,0,1,1,2,2,53,165,0,512,0,8192,22528,0,0,
    2,2,0,1,1,2,2,54,166,0,512,0,8320,22656,0,0,
    2,2,0,2,2,2,2,55,56,0,512,0,8448,8576,0,0,
    2,2,0,2,2,2,2,57,58,0,512,0,8704,8832,0,0,
    2,2,0,2,2,2,2,59,60,0,512,0,8960,9088,0,0,
    2,2,0,0,1,1,2,4,44,512,0,0,7040,1024,0,0,
    2,2,0,0,1,2,2,45,167,0,512,0,7168,22784,0,0,
    2,2,0,0,1,2,2,46,168,0,512,0,7296,22912,0,0,
    2,2,0,0,1,2,2,47,169,0,512,0,7424,23040,0,0,
    2,2,0,0,1,2,2,48,170,0,512,0,7552,23168,0,0,
    2,2,0,0,1,2,2,49,171,0,512,0,7680,23296,0,0,
    2,2,0,0,1,2,2,50,172,0,512,0,7808,23424,0,0,
    2,2,0,0,1,2,2,51,173,0,512,0,7936,23552,0,0,
    2,2,0,1,1,2,2,61,174,0,512,0,9216,23680,0,0,
    2,2,0,1,1,2,2,62,175,0,512,0,9344,23808,0,0,
    2,2,0,2,2,2,2,63,64,0,512,0,9472,9600,0,0,
    2,2,0,2,2,2,2,65,66,0,512,0,9728,9856,0,0,
    2,2,0,2,2,2,2,67,68,0,512,0,9984,10112,0,0,
    1,1,0,1,1,1,1,69,0,0,0,0,10240,0,0,0,
    2,2,0,1,1,1,2,5,70,512,0,0,10368,1280,0,0,
    2,2,0,1,1,2,2,71,176,0,512,0,10496,23936,0,0,
    2,2,0,1,1,2,2,72,177,0,512,0,10624,24064,0,0,
    2,2,0,1,1,2,2,73,178,0,512,0,10752,24192,0,0,
    2,2,0,1,1,2,2,74,179,0,512,0,10880,24320,0,0,
    2,2,0,1,1,2,2,75,180,0,512,0,11008,24448,0,0,
    2,2,0,1,1,2,2,76,181,0,512,0,11136,24576,0,0,
    2,2,0,1,1,2,2,77,182,0,512,0,11264,24704,0,0,
    2,2,0,1,1,2,2,78,183,0,512,0,11392,24832,0,0,
    2,2,0,0,1,2,2,97,184,0,512,0,13824,24960,0,0,
    2,2,0,0,2,2,2,98,99,0,512,0,13952,14080,0,0,
    2,2,0,0,2,2,2,100,101,0,512,0,14208,14336,0,0,
    2,2,0,0,2,2,2,102,103,0,512,0,14464,14592,0,0,
    1,1,0,0,1,1,1,104,0,0,0,0,14720,0,0,0,
    2,2,0,1,1,1,2,6,79,512,0,0,11520,1536,0,0,
    2,2,0,1,1,2,2,80,185,0,512,0,11648,25088,0,0,
    2,2,0,1,1,2,2,81,186,0,512,0,11776,25216,0,0,
    2,2,0,1,1,2,2,82,187,0,512,0,11904,25344,0,0,
    2,2,0,1,1,2,2,83,188,0,512,0,12032,25472,0,0,
    2,2,0,1,1,2,2,84,189,0,512,0,12160,25600,0,0,
    2,2,0,1,1,2,2,85,190,0,512,0,12288,25728,0,0,
    2,2,0,1,1,2,2,86,191,0,512,0,12416,25856,0,0,
    2,2,0,1,1,2,2,87,192,0,512,0,12544,25984,0,0,
    2,2,0,0,1,2,2,150,193,0,512,0,20608,26112,0,0,
    2,2,0,0,2,2,2,151,152,0,512,0,20736,20864,0,0,
    2,2,0,0,2,2,2,153,154,0,512,0,20992,21120,0,0,
    2,2,0,0,2,2,2,155,156,0,512,0,21248,21376,0,0,
    1,1,0,0,1,1,1,157,0,0,0,0,21504,0,0,0,
    2,2,0,1,1,1,2,7,88,512,0,0,12672,1792,0,0,
    2,2,0,1,1,2,2,89,194,0,512,0,12800,26240,0,0,
    2,2,0,1,1,2,2,90,195,0,512,0,12928,26368,0,0,
    2,2,0,1,1,2,2,91,196,0,512,0,13056,26496,0,0,
    2,2,0,1,1,2,2,92,197,0,512,0,13184,26624,0,0,
    2,2,0,1,1,2,2,93,198,0,512,0,13312,26752,0,0,
    2,2,0,1,1,2,2,94,199,0,512,0,13440,26880,0,0,
    2,2,0,1,1,2,2,95,200,0,512,0,13568,27008,0,0,
    2,2,0,1,1,2,2,96,201,0,512,0,13696,27136,0,0,
    2,2,0,0,1,2,2,202,203,512,0,0,27392,27264,0,0,
    2,2,0,0,2,2,2,204,205,0,512,0,27520,27648,0,0,
    2,2,0,0,2,2,2,206,207,0,512,0,27776,27904,0,0,
    2,2,0,0,2,2,2,208,209,0,512,0,28032,28160,0,0,
    1,1,0,0,1,1,1,210,0,0,0,0,28288,0,0,0,
    2,2,0,0,1,1,2,1,2,0,512,0,256,512,0,0,
    2,2,0,1,1,2,2,105,211,0,512,0,14848,28416,0,0,
    2,2,0,1,1,2,2,106,212,0,512,0,14976,28544,0,0,
    2,2,0,1,1,2,2,107,213,0,512,0,15104,28672,0,0,
    2,2,0,1,1,2,2,108,214,0,512,0,15232,28800,0,0,
    2,2,0,1,1,2,2,109,215,0,512,0,15360,28928,0,0,
    2,2,0,1,1,2,2,110,216,0,512,0,15488,29056,0,0,
    2,2,0,1,1,2,2,111,217,0,512,0,15616,29184,0,0,
    2,2,0,1,1,2,2,112,218,0,512,0,15744,29312,0,0,
    2,2,0,1,1,2,2,113,219,0,512,0,15872,29440,0,0,
};

// The record of a stage, global -> shared.
__device__ __forceinline__ void load_record(u32 record, int stage) {
#pragma unroll
    for (int i = 0; i < kRecordWords / 4; i += kThreads) {
        const int chunk = i + threadIdx.x;
        if (chunk < kRecordWords / 4) cp_async_16(record + chunk * 16, kRecords + static_cast<long long>(stage) * kRecordWords + chunk * 4);
    }
}

// 16 bytes into shared memory.
__device__ __forceinline__ void store_chunk(u32 address, uint4 v) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

// A chunk of a line that does not begin at a multiple of 16 bytes, global -> shared; zeros past the line's end.
__device__ __forceinline__ void copy_elements(u32 to, const Element* __restrict__ from, int left) {
    u32 words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        words[i] = (2 * i < left ? from[2 * i] : 0) | (2 * i + 1 < left ? static_cast<u32>(from[2 * i + 1]) << 16 : 0);
    }
    store_chunk(to, make_uint4(words[0], words[1], words[2], words[3]));
}

constexpr int kPanelsAtOnce = 1;  // panels that the thread block loads at once

// The panels of a stage, global -> shared: a line is a feature of kRows rows. What depends on the thread alone is computed once.
struct Activations {
    const Element* start;  // this thread's chunk of feature 0, or the first of the tile where N ends before it
    u32 place;             // where it goes, from the start of a panel
    int feature, left, n;  // its first feature of a panel, rows from its chunk to the end

    __device__ __forceinline__ Activations(const Element* __restrict__ x, int row0, int n_) {
        const u32 line = threadIdx.x / kPanelChunks, column = threadIdx.x % kPanelChunks;
        n = n_, feature = line % kPanel, left = n - row0 - static_cast<int>(column) * kChunk;
        // Rows past the end are loads of others: their sums are never stored.
        start = x + row0 + (left > 0 ? column * kChunk : 0);
        keep(start);
        place = swizzled<kPanelChunks>(feature, column) + line / kPanel * kPanelBytes;
    }

    __device__ __forceinline__ void issue(u32 stage, const int* record) const {
        if (n % kChunk == 0)
            each_chunk(stage, record, [](u32 to, const Element* from) { cp_async_16(to, from); });
        else
            each_chunk(stage, record, [this](u32 to, const Element* from) { copy_elements(to, from, left); });
    }

    template <class Copy>
    __device__ __forceinline__ void each_chunk(u32 stage, const int* record, Copy copy) const {
        const int panels = record[0];
        u32 to = stage + place;
#pragma unroll 2
        for (int p = 0; p < panels; p += kPanelsAtOnce, to += kPanelsAtOnce * kPanelBytes) {
            const int first = record[kPanelIds + p] * kPanel + feature;
#pragma unroll
            for (int pass = 0; pass < kLoadPasses; ++pass) {
                const u32 there = kLoadLines % 8 == 0 ? to + pass * (kLoadLines * kPanelChunks * 16)
                                                      : to - place + swizzled<kPanelChunks>(feature + pass * kLoadLines, threadIdx.x % kPanelChunks);
                copy(there, start + static_cast<long long>(first + pass * kLoadLines) * n);
            }
        }
    }
};

// The pieces of W of a stage, after its panels, global -> shared.
struct Weights {
    const Element* piece;  // this thread's chunk of a piece at the start of W
    u32 place;             // where it goes, from the start of the pieces

    __device__ __forceinline__ explicit Weights(const Element* __restrict__ w) {
        const u32 inside = threadIdx.x % kPieceChunks;
        piece = w + (inside / kPieceColumns * (kBlock / kChunk) + inside % kPieceColumns) * kChunk;
        keep(piece);
        place = piece_offset(inside) + threadIdx.x / kPieceChunks * kPieceBytes;
    }

    static __device__ __forceinline__ u32 piece_offset(u32 inside) {
        const u32 piece_row = inside / kPieceColumns, column = inside % kPieceColumns;
        return column / kLine * (kPieceRows * kLine * 16) + swizzled<kLine>(piece_row, column % kLine);
    }

    __device__ __forceinline__ void issue(u32 stage, const int* record) const {
        const int operations = record[1];
        u32 to = stage + record[0] * kPanelBytes + place;
#pragma unroll 2
        for (int p = threadIdx.x / kPieceChunks; p < operations; p += kPiecesAtOnce, to += kPiecesAtOnce * kPieceBytes)
            cp_async_16(to, piece + static_cast<long long>(record[kPieceStarts + p]) * kChunk);
    }
};

// d += a * b on tensor cores, 16 x 8 x 16, float16 in, float32 sums (PTX: mma.sync.m16n8k16).
__device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

// One operation: this warp's rows of kDepth inputs, at a, times one output block of weights, at b. Both are this lane's
// addresses; the swizzle turns a step along the chunks of a line into an exclusive or.
__device__ __forceinline__ void multiply(float (&sums)[kMTiles][kNTiles][4], u32 a, u32 b) {
#pragma unroll 2
    for (int k = 0; k < kDepth / kStep; ++k) {
        u32 inputs[kMTiles][4];
#pragma unroll
        for (int m = 0; m < kMTiles; ++m) ldmatrix_x4_trans(inputs[m], (a ^ m * 32) + k * (kStep * kPanelChunks * 16));
#pragma unroll
        for (int j = 0; j < kNTiles; j += 2) {
            u32 weights[4];
            ldmatrix_x4_trans(weights, (b ^ j % kLine * 16) + j / kLine * (kPieceRows * kLine * 16) + k * (16 * kLine * 16));
#pragma unroll
            for (int m = 0; m < kMTiles; ++m) {
                mma(sums[m][j], inputs[m], weights[0], weights[1]);
                mma(sums[m][j + 1], inputs[m], weights[2], weights[3]);
            }
        }
    }
}

constexpr u32 kSwizzled = 128;  // bytes of a line that the swizzle permutes

// The operations of a stage that fall to this warp.
__device__ __forceinline__ void multiply_stage(float (&sums)[kWarpSlots][kMTiles][kNTiles][4], u32 stage, const int* record, int warp_m, int warp_n) {
    const int lane = threadIdx.x % 32;
    // Lanes 0-7 point at 8 inputs of 8 rows, 8-15 at those of the next 8 rows, 16-31 at 8 inputs further on.
    const u32 first = swizzled<kPanelChunks>(lane % 8 + lane / 16 * 8, warp_m * (kMTiles * 2) + lane / 8 % 2);
    const u32 rows = stage + first / kSwizzled * kSwizzled, swizzle = first % kSwizzled;
    const u32 weights = stage + record[0] * kPanelBytes + swizzled<kLine>(lane % 16, lane / 16);
    const int* starts = record + kSlotStarts + warp_n * kWarpSlots;
    const int* inputs = record + kInputs;
    int operation = starts[0];
    u32 ahead = inputs[operation];  // read one round ahead, to keep its latency out of the chain
#pragma unroll
    for (int s = 0; s < kWarpSlots; ++s) {
        const int end = starts[s + 1];
#pragma unroll 1
        while (operation < end) {
            const u32 a = rows + ahead * 16 ^ swizzle, b = weights + operation * kPieceBytes;
            ahead = inputs[++operation];
            multiply(sums[s], a, b);
        }
    }
}

// The 8 x 8 matrix of 16-bit elements that a warp holds as mma.sync's results, two of a row a lane, transposed (PTX: movmatrix, sm_75).
__device__ __forceinline__ u32 transposed(u32 r) {
    u32 t;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(t) : "r"(r));
    return t;
}

// Two rows of a feature, as far as there are any left; both in one word where N is even.
__device__ __forceinline__ u32 load_two(const Element* __restrict__ p, int left, int n) {
    if (n % 2 == 0) return left > 0 ? *reinterpret_cast<const u32*>(p) : 0;
    return (left > 0 ? p[0] : 0) | (left > 1 ? static_cast<u32>(p[1]) << 16 : 0);
}

// Two rows of a feature, as far as there are any left; both in one word where N is even.
__device__ __forceinline__ void store_two(Element* p, u32 v, int left, int n) {
    if (n % 2 == 0) {
        if (left > 0) *reinterpret_cast<u32*>(p) = v;
    } else {
        if (left > 0) p[0] = static_cast<Element>(v);
        if (left > 1) p[1] = static_cast<Element>(v >> 16);
    }
}

// Accumulators -> global: the epilogue for finished outputs, float32 for partial sums. A line of either is a feature.
__device__ __forceinline__ void store(const float (&sums)[kWarpSlots][kMTiles][kNTiles][4], const int* targets, int row0, int n,
                                      Element* __restrict__ y, const Element* __restrict__ bias, const Element* __restrict__ residual, float* __restrict__ workspace) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2 * kMTiles; ++half) {
        const int m = half / 2, i = half % 2 * 2, first = row0 + half * 8, row = first + lane / 4;
        if (first >= n) return;
#pragma unroll
        for (int s = 0; s < kWarpSlots; ++s) {
            const int target = targets[s];
            if (target == kNoOutput) continue;
            if (target < 0) {
                float* partial = workspace + (static_cast<long long>(~target) * kBlock + lane % 4 * 2) * n + row;
#pragma unroll
                for (int j = 0; j < kNTiles; ++j, partial += 8ll * n)
                    if (row < n) partial[0] = sums[s][m][j][i], partial[n] = sums[s][m][j][i + 1];
                continue;
            }
#pragma unroll
            for (int j = 0; j < kNTiles; ++j) {
                const int column = target * kBlock + j * 8 + lane % 4 * 2;
                // A lane has two features of a row; turned, it has two rows of a feature.
                const long long place = static_cast<long long>(target * kBlock + j * 8 + lane / 4) * n + first + lane % 4 * 2;
                const int left = n - first - lane % 4 * 2;
                const float2 r = unpack(transposed(load_two(residual + place, left, n)));
                const float2 v = finish(make_float2(sums[s][m][j][i], sums[s][m][j][i + 1]), load_pair(bias + column), r);
                store_two(y + place, transposed(pack(v.x, v.y)), left, n);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(kThreads, 2)
bsgen_fprop_b32_float16_portable_5734be5d2ec1f220(const Element* __restrict__ x, const Element* __restrict__ w, Element* __restrict__ y, const Element* __restrict__ bias, const Element* __restrict__ residual, float* __restrict__ workspace, int n) {
    extern __shared__ __align__(128) unsigned char shared[];
    const u32 stages_base = shared_address(shared), records_base = stages_base + kStages * kStageBytes;
    const int* records = reinterpret_cast<const int*>(shared + kStages * kStageBytes);
    const int tile = blockIdx.x % kTiles, row0 = blockIdx.x / kTiles * kRows;
    const int first = kTileStages[tile], stages = kTileStages[tile + 1] - first;
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), warp_m = warp / kWarpsN, warp_n = warp % kWarpsN;

    const Activations activations(x, row0, n);
    const Weights weights(w);

    // Issue the loads of stage i, and of the record that will be needed when it has arrived. Slots of the two rings go round.
    int stage_slot = 0, record_slot = 0, next_record = kStages - 1;
    const auto fetch = [&](int i) {
        if (i < stages) {
            const u32 stage = stages_base + stage_slot * kStageBytes;
            activations.issue(stage, records + record_slot * kRecordWords);
            weights.issue(stage, records + record_slot * kRecordWords);
        }
        if (i + kStages - 1 < stages) load_record(records_base + next_record * (kRecordWords * 4), first + i + kStages - 1);
        cp_async_commit();
        stage_slot = stage_slot + 1 == kStages ? 0 : stage_slot + 1;
        record_slot = record_slot + 1 == kRecordRing ? 0 : record_slot + 1;
        next_record = next_record + 1 == kRecordRing ? 0 : next_record + 1;
    };

    // Prologue: the first records, then the first stages.
    for (int i = 0; i < kStages - 1 && i < stages; ++i) load_record(records_base + i * kRecordWords * 4, first + i);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    for (int i = 0; i < kStages - 1; ++i) fetch(i);

    // Main loop: stage i has arrived and stage i - 1 has been consumed when all pass the barrier.
    float sums[kWarpSlots][kMTiles][kNTiles][4] = {};
    int slot = 0, record = 0;
    for (int i = 0; i < stages; ++i) {
        cp_async_wait<kStages - 2>();
        __syncthreads();
        fetch(i + kStages - 1);
        multiply_stage(sums, stages_base + slot * kStageBytes, records + record * kRecordWords, warp_m, warp_n);
        slot = slot + 1 == kStages ? 0 : slot + 1;
        record = record + 1 == kRecordRing ? 0 : record + 1;
    }

    store(sums, kTargets + tile * kSlots + warp_n * kWarpSlots, row0 + warp_m * (kMTiles * 16), n, y, bias, residual, workspace);
}

__device__ __forceinline__ float load_one(const Element* p) { return unpack(*p).x; }
__device__ __forceinline__ void store_one(Element* p, float v) { *p = static_cast<Element>(pack(v, 0.0f)); }
// Split outputs: their partial sums, added in order, and the epilogue. [kSplits, 3]: output block, first partial sum, count.
__device__ const int __align__(16) kReductions[] = {
    0,0,29,
};

constexpr int kSplits = 1, kReduceRows = 32, kReduceThreads = 256;

extern "C" __global__ void __launch_bounds__(kReduceThreads)
bsgen_fprop_b32_float16_portable_5734be5d2ec1f220_reduce(Element* __restrict__ y, const Element* __restrict__ bias, const Element* __restrict__ residual, const float* __restrict__ workspace, int n) {
    const int* reduction = kReductions + blockIdx.x % kSplits * 3;
    const int row = blockIdx.x / kSplits * kReduceRows + threadIdx.x % kReduceRows;
    if (row >= n) return;
    // A thread adds two features of its row at a time.
#pragma unroll 1
    for (int inside = threadIdx.x / kReduceRows * 2; inside < kBlock; inside += kReduceThreads / kReduceRows * 2) {
        const float* partial = workspace + (static_cast<long long>(reduction[1]) * kBlock + inside) * n + row;
        float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll 4
        for (int p = 0; p < reduction[2]; ++p, partial += static_cast<long long>(kBlock) * n) sum.x += partial[0], sum.y += partial[n];
        const int column = reduction[0] * kBlock + inside;
        const long long place = static_cast<long long>(column) * n + row;
        const float2 r = make_float2(load_one(residual + place), load_one(residual + place + n));
        const float2 v = finish(sum, load_pair(bias + column), r);
        store_one(y + place, v.x), store_one(y + place + n, v.y);
    }
}
