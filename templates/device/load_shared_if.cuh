// A word of shared memory where `used` is 1, and none is loaded but zero given where it is 0. The `and` writes the register either
// way: a word that is loaded or not, as an operand of wgmma, ptxas would wait for there (C7513).
__device__ __forceinline__ u32 load_shared_if(u32 address, u32 used) {
    u32 word = 0;
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %2, 0;\n@p ld.shared.u32 %0, [%1]; }" : "+r"(word) : "r"(address), "r"(used) : "memory");
    return word & 0 - used;
}
