// The machine that kernels run on (see machine.h).
#undef _FORTIFY_SOURCE  // which takes a jump from one stack to another for a mistake
#include "machine.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <random>
#include <unordered_map>
#include <vector>

void fail(const char* what, long long value) {
    std::fprintf(stderr, "emulator: %s (%lld)\n", what, value);
    std::exit(3);
}

// --- threads -----------------------------------------------------------------------------------------------------------------------

Thread* self;
dim3 grid, block_size;

namespace {

constexpr size_t kStackBytes = 64 * 1024;

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
    int here = 0;
    u32 generation = 0;
};
struct Warp {
    Meeting meeting;
    alignas(16) Slot data[2][32];
};
struct Block : ThreadBlock {
    std::vector<unsigned char> memory;
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
struct Fiber : Thread {
    ucontext_t context;  // where it begins
    jmp_buf place;       // where it goes on, once it has begun
    std::vector<unsigned char> stack;
    const u32* word;  // it waits while this is `value`, if it is not null
    u32 value;
    bool begun, done;
    std::vector<std::function<void()>> issued;               // its multiplies that are in no group yet
    std::deque<std::vector<std::function<void()>>> at_work;  // groups of them, the oldest first
    bool waits() const { return word && *word == value; }
};

std::vector<Fiber> fibers;
std::vector<Block> blocks;  // of one cluster
std::deque<Copy> copies;
jmp_buf scheduler;
std::mt19937 chance;
Meeting cluster_meeting;
long long idle;

Fiber& fiber() { return static_cast<Fiber&>(*self); }
Block& block() { return static_cast<Block&>(*self->block); }
Warp& warp() { return block().warps[self->index.x / 32]; }

void end_of_thread() {
    if (!fiber().issued.empty() || !fiber().at_work.empty()) fail("a thread ends while its multiplies are at work");
    fiber().done = true, --block().threads, idle = 0;
}

constexpr int kLong = 200, kShort = 20, kVeryLong = 4000, kPatience = 60000;  // rounds: of what is late, and until nothing can come any more

// Rounds until a copy or an arrival lands: mostly few, now and then many.
int late() {
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

// From the scheduler to a thread and back. Only to begin takes setcontext, which is slow: it calls the system, for signals.
void resume(Fiber& fiber) {
    self = &fiber;
    if (_setjmp(scheduler)) return;
    if (fiber.begun) _longjmp(fiber.place, 1);
    fiber.begun = true, setcontext(&fiber.context);
}
void leave() {
    if (!_setjmp(fiber().place)) _longjmp(scheduler, 1);
}
// Let others run until a word is another than it was; the scheduler looks, which is faster than to come back and look.
void wait_while(const u32& word, u32 value) {
    if (word != value) return;
    fiber().word = &word, fiber().value = value;
    leave();
    fiber().word = nullptr;
}
void meet(Meeting& meeting, int count) {
    const u32 generation = meeting.generation;
    if (++meeting.here == count) meeting.here = 0, ++meeting.generation;
    else wait_while(meeting.generation, generation);
    idle = 0;
}

}  // namespace

const Slot* exchange(const void* value, size_t bytes) {
    Warp& mine = warp();
    auto& data = mine.data[mine.meeting.generation % 2];
    std::memcpy(data[lane_id()], value, bytes);
    meet(mine.meeting, 32);
    return data;
}
void __syncwarp() { meet(warp().meeting, 32); }
void named_barrier(int which, int threads) { meet(block().named[which], threads); }
void __syncthreads() { named_barrier(0, block_size.x); }
void cluster_sync() { meet(cluster_meeting, static_cast<int>(fibers.size())); }
u32 __ballot_sync(u32, bool vote) {
    const auto found = exchange(vote);
    u32 votes = 0;
    for (u32 lane = 0; lane < 32; ++lane) votes |= u32(found[lane]) << lane;
    return votes;
}

void launch(unsigned count, unsigned threads, unsigned cluster, unsigned seed, void (*body)(const void*), const void* kernel) {
    static std::function<void()> thread;
    thread = [=] { body(kernel), end_of_thread(), leave(); };
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
            Block& block = blocks[i / threads];
            fiber.block = &block, fiber.index.x = i % threads, fiber.begun = fiber.done = false, fiber.word = nullptr;
            fiber.stack.resize(kStackBytes);
            ++block.threads;
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.data(), fiber.context.uc_stack.ss_size = kStackBytes;
            makecontext(&fiber.context, +[] { thread(); }, 0);
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
                Fiber* const lanes = &fibers[w * 32];
                if (std::all_of(lanes, lanes + 32, [](const Fiber& fiber) { return fiber.done; })) continue;
                more = true;
                if (waits[w / (threads / 32)] || warps[w].stands(kLong / 2, kLong)) continue;
                for (Fiber* lane = lanes; lane < lanes + 32; ++lane)
                    if (!lane->done && !lane->waits()) resume(*lane);
            }
            for (size_t i = 0; i < copies.size();)
                if (--copies[i].delay <= 0) copies[i].land(), copies.erase(copies.begin() + i), idle = 0;
                else ++i;
            if (++idle > kPatience) fail("every thread waits for something that does not come");
        }
        if (!copies.empty()) fail("copies on their way at the end of a thread block");
    }
}

