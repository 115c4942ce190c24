// A word of shared memory where a warp has one to load, else zero.
__device__ __forceinline__ u32 load_shared_if(u32 address, u32 used) {
    u32 word = 0;
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %2, 0;\n@p ld.shared.u32 %0, [%1]; }" : "+r"(word) : "r"(address), "r"(used) : "memory");
    return word;
}

// A word into shared memory.
__device__ __forceinline__ void store_shared(u32 address, float value) {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
}
