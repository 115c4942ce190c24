// Thread block clusters (PTX: barrier.cluster, mapa, multicast copies, sm_90).

// All threads of the cluster meet. Orders nothing else: barriers have a fence of their own, and no thread reads what another wrote.
__device__ __forceinline__ void cluster_sync() {
    __syncwarp();
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

// Arrive on the barrier that lies where `barrier` does, in the thread block of that rank. Only reads of shared memory come before it,
// so the scope of the thread block will do; that of the cluster would wait for the memory system at each arrival.
__device__ __forceinline__ void barrier_arrive_at(u32 barrier, u32 rank) {
    asm volatile(
        "{ .reg .b32 there;\n"
        "mapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there]; }" ::"r"(barrier), "r"(rank) : "memory");
}

// tma_load into every thread block whose bit is set in `ranks`, and their barriers.
__device__ __forceinline__ void tma_multicast(u32 shared, const TensorMap& map, int column, int row, u32 barrier, unsigned short ranks) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared),
        "l"(&map), "r"(column), "r"(row), "r"(barrier), "h"(ranks) : "memory");
}
