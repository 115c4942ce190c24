// A GPU's thread blocks on the host: every thread a fiber, what warps do together done together, copies and barriers as the PTX ISA says.
// Kernels are emitted text with their inline assembly taken out; the functions here stand in for templates/device/*.cuh. Fibers run in
// an order drawn anew from a seed, warp by warp, copies land late and multiplies of warpgroups come late: a kernel that waits for too little
// fails here, too.
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <random>
#include <unordered_map>
#include <vector>

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

[[noreturn]] inline void fail(const char* what, long long value = 0) {
    std::fprintf(stderr, "emulator: %s (%lld)\n", what, value);
    std::exit(3);
}

// --- threads -----------------------------------------------------------------------------------------------------------------------

constexpr u32 kSharedBase = 1024;  // so that address 0 is nobody's
constexpr size_t kSharedBytes = 227 * 1024, kStackBytes = 64 * 1024;

struct Barrier {  // an mbarrier
    bool ready = false;
    int expected = 0, pending = 0;
    long long bytes = 0;
    u32 phase = 0;
    void settle() {
        if (pending < 0) fail("more arrivals on a barrier than it was made for");
        if (pending == 0 && bytes == 0) phase ^= 1, pending = expected;
    }
};
struct Meeting {  // of threads that wait for each other, again and again
    int here = 0, generation = 0;
};
struct Warp {
    Meeting meeting;
    alignas(16) unsigned char data[2][32][64];
};
struct Block {
    unsigned index, rank;
    std::vector<unsigned char> memory;
    unsigned char* shared;
    std::vector<Warp> warps;
    std::vector<Meeting> named = std::vector<Meeting>(16);
    Barrier& barrier(u32 address) {
        if (address % 8 || address < kSharedBase || address + 8 > kSharedBase + kSharedBytes) fail("no barrier at", address);
        return barriers[address];
    }
    std::unordered_map<u32, Barrier> barriers;
    unsigned threads = 0;  // that have not ended
};
struct Copy {
    int delay;
    std::function<void()> land;
};
struct Fiber {
    ucontext_t context;
    std::vector<unsigned char> stack;
    Block* block;
    dim3 index;
    bool done = false;
    std::vector<std::function<void()>> issued;                // its multiplies that are in no group yet
    std::deque<std::vector<std::function<void()>>> at_work;  // groups of them, the oldest first
};

inline std::vector<Fiber> fibers;
inline std::vector<Block> blocks;  // of one cluster
inline std::deque<Copy> copies;
inline Fiber* self;
inline ucontext_t scheduler;
inline std::mt19937 chance;
inline dim3 grid, block_size;
inline Meeting cluster_meeting;
inline long long idle;
inline void end_of_thread() {
    if (!self->issued.empty() || !self->at_work.empty()) fail("a thread ends while its multiplies are at work");
    self->done = true, --self->block->threads, idle = 0;
}

constexpr int kLong = 200, kShort = 20, kVeryLong = 4000, kPatience = 60000;  // rounds: of what is late, and until nothing can come any more

// Rounds until a copy or an arrival lands: mostly few, now and then many.
inline int late() {
    const u32 which = chance() % 8;
    return chance() % (which == 0 ? kLong : which < 4 ? kShort : 3);
}

// Something that falls behind now and then: a warp, or all of a thread block.
struct Straggler {
    int rounds = 0;
    bool stands(unsigned one_in, unsigned most) {
        if (rounds > 0) return --rounds, true;
        if (chance() % one_in == 0) rounds = chance() % most;
        return false;
    }
};

#define threadIdx (self->index)
#define blockIdx (dim3{self->block->index, 0, 0})
#define gridDim (grid)
#define blockDim (block_size)

