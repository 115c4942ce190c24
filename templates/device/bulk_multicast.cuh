// bulk_load into every thread block of the cluster whose bit is set in `ranks`, and their barriers (PTX: cp.async.bulk, multicast).
__device__ __forceinline__ void bulk_multicast(u32 shared, const void* global, u32 bytes, u32 barrier, unsigned short ranks) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(shared),
                 "l"(global), "r"(bytes), "r"(barrier), "h"(ranks) : "memory");
}
