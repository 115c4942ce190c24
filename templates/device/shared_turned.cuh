// A word of shared memory where a warp has one to load, else zero.
__device__ __forceinline__ u32 load_shared_if(u32 address, u32 used) {
    u32 word = 0;
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %2, 0;\n@p ld.shared.u32 %0, [%1]; }" : "+r"(word) : "r"(address), "r"(used) : "memory");
    return word;
}

// A word into shared memory, and 16 bytes out of it.
__device__ __forceinline__ void store_shared(u32 address, float value) {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
}

__device__ __forceinline__ float4 load_shared_4(u32 address) {
    float4 v;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(address) : "memory");
    return v;
}
