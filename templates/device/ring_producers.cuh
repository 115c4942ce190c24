// The two warps that load a ring meet (PTX: bar.sync): neither is a stage behind the other, where it would mistake one phase of a barrier
// for the next.
__device__ __forceinline__ void producers_sync(int ring) { asm volatile("bar.sync %0, 64;" ::"r"(ring + 1) : "memory"); }
