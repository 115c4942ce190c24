// How L2 is to treat lines that are read once: it evicts them first (PTX: createpolicy, cache hints of cp.async.bulk).
__device__ __forceinline__ unsigned long long evict_first() {
    unsigned long long policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
