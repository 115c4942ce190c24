// bulk_load of lines that L2 evicts first.
__device__ __forceinline__ void bulk_load_evicted(u32 shared, const void* global, u32 bytes, u32 barrier, unsigned long long policy) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(shared),
                 "l"(global), "r"(bytes), "r"(barrier), "l"(policy) : "memory");
}