inline void yield() { swapcontext(&self->context, &scheduler); }
inline void meet(Meeting& meeting, int count) {
    const int generation = meeting.generation;
    if (++meeting.here == count) {
        meeting.here = 0, ++meeting.generation;
    } else {
        while (meeting.generation == generation) yield();
    }
    idle = 0;
}
inline Warp& warp() { return self->block->warps[self->index.x / 32]; }
inline unsigned lane_id() { return self->index.x % 32; }
inline unsigned char* at(u32 address, u32 bytes, Block* block = nullptr) {
    if (address < kSharedBase || address + bytes > kSharedBase + kSharedBytes) fail("outside of shared memory", address);
    if (address % min(bytes, 16u)) fail("misaligned in shared memory", address);
    return (block ? block : self->block)->shared + (address - kSharedBase);
}

// Every lane gives a value and sees those of all.
template <class T>
inline const T* exchange(const T& value) {
    static_assert(sizeof(T) <= 64);
    Warp& mine = warp();
    auto& data = mine.data[mine.meeting.generation % 2];
    std::memcpy(data[lane_id()], &value, sizeof(T));
    meet(mine.meeting, 32);
    static T all[32];  // for the caller to read before it lets another thread run
    for (int lane = 0; lane < 32; ++lane) std::memcpy(&all[lane], data[lane], sizeof(T));
    return all;
}
inline void __syncwarp() { meet(warp().meeting, 32); }
inline void __syncthreads() { meet(self->block->named[0], block_size.x); }
template <class T>
inline T __shfl_sync(u32, T value, int lane) { return exchange(value)[lane]; }
template <class T>
inline T __shfl_xor_sync(u32, T value, int mask) { return exchange(value)[lane_id() ^ mask]; }
template <class T>
inline T __shfl_down_sync(u32, T value, int by) { return exchange(value)[min(lane_id() + by, 31u)]; }
inline u32 __ballot_sync(u32, bool vote) {
    const auto found = exchange(vote);
    u32 votes = 0;
    for (u32 lane = 0; lane < 32; ++lane) votes |= u32(found[lane]) << lane;
    return votes;
}
inline int __popc(u32 bits) { return __builtin_popcount(bits); }

// Start every thread block of a cluster at once, cluster after cluster.
template <class Kernel>
inline void launch(unsigned count, unsigned threads, unsigned cluster, unsigned seed, Kernel kernel) {
    static Kernel* body;
    body = &kernel;
    chance.seed(seed);
    grid.x = count, block_size.x = threads;
    for (unsigned first = 0; first < count; first += cluster) {
        blocks.clear(), copies.clear();
        blocks.resize(cluster), fibers.resize(cluster * threads);
        for (unsigned rank = 0; rank < cluster; ++rank) {
            Block& block = blocks[rank];
            block.index = first + rank, block.rank = rank, block.warps.resize(threads / 32);
            block.memory.assign(kSharedBytes + 2048, 0xff);  // NaN
            block.shared = block.memory.data() + (1024 - reinterpret_cast<uintptr_t>(block.memory.data()) % 1024);
        }
        for (unsigned i = 0; i < fibers.size(); ++i) {
            Fiber& fiber = fibers[i];
            fiber.block = &blocks[i / threads], fiber.index.x = i % threads, fiber.stack.resize(kStackBytes), fiber.done = false;
            ++fiber.block->threads;
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.data(), fiber.context.uc_stack.ss_size = kStackBytes;
            fiber.context.uc_link = &scheduler;
            makecontext(&fiber.context, +[] { (*body)(), end_of_thread(); }, 0);
        }
        std::vector<unsigned> order(fibers.size() / 32);
        for (unsigned i = 0; i < order.size(); ++i) order[i] = i;
        std::vector<Straggler> warps(order.size()), slow_blocks(cluster);
        idle = 0;
        for (bool more = true; more;) {
            more = false;
            std::shuffle(order.begin(), order.end(), chance);
            std::vector<bool> waits(cluster);
            for (unsigned rank = 0; rank < cluster; ++rank) waits[rank] = slow_blocks[rank].stands(kLong, kLong);
            for (unsigned w : order) {
                const Fiber* first = &fibers[w * 32];
                if (std::all_of(first, first + 32, [](const Fiber& fiber) { return fiber.done; })) continue;
                more = true;
                if (waits[w / (threads / 32)] || warps[w].stands(kLong / 2, kLong)) continue;
                for (unsigned lane = 0; lane < 32; ++lane) {
                    self = &fibers[w * 32 + lane];
                    if (!self->done) swapcontext(&scheduler, &self->context);
                }
            }
            for (size_t i = 0; i < copies.size();)
                if (--copies[i].delay <= 0) copies[i].land(), copies.erase(copies.begin() + i), idle = 0;
                else ++i;
            if (++idle > kPatience) fail("every thread waits for something that does not come");
        }
        if (!copies.empty()) fail("copies on their way at the end of a thread block");
    }
}

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
inline float as_tf32(float v) {  // an operand of a multiply, which cuts bits off: none may be there
    if ((__float_as_uint(v) & 0x1fff) && !std::isnan(v)) fail("an operand of TF32 that was not rounded", __float_as_uint(v));
    return v;
}

