//% include "device/address.cuh"

// Have the compiler keep a pointer in registers instead of computing it again at each use.
template <class T>
__device__ __forceinline__ void keep(const T*& pointer) {
    asm volatile("" : "+l"(pointer));
}

//% include "device/swizzle.cuh"

// 16 bytes, past L1 (PTX: cp.async, sm_80).
__device__ __forceinline__ void cp_async_16(u32 shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
}

// 16 bytes, or 16 zeros when `valid` is false.
__device__ __forceinline__ void cp_async_16_or_zeros(u32 shared, const void* global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(valid ? 16 : 0) : "memory");
}

__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait until at most `Pending` of this thread's newest groups are still on their way.
template <int Pending>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}
