// The line of an address, from device memory into L2 (PTX: prefetch).
__device__ __forceinline__ void prefetch_l2(const void* global) { asm volatile("prefetch.global.L2 [%0];" ::"l"(global)); }
