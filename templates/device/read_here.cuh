// Has a value that a table gives read here, not where it is needed.
template <class T>
__device__ __forceinline__ void read_here(T& value) {
    asm volatile("" : "+r"(value));
}
