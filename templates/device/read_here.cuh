// Has a value read from memory here, not where it is needed.
template <class T>
__device__ __forceinline__ void read_here(T& value) {
    asm volatile("" : "+r"(value));
}
