// A value that all threads of a warp read alike: keeps what depends on it in uniform registers.
__device__ __forceinline__ u32 uniform(u32 value) {
    return __shfl_sync(~0u, value, 0);
}