Operand::Operand(const char* file) : name(file) {
    FILE* f = std::fopen(file, "rb");
    if (!f) return;
    std::fseek(f, 0, SEEK_END), size = std::ftell(f), std::rewind(f);
    memory = static_cast<unsigned char*>(std::calloc(size + 256, 1));
    if (std::fread(data(), 1, size, f) != size) fail("cannot read");
    std::fclose(f);
}
void Operand::write() const {
    FILE* f = std::fopen(name, "wb");
    std::fwrite(data(), 1, size, f), std::fclose(f);
}

// --- copies and barriers ---------------------------------------------------------------------------------------------------------------

void cp_async_16(u32 shared, const void* global) {
    if (reinterpret_cast<uintptr_t>(global) % 16) fail("cp.async from a misaligned address");
    std::memcpy(at(shared, 16), global, 16);
}
void cp_async_16_or_zeros(u32 shared, const void* global, bool valid) {
    if (valid) cp_async_16(shared, global);
    else std::memset(at(shared, 16), 0, 16);
}
void store_global_chunk(void* global, uint4 v) {
    if (reinterpret_cast<uintptr_t>(global) % 16) fail("a store to a misaligned address");
    std::memcpy(global, &v, 16);
}

void barrier_init(u32 barrier, int arrivals) {
    Barrier& b = block().barrier(barrier);
    b.ready = true, b.expected = b.pending = arrivals;
}
void barrier_arrive(u32 barrier) {
    Barrier& b = block().barrier(barrier);
    --b.pending, b.settle(), idle = 0;
}
void barrier_expect(u32 barrier, u32 bytes) {
    Barrier& b = block().barrier(barrier);
    b.bytes += bytes, --b.pending, b.settle(), idle = 0;
}
void barrier_wait(u32 barrier, u32 parity) {
    Barrier& b = block().barrier(barrier);
    if (!b.ready) fail("wait on a barrier that was not made", barrier);
    wait_while(b.phase, parity);  // complete when the current phase is another than that of `parity`
    idle = 0;
}
void barrier_arrive_at(u32 barrier, u32 rank) {
    Barrier& b = blocks[rank].barrier(barrier);
    if (!b.ready) fail("arrival on a neighbour's barrier that was not made", barrier);
    // It takes its time, which nothing but a wait on that barrier sees.
    Block* const there = &blocks[rank];
    copies.push_back({chance() % 40 ? late() : static_cast<int>(chance() % kVeryLong), [=, &b] {
        if (!there->threads) fail("an arrival at a thread block that has ended");
        --b.pending, b.settle();
    }});
}