inline void cp_async_16(u32 shared, const void* global) {
    if (reinterpret_cast<uintptr_t>(global) % 16) fail("cp.async from a misaligned address");
    std::memcpy(at(shared, 16), global, 16);
}
inline void cp_async_16_or_zeros(u32 shared, const void* global, bool valid) {
    if (valid) cp_async_16(shared, global);
    else std::memset(at(shared, 16), 0, 16);
}
inline void cp_async_commit() {}
template <int Pending>
inline void cp_async_wait() {}

inline void barrier_init(u32 barrier, int arrivals) {
    Barrier& b = self->block->barrier(barrier);
    b.ready = true, b.expected = b.pending = arrivals;
}
inline void barrier_init_fence() {}
inline void barrier_arrive(u32 barrier) {
    Barrier& b = self->block->barrier(barrier);
    --b.pending, b.settle(), idle = 0;
}
inline void barrier_expect(u32 barrier, u32 bytes) {
    Barrier& b = self->block->barrier(barrier);
    b.bytes += bytes, --b.pending, b.settle(), idle = 0;
}
inline void barrier_wait(u32 barrier, u32 parity) {
    Barrier& b = self->block->barrier(barrier);
    if (!b.ready) fail("wait on a barrier that was not made", barrier);
    while (b.phase == parity) yield();  // complete when the current phase is another than that of `parity`
    idle = 0;
}
inline void store_global_chunk(void* global, uint4 v) {
    if (reinterpret_cast<uintptr_t>(global) % 16) fail("a store to a misaligned address");
    std::memcpy(global, &v, 16);
}
template <int Threads = 128>
inline void producers_sync() { meet(self->block->named[1], Threads); }
inline void producers_sync(int ring) { meet(self->block->named[ring + 1], 64); }
inline void warpgroup_sync() { meet(self->block->named[self->index.x / 128 + 3], 128); }
template <class T> inline void read_here(T&) {}
inline void cluster_sync() { meet(cluster_meeting, static_cast<int>(fibers.size())); }
inline void barrier_arrive_at(u32 barrier, u32 rank) {
    Barrier& b = blocks[rank].barrier(barrier);
    if (!b.ready) fail("arrival on a neighbour's barrier that was not made", barrier);
    // It takes its time, which nothing but a wait on that barrier sees.
    Block* const there = &blocks[rank];
    copies.push_back({chance() % 40 ? late() : static_cast<int>(chance() % kVeryLong), [=, &b] {
        if (!there->threads) fail("an arrival at a thread block that has ended");
        --b.pending, b.settle();
    }});
}

