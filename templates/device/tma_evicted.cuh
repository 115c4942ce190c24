// tma_load of lines that L2 evicts first.
__device__ __forceinline__ void tma_load_evicted(u32 shared, const TensorMap& map, int column, int row, u32 barrier, unsigned long long policy) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared),
        "l"(&map), "r"(column), "r"(row), "r"(barrier), "l"(policy) : "memory");
}