static void start(Block& block, u32 barrier, long long bytes, std::function<void()> land) {
    Barrier* b = &block.barrier(barrier);
    if (!b->ready) fail("copy for a barrier that was not made", barrier);
    copies.push_back({late(), [=] { land(), b->bytes -= bytes, b->settle(); }});
}
static void round_to_tf32(unsigned char* place) {
    u32 bits;
    std::memcpy(&bits, place, 4);
    bits = tf32(bits);
    std::memcpy(place, &bits, 4);
}
static void land_box(const Block& block, u32 shared, const TensorMap& map, int column, int row) {
    const int line = map.box_columns * map.item;
    for (int r = 0; r < map.box_rows; ++r)
        for (int byte = 0; byte < line; byte += 16) {
            const u32 place = shared + r * line + byte;
            const u32 there = line == 128 ? place ^ (place >> 7 & 7) << 4 : line == 64 ? place ^ (place >> 7 & 3) << 4 : place ^ (place >> 7 & 1) << 4;
            const long long c = column + byte / map.item;
            unsigned char* to = at(there, 16, &block);
            for (int i = 0; i < 16 / map.item; ++i) {
                const bool inside = row + r >= 0 && row + r < map.rows && c + i >= 0 && c + i < map.columns;
                if (inside) std::memcpy(to + i * map.item, map.base + ((row + r) * map.columns + c + i) * map.item, map.item);
                else std::memset(to + i * map.item, 0, map.item);
                if (map.item == 4) round_to_tf32(to + i * 4);
            }
        }
}
static void tma_load_at(Block& block, u32 shared, const TensorMap& map, int column, int row, u32 barrier) {
    const int line = map.box_columns * map.item;
    if (line != 32 && line != 64 && line != 128) fail("a row of a box is no swizzle line", line);
    if (shared % (8 * line)) fail("a box starts inside a swizzle atom", shared);
    std::memset(at(shared, 16, &block), 0xff, line * map.box_rows);  // NaN until it lands: it may be written from now on
    start(block, barrier, static_cast<long long>(line) * map.box_rows, [=, &block] { land_box(block, shared, map, column, row); });
}
void tma_load(u32 shared, const TensorMap& map, int column, int row, u32 barrier) { tma_load_at(block(), shared, map, column, row, barrier); }
void tma_multicast(u32 shared, const TensorMap& map, int column, int row, u32 barrier, unsigned short ranks) {
    for (unsigned rank = 0; rank < blocks.size(); ++rank)
        if (ranks >> rank & 1) tma_load_at(blocks[rank], shared, map, column, row, barrier);
}
void bulk_load(u32 shared, const void* global, u32 bytes, u32 barrier) {
    if (bytes % 16 || bytes == 0 || shared % 16 || reinterpret_cast<uintptr_t>(global) % 16) fail("a bulk copy is not of whole chunks", bytes);
    unsigned char* const there = at(shared, 16);
    at(shared + bytes - 16, 16);
    std::memset(there, 0xff, bytes);
    start(block(), barrier, bytes, [=] { std::memcpy(there, global, bytes); });
}
void tma_load_evicted(u32 shared, const TensorMap& map, int column, int row, u32 barrier, unsigned long long policy) {
    if (policy != 1) fail("a cache policy that is none", static_cast<long long>(policy));
    tma_load(shared, map, column, row, barrier);
}
void bulk_load_evicted(u32 shared, const void* global, u32 bytes, u32 barrier, unsigned long long policy) {
    if (policy != 1) fail("a cache policy that is none", static_cast<long long>(policy));
    bulk_load(shared, global, bytes, barrier);
}

// --- multiplies of warps ---------------------------------------------------------------------------------------------------------------

void ldmatrix(u32* r, int count, u32 address, bool transposed) {
    const auto all = exchange(address);
    const unsigned lane = lane_id();
    for (int i = 0; i < count; ++i) {
        uint16_t two[2];
        for (unsigned e = 0; e < 2; ++e) {
            const unsigned row = transposed ? lane % 4 * 2 + e : lane / 4, column = transposed ? lane / 4 : lane % 4 * 2 + e;
            std::memcpy(&two[e], at(all[i * 8 + row], 16) + column * 2, 2);
        }
        r[i] = two[0] | static_cast<u32>(two[1]) << 16;
    }
}
u32 transposed(u32 r) {
    const auto all = exchange(r);
    const unsigned lane = lane_id(), row = lane / 4, shift = row % 2 * 16;
    const auto element = [&](unsigned line) { return all[line * 4 + row / 2] >> shift & 0xffff; };
    return element(lane % 4 * 2) | element(lane % 4 * 2 + 1) << 16;
}
void stmatrix_x4_trans(u32 address, const u32 (&r)[4]) {
    const auto all = exchange(address);
    const unsigned lane = lane_id();
    for (unsigned i = 0; i < 4; ++i)
        for (unsigned e = 0; e < 2; ++e) {
            const uint16_t bits = static_cast<uint16_t>(r[i] >> e * 16);
            std::memcpy(at(all[i * 8 + lane % 4 * 2 + e], 16) + lane / 4 * 2, &bits, 2);
        }
}
void stmatrix_x4(u32 address, const u32 (&r)[4]) {
    const auto all = exchange(address);
    const unsigned lane = lane_id();
    for (unsigned i = 0; i < 4; ++i) std::memcpy(at(all[i * 8 + lane / 4], 16) + lane % 4 * 4, &r[i], 4);
}

