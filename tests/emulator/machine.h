// A GPU's thread blocks on the host: every thread a fiber, what warps do together done together, copies and barriers as the PTX ISA says.
// Kernels are emitted text with their inline assembly taken out; the functions here stand in for templates/device/*.cuh. Fibers run in
// an order drawn anew from a seed, warp by warp, copies land late and multiplies of warpgroups come late: a kernel that waits for too little
// fails here, too. This much is compiled with every kernel, so it is little: machine.cpp has the rest, and device.h what elements are.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

using u32 = unsigned int;
using std::max;
using std::min;
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))

struct int2 { int x, y; };
struct alignas(8) uint2 { u32 x, y; };
struct alignas(16) uint4 { u32 x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float __uint_as_float(u32 bits) { float v; std::memcpy(&v, &bits, 4); return v; }
inline u32 __float_as_uint(float v) { u32 bits; std::memcpy(&bits, &v, 4); return bits; }
inline float __expf(float v) { return std::exp(v); }
inline float __fdividef(float a, float b) { return a / b; }
struct dim3 { unsigned x = 0, y = 0, z = 0; };

[[noreturn]] void fail(const char* what, long long value = 0);

// --- threads -----------------------------------------------------------------------------------------------------------------------

constexpr u32 kSharedBase = 1024;  // so that address 0 is nobody's
constexpr size_t kSharedBytes = 227 * 1024;

struct ThreadBlock {
    unsigned index, rank;
    unsigned char* shared;
};
struct Thread {
    ThreadBlock* block;
    dim3 index;
};
extern Thread* self;
extern dim3 grid, block_size;

#define threadIdx (self->index)
#define blockIdx (dim3{self->block->index, 0, 0})
#define gridDim (grid)
#define blockDim (block_size)

inline unsigned lane_id() { return self->index.x % 32; }
inline unsigned char* at(u32 address, u32 bytes, const ThreadBlock* block = self->block) {
    if (address < kSharedBase || address + bytes > kSharedBase + kSharedBytes) fail("outside of shared memory", address);
    if (address % min(bytes, 16u)) fail("misaligned in shared memory", address);
    return block->shared + (address - kSharedBase);
}

// Every lane gives a value and sees those of all, until it lets another thread run.
using Slot = unsigned char[64];
const Slot* exchange(const void* value, size_t bytes);
template <class T>
struct Lanes {
    const Slot* slots;
    const T& operator[](unsigned lane) const { return *reinterpret_cast<const T*>(slots[lane]); }
};
template <class T>
inline Lanes<T> exchange(const T& value) {
    static_assert(sizeof(T) <= sizeof(Slot));
    return {exchange(&value, sizeof(T))};
}
void __syncwarp();
void __syncthreads();
template <class T>
inline T __shfl_sync(u32, T value, int lane) { return exchange(value)[lane]; }
template <class T>
inline T __shfl_xor_sync(u32, T value, int mask) { return exchange(value)[lane_id() ^ mask]; }
template <class T>
inline T __shfl_down_sync(u32, T value, int by) { return exchange(value)[min(lane_id() + by, 31u)]; }
u32 __ballot_sync(u32, bool vote);
inline int __popc(u32 bits) { return __builtin_popcount(bits); }

// Start every thread block of a cluster at once, cluster after cluster.
void launch(unsigned count, unsigned threads, unsigned cluster, unsigned seed, void (*body)(const void*), const void* kernel);
template <class Kernel>
inline void launch(unsigned count, unsigned threads, unsigned cluster, unsigned seed, const Kernel& kernel) {
    launch(count, threads, cluster, seed, [](const void* given) { (*static_cast<const Kernel*>(given))(); }, &kernel);
}

// An operand, in a file of its name; null if there is none.
struct Operand {
    const char* name;
    unsigned char* memory = nullptr;
    size_t size = 0;
    struct Any {
        void* p;
        template <class T> operator T*() const { return static_cast<T*>(p); }
    };
    explicit Operand(const char* file);
    ~Operand() { std::free(memory); }
    unsigned char* data() const { return memory + (128 - reinterpret_cast<uintptr_t>(memory) % 128); }
    Any as() const { return {memory ? data() : nullptr}; }
    void write() const;
};

// --- templates/device ------------------------------------------------------------------------------------------------------------------

inline unsigned long long __cvta_generic_to_shared(const void* p) {
    return static_cast<const unsigned char*>(p) - self->block->shared + kSharedBase;
}
template <class T>
inline void keep(const T*&) {}
inline u32 ld_word(u32 address) { u32 v; std::memcpy(&v, at(address, 4), 4); return v; }
inline u32 load_word(u32 address) { return ld_word(address); }
inline u32 load_shared_if(u32 address, u32 used) { return used ? ld_word(address) : 0; }
inline void store_shared(u32 address, float value) { std::memcpy(at(address, 4), &value, 4); }
inline uint2 load_shared_pair(u32 address) { uint2 v; std::memcpy(&v, at(address, 8), 8); return v; }
inline uint4 load_shared_chunk(u32 address) { uint4 v; std::memcpy(&v, at(address, 16), 16); return v; }
inline void store_chunk(u32 address, uint4 v) { std::memcpy(at(address, 16), &v, 16); }
inline float2 load_shared_2(u32 address) { float2 v; std::memcpy(&v, at(address, 8), 8); return v; }
inline float4 load_shared_4(u32 address) { float4 v; std::memcpy(&v, at(address, 16), 16); return v; }
inline float positive(float v) { return std::isnan(v) ? v : std::fmax(v, 0.0f); }
inline float ex2(float v) { return std::exp2(v); }
inline u32 tf32(u32 bits) { return (bits + 0x1000) & ~0x1fffu; }

void cp_async_16(u32 shared, const void* global);
void cp_async_16_or_zeros(u32 shared, const void* global, bool valid);
inline void cp_async_commit() {}
template <int Pending>
inline void cp_async_wait() {}

void barrier_init(u32 barrier, int arrivals);
inline void barrier_init_fence() {}
void barrier_arrive(u32 barrier);
void barrier_arrive_at(u32 barrier, u32 rank);
void barrier_expect(u32 barrier, u32 bytes);
void barrier_wait(u32 barrier, u32 parity);
void store_global_chunk(void* global, uint4 v);
void named_barrier(int which, int threads);
template <int Threads = 128>
inline void producers_sync() { named_barrier(1, Threads); }
template <int Threads>
inline void consumers_sync() { named_barrier(2, Threads); }
inline void producers_sync(int ring) { named_barrier(ring + 1, 64); }
inline void warpgroup_sync() { named_barrier(self->index.x / 128 + 3, 128); }
template <class T> inline void read_here(T&) {}
void cluster_sync();

struct TensorMap {
    const unsigned char* base;
    long long columns, rows;  // of the matrix
    int box_columns, box_rows, item;
};
inline void tma_prefetch(const TensorMap&) {}
inline void wait_for_kernel_ahead() {}  // each kernel ends before the next begins
inline void let_kernel_behind_begin() {}
void tma_load(u32 shared, const TensorMap& map, int column, int row, u32 barrier);
void tma_multicast(u32 shared, const TensorMap& map, int column, int row, u32 barrier, unsigned short ranks);
void bulk_load(u32 shared, const void* global, u32 bytes, u32 barrier);

// L2 is not modelled: what it evicts first is loaded like all else.
inline unsigned long long evict_first() { return 1; }
void tma_load_evicted(u32 shared, const TensorMap& map, int column, int row, u32 barrier, unsigned long long policy);
void bulk_load_evicted(u32 shared, const void* global, u32 bytes, u32 barrier, unsigned long long policy);

// --- multiplies: of elements of 16 bits, which are bfloat16 if Brain and else float16, or of TF32 ----------------------------------------

template <bool Brain>
inline float wide(uint16_t bits) {
    if (Brain) return __uint_as_float(static_cast<u32>(bits) << 16);
    _Float16 v;
    std::memcpy(&v, &bits, 2);
    return static_cast<float>(v);
}
template <bool Brain>
inline uint16_t narrow(float v) {
    const u32 word = __float_as_uint(v);
    if (Brain) return v != v ? 0x7fff : (word + 0x7fff + (word >> 16 & 1)) >> 16;
    const _Float16 half = static_cast<_Float16>(v);
    uint16_t bits;
    std::memcpy(&bits, &half, 2);
    return bits;
}

// Matrix m's row r is where lane 8 m + r points; a lane gets two elements of row lane / 4, or of column lane / 4 if transposed.
void ldmatrix(u32* r, int count, u32 address, bool transposed);
inline void ldmatrix_x4(u32 (&r)[4], u32 address) { ldmatrix(r, 4, address, false); }
inline void ldmatrix_x4_trans(u32 (&r)[4], u32 address) { ldmatrix(r, 4, address, true); }
inline void ldmatrix_x2(u32 (&r)[2], u32 address) { ldmatrix(r, 2, address, false); }
inline void ldmatrix_x2_trans(u32 (&r)[2], u32 address) { ldmatrix(r, 2, address, true); }
inline u32 ldmatrix_x1(u32 address) { u32 r; ldmatrix(&r, 1, address, false); return r; }
inline u32 ldmatrix_x1_trans(u32 address) { u32 r; ldmatrix(&r, 1, address, true); return r; }
u32 transposed(u32 r);
void stmatrix_x4(u32 address, const u32 (&r)[4]);
void stmatrix_x4_trans(u32 address, const u32 (&r)[4]);

struct Operands { u32 a[4], b[2]; };
// 16 x 8 x (8 * halves): register 2 h + half of a holds row lane / 4 + 8 half, and of b column lane / 4; inputs 8 h + lane % 4 * 2 and the next.
template <bool Brain>
void multiply_16bit(float (&d)[4], const Operands& mine, int halves);
void multiply_tf32(float (&d)[4], const Operands& mine);

// wgmma (PTX: asynchronous warpgroup level matrix multiply-accumulate)
struct Matrix {  // what a descriptor says
    u32 low, high;
    bool transposed;
    int item;
};
template <bool Brain>
void wgmma_registers(float* sums, int count, const u32 (&a)[4], const Matrix& b);
template <bool Brain>
void wgmma_shared(float* sums, int count, const Matrix& a, const Matrix& b);
inline void wgmma_fence() {}
void wgmma_commit();
void wgmma_wait_until(size_t pending);
template <int Pending>
inline void wgmma_wait() { wgmma_wait_until(Pending); }
