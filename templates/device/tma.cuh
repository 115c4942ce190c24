// Copies by the tensor memory accelerator (PTX: cp.async.bulk, sm_90); `barrier` counts their bytes.
struct alignas(64) TensorMap {
    unsigned long long words[16];
};

__device__ __forceinline__ void tma_prefetch(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// The box of a matrix that starts at (column, row), global -> shared; what lies outside the matrix becomes zeros.
__device__ __forceinline__ void tma_load(u32 shared, const TensorMap& map, int column, int row, u32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(shared),
        "l"(&map), "r"(column), "r"(row), "r"(barrier) : "memory");
}

// Consecutive bytes, a multiple of 16, global -> shared.
__device__ __forceinline__ void bulk_load(u32 shared, const void* global, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared),
                 "l"(global), "r"(bytes), "r"(barrier) : "memory");
}