struct TensorMap {
    const unsigned char* base;
    long long columns, rows;  // of the matrix
    int box_columns, box_rows, item;
};
inline void tma_prefetch(const TensorMap&) {}
inline void wait_for_kernel_ahead() {}  // each kernel ends before the next begins
inline void let_kernel_behind_begin() {}
inline void start(Block* block, u32 barrier, long long bytes, std::function<void()> land) {
    Barrier* b = &block->barrier(barrier);
    if (!b->ready) fail("copy for a barrier that was not made", barrier);
    copies.push_back({late(), [=] { land(), b->bytes -= bytes, b->settle(); }});
}
inline void round_to_tf32(unsigned char* place) {
    u32 bits;
    std::memcpy(&bits, place, 4);
    bits = tf32(bits);
    std::memcpy(place, &bits, 4);
}
inline void land_box(Block* block, u32 shared, const TensorMap& map, int column, int row) {
    const int line = map.box_columns * map.item;
    for (int r = 0; r < map.box_rows; ++r)
        for (int byte = 0; byte < line; byte += 16) {
            const u32 place = shared + r * line + byte;
            const u32 there = line == 128 ? place ^ (place >> 7 & 7) << 4 : line == 64 ? place ^ (place >> 7 & 3) << 4 : place ^ (place >> 7 & 1) << 4;
            const long long c = column + byte / map.item;
            unsigned char* to = at(there, 16, block);
            for (int i = 0; i < 16 / map.item; ++i) {
                const bool inside = row + r >= 0 && row + r < map.rows && c + i >= 0 && c + i < map.columns;
                if (inside) std::memcpy(to + i * map.item, map.base + ((row + r) * map.columns + c + i) * map.item, map.item);
                else std::memset(to + i * map.item, 0, map.item);
                if (map.item == 4) round_to_tf32(to + i * 4);
            }
        }
}
inline void tma_load_at(Block* block, u32 shared, const TensorMap& map, int column, int row, u32 barrier) {
    const int line = map.box_columns * map.item;
    if (line != 32 && line != 64 && line != 128) fail("a row of a box is no swizzle line", line);
    if (shared % (8 * line)) fail("a box starts inside a swizzle atom", shared);
    std::memset(at(shared, 16, block), 0xff, line * map.box_rows);  // NaN until it lands: it may be written from now on
    start(block, barrier, static_cast<long long>(line) * map.box_rows, [=] { land_box(block, shared, map, column, row); });
}
inline void tma_load(u32 shared, const TensorMap& map, int column, int row, u32 barrier) {
    tma_load_at(self->block, shared, map, column, row, barrier);
}
inline void tma_multicast(u32 shared, const TensorMap& map, int column, int row, u32 barrier, unsigned short ranks) {
    for (unsigned rank = 0; rank < blocks.size(); ++rank)
        if (ranks >> rank & 1) tma_load_at(&blocks[rank], shared, map, column, row, barrier);
}
inline void bulk_load(u32 shared, const void* global, u32 bytes, u32 barrier) {
    if (bytes % 16 || bytes == 0 || shared % 16 || reinterpret_cast<uintptr_t>(global) % 16) fail("a bulk copy is not of whole chunks", bytes);
    at(shared, 16), at(shared + bytes - 16, 16);
    Block* block = self->block;
    std::memset(at(shared, 16), 0xff, bytes);
    start(block, barrier, bytes, [=] { std::memcpy(block->shared + (shared - kSharedBase), global, bytes); });
}

// L2 is not modelled: what it evicts first is loaded like all else.
inline unsigned long long evict_first() { return 1; }
inline void tma_load_evicted(u32 shared, const TensorMap& map, int column, int row, u32 barrier, unsigned long long policy) {
    if (policy != 1) fail("a cache policy that is none", static_cast<long long>(policy));
    tma_load(shared, map, column, row, barrier);
}
inline void bulk_load_evicted(u32 shared, const void* global, u32 bytes, u32 barrier, unsigned long long policy) {
    if (policy != 1) fail("a cache policy that is none", static_cast<long long>(policy));
    bulk_load(shared, global, bytes, barrier);
}

// --- 16-bit elements -------------------------------------------------------------------------------------------------------------------

