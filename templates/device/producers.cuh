// The warps that load meet (PTX: bar.sync): none is a stage behind another, where it would mistake one phase of a barrier for the next.
template <int Threads = 128>
__device__ __forceinline__ void producers_sync() {
    asm volatile("bar.sync 1, %0;" ::"n"(Threads) : "memory");
}
