// Stores by the tensor memory accelerator (PTX: cp.async.bulk.tensor, bulk groups), in groups of a thread.
__device__ __forceinline__ void tma_store(const TensorMap& map, int column, int row, u32 shared) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map), "r"(column), "r"(row), "r"(shared) : "memory");
}
__device__ __forceinline__ void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Wait until at most `Pending` of this thread's newest groups still read shared memory.
template <int Pending>
__device__ __forceinline__ void bulk_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(Pending) : "memory");
}
// What this thread wrote to shared memory is there for the copy engine.
__device__ __forceinline__ void copy_engine_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
