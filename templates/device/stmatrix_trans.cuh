// The same, each matrix transposed: lane l gives what becomes of column l % 8 of matrix l / 8.
__device__ __forceinline__ void stmatrix_x4_trans(u32 address, const u32 (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r[0]), "r"(r[1]), "r"(r[2]),
                 "r"(r[3]) : "memory");
}