// Rows lane / 4 and lane / 4 + 8 of A times columns lane % 4 * 2 and the next of each 8 of B, which a(half, k) and b(column, k) read once each.
template <class A, class B>
static void multiply(float* sums, int count, int depth, const A& a, const B& b) {
    float left[2][16], right[16];
    for (int half = 0; half < 2; ++half)
        for (int k = 0; k < depth; ++k) left[half][k] = a(half, k);
    for (int i = 0; i < count; i += 4)
        for (int e = 0; e < 2; ++e) {
            for (int k = 0; k < depth; ++k) right[k] = b(i * 2 + lane_id() % 4 * 2 + e, k);
            for (int half = 0; half < 2; ++half)
                for (int k = 0; k < depth; ++k) sums[i + half * 2 + e] += left[half][k] * right[k];
        }
}
template <bool Brain>
static float half_of(u32 bits, int which) { return wide<Brain>(which ? bits >> 16 : bits & 0xffff); }
template <bool Brain>
void multiply_16bit(float (&d)[4], const Operands& mine, int halves) {
    const auto all = exchange(mine);
    const unsigned g = lane_id() / 4;
    multiply(d, 4, halves * 8, [&](int half, int k) { return half_of<Brain>(all[g * 4 + k % 8 / 2].a[k / 8 * 2 + half], k % 2); },
             [&](int column, int k) { return half_of<Brain>(all[column * 4 + k % 8 / 2].b[k / 8], k % 2); });
}
template void multiply_16bit<false>(float (&)[4], const Operands&, int);
template void multiply_16bit<true>(float (&)[4], const Operands&, int);
void multiply_tf32(float (&d)[4], const Operands& mine) {
    const auto all = exchange(mine);
    const unsigned g = lane_id() / 4;
    multiply(d, 4, 8, [&](int half, int k) { return __uint_as_float(all[g * 4 + k % 4].a[k / 4 * 2 + half]); },
             [&](int column, int k) { return __uint_as_float(all[column * 4 + k % 4].b[k / 4]); });
}

// --- multiplies of warpgroups ----------------------------------------------------------------------------------------------------------

static float as_tf32(float v) {  // an operand of a multiply, which cuts bits off: none may be there
    if ((__float_as_uint(v) & 0x1fff) && !std::isnan(v)) fail("an operand of TF32 that was not rounded", __float_as_uint(v));
    return v;
}
// An element of shared memory; `across` counts rows of A or columns of B.
template <bool Brain>
static float element(const Matrix& m, u32 across, u32 k) {
    const u32 kind = m.high >> 30, line = kind == 1 ? 128 : kind == 2 ? 64 : 32, mask = kind == 1 ? 7 : kind == 2 ? 3 : 1;
    const u32 begin = (m.low & 0x3fff) << 4, leading = (m.low >> 16 & 0x3fff) << 4, stride = (m.high & 0x3fff) << 4, each = line / m.item;
    const u32 plain = m.transposed ? begin + across / each * leading + k / 8 * stride + k % 8 * line + across % each * m.item
                                   : begin + across / 8 * stride + across % 8 * line + k * m.item;
    const u32 place = plain ^ (plain >> 7 & mask) << 4;
    if (m.item == 4) return as_tf32(__uint_as_float(ld_word(place)));
    uint16_t bits;
    std::memcpy(&bits, at(place, 2), 2);
    return wide<Brain>(bits);
}
template <bool Brain, class A>
static void wgmma_sums(float* sums, int count, const A& a, const Matrix& b) {
    multiply(sums, count, b.item == 4 ? 8 : 16, a, [&](int column, int k) { return element<Brain>(b, column, k); });
}
template <bool Brain>
void wgmma_registers(float* sums, int count, const u32 (&a)[4], const Matrix& b) {
    const auto all = exchange(Operands{{a[0], a[1], a[2], a[3]}, {}});
    const unsigned g = lane_id() / 4;
    const std::vector<Operands> quad{all[g * 4], all[g * 4 + 1], all[g * 4 + 2], all[g * 4 + 3]};
    fiber().issued.push_back([=] {
        const auto from_tf32 = [&](int half, int k) { return as_tf32(__uint_as_float(quad[k % 4].a[k / 4 * 2 + half])); };
        const auto from_16bit = [&](int half, int k) { return half_of<Brain>(quad[k % 8 / 2].a[k / 8 * 2 + half], k % 2); };
        if (b.item == 4) wgmma_sums<Brain>(sums, count, from_tf32, b);
        else wgmma_sums<Brain>(sums, count, from_16bit, b);
    });
}
template <bool Brain>
void wgmma_shared(float* sums, int count, const Matrix& a, const Matrix& b) {
    const unsigned row = self->index.x / 32 % 4 * 16 + lane_id() / 4;
    fiber().issued.push_back([=] { wgmma_sums<Brain>(sums, count, [&](int half, int k) { return element<Brain>(a, row + half * 8, k); }, b); });
}
template void wgmma_registers<false>(float*, int, const u32 (&)[4], const Matrix&);
template void wgmma_registers<true>(float*, int, const u32 (&)[4], const Matrix&);
template void wgmma_shared<false>(float*, int, const Matrix&, const Matrix&);
template void wgmma_shared<true>(float*, int, const Matrix&, const Matrix&);

void wgmma_commit() { fiber().at_work.push_back(std::move(fiber().issued)), fiber().issued.clear(); }
// Multiplies read shared memory, and registers that hold sums, as late as a kernel allows: when it waits for their group.
void wgmma_wait_until(size_t pending) {
    for (auto& groups = fiber().at_work; groups.size() > pending; groups.pop_front())
        for (const auto& multiply : groups.front()) multiply();
}
