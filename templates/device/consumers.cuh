// The warps that multiply meet (PTX: bar.sync).
template <int Threads>
__device__ __forceinline__ void consumers_sync() {
    asm volatile("bar.sync 2, %0;" ::"n"(Threads) : "memory");
}
