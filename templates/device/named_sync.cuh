// So many threads meet, by the number of their barrier (PTX: bar.sync); 0 is __syncthreads, 1 the warps that load.
__device__ __forceinline__ void named_sync(int barrier, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory"); }