#if BFLOAT16
inline float wide(uint16_t bits) { return __uint_as_float(static_cast<u32>(bits) << 16); }
inline uint16_t narrow(float v) {
    const u32 bits = __float_as_uint(v);
    return v != v ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
#else
inline float wide(uint16_t bits) { _Float16 v; std::memcpy(&v, &bits, 2); return static_cast<float>(v); }
inline uint16_t narrow(float v) { const _Float16 half = static_cast<_Float16>(v); uint16_t bits; std::memcpy(&bits, &half, 2); return bits; }
#endif
inline u32 pack(float low, float high) { return narrow(low) | static_cast<u32>(narrow(high)) << 16; }
inline float2 unpack(u32 bits) { return {wide(bits & 0xffff), wide(bits >> 16)}; }

// Matrix m's row r is where lane 8 m + r points; a lane gets two elements of row lane / 4, or of column lane / 4 if transposed.
template <int Count>
inline void ldmatrix(u32* r, u32 address, bool transposed) {
    const u32* all = exchange(address);
    const unsigned lane = lane_id();
    for (int i = 0; i < Count; ++i) {
        uint16_t two[2];
        for (unsigned e = 0; e < 2; ++e) {
            const unsigned row = transposed ? lane % 4 * 2 + e : lane / 4, column = transposed ? lane / 4 : lane % 4 * 2 + e;
            std::memcpy(&two[e], at(all[i * 8 + row], 16) + column * 2, 2);
        }
        r[i] = two[0] | static_cast<u32>(two[1]) << 16;
    }
}
inline void ldmatrix_x4(u32 (&r)[4], u32 address) { ldmatrix<4>(r, address, false); }
inline void ldmatrix_x4_trans(u32 (&r)[4], u32 address) { ldmatrix<4>(r, address, true); }
inline void ldmatrix_x2(u32 (&r)[2], u32 address) { ldmatrix<2>(r, address, false); }
inline void ldmatrix_x2_trans(u32 (&r)[2], u32 address) { ldmatrix<2>(r, address, true); }
inline u32 ldmatrix_x1(u32 address) { u32 r; ldmatrix<1>(&r, address, false); return r; }
inline u32 ldmatrix_x1_trans(u32 address) { u32 r; ldmatrix<1>(&r, address, true); return r; }
inline u32 transposed(u32 r) {
    const u32* all = exchange(r);
    const unsigned lane = lane_id(), row = lane / 4, shift = row % 2 * 16;
    const auto element = [&](unsigned line) { return all[line * 4 + row / 2] >> shift & 0xffff; };
    return element(lane % 4 * 2) | element(lane % 4 * 2 + 1) << 16;
}
inline void stmatrix_x4_trans(u32 address, const u32 (&r)[4]) {
    const u32* all = exchange(address);
    const unsigned lane = lane_id();
    for (unsigned i = 0; i < 4; ++i)
        for (unsigned e = 0; e < 2; ++e) {
            const uint16_t bits = static_cast<uint16_t>(r[i] >> e * 16);
            std::memcpy(at(all[i * 8 + lane % 4 * 2 + e], 16) + lane / 4 * 2, &bits, 2);
        }
}
inline void stmatrix_x4(u32 address, const u32 (&r)[4]) {
    const u32* all = exchange(address);
    const unsigned lane = lane_id();
    for (unsigned i = 0; i < 4; ++i) std::memcpy(at(all[i * 8 + lane / 4], 16) + lane % 4 * 4, &r[i], 4);
}

struct Operands { u32 a[4], b[2]; };
inline float half_of(u32 bits, int which) { return wide(which ? bits >> 16 : bits & 0xffff); }
// 16 x 8 x (8 * Halves): register 2 h + half of a holds row lane / 4 + 8 half, and of b column lane / 4; inputs 8 h + lane % 4 * 2 and the next.
template <int Halves>
inline void multiply_16bit(float (&d)[4], const Operands& mine) {
    const Operands* all = exchange(mine);
    const unsigned lane = lane_id(), g = lane / 4, t = lane % 4;
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned row = g, half = i / 2, column = t * 2 + i % 2;
        float sum = d[i];
        for (int h = 0; h < Halves; ++h)
            for (unsigned k = 0; k < 8; ++k)
                sum += half_of(all[row * 4 + k / 2].a[2 * h + half], k % 2) * half_of(all[column * 4 + k / 2].b[h], k % 2);
        d[i] = sum;
    }
}
#if !FLOAT32
inline void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { multiply_16bit<2>(d, {{a[0], a[1], a[2], a[3]}, {b0, b1}}); }
#else
inline void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    const Operands* all = exchange(Operands{{a[0], a[1], a[2], a[3]}, {b0, b1}});
    const unsigned lane = lane_id(), g = lane / 4, t = lane % 4;
    for (unsigned i = 0; i < 4; ++i) {
        float sum = d[i];
        for (unsigned k = 0; k < 8; ++k)
            sum += __uint_as_float(all[g * 4 + k % 4].a[k / 4 * 2 + i / 2]) * __uint_as_float(all[(t * 2 + i % 2) * 4 + k % 4].b[k / 4]);
        d[i] = sum;
    }
}
#endif
inline void mma_half(float (&d)[4], const u32 (&a)[2], u32 b) { multiply_16bit<1>(d, {{a[0], a[1], 0, 0}, {b, 0}}); }

