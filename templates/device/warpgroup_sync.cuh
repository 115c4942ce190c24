// The four warps of a warpgroup that multiplies meet (PTX: bar.sync); the warps that load have barriers 1 and 2.
__device__ __forceinline__ void warpgroup_sync() {
    __syncwarp();
    asm volatile("bar.sync %0, 128;" ::"r"(threadIdx.x / 128 + 3) : "memory");
}
