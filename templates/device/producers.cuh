// The four warps that load meet (PTX: bar.sync): none is a stage behind another, where it would mistake one phase of a barrier for the next.
__device__ __forceinline__ void producers_sync() { asm volatile("bar.sync 1, 128;" ::: "memory"); }