// --- wgmma (PTX: asynchronous warpgroup level matrix multiply-accumulate) ---------------------------------------------------------------

inline void wgmma_fence() {}
inline void wgmma_commit() { self->at_work.push_back(std::move(self->issued)), self->issued.clear(); }
// Multiplies read shared memory, and registers that hold sums, as late as a kernel allows: when it waits for their group.
template <int Pending>
inline void wgmma_wait() {
    for (; self->at_work.size() > Pending; self->at_work.pop_front())
        for (const auto& multiply : self->at_work.front()) multiply();
}

struct Matrix {  // what a descriptor says; `across` counts rows of A or columns of B
    u32 low, high;
    bool transposed;
    int item;
    float operator()(u32 across, u32 k) const {
        const u32 kind = high >> 30, line = kind == 1 ? 128 : kind == 2 ? 64 : 32, mask = kind == 1 ? 7 : kind == 2 ? 3 : 1;
        const u32 begin = (low & 0x3fff) << 4, leading = (low >> 16 & 0x3fff) << 4, stride = (high & 0x3fff) << 4, each = line / item;
        const u32 plain = transposed ? begin + across / each * leading + k / 8 * stride + k % 8 * line + across % each * item
                                     : begin + across / 8 * stride + across % 8 * line + k * item;
        const unsigned char* p = at(plain ^ (plain >> 7 & mask) << 4, item);
        if (item == 4) { float v; std::memcpy(&v, p, 4); return as_tf32(v); }
        uint16_t bits;
        std::memcpy(&bits, p, 2);
        return wide(bits);
    }
};
template <int Count, class A>
inline void wgmma_sums(float (&sums)[Count], int depth, const A& a, const Matrix& b) {
    const unsigned t = lane_id() % 4;
    for (int i = 0; i < Count; ++i) {
        float sum = sums[i];
        for (int k = 0; k < depth; ++k) sum += a(i / 2 % 2, k) * b(i / 4 * 8 + t * 2 + i % 2, k);
        sums[i] = sum;
    }
}
template <int Count>
inline void wgmma_registers(float (&sums)[Count], const u32 (&a)[4], Matrix b) {
    const Operands* given = exchange(Operands{{a[0], a[1], a[2], a[3]}, {}});
    const unsigned g = lane_id() / 4;
    const std::vector<Operands> quad(given + g * 4, given + g * 4 + 4);
    self->issued.push_back([=, &sums] {
        if (b.item == 4) wgmma_sums(sums, 8, [&](int half, int k) { return as_tf32(__uint_as_float(quad[k % 4].a[k / 4 * 2 + half])); }, b);
        else wgmma_sums(sums, 16, [&](int half, int k) { return half_of(quad[k % 8 / 2].a[k / 8 * 2 + half], k % 2); }, b);
    });
}
template <int Count>
inline void wgmma_shared(float (&sums)[Count], Matrix a, Matrix b) {
    const unsigned row = self->index.x / 32 % 4 * 16 + lane_id() / 4;
    self->issued.push_back([=, &sums] { wgmma_sums(sums, b.item == 4 ? 8 : 16, [&](int half, int k) { return a(row + half * 8, k); }, b); });
}
