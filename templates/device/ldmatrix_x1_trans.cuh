__device__ __forceinline__ u32 ldmatrix_x1_trans(u32 address) {
    u32 r;
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r) : "r"(address) : "memory");
    return r;
}
