// A plain load from shared memory by 32-bit address (PTX: ld.shared).
__device__ __forceinline__ u32 load_word(u32 address) {
    u32 bits;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(bits) : "r"(address) : "memory");
    return bits;
}
