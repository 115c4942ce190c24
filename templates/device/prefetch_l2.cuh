// The line of device memory that holds an address -> L2 (PTX: prefetch).
__device__ __forceinline__ void prefetch_l2(const void* global) { asm volatile("prefetch.global.L2 [%0];" ::"l"(global) : "memory"); }
