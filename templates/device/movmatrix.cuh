// The 8 x 8 matrix of 16-bit elements that a warp holds as mma.sync's results, two of a row a lane, transposed (PTX: movmatrix, sm_75).
__device__ __forceinline__ u32 transposed(u32 r) {
    u32 t;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(t) : "r"(r));
    return t;
}
